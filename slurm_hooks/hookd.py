"""The hook server: root's Prolog and Epilog with Python already started (docs/decisions/0028-hook-server.md).

It keeps a few processes ready, each of which serves one hook and ends (slurm_hooks/hookslot.py), and does nothing for
them but replace what has ended, and end what has stood still. It reads no request, so nothing that a stub sends reaches
it. When it is away, or too old, or has no process ready, the stubs start Python themselves, as they did before there
was a server: nothing depends on it but time.

Runs in slurmd's mount namespace, with root's powers to mount. Standard library only, as everything that root runs here.
"""

# pathlib is left out on purpose, and argparse and logging: each process that it forks is a copy of it
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import secrets
import signal
import sys
import time

from conf.errors import BackendUnavailable, ConfigError, SecureSlurmError
from conf.hookconf import for_node, is_node_name, read_hook_config
from keys.scratch.paths import open_directory
from slurm_hooks import hookslot, hookwarm
from slurm_hooks.hookenv import say
from slurm_hooks.notify import Systemd

DOOR = "hookd"
"""In the run directory; 0700 and root's, so that nobody else can ask, answer, or listen."""
READY = 4
"""Processes that wait, of some 15 MB each. More hooks than this at once start Python themselves."""
TICK = 1.0
CLAIMED = 5.0
"""Seconds from a stub's claim to its hook's beginning, which takes milliseconds: one of the two is dead."""
LONGEST = 180.0
"""Seconds for one hook. Prolog and Epilog end by themselves long before (node.prolog_deadline; teardown.PATIENCE)."""
LOCKED = 5.0

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ready:
    """What the server knows of one of its processes. Times in seconds of the monotonic clock; 0 for not yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.claimed = 0.0
        self.begun = 0.0


class Server:
    """The processes of one node. ``door`` is the descriptor of their folder."""

    def __init__(self, door: int, held: int) -> None:
        self._door = door
        self._lock = held
        self._known = hookslot.sources()
        self._slots: dict[int, Ready] = {}
        self._lifeline, self._held = os.pipe2(os.O_CLOEXEC)
        self._patience = 0.0
        self.stale = False
        self.systemd = Systemd()

    def run(self) -> None:
        """Until SIGTERM, or until another version of the program is on the disk (``stale``)."""
        gc.freeze()  # what is here now is shared with the children for good
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self.fill()
        self.systemd.ready(self.words())
        looked = time.monotonic()
        while not self.stale:
            left = looked + TICK - time.monotonic()
            came = signal.sigtimedwait(_SIGNALS, max(0.0, left))
            if came is not None and came.si_signo != signal.SIGCHLD:
                return
            self.reap()
            self.look()
            if time.monotonic() - looked >= TICK:
                looked = time.monotonic()
                self.fill()
                self.systemd.alive(self.words())
            elif self.idle() < READY // 2:
                # otherwise later: a fork now would take its time from the job that just started
                self.fill()

    def idle(self) -> int:
        """How many wait, as far as is known."""
        return sum(not slot.claimed for slot in self._slots.values())

    def words(self) -> str:
        """For ``systemctl status``: how many processes wait, and how many work."""
        return f"{self.idle()} processes wait for a hook, {len(self._slots) - self.idle()} serve one"

    def fill(self) -> None:
        """Start what is missing; nothing for a while when one has ended without a hook."""
        while self.idle() < READY and time.monotonic() >= self._patience:
            token = secrets.token_hex(16)
            child = os.fork()
            if child == 0:
                self._in_child(token)
            self._slots[child] = Ready(f"{child}-{token}")

    def _in_child(self, token: str) -> None:
        os.setsid()
        os.close(self._held)
        # a hook that outlives the server does not keep the next one from starting
        os.close(self._lock)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        hookslot.serve(self._door, token, self._lifeline, self._known)

    def reap(self) -> None:
        """Forget what has ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                child, status = os.waitpid(-1, os.WNOHANG)
                if child == 0:
                    return
                code = os.waitstatus_to_exitcode(status)
                # a child of an earlier version of this program, before it started itself anew, is not in the list
                if self._slots.pop(child, None) is not None and code != hookslot.SERVED:
                    self.stale = self.stale or code == hookslot.STALE
                    self._patience = time.monotonic() + TICK

    def look(self) -> None:
        """Who was claimed, who has stood still, and what nobody has any more."""
        now = time.monotonic()
        names = set(os.listdir(self._door))
        for child, slot in self._slots.items():
            if not slot.claimed and f"{slot.name}.mine" in names:
                slot.claimed = now
            if slot.claimed and not slot.begun and f"{slot.name}.ask" not in names:
                slot.begun = now
            if slot.begun and now - slot.begun > LONGEST:
                self._end(child, f"a hook has not ended within {LONGEST:.0f} s")
            elif slot.claimed and not slot.begun and now - slot.claimed > CLAIMED:
                self._end(child, "a hook that was asked for has not begun")
        alive = {slot.name for slot in self._slots.values()}
        for name in names - {"lock"}:
            if name.lstrip(".").partition(".")[0] not in alive and not self._is_busy(name):
                self._unlink(name)

    def sweep(self) -> None:
        """Take what an earlier server left. A hook that still runs has its FIFO open and needs no name for it."""
        for name in set(os.listdir(self._door)) - {"lock"}:
            self._unlink(name)

    def close(self) -> None:
        """Let those that wait end; those that serve a hook finish it without a server."""
        os.close(self._held)
        os.close(self._lock)
        for name in os.listdir(self._door):
            if name.endswith(".ask"):
                self._unlink(name)

    def _is_busy(self, name: str) -> bool:
        """Whether it is a file of a process that began before this server did, and goes on."""
        owner = name.lstrip(".").partition("-")[0]
        return name.endswith(".say") and owner.isdigit() and os.path.exists(f"/proc/{owner}")  # noqa: PTH110

    def _end(self, child: int, why: str) -> None:
        say("hookd", f"process {child}: {why}; it is ended")
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._door)


def open_door(run_dir: str) -> int:
    """The folder of the FIFOs, made if need be. Raises SecureSlurmError when it is anybody else's, OSError."""
    return open_directory(f"{run_dir}/{DOOR}", private=True, create=0o700)


def lock(door: int) -> int:
    """One server for each node. Raises BackendUnavailable: another one stays."""
    descriptor = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=door)
    end = time.monotonic() + LOCKED
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise BackendUnavailable("another hook server runs for this node") from None
            time.sleep(0.05)
        else:
            return descriptor


def main(argv: list[str] | None = None) -> int:
    """``secure-slurm-hookd --node NAME``. Exit codes as everywhere (docs/exit-codes.md)."""
    words = sys.argv[1:] if argv is None else argv
    os.umask(0o077)
    os.chdir("/")
    try:
        if len(words) != 2 or words[0] != "--node" or not is_node_name(words[1]):
            raise ConfigError("usage: secure-slurm-hookd --node NAME")
        config = read_hook_config(check_sources=False)
        door = open_door(for_node(config["node"]["run_dir"], words[1]))
        server = Server(door, lock(door))
        server.sweep()
        hookwarm.warm(words[1])
        server.run()
        server.systemd.stopping()
    except SecureSlurmError as error:
        say("hookd", f"{error} {error.advice}")
        return error.exit_code
    except OSError as error:
        say("hookd", f"{error.filename or 'the hook server'}: {error.strerror}")
        return 4
    server.close()
    if server.stale:
        say("hookd", "the program on the disk has changed: starting anew")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  itself, with its own arguments
    return 0
