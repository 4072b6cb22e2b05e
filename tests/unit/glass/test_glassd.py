"""The daemon: who says something is the peer, and no one person can fill the folder or keep others out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, ConfigError, Refused
from slurm_hooks import answering, glassd, wire
from slurm_hooks import breakglass_papers as papers
from slurm_hooks.answering import Peer
from slurm_hooks.breakglass_ask import PAGE, ask, listing
from slurm_hooks.breakglass_dir import MAX_FILES
from tests.unit.glass.conftest import NOW

ME = os.geteuid()
WRITER = pwd.getpwuid(ME).pw_name
ANN, BEN, ZOE = 11, 12, 15


class Daemon:
    """One that runs, with peers of any uid and a clock that is set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "papers"
        self.folder.mkdir(mode=0o750)
        self.socket = str(folder / "s")
        self.uid = ANN
        self.now = NOW
        self.pace = NOW
        self.glass = glassd.Glass(str(self.folder), writer=WRITER, clock=lambda: self.now)
        self.glass._pace = glassd.Pace(lambda: self.pace)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(glassd.run(self.glass, self.socket, self._stop),)
        )

    def __enter__(self) -> Daemon:
        self._thread.start()
        while True:
            with contextlib.suppress(BackendUnavailable):
                ask(self.socket, "ping")
                return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()
        self.glass.close()

    def ask(self, uid: int, verb: str, **fields: str) -> dict[str, bytes]:
        self.uid = uid
        return ask(self.socket, verb, **fields)

    def request(self, uid: int = ANN, seconds: int = 600, **more: str) -> str:
        what = {"role": "phi-eu"} if "job" not in more else {}
        answer = self.ask(uid, "request", **{"user": "bob", "seconds": str(seconds), "reason": "x", **what, **more})
        return answer["id"].decode()

    def approve(self, name: str, uid: int = BEN, reason: str = "y") -> None:
        digest = papers.digest((self.folder / f"{name}.request").read_bytes())
        self.ask(uid, "approve", id=name, sha256=digest, reason=reason)

    def end(self, name: str, uid: int = ANN) -> None:
        self.ask(uid, "end", id=name, reason="z")

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    # below /tmp itself: the path of a socket has 107 bytes (unix(7))
    with tempfile.TemporaryDirectory() as folder, Daemon(Path(folder)) as running:
        monkeypatch.setattr(answering, "peer_of", lambda _: Peer(1, running.uid, 1))
        yield running


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    assert caught.value.advice
    return caught.value.rule


def test_what_it_writes(daemon: Daemon) -> None:
    name = daemon.request(reason="für Zürich")
    path = daemon.folder / f"{name}.request"
    assert path.stat().st_mode & 0o7777 == 0o640
    asked = papers.parse_request(name, path.read_bytes())
    assert (asked.by, asked.user, asked.role, asked.reason) == (ANN, "bob", "phi-eu", "für Zürich")
    assert (asked.time, asked.until) == (int(NOW), int(NOW) + 600)
    daemon.approve(name)
    note = papers.parse_approval(name, (daemon.folder / f"{name}.approval").read_bytes())
    assert note == papers.Note(name, BEN, papers.digest(path.read_bytes()), "y")
    daemon.end(name, BEN)
    assert papers.parse_end(name, (daemon.folder / f"{name}.end").read_bytes()) == papers.Note(name, BEN, "", "z")
    assert daemon.files() == [f"{name}.approval", f"{name}.end", f"{name}.request"]


def test_the_peer_says_it_and_nothing_else(daemon: Daemon) -> None:
    name = daemon.request(ZOE, by=str(ANN), submit_uid=str(ANN), id="g1", time="1", until="2")
    asked = papers.parse_request(name, (daemon.folder / f"{name}.request").read_bytes())
    assert (asked.by, asked.id, asked.time) == (ZOE, name, int(NOW))


