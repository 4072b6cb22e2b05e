"""The one door for processes: every program that the suite starts as root or as a daemon is started here.

What a caller gets by coming through this door (and cannot leave out): the program's absolute path, arguments as a
list and never a shell, an environment that is built and not inherited, ``/`` as working directory, no terminal, a
deadline after which the whole process group is killed, a bounded amount of output, and errors without
the input.
"""

# pathlib is left out on purpose: root hooks import this module at every start of a job
# ruff: noqa: PTH110, PTH113, PTH116, PTH119, PTH120

from __future__ import annotations

import functools
import os
import selectors
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import InternalError
from keys.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

SEARCH_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
MAX_OUTPUT = 64 * 1024
_MAX_LINE = 300
_UDEV_CONTROL = "/run/udev/control"
_CHUNK = 32 * 1024
# how long a killed group may take to die; one that sits in an uninterruptible wait never does, and is left behind
_KILL_GRACE = 2.0
_POLL = 0.1


class Completed(NamedTuple):
    """How a program ended: exit code (negative: the signal that killed it) and what it wrote, 64 KiB at most each."""

    returncode: int
    stdout: bytes
    stderr: bytes


class ProcessError(InternalError):
    """A program could not be started, failed, or wrote too much.

    ``returncode`` is its exit code, negative if a signal ended it, None if it never ran or was not waited for.
    ``stderr`` is the end of what it complained of. Neither ever holds what was written to its standard input.
    """

    def __init__(self, message: str, *, returncode: int | None = None, stderr: str = "", advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.returncode = returncode
        self.stderr = stderr


class ProcessTimeout(ProcessError):
    """The program did not end in time; its whole process group was killed.

    A ProcessError and not a BackendUnavailable: a local program that hangs points at this machine (a dead disk, a
    stuck device). A caller that asked another service by way of a program (``scontrol``) says so itself.
    """


class ProgramMissing(ProcessError):
    """A program that is needed is not installed, or not in the hands of root alone."""


@functools.cache
def program(name: str) -> str:
    """Absolute path of a system program, looked for in ``SEARCH_PATH`` only.

    :raises ProgramMissing: not found there, or the file (behind symbolic links) or the directory that holds it is not
        owned by root or may be written to by others: running it as root would hand root to them.
    """
    if not name or "/" in name or "\0" in name:
        raise ProgramMissing(f"{name!r} is not the bare name of a program")
    for directory in SEARCH_PATH:
        path = f"{directory}/{name}"
        if os.path.isfile(path):
            _refuse_unsafe(path)
            return path
    raise ProgramMissing(
        f"the program {name} is not installed (looked in {', '.join(SEARCH_PATH)})",
        advice=f"install the package that holds {name}",
    )


def _refuse_unsafe(path: str) -> None:
    real = os.path.realpath(path)
    for checked in (real, os.path.dirname(real)):
        status = os.stat(checked)
        if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ProgramMissing(
                f"{path} is not run: {checked} can be changed by somebody other than root",
                advice=f"chown root:root {checked}; chmod go-w {checked}",
            )
    if not os.access(real, os.X_OK):
        raise ProgramMissing(f"{path} is not executable")


def udevd_runs() -> bool:
    """Whether a udevd answers on this machine, judged as libudev does: by its control socket."""
    return os.path.exists(_UDEV_CONTROL)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that programs get; nothing of the caller's own is passed on.

    Without udevd nobody answers libdevmapper's cookies, and every ``dmsetup`` would wait for ever: libdevmapper is
    then told to make the device nodes itself (DM_DISABLE_UDEV, dmsetup(8)).
    """
    env = {"PATH": ":".join(SEARCH_PATH), "LC_ALL": "C.UTF-8"}
    if not udevd_runs():
        env["DM_DISABLE_UDEV"] = "1"
    if extra:
        env.update(extra)
    return env


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    input: bytes | memoryview | Secret | None = None,
    allowed: Collection[int] = (0,),
    env_extra: Mapping[str, str] | None = None,
    stop: Callable[[], bool] | None = None,
    max_output: int = MAX_OUTPUT,
    sink: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run a program to its end.

    :param argv: the program's absolute path (see :func:`program`) and its arguments.
    :param timeout: seconds for the whole run; nothing is started when it is not positive.
    :param input: for standard input, by a pipe; without it standard input is ``/dev/null``.
    :param allowed: the exit codes that are no failure.
    :param max_output: bytes of standard output that are taken.
    :param sink: takes standard output piece by piece as it comes, and none of it is kept; what it raises ends the
        program and is raised.
    :param stop: asked ten times a second; once it says so, the program ends as if it were out of time.
    :raises ProcessTimeout: out of time; the process group was killed.
    :raises ProcessError: not an absolute path, not started, another exit code, or more than 64 KiB of output (what is
        cut short could be read as something else; of standard error the rest is dropped instead).
    """
    name = _check_argv(argv)
    if timeout <= 0:
        raise ProcessTimeout(f"{name} was not started: no time is left")
    deadline = time.monotonic() + timeout
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=environment(env_extra),
            process_group=0,
        )
    except OSError as error:
        raise ProcessError(f"{name} could not be started: {error.strerror}") from None
    output = _Exchange(process, _view(input), stop, max_output, sink)
    try:
        output.run(deadline)
    except TimeoutError:
        raise ProcessTimeout(
            f"{name} did not end within {timeout:.1f} s and was killed", stderr=output.complaint()
        ) from None
    except InterruptedError:
        raise ProcessTimeout(f"{name} was stopped") from None
    except OverflowError:
        raise ProcessError(f"{name} wrote more than {max_output} bytes") from None
    finally:
        output.close()
    if process.returncode not in allowed:
        raise _failure(name, process.returncode, output.complaint())
    return Completed(process.returncode, bytes(output.stdout), bytes(output.stderr))


