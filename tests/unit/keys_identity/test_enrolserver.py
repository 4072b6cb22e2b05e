"""The port where strangers speak: what they get, and that nothing they do keeps the next one from being served."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BackendUnavailable, ConfigError
from conf.site import Enrol
from slurm_hooks import enrolserver, link, wire
from slurm_hooks.answering import Answer, Fields
from slurm_hooks.enrolment import exchange
from slurm_hooks.enrolserver import EnrolServer, Limit
from tests.testbed.pki import CA, Pair

CLIENTS = ThreadPoolExecutor(20)
ASK: dict[str, bytes | str] = {"verb": "enrol", "node": "n1"}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CA:
    return CA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def head(ca: CA) -> Pair:
    return ca.server("head", ["127.0.0.1"])


def enrol_of(ca: CA, pair: Pair) -> Enrol:
    return Enrol(
        listen="127.0.0.1:0",
        certificate=str(pair.certificate),
        private_key=str(pair.private_key),
        ca_file=str(ca.certificate),
    )


class Judge:
    """Answers, and notes who has asked; ``wait`` holds it up."""

    def __init__(self) -> None:
        self.asked: list[tuple[Fields, str, bytes | None]] = []
        self.wait: threading.Event | None = None
        self.at_once = self.most = 0
        self.answer: Answer = {"verdict": "allow", "certificate": "pem"}

    def __call__(self, fields: Fields, address: str, certificate: bytes | None) -> Answer:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.asked.append((fields, address, certificate))
        if self.wait is not None:
            self.wait.wait(20)
        self.at_once -= 1
        return self.answer


Act = Callable[[EnrolServer, Judge], Awaitable[Any]]


def run(ca: CA, head: Pair, act: Act, **how: Any) -> Any:
    async def both() -> Any:
        judge = Judge()
        async with asyncio.timeout(50), EnrolServer(enrol_of(ca, head), judge, **how) as server:
            return await act(server, judge)

    return asyncio.run(both())


async def ask(server: EnrolServer, context: ssl.SSLContext, fields: dict[str, bytes | str] = ASK) -> dict[str, bytes]:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(CLIENTS, exchange, f"127.0.0.1:{server.port}", context, fields)


async def plain(server: EnrolServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.port)


async def secured(server: EnrolServer, ca: CA) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = link.trusting_context(str(ca.certificate))
    return await asyncio.open_connection("127.0.0.1", server.port, ssl=context, server_hostname="127.0.0.1")


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What came until the other side hung up."""
    got = b""
    try:
        async with asyncio.timeout(20):
            while part := await reader.read(1000):
                got += part
    except (ConnectionError, ssl.SSLError):
        pass
    return got


# -- who gets nothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01" + b"\0" * 400, b"SS1 2\n{}"])
def test_no_tls(ca: CA, head: Pair, words: bytes) -> None:
    async def act(server: EnrolServer, judge: Judge) -> None:
        reader, writer = await plain(server)
        writer.write(words)
        if words:
            await closed(reader)
        writer.close()
        # and the next one is served
        assert (await ask(server, link.trusting_context(str(ca.certificate))))["verdict"] == b"allow"
        assert len(judge.asked) == 1

    run(ca, head, act)


def test_old_tls(ca: CA, head: Pair) -> None:
    async def act(server: EnrolServer, judge: Judge) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca.certificate)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(BackendUnavailable):
            await ask(server, context)
        assert not judge.asked

    run(ca, head, act)


@pytest.mark.parametrize(
    "message",
    [
        b"x" * 100,
        b"SS1 99999999\n",
        b"SS1 %d\n" % (enrolserver.MAX_REQUEST + 1),
        b"SS1 5\nabcde",
        wire.encode({"verb": "enrol"}),
        wire.encode({"verb": "enrol", "nonce": "a b"}),
        b"SS1 " + b"1" * 40000,
    ],
)
def test_garbage_over_tls(ca: CA, head: Pair, message: bytes) -> None:
    async def act(server: EnrolServer, judge: Judge) -> None:
        reader, writer = await secured(server, ca)
        writer.write(message + b"\n" * 10)
        assert await closed(reader) == b""
        writer.close()
        assert (await ask(server, link.trusting_context(str(ca.certificate))))["verdict"] == b"allow"
        assert len(judge.asked) == 1

    run(ca, head, act)


def test_a_request_that_never_comes_to_its_end(ca: CA, head: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolserver, "ARRIVE", 0.3)

    async def act(server: EnrolServer, judge: Judge) -> None:
        reader, writer = await secured(server, ca)
        writer.write(b"SS1 1000\n1:")
        assert await closed(reader) == b""
        writer.close()
        assert not judge.asked

    run(ca, head, act)


def test_a_certificate_of_another_ca(ca: CA, head: Pair, tmp_path: Path) -> None:
    other = CA(tmp_path / "other").client("n1")

    async def act(server: EnrolServer, judge: Judge) -> None:
        context = link.client_context(str(other.certificate), str(other.private_key), str(ca.certificate))
        with pytest.raises(BackendUnavailable):
            await ask(server, context)
        assert not judge.asked

    run(ca, head, act)


