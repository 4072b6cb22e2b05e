"""What systemd hears: the truth, in one datagram, from the loop that works; and nothing when that loop stands still."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, ConfigError
from slurm_hooks import pulse, serve
from slurm_hooks.handed import handed
from slurm_hooks.notify import Systemd, notify
from slurm_hooks.serve import Fields, Peer

SECOND = "1000000"


class Told:
    """systemd's end of it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def all(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def next(self) -> str:
        self.socket.settimeout(60)
        try:
            return self.socket.recv(4096).decode()
        finally:
            self.socket.setblocking(False)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    there = Told(tmp_path / "n")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
    yield there
    there.socket.close()


def watched(seconds: float) -> Systemd:
    return Systemd({"WATCHDOG_USEC": str(int(seconds * 1e6)), "WATCHDOG_PID": str(os.getpid())})


class TestNotify:
    @pytest.mark.parametrize("abstract", [False, True])
    def test_systemd_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
        name = f"@secure-slurm-{os.getpid()}" if abstract else str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind("\0" + name[1:] if abstract else name)
            monkeypatch.setenv("NOTIFY_SOCKET", name)
            notify("READY=1", "STATUS=well")
            assert systemd.recv(100) == b"READY=1\nSTATUS=well"

    @pytest.mark.parametrize("name", ["", "vsock:2:1", "relative"])
    def test_nobody_is_told_where_nobody_asked(
        self, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert capsys.readouterr().err == ""

    def test_a_systemd_that_is_gone_is_said_and_kills_nobody(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
        notify("READY=1")
        assert "systemd was not told READY=1" in capsys.readouterr().err


class TestSystemd:
    def test_unwatched_it_beats_for_nobody(self, told: Told) -> None:
        systemd = Systemd({})
        assert systemd.pace == 0.0
        systemd.ready("here")
        systemd.alive("here")
        systemd.alive()
        systemd.stopping()
        assert told.all() == ["READY=1\nSTATUS=here", "STOPPING=1\nSTATUS=ending"]

    @pytest.mark.parametrize("usec", ["", "x", "-5", "1e6", "\u0663"])
    def test_what_is_no_time_is_none(self, usec: str) -> None:
        assert Systemd({"WATCHDOG_USEC": usec}).pace == 0.0

    def test_a_child_does_not_beat_for_its_parent(self) -> None:
        assert Systemd({"WATCHDOG_USEC": SECOND, "WATCHDOG_PID": str(os.getpid() + 1)}).pace == 0.0
        assert Systemd({"WATCHDOG_USEC": SECOND, "WATCHDOG_PID": str(os.getpid())}).pace == pytest.approx(1 / 3)

    def test_not_every_round_is_told(self, told: Told) -> None:
        systemd = watched(3600)
        systemd.ready("here")
        for _ in range(100):
            systemd.alive("here")
        assert told.all() == ["READY=1\nSTATUS=here\nWATCHDOG=1"]

    def test_a_beat_that_is_due_is_told(self, told: Told) -> None:
        systemd = watched(1e-6)
        systemd.ready("here")
        systemd.alive("here")
        systemd.alive("there")
        assert told.all()[1:] == ["WATCHDOG=1", "WATCHDOG=1\nSTATUS=there"]

    def test_a_status_cannot_say_anything_else(self, told: Told) -> None:
        Systemd({}).ready("here\nMAINPID=1\nFDSTORE=1" + "x" * 1000)
        (message,) = told.all()
        assert message.count("\n") == 1
        assert message.startswith("READY=1\nSTATUS=here MAINPID=1 FDSTORE=1x")
        assert len(message) < 250


class TestTasks:
    def test_a_task_that_has_ended_silences_the_daemon(self, told: Told, caplog: pytest.LogCaptureFixture) -> None:
        async def broken() -> None:
            raise KeyError("lost")

        async def main() -> None:
            works = [asyncio.create_task(broken()), asyncio.create_task(asyncio.sleep(3600))]
            await asyncio.sleep(0)
            await asyncio.wait_for(pulse.keep(watched(1e-6), works, lambda: "well"), 60)
            works[1].cancel()

        asyncio.run(main())
        assert told.all() == []
        assert "KeyError('lost')" in caplog.text

    def test_it_beats_while_all_work(self, told: Told) -> None:
        async def main() -> None:
            work, nothing = asyncio.create_task(asyncio.sleep(3600)), asyncio.create_task(asyncio.sleep(0))
            # one that has returned is no loss
            await nothing
            beating = asyncio.create_task(pulse.keep(watched(0.003), [work, nothing], lambda: "well"))
            beats = 0
            while beats < 3:
                await asyncio.sleep(0.001)
                beats += sum("WATCHDOG=1" in each for each in told.all())
            for task in (work, beating):
                task.cancel()

        asyncio.run(asyncio.wait_for(main(), 60))

    def test_what_cannot_be_said_does_not_silence_it(self, told: Told) -> None:
        def words() -> str:
            raise BackendUnavailable("the folder is away")

        async def main() -> None:
            beating = asyncio.create_task(pulse.keep(watched(1e-6), [], words))
            await asyncio.sleep(0)
            beating.cancel()

        asyncio.run(main())
        assert told.next() == "WATCHDOG=1\nSTATUS=not known: the folder is away"


class Door:
    """A daemon's socket, whose answers can stop."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.verdict = "allow"
        self.listener = asyncio.run_coroutine_threadsafe(self._open(), self.loop).result(60)

    async def _open(self) -> serve.Listener:
        async def ping(_fields: Fields, _peer: Peer) -> dict[str, str]:
            return {"verdict": self.verdict}

        handlers = {"ping": (pulse.allowed(), ping)}
        return await serve.serve(self.path, handlers, mode=0o600, group=None, deadline=5)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.listener.close(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class TestThreads:
    @pytest.fixture
    def door(self, tmp_path: Path) -> Iterator[Door]:
        door = Door(tmp_path / "s")
        yield door
        door.close()

    def test_nobody_there(self, tmp_path: Path) -> None:
        assert not pulse.answers(str(tmp_path / "absent"))

    def test_it_asks_itself_as_anybody_would(self, door: Door) -> None:
        assert pulse.answers(door.path)
        door.verdict = "refuse"
        assert not pulse.answers(door.path)

    @pytest.mark.parametrize("wrong", ["late", "mute"])
    def test_what_stands_still_is_not_alive(
        self, door: Door, told: Told, wrong: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        moments = [0.0]
        rounds = pulse.Rounds(lambda: moments[0])
        rounds.counted("the audit trail", lambda: None)
        stop = threading.Event()
        if wrong == "late":
            moments[0] = pulse.LATE + 1
        else:
            door.verdict = "refuse"
        beating = threading.Thread(
            target=pulse.beat, args=(watched(0.003), stop, door.path, rounds, lambda: "well"), daemon=True
        )
        beating.start()
        while "systemd hears nothing more" not in caplog.text:
            stop.wait(0.01)
        assert told.all() == []
        # and once it goes on again, so does the beat
        door.verdict, moments[0] = "allow", 0.0
        assert told.next().startswith("WATCHDOG=1")
        stop.set()
        beating.join(60)
        assert ("the audit trail" in caplog.text) == (wrong == "late")

    def test_work_that_fails_has_come_round(self) -> None:
        moments = [0.0]
        rounds = pulse.Rounds(lambda: moments[0])

        def fails() -> None:
            raise OSError

        counting = rounds.counted("it", fails)
        moments[0] = pulse.LATE + 1
        assert rounds.late() == ["it"]
        with pytest.raises(OSError):
            counting()
        assert rounds.late() == []


class TestHanded:
    """As sd_listen_fds(3) has it: the descriptor is always 3, so each case is a process of its own."""

    def child(self, path: str, given: socket.socket | None, **environment: str) -> str:
        receiving, sending = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if given is not None:
                    os.dup2(given.fileno(), 3)
                where = {key: value.replace("PID", str(os.getpid())) for key, value in environment.items()}
                try:
                    found = handed(path, where)
                    said = "none" if found is None else f"got {found.getsockname()} {found.get_inheritable()} {where}"
                except ConfigError as error:
                    said = f"refused: {error}"
                os.write(sending, said.encode())
            finally:
                os._exit(0)
        os.close(sending)
        with os.fdopen(receiving) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        return text

    @pytest.fixture
    def listening(self, tmp_path: Path) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as found:
            found.bind(str(tmp_path / "s"))
            found.listen()
            yield found

    def test_without_systemd_none(self, listening: socket.socket) -> None:
        path = listening.getsockname()
        assert self.child(path, listening) == "none"
        assert self.child(path, listening, LISTEN_PID="1", LISTEN_FDS="1") == "none"
        assert self.child(path, listening, LISTEN_PID="PID", LISTEN_FDS="0") == "none"

    def test_another_than_is_meant_is_refused(self, listening: socket.socket, tmp_path: Path) -> None:
        said = self.child(str(tmp_path / "other"), listening, LISTEN_PID="PID", LISTEN_FDS="1")
        assert said == f"refused: systemd listens at '{tmp_path}/s', and the site file says {tmp_path}/other"
        path = listening.getsockname()
        assert "2 sockets" in self.child(path, listening, LISTEN_PID="PID", LISTEN_FDS="2")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            assert self.child(path, other, LISTEN_PID="PID", LISTEN_FDS="1").startswith("refused")
        with socket.socket() as other:
            assert self.child(path, other, LISTEN_PID="PID", LISTEN_FDS="1").startswith("refused")

    def test_the_one_that_is_meant(self, listening: socket.socket) -> None:
        path = listening.getsockname()
        said = self.child(path, listening, LISTEN_PID="PID", LISTEN_FDS="1", LISTEN_FDNAMES="x")
        # no child of the daemon takes it for its own
        assert said == f"got {path} False {{}}"

    def test_it_is_served_and_left_behind(self, listening: socket.socket) -> None:
        path = listening.getsockname()

        async def main() -> None:
            async def ping(_fields: Fields, _peer: Peer) -> dict[str, str]:
                return {"verdict": "allow"}

            handlers = {"ping": (pulse.allowed(), ping)}
            given = listening.dup()
            async with await serve.serve(path, handlers, mode=0o600, group=None, deadline=5, given=given):
                assert await asyncio.to_thread(pulse.answers, path)

        asyncio.run(main())
        # systemd's socket goes on: who comes now waits for the next daemon
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(60)
            client.connect(path)