def test_the_kernel_is_asked_who_that_is() -> None:
    with tempfile.TemporaryDirectory() as folder, Daemon(Path(folder)) as running:
        if ME:
            name = running.request()
            assert papers.said_by((running.folder / f"{name}.request").read_bytes()) == ME
        else:
            assert refused(running.request) == "glass.requester"


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("glass.syntax", {"role": ""}),
        ("glass.syntax", {"role": "Phi EU"}),
        ("glass.syntax", {"job": "0"}),
        ("glass.syntax", {"job": "4294967295"}),
        ("glass.syntax", {"user": "b b"}),
        ("glass.syntax", {"reason": ""}),
        ("glass.syntax", {"reason": "a\nb"}),
        ("glass.syntax", {"reason": "x" * 201}),
        ("glass.syntax", {"reason": "\U0001f510" * 200}),
        ("glass.too-long", {"seconds": "0"}),
        ("glass.too-long", {"seconds": ""}),
        ("glass.too-long", {"seconds": str(10**9)}),
    ],
)
def test_a_request_that_is_none(daemon: Daemon, rule: str, fields: dict[str, str]) -> None:
    assert refused(lambda: daemon.request(**fields)) == rule
    assert daemon.files() == []


@pytest.mark.parametrize("fields", [{"seconds": "-1"}, {"seconds": "1e3"}, {"job": "x"}, {"job": "1" * 11}])
def test_numbers_that_are_none(daemon: Daemon, fields: dict[str, str]) -> None:
    with pytest.raises(BackendUnavailable):
        daemon.request(**fields)
    assert daemon.files() == []


def test_root_is_nobody(daemon: Daemon) -> None:
    assert refused(lambda: daemon.request(0)) == "glass.requester"
    name = daemon.request()
    assert refused(lambda: daemon.approve(name, 0)) == "glass.approver"


def test_an_approval_that_is_none(daemon: Daemon) -> None:
    name = daemon.request()
    assert refused(lambda: daemon.approve(name, ANN)) == "glass.same-person"
    assert refused(lambda: daemon.approve(name, reason="")) == "glass.syntax"
    assert refused(lambda: daemon.ask(BEN, "approve", id="g1", sha256="0" * 64, reason="y")) == "glass.request"
    assert refused(lambda: daemon.ask(BEN, "approve", id="../x", sha256="0" * 64, reason="y")) == "glass.request"
    assert refused(lambda: daemon.ask(BEN, "approve", id=name, sha256="0" * 64, reason="y")) == "glass.digest"
    daemon.now += 600
    assert refused(lambda: daemon.approve(name)) == "glass.over"
    assert daemon.files() == [f"{name}.request"]


def test_one_approval_and_one_end(daemon: Daemon) -> None:
    name = daemon.request()
    daemon.approve(name)
    before = (daemon.folder / f"{name}.approval").read_bytes()
    assert refused(lambda: daemon.approve(name, ZOE)) == "glass.twice"
    daemon.end(name)
    assert refused(lambda: daemon.end(name)) == "glass.twice"
    assert refused(lambda: daemon.approve(name, ZOE)) == "glass.end"
    assert (daemon.folder / f"{name}.approval").read_bytes() == before


def test_who_may_end(daemon: Daemon) -> None:
    for uid in (ANN, BEN, 0):
        name = daemon.request()
        assert refused(lambda name=name: daemon.end(name, BEN)) == "glass.end"
        daemon.approve(name)
        assert refused(lambda name=name: daemon.end(name, ZOE)) == "glass.end"
        daemon.end(name, uid)
    assert refused(lambda: daemon.end("g1")) == "glass.request"


def test_an_end_of_whatever_kind_is_one(daemon: Daemon) -> None:
    name = daemon.request()
    (daemon.folder / f"{name}.end").mkdir()
    assert refused(lambda: daemon.approve(name)) == "glass.end"
    assert refused(lambda: daemon.end(name)) == "glass.twice"


def test_open_requests_of_one_person(daemon: Daemon) -> None:
    names = [daemon.request() for _ in range(glassd.MAX_OPEN)]
    assert refused(daemon.request) == "glass.limit"
    daemon.request(ZOE)
    daemon.end(names[0])
    daemon.request()
    daemon.now += 600
    daemon.request()


