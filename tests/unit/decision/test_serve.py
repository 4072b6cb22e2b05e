"""The socket server over a real Unix socket: who may ask, and clients that are slow, hostile or gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.errors import BackendUnavailable, ConfigError, InternalError, Refused
from slurm_hooks import serve, wire
from slurm_hooks.serve import Fields, Peer

ME = frozenset({os.geteuid()})
NOT_ME = frozenset({os.geteuid() + 1})


async def echo(fields: Fields, peer: Peer) -> dict[str, bytes | str]:
    return {"verdict": "allow", "said": fields.get("say", b""), "uid": str(peer.uid), "pid": str(peer.pid)}


async def nothing(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
    return None  # type: ignore[return-value]  # a handler that falls off its end


async def no_verdict(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
    return {"verdict": "perhaps"}


async def asleep(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
    await asyncio.sleep(60)
    return {"verdict": "allow"}


async def broken(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
    raise RuntimeError("canary")


async def refuses(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
    raise Refused("some.rule", "no", advice="do this")


async def unavailable(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
    raise BackendUnavailable("Vault is sealed", advice="wait")


async def internal(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
    raise InternalError("cannot be")


async def unencodable(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
    return {"verdict": "allow", "BAD": "x"}


async def too_much(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
    return {"verdict": "allow", "x": b"x" * wire.MAX_BODY}


HANDLERS: serve.Handlers = {
    "echo": (ME, echo),
    "others": (NOT_ME, echo),
    "nobody": (frozenset(), echo),
    "nothing": (ME, nothing),
    "no_verdict": (ME, no_verdict),
    "asleep": (ME, asleep),
    "broken": (ME, broken),
    "refuses": (ME, refuses),
    "unavailable": (ME, unavailable),
    "internal": (ME, internal),
    "unencodable": (ME, unencodable),
    "too_much": (ME, too_much),
}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Use = Callable[[str], Awaitable[None]]


def run(tmp_path: Path, use: Use, *, handlers: serve.Handlers = HANDLERS, deadline: float = 0.2) -> None:
    async def main() -> None:
        path = str(tmp_path / "s")
        async with await serve.serve(path, handlers, mode=0o660, group=None, deadline=deadline):
            await asyncio.wait_for(use(path), 20)

    asyncio.run(main())


async def answer_from(reader: asyncio.StreamReader) -> Fields:
    return wire.decode_body(await reader.readexactly(wire.decode_header(await reader.readuntil(b"\n"))))


async def ask(streams: Streams, **fields: bytes | str) -> Fields:
    reader, writer = streams
    writer.write(wire.encode({"nonce": "n1", **fields}))
    return await answer_from(reader)


@pytest.mark.parametrize(
    ("verb", "rule", "kept"),
    [
        ("others", b"peer.refused", False),
        ("nobody", b"peer.refused", False),
        ("unknown", b"wire.verb", False),
        ("", b"wire.verb", False),
        ("nothing", b"engine.no-verdict", True),
        ("no_verdict", b"engine.no-verdict", True),
        ("asleep", b"engine.timeout", False),
        ("broken", b"engine.error", True),
        ("refuses", b"some.rule", True),
        ("unavailable", b"backend.unavailable", True),
        ("internal", b"engine.error", True),
        ("unencodable", b"engine.error", True),
        ("too_much", b"engine.error", True),
    ],
)
def test_refused(tmp_path: Path, verb: str, rule: bytes, kept: bool) -> None:
    async def use(path: str) -> None:
        streams = await asyncio.open_unix_connection(path)
        answer = await ask(streams, verb=verb)

        assert (answer["verdict"], answer["rule"], answer["nonce"]) == (b"refuse", rule, b"n1")
        assert answer["message"]
        assert b"canary" not in b"".join(answer.values())
        if kept:
            assert (await ask(streams, verb="echo"))["verdict"] == b"allow"
        else:
            assert await streams[0].read() == b""

    run(tmp_path, use)


def test_the_peer_is_read_from_the_kernel(tmp_path: Path) -> None:
    async def use(path: str) -> None:
        streams = await asyncio.open_unix_connection(path)
        answer = await ask(streams, verb="echo", say=b"\x00\n\xff", uid="12345")

        assert answer["said"] == b"\x00\n\xff"
        assert (answer["uid"], answer["pid"]) == (str(os.geteuid()).encode(), str(os.getpid()).encode())

    run(tmp_path, use)


def test_a_user_who_may_ask_nothing_learns_nothing(tmp_path: Path) -> None:
    async def use(path: str) -> None:
        answer = await ask(await asyncio.open_unix_connection(path), verb="no such verb")

        assert answer["rule"] == b"peer.refused"

    run(tmp_path, use, handlers={"echo": (NOT_ME, echo)})


@pytest.mark.parametrize(
    "message",
    [
        b"x",
        b"garbage\n",
        b"SS2 0\n",
        b"SS1 1048577\n",
        b"SS1 00\n",
        b"SS1 5\nabcde",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x00" * 100,
        b"SS1 12\n1:a,1:b,1:a,",
    ],
)
def test_garbage_is_answered_with_a_refusal_and_the_end(tmp_path: Path, message: bytes) -> None:
    async def use(path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(message)
        writer.write_eof()

        assert (await answer_from(reader))["verdict"] == b"refuse"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(1)
        assert (await ask(await asyncio.open_unix_connection(path), verb="echo"))["verdict"] == b"allow"

    run(tmp_path, use)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=60) | st.just(b"SS1 10\n"), max_size=4))
def test_no_client_stops_the_server(tmp_path: Path, parts: list[bytes]) -> None:
    async def use(path: str) -> None:
        _, writer = await asyncio.open_unix_connection(path)
        for part in parts:
            writer.write(part)
        writer.close()

        assert (await ask(await asyncio.open_unix_connection(path), verb="echo"))["verdict"] == b"allow"

    run(tmp_path, use)


def test_no_nonce(tmp_path: Path) -> None:
    async def use(path: str) -> None:
        assert (await ask(await asyncio.open_unix_connection(path), verb="echo", nonce=""))["rule"] == b"wire.nonce"
        answer = await ask(await asyncio.open_unix_connection(path), verb="echo", nonce="a b\n")
        assert (answer["rule"], answer["nonce"]) == (b"wire.nonce", b"")

    run(tmp_path, use)


@pytest.mark.parametrize("message", [b"S", b"SS1 100", b"SS1 100\n4:verb,"])
def test_a_slow_client_is_given_up(tmp_path: Path, message: bytes) -> None:
    async def use(path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(message)

        assert (await answer_from(reader))["rule"] == b"wire.timeout"
        assert await reader.read() == b""

    run(tmp_path, use, deadline=0.05)


def test_an_idle_connection_is_kept(tmp_path: Path) -> None:
    async def use(path: str) -> None:
        streams = await asyncio.open_unix_connection(path)
        assert (await ask(streams, verb="echo"))["verdict"] == b"allow"
        await asyncio.sleep(1)

        assert (await ask(streams, verb="echo"))["verdict"] == b"allow"

    run(tmp_path, use, deadline=0.5)


def test_a_client_that_does_not_read_is_given_up(tmp_path: Path) -> None:
    async def big(_fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        return {"verdict": "allow", "x": b"x" * 900_000}

    async def use(path: str) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.setblocking(False)
            await loop.sock_connect(deaf, path)
            await loop.sock_sendall(deaf, wire.encode({"nonce": "n", "verb": "big"}) * 3)
            await asyncio.sleep(0.3)
            got = 0
            while part := await loop.sock_recv(deaf, 1 << 20):
                got += len(part)
            assert got < 900_000

    run(tmp_path, use, handlers={"big": (ME, big)}, deadline=0.05)


def test_many_clients_at_once(tmp_path: Path) -> None:
    async def use(path: str) -> None:
        async def one(number: int) -> None:
            streams = await asyncio.open_unix_connection(path)
            for _ in range(5):
                assert (await ask(streams, verb="echo", say=str(number)))["said"] == str(number).encode()
            streams[1].close()

        await asyncio.gather(*(one(number) for number in range(50)))

    run(tmp_path, use, deadline=5)


def test_too_many_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 2)

    async def use(path: str) -> None:
        kept = [await asyncio.open_unix_connection(path) for _ in range(2)]
        for streams in kept:
            await ask(streams, verb="echo")
        reader, _ = await asyncio.open_unix_connection(path)

        assert await reader.read() == b""
        assert (await ask(kept[0], verb="echo"))["verdict"] == b"allow"

    run(tmp_path, use)


def test_the_socket_file(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main() -> None:
        listener = await serve.serve(str(path), HANDLERS, mode=0o620, group=os.getegid(), deadline=1)
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o620
        assert found.st_gid == os.getegid()
        with pytest.raises(ConfigError, match="another daemon"):
            await serve.serve(str(path), HANDLERS, mode=0o600, group=None, deadline=1)
        await listener.close()
        await listener.close()
        assert not path.exists()

    asyncio.run(main())


def test_a_dead_socket_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    run(tmp_path, lambda _path: asyncio.sleep(0))
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        run(tmp_path, lambda _path: asyncio.sleep(0))
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not a socket"):
        run(tmp_path, lambda _path: asyncio.sleep(0))


def test_no_folder_to_listen_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        run(tmp_path / "absent", lambda _path: asyncio.sleep(0))


def test_closing_leaves_a_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main() -> None:
        listener = await serve.serve(str(path), HANDLERS, mode=0o600, group=None, deadline=1)
        path.rename(tmp_path / "moved")
        path.write_text("new")
        await listener.close()

    asyncio.run(main())
    assert path.read_text() == "new"


OPEN: serve.Handlers = {"anybody": (None, echo), "others": (NOT_ME, echo)}


def test_a_verb_for_whoever_can_connect(tmp_path: Path) -> None:
    async def use(path: str) -> None:
        streams = await asyncio.open_unix_connection(path)
        answer = await ask(streams, verb="anybody")
        assert (answer["verdict"], answer["uid"]) == (b"allow", str(os.geteuid()).encode())
        assert (await ask(streams, verb="others"))["rule"] == b"peer.refused"
        streams = await asyncio.open_unix_connection(path)
        assert (await ask(streams, verb="unknown"))["rule"] == b"wire.verb"

    run(tmp_path, use, handlers=OPEN)


def test_one_user_has_only_so_many_connections(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "s")
        async with await serve.serve(path, OPEN, mode=0o660, group=None, deadline=5, most_of_one=2):
            kept = [await asyncio.open_unix_connection(path) for _ in range(2)]
            for streams in kept:
                await ask(streams, verb="anybody")
            reader, _ = await asyncio.open_unix_connection(path)
            assert await reader.read() == b""
            kept[0][1].close()
            while True:
                streams = await asyncio.open_unix_connection(path)
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    assert (await ask(streams, verb="anybody"))["verdict"] == b"allow"
                    return

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_socket_that_was_handed_over_is_still_there_afterwards(tmp_path: Path) -> None:
    """Whoever gave it goes on listening, and starts the daemon when somebody comes."""
    path = str(tmp_path / "s")

    async def main(given: socket.socket) -> None:
        async with await serve.serve(path, HANDLERS, mode=0o660, group=None, deadline=5, given=given):
            assert (await ask(await asyncio.open_unix_connection(path), verb="echo"))["verdict"] == b"allow"

    with socket.socket(socket.AF_UNIX) as systemds:
        systemds.bind(path)
        systemds.listen()
        for _ in range(2):
            asyncio.run(main(systemds.dup()))
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(path)
