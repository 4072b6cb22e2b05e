"""job_submit.lua in a real Lua interpreter, and a server whose answers a test chooses."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from slurm_hooks import wire

SOURCE = Path(__file__).parents[3] / "slurm_hooks" / "job_submit.lua"
HARNESS = Path(__file__).parent / "job_submit_harness.lua"
# 5.1 is what Debian's slurmctld links, 5.3 SchedMD's packages, 5.3 or 5.4 ParallelCluster's
LUAS = ["lua5.1", *(name for name in ("lua5.3", "lua5.4") if shutil.which(name))]
# slurm_errno.h; what slurmctld exports to Lua as slurm.ESLURM_ACCESS_DENIED
ACCESS_DENIED = "2002"
CONFIG_LINE = 'local CONFIG = "/etc/secure-slurm/job_submit.conf.lua"'

Fields = dict[str, bytes]
Reply = Callable[[Fields], bytes | None]


def allow(fields: Fields, **more: bytes | str) -> bytes:
    sets = {name.replace("set_", "set."): value for name, value in more.items()}
    return wire.encode({"nonce": fields["nonce"], "verdict": "allow", **sets})


def say(**answer: bytes | str) -> Reply:
    return lambda fields: wire.encode({"nonce": fields["nonce"], **answer})


class Daemon:
    """A server whose answers a test chooses; ``None`` is silence. Keeps every request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reply: Reply = allow
        self.requests: list[Fields] = []
        self.connections = 0
        self.close_after = False
        self.start()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def stop(self) -> None:
        self._listening.close()
        self.path.unlink(missing_ok=True)
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        try:
            while True:
                header = file.readline()
                if not header:
                    break
                fields = wire.decode_body(file.read(wire.decode_header(header)))
                self.requests.append(fields)
                answer = self.reply(fields)
                if answer is not None:
                    connection.sendall(answer)
                if self.close_after:
                    break
        except OSError:
            pass
        finally:
            file.close()
            connection.close()


class Result(NamedTuple):
    kind: str
    code: str
    message: str
    log: str
    job: dict[str, str]

    @property
    def allowed(self) -> bool:
        return (self.kind, self.code) == ("number", "0")

    @property
    def refused(self) -> bool:
        return self.kind == "number" and self.code == ACCESS_DENIED


class Filter:
    """The interpreter with the filter in it, kept alive between calls as in slurmctld."""

    def __init__(self, interpreter: str, folder: Path, daemon_path: Path) -> None:
        self._interpreter = interpreter
        self._folder = folder
        self._socket = daemon_path
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        *,
        when_down: str = "refuse",
        deadline: float = 2.0,
        patch: tuple[str, str] = ("", ""),
        config: str = "",
        demand: tuple[str, ...] = ("phi",),
    ) -> Filter:
        """Start it. ``config``: more of the rendered configuration; ``patch``: a text of the source, and another."""
        rendered = self._folder / "job_submit.conf.lua"
        names = "".join(f'["{name}"]=true,' for name in demand)
        rendered.write_text(
            f'return {{socket="{self._socket}", deadline={deadline}, untagged_when_down="{when_down}",'
            f" demand={{{names}}}, {config}}}"
        )
        source = SOURCE.read_text()
        assert CONFIG_LINE in source
        script = self._folder / "job_submit.lua"
        script.write_text(source.replace(CONFIG_LINE, f'local CONFIG = "{rendered}"').replace(*patch))
        self._process = subprocess.Popen(
            [self._interpreter, str(HARNESS), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def call(self, chunk: str) -> Result:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(chunk.encode() + b"\n")
        process.stdin.flush()
        kind, code, message, log, *job = (read_netstring(process.stdout) for _ in range(11))
        assert process.stdout.read(1) == b"\n"
        names = ("features", "prefer", "extra", "admin_comment", "shared", "requeue", "partition")
        return Result(kind, code, message, log, dict(zip(names, job, strict=True)))

    def submit(self, job: str = "", parts: str = "parts", uid: str = "1001") -> Result:
        """Submit a job given as the inside of a Lua table."""
        return self.call(
            f"last_job = new_job{{user_id = 1001, user_name = 'alice', alloc_node = 'login1', {job}}};"
            f" return slurm_job_submit(last_job, {parts}, {uid})"
        )

    def modify(self, job: str = "", record: str = "", uid: str = "1001") -> Result:
        return self.call(
            f"last_job = new_job{{{job}}};"
            f" return slurm_job_modify(last_job, {{job_id = 7, user_id = 1001, partition = 'open', {record}}},"
            f" parts, {uid})"
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def read_netstring(stream: IO[bytes]) -> str:
    digits = b""
    while not digits.endswith(b":"):
        byte = stream.read(1)
        assert byte, "the interpreter ended"
        digits += byte
    text = stream.read(int(digits[:-1]))
    assert stream.read(1) == b","
    return text.decode("utf-8", "surrogateescape")