class Budget:
    """Seconds that a piece of work may take in all, however many programs it runs."""

    def __init__(self, seconds: float, stop: Callable[[], bool] | None = None) -> None:
        self._end = time.monotonic() + seconds
        self.stop = stop

    def left(self) -> float:
        """Seconds that are left; never negative."""
        return max(0.0, self._end - time.monotonic())

    def run(
        self,
        argv: Sequence[str],
        *,
        cap: float,
        input: bytes | memoryview | Secret | None = None,
        allowed: Collection[int] = (0,),
    ) -> Completed:
        """:func:`run` with what is left of the budget, but at most ``cap`` seconds."""
        return run(argv, timeout=min(cap, self.left()), input=input, allowed=allowed, stop=self.stop)


def _check_argv(argv: Sequence[str]) -> str:
    if isinstance(argv, (str, bytes)) or not argv:
        raise ProcessError("a program is started from a list of arguments")
    if not argv[0].startswith("/"):
        raise ProcessError(f"{argv[0]!r} is not the absolute path of a program")
    return os.path.basename(argv[0])


def _view(data: bytes | memoryview | Secret | None) -> memoryview:
    if isinstance(data, Secret):
        return data.reveal()
    return memoryview(data or b"")


def _failure(name: str, code: int, complaint: str) -> ProcessError:
    if code < 0:
        how = f"was killed by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
    else:
        how = f"failed with exit code {code}"
    return ProcessError(f"{name} {how}" + (f": {complaint}" if complaint else ""), returncode=code, stderr=complaint)


class _Exchange:
    """Feeds one process and drains it, without a thread, until it has ended."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        data: memoryview,
        stop: Callable[[], bool] | None = None,
        max_output: int = MAX_OUTPUT,
        sink: Callable[[bytes], None] | None = None,
    ) -> None:
        self._process = process
        self._sink = sink
        self._data = data
        self._sent = 0
        self._stop = stop
        self._max_output = max_output
        self.stdout = bytearray()
        self.stderr = bytearray()

    def run(self, deadline: float) -> None:
        """Until the end.

        :raises TimeoutError: the deadline (monotonic seconds) has passed. :raises InterruptedError: it is to stop.
        :raises OverflowError: too much output.
        """
        process = self._process
        with selectors.DefaultSelector() as selector:
            for name, stream in (("stdin", process.stdin), ("stdout", process.stdout), ("stderr", process.stderr)):
                if stream is not None:
                    os.set_blocking(stream.fileno(), False)
                    events = selectors.EVENT_WRITE if name == "stdin" else selectors.EVENT_READ
                    selector.register(stream, events, name)
            ended = False
            while selector.get_map():
                ready = selector.select(0 if ended else min(self._left(deadline), _POLL))
                # A child that went on in the background may keep the pipes open for ever (LVM's monitor does): once
                # the program itself has ended, what is in the pipes is all there will be.
                if not ready and ended:
                    break
                ended = not ready and process.poll() is not None
                for key, _ in ready:
                    self._move(selector, key)
        self._wait(deadline)

    def _move(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        if key.data != "stdin":
            if self._drain(key.fd, key.data):
                selector.unregister(key.fileobj)
        elif self._feed(key.fd):
            selector.unregister(key.fileobj)
            if self._process.stdin is not None:
                self._process.stdin.close()  # the end of file that the program waits for

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._stop is not None and self._stop():
            raise InterruptedError
        return left

    def _wait(self, deadline: float) -> None:
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def _drain(self, fd: int, stream: str) -> bool:
        """Take what is there; whether the stream has ended."""
        data = os.read(fd, _CHUNK)
        if stream == "stdout" and self._sink is not None:
            self._sink(data)
        elif stream == "stdout":
            self.stdout += data
            if len(self.stdout) > self._max_output:
                raise OverflowError
        else:
            self.stderr += data
            del self.stderr[:-MAX_OUTPUT]
        return not data

    def _feed(self, fd: int) -> bool:
        """Write what fits; whether all of it is written. A program that closed its input has had all it wants."""
        try:
            while self._sent < len(self._data):
                with self._data[self._sent : self._sent + _CHUNK] as chunk:
                    self._sent += os.write(fd, chunk)
        except BlockingIOError:
            return False
        except BrokenPipeError:
            pass
        return True

    def complaint(self) -> str:
        """The last line that the program wrote to standard error, printable and not long."""
        lines = self.stderr.decode("utf-8", "replace").strip().splitlines()
        return "".join(c if c.isprintable() else "?" for c in lines[-1].strip())[:_MAX_LINE] if lines else ""

    def close(self) -> None:
        """Close the pipes; whatever still runs of the group is killed if the program itself has not ended.

        The view of the input is let go of: as long as there is one, a Secret cannot be wiped.
        """
        process = self._process
        self._data.release()
        if process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
            try:
                process.wait(_KILL_GRACE)
            except subprocess.TimeoutExpired:
                # nothing more can be done to it from here: SIGKILL is pending and will be served when it wakes
                process.returncode = -signal.SIGKILL
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
