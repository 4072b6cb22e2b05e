"""The decision daemon's server over a real Unix socket: who may ask, notes, and clients that are slow or hostile."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.errors import BackendUnavailable, ConfigError, InternalError, Refused
from slurm_hooks import desk, wire
from slurm_hooks.answering import Fields, Peer
from slurm_hooks.desk import Desk

ME = frozenset({os.geteuid()})
NOT_ME = frozenset({os.geteuid() + 1})
Said = dict[str, bytes | str]


def echo(fields: Fields, peer: Peer) -> Said:
    return {"verdict": "allow", "said": fields.get("say", b""), "uid": str(peer.uid), "pid": str(peer.pid)}


def nothing(_fields: Fields, _peer: Peer) -> Said:
    return None  # type: ignore[return-value]  # a handler that falls off its end


def no_verdict(_fields: Fields, _peer: Peer) -> Said:
    return {"verdict": "perhaps"}


def asleep(_fields: Fields, _peer: Peer) -> Said:
    time.sleep(0.3)
    return {"verdict": "allow"}


def broken(_fields: Fields, _peer: Peer) -> Said:
    raise RuntimeError("canary")


def refuses(_fields: Fields, _peer: Peer) -> Said:
    raise Refused("some.rule", "no", advice="do this")


def unavailable(_fields: Fields, _peer: Peer) -> Said:
    raise BackendUnavailable("Vault is sealed", advice="wait")


def internal(_fields: Fields, _peer: Peer) -> Said:
    raise InternalError("cannot be")


def unencodable(_fields: Fields, _peer: Peer) -> Said:
    return {"verdict": "allow", "BAD": "x"}


def too_much(_fields: Fields, _peer: Peer) -> Said:
    return {"verdict": "allow", "x": b"x" * wire.MAX_BODY}


def big(_fields: Fields, _peer: Peer) -> Said:
    return {"verdict": "allow", "x": b"x" * 900_000}


HANDLERS: desk.Handlers = {
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
    "big": (ME, big),
}


class Client:
    """One connection."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self._file = self.socket.makefile("rb")

    def send(self, **fields: bytes | str) -> None:
        self.socket.sendall(wire.encode({"nonce": "n1", **fields}))

    def answer(self) -> Fields:
        return wire.decode_body(self._file.read(wire.decode_header(self._file.readline())))

    def ask(self, **fields: bytes | str) -> Fields:
        self.send(**fields)
        return self.answer()

    def is_closed(self) -> bool:
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True


@contextlib.contextmanager
def serving(
    folder: Path, *, handlers: desk.Handlers = HANDLERS, notes: desk.Handlers | None = None, deadline: float = 0.2
) -> Iterator[str]:
    server = Desk(str(folder / "s"), handlers, notes or {}, deadline=deadline)
    server.open(mode=0o660, group=None)
    try:
        yield str(folder / "s")
    finally:
        server.close()


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
    with serving(tmp_path) as path:
        client = Client(path)
        answer = client.ask(verb=verb)

        assert (answer["verdict"], answer["rule"], answer["nonce"]) == (b"refuse", rule, b"n1")
        assert answer["message"]
        assert b"canary" not in b"".join(answer.values())
        if kept:
            assert client.ask(verb="echo")["verdict"] == b"allow"
        else:
            assert client.is_closed()


def test_the_peer_is_read_from_the_kernel(tmp_path: Path) -> None:
    with serving(tmp_path) as path:
        answer = Client(path).ask(verb="echo", say=b"\x00\n\xff", uid="12345")

    assert answer["said"] == b"\x00\n\xff"
    assert (answer["uid"], answer["pid"]) == (str(os.geteuid()).encode(), str(os.getpid()).encode())


def test_a_user_who_may_ask_nothing_learns_nothing_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    with serving(tmp_path, handlers={"echo": (NOT_ME, echo)}, deadline=0.05) as path:
        assert Client(path).ask(verb="no such verb")["rule"] == b"peer.refused"
        assert Client(path).answer()["rule"] == b"wire.timeout"


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
    with serving(tmp_path) as path:
        client = Client(path)
        client.socket.sendall(message)
        client.socket.shutdown(socket.SHUT_WR)

        assert client.answer()["verdict"] == b"refuse"
        assert client.is_closed()
        assert Client(path).ask(verb="echo")["verdict"] == b"allow"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=60) | st.just(b"SS1 10\n"), max_size=4))
def test_no_client_stops_the_server(tmp_path: Path, parts: list[bytes]) -> None:
    with serving(tmp_path) as path:
        client = Client(path)
        with contextlib.suppress(BrokenPipeError):
            for part in parts:
                client.socket.sendall(part)
        client.socket.close()

        assert Client(path).ask(verb="echo")["verdict"] == b"allow"


def test_no_nonce(tmp_path: Path) -> None:
    with serving(tmp_path) as path:
        assert Client(path).ask(verb="echo", nonce="")["rule"] == b"wire.nonce"
        answer = Client(path).ask(verb="echo", nonce="a b\n")

    assert (answer["rule"], answer["nonce"]) == (b"wire.nonce", b"")


@pytest.mark.parametrize("message", [b"S", b"SS1 100", b"SS1 100\n4:verb,"])
def test_a_slow_client_is_given_up(tmp_path: Path, message: bytes) -> None:
    with serving(tmp_path, deadline=0.05) as path:
        client = Client(path)
        client.socket.sendall(message)

        assert client.answer()["rule"] == b"wire.timeout"
        assert client.is_closed()