def test_a_server_certificate_is_no_nodes(ca: CA, head: Pair) -> None:
    async def act(server: EnrolServer, judge: Judge) -> None:
        context = link.client_context(str(head.certificate), str(head.private_key), str(ca.certificate))
        with pytest.raises(BackendUnavailable):
            await ask(server, context)
        assert not judge.asked

    run(ca, head, act)


# -- who is served ---------------------------------------------------------------------------------------------------


def test_with_and_without_a_certificate(ca: CA, head: Pair, tmp_path: Path) -> None:
    mine = ca.client("n1", tmp_path)

    async def act(server: EnrolServer, judge: Judge) -> None:
        bare = link.trusting_context(str(ca.certificate))
        with_one = link.client_context(str(mine.certificate), str(mine.private_key), str(ca.certificate))
        for context in (bare, with_one):
            answer = await ask(server, context)
            assert answer["certificate"] == b"pem"
        (_, address, none), (_, _, der) = judge.asked
        assert (address, none) == ("127.0.0.1", None)
        assert der == ssl.PEM_cert_to_DER_cert(mine.certificate.read_text())

    run(ca, head, act)


def test_a_judge_that_fails_ends_one_connection(ca: CA, head: Pair) -> None:
    async def act(server: EnrolServer, judge: Judge) -> None:
        context = link.trusting_context(str(ca.certificate))
        judge.answer = {"verdict": 5}  # type: ignore[dict-item]
        with pytest.raises(BackendUnavailable):
            await ask(server, context)
        judge.answer = {"verdict": "allow"}
        assert (await ask(server, context))["verdict"] == b"allow"

    run(ca, head, act)


# -- floods ----------------------------------------------------------------------------------------------------------


def test_an_address_that_comes_too_often(ca: CA, head: Pair) -> None:
    async def act(server: EnrolServer, judge: Judge) -> None:
        context = link.trusting_context(str(ca.certificate))
        for _ in range(3):
            await ask(server, context)
        with pytest.raises(BackendUnavailable):
            await ask(server, context)
        assert (len(judge.asked), server.turned_away) == (3, 1)

    run(ca, head, act, limit=Limit(burst=3, every=1e6))


def test_an_address_that_holds_many_connections(ca: CA, head: Pair) -> None:
    async def act(server: EnrolServer, judge: Judge) -> None:
        held = [await plain(server) for _ in range(enrolserver.MOST_OF_ONE)]
        reader, writer = await plain(server)
        assert await closed(reader) == b""
        assert server.turned_away == 1
        for _, each in (*held, (reader, writer)):
            each.close()
        while server._open:
            await asyncio.sleep(0.01)
        assert (await ask(server, link.trusting_context(str(ca.certificate))))["verdict"] == b"allow"

    run(ca, head, act, limit=Limit(burst=100))


def test_so_many_are_judged_at_a_time(ca: CA, head: Pair) -> None:
    async def act(server: EnrolServer, judge: Judge) -> None:
        judge.wait = threading.Event()
        context = link.trusting_context(str(ca.certificate))
        asked = [asyncio.create_task(ask(server, context)) for _ in range(20)]
        while judge.at_once < enrolserver.AT_ONCE:
            await asyncio.sleep(0.01)
        judge.wait.set()
        answers = await asyncio.gather(*asked)
        assert [answer["verdict"] for answer in answers] == [b"allow"] * 20
        assert judge.most == enrolserver.AT_ONCE

    run(ca, head, act, limit=Limit(burst=100), most_of_one=50)


def test_the_deadline_is_for_all_of_it(ca: CA, head: Pair) -> None:
    async def act(server: EnrolServer, judge: Judge) -> None:
        judge.wait = threading.Event()
        with pytest.raises(BackendUnavailable):
            await ask(server, link.trusting_context(str(ca.certificate)))
        judge.wait.set()

    run(ca, head, act, deadline=1.0)


def test_the_bucket() -> None:
    limit = Limit(burst=2, every=10.0, most=3)
    assert [limit.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert limit.take("b", 0.0)
    assert not limit.take("a", 9.9)
    assert limit.take("a", 10.0)
    assert not limit.take("a", 10.0)
    # it never holds more than it can
    assert [limit.take("b", 1e9) for _ in range(3)] == [True, True, False]
    # many addresses: the one that was away for longest is forgotten
    for name in "cde":
        limit.take(name, 1e9)
    assert len(limit._left) == 3


# -- setting it up ---------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken(ca: CA, head: Pair) -> None:
    import attrs

    async def both() -> None:
        async with EnrolServer(enrol_of(ca, head), Judge()) as first:
            second = attrs.evolve(enrol_of(ca, head), listen=f"127.0.0.1:{first.port}")
            with pytest.raises(ConfigError, match="cannot listen"):
                async with EnrolServer(second, Judge()):
                    pass

    asyncio.run(both())


def test_files_that_are_not_there(ca: CA, head: Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        EnrolServer(enrol_of(ca, Pair(tmp_path / "nothing", head.private_key)), Judge())