def test_papers_in_a_minute(daemon: Daemon) -> None:
    names = [daemon.request() for _ in range(4)]
    for _ in range(glassd.MAX_PAPERS - 4):
        daemon.end(daemon.request())
    assert refused(daemon.request) == "glass.limit"
    # ends are never held up, and others neither
    for name in names:
        daemon.approve(name)
        daemon.end(name)
    other = daemon.request(ZOE)
    assert refused(lambda: daemon.approve(other, ANN)) == "glass.limit"
    daemon.pace += 60
    daemon.approve(other, ANN)


def test_papers_of_all_in_a_minute(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glassd, "MAX_PAPERS_OF_ALL", 3)
    for uid in (21, 22, 23):
        daemon.request(uid)
    assert refused(daemon.request) == "glass.limit"
    # what is refused is not counted
    daemon.pace += 60
    daemon.request()


def test_old_grants_make_room_and_others_do_not(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glassd, "MAX_KEPT", 3)
    monkeypatch.setattr(glassd, "MAX_GRANTS", 4)
    theirs = daemon.request(ZOE)
    names = []
    for _ in range(3):
        names.append(daemon.request())
        daemon.end(names[-1])
        daemon.now += 1
    fourth = daemon.request()
    assert not any(each.startswith(names[0]) for each in daemon.files())
    assert {f"{names[1]}.end", f"{theirs}.request", f"{fourth}.request"} <= set(daemon.files())
    daemon.request(BEN)
    daemon.request(BEN)
    assert refused(lambda: daemon.request(BEN)) == "glass.limit"
    left = {f"{name}.request" for name in (theirs, fourth)}
    assert left <= set(daemon.files())
    assert len(daemon.files()) == 4


def test_what_was_over_a_month_ago_is_cleared_away(daemon: Daemon) -> None:
    name = daemon.request()
    daemon.approve(name)
    daemon.now += 600 + glassd.KEPT_FOR
    daemon.glass.clear()
    assert len(daemon.files()) == 2
    daemon.now += 2
    daemon.glass.clear()
    assert daemon.files() == []


def test_there_is_room_for_all_that_may_be_written() -> None:
    assert 3 * glassd.MAX_GRANTS < MAX_FILES
    assert glassd.MAX_OPEN < glassd.MAX_KEPT < glassd.MAX_GRANTS


def test_a_list_of_many(daemon: Daemon) -> None:
    one = daemon.request()
    for number in range(PAGE + 5):
        (daemon.folder / f"a{number}.request").write_bytes(b"\xff" * 2048)
        (daemon.folder / f"a{number}.request").chmod(0o640)
    (daemon.folder / "junk\udcff").touch()
    shown = listing(daemon.socket)
    assert len(shown.papers) == PAGE + 6
    assert shown.papers["a7"]["request"].data == b"\xff" * 2048
    assert [each.name for each in shown.odd] == ["junk\udcff"]
    only = listing(daemon.socket, one)
    assert list(only.papers) == [one]
    assert only.papers[one]["request"].by == ANN
    assert listing(daemon.socket, "no-such").papers == {}


def test_a_folder_that_is_not_its_own_any_more(daemon: Daemon) -> None:
    daemon.folder.chmod(0o777)
    for call in (daemon.request, lambda: listing(daemon.socket), lambda: daemon.end("g1")):
        with pytest.raises(BackendUnavailable, match="by others"):
            call()


def test_it_is_there(daemon: Daemon) -> None:
    assert daemon.ask(ZOE, "ping")["verdict"] == b"allow"
    with pytest.raises(BackendUnavailable):
        daemon.ask(ZOE, "submit")
    with pytest.raises(BackendUnavailable, match="No such file"):
        ask(f"{daemon.socket}-none", "ping")


def test_connections_of_one_person(daemon: Daemon) -> None:
    open_ones = []
    for _ in range(glassd.MAX_CONNECTIONS_OF_ONE):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(daemon.socket)
        connection.sendall(wire.encode({"nonce": "x", "verb": "ping"}))
        assert connection.recv(4)
        open_ones.append(connection)
    with pytest.raises(BackendUnavailable):
        daemon.ask(ANN, "ping")
    assert daemon.ask(BEN, "ping")["verdict"] == b"allow"
    for connection in open_ones:
        connection.close()


def test_a_daemon_that_has_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        glassd.Glass(str(tmp_path / "none"))