def test_an_idle_connection_is_kept(tmp_path: Path) -> None:
    with serving(tmp_path, deadline=0.5) as path:
        client = Client(path)
        assert client.ask(verb="echo")["verdict"] == b"allow"
        time.sleep(1)

        assert client.ask(verb="echo")["verdict"] == b"allow"


def test_a_request_in_pieces_and_several_in_one(tmp_path: Path) -> None:
    with serving(tmp_path, deadline=5) as path:
        client = Client(path)
        message = wire.encode({"nonce": "n1", "verb": "echo", "say": "x" * 200_000})
        for start in range(0, len(message), 50_000):
            client.socket.sendall(message[start : start + 50_000])
            time.sleep(0.01)
        assert client.answer()["said"] == b"x" * 200_000
        client.socket.sendall(b"".join(wire.encode({"nonce": f"n{n}", "verb": "echo"}) for n in range(3)))

        assert [client.answer()["nonce"] for _ in range(3)] == [b"n0", b"n1", b"n2"]


def test_a_client_that_does_not_read_is_given_up(tmp_path: Path) -> None:
    with serving(tmp_path, deadline=0.05) as path:
        client = Client(path)
        client.send(verb="big")
        time.sleep(0.3)
        got = 0
        while part := client.socket.recv(1 << 20):
            got += len(part)

        assert got < 900_000


def test_many_clients_at_once(tmp_path: Path) -> None:
    wrong: list[bytes] = []

    def one(path: str, number: int) -> None:
        client = Client(path)
        for _ in range(20):
            said = client.ask(verb="echo", say=str(number))["said"]
            if said != str(number).encode():
                wrong.append(said)

    with serving(tmp_path, deadline=5) as path:
        threads = [threading.Thread(target=one, args=(path, number)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert not wrong


def test_too_many_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "MAX_CONNECTIONS", 2)
    with serving(tmp_path) as path:
        kept = [Client(path) for _ in range(2)]
        for client in kept:
            client.ask(verb="echo")

        assert Client(path).is_closed()
        assert kept[0].ask(verb="echo")["verdict"] == b"allow"


def test_the_socket_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = Desk(str(path), HANDLERS, {}, deadline=1)
    server.open(mode=0o620, group=os.getegid())
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o620
    assert found.st_gid == os.getegid()
    with pytest.raises(ConfigError, match="another daemon"):
        Desk(str(path), HANDLERS, {}, deadline=1).open(mode=0o600, group=None)
    server.close()
    server.close()
    assert not path.exists()


def test_closing_leaves_a_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = Desk(str(path), HANDLERS, {}, deadline=1)
    server.open(mode=0o600, group=None)
    path.rename(tmp_path / "moved")
    path.write_text("new")
    server.close()

    assert path.read_text() == "new"


class Notes:
    """Keeps what it is told; says no to a note that says so, and fails at one that says so."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def take(self, fields: Fields, _peer: Peer) -> Said:
        if fields["say"] == b"fail":
            raise RuntimeError("canary")
        self.taken.append(fields["say"])
        return {"verdict": "allow", "policy": "p"}

    def handlers(self) -> desk.Handlers:
        return {"note": (ME, self.take)}


def test_notes_are_confirmed_by_their_count(tmp_path: Path) -> None:
    notes = Notes()
    with serving(tmp_path, notes=notes.handlers()) as path:
        client = Client(path)
        first = client.ask(verb="note", say="0")
        assert (first["verdict"], first["count"], first["policy"], first["nonce"]) == (b"allow", b"1", b"p", b"n1")
        for number in range(1, 40):
            client.send(verb="note", say=str(number), nonce=f"m{number}")
        while (last := client.answer())["count"] != b"40":
            assert last["nonce"] == b"n1"
        assert Client(path).ask(verb="echo")["verdict"] == b"allow"

    assert notes.taken == [str(number).encode() for number in range(40)]


def test_what_was_told_before_the_end_is_taken(tmp_path: Path) -> None:
    """Both ends: a slurmctld that stops, and a daemon that stops."""
    notes = Notes()
    with serving(tmp_path, notes=notes.handlers()) as path:
        gone = Client(path)
        for number in range(20):
            gone.send(verb="note", say=f"a{number}")
        gone.socket.close()
        last = Client(path)
        for number in range(20):
            last.send(verb="note", say=f"b{number}")

    assert sorted(notes.taken) == sorted(f"{one}{number}".encode() for one in "ab" for number in range(20))


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        ({"verb": "echo"}, b"wire.malformed"),
        ({"verb": "note", "say": "fail"}, b"engine.error"),
        ({"verb": "note", "say": "x", "nonce": ""}, b"wire.nonce"),
        ({"verb": "others"}, b"wire.malformed"),
    ],
)
def test_whoever_takes_notes_answers_nothing_else(tmp_path: Path, message: dict[str, str], rule: bytes) -> None:
    notes = Notes()
    with serving(tmp_path, notes=notes.handlers()) as path:
        client = Client(path)
        assert client.ask(verb="note", say="1")["count"] == b"1"
        answer = client.ask(**message)

        assert (answer["verdict"], answer["rule"]) == (b"refuse", rule)
        assert "count" not in answer
        assert client.is_closed()


def test_others_tell_nothing(tmp_path: Path) -> None:
    notes = Notes()
    with serving(tmp_path, notes={"note": (NOT_ME, notes.take)}) as path:
        assert Client(path).ask(verb="note", say="1")["rule"] == b"peer.refused"

    assert notes.taken == []
