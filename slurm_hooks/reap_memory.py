"""What the reaper remembers from one run to the next, on tmpfs: a reboot ends it, as it ends what it is about.

A file that is missing or damaged costs time: every job is then seen for the first time.
"""

# pathlib is left out on purpose: what runs every few seconds on a compute node has to be light
# ruff: noqa: PTH108

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import TYPE_CHECKING

from slurm_hooks.reap_rule import Seen

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
_MAX_BYTES = 16 * 1024**2
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Memory:
    """One node's, ``<run_dir>/reaper.json``, root's own. ``told``: the failures that the audit trail has heard of."""

    def __init__(self, run_dir: str, boot: str) -> None:
        self._path = f"{run_dir}/reaper.json"
        self._boot = boot
        self.seen: dict[int, Seen] = {}
        self.told: dict[int, str] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            self._load()

    def _load(self) -> None:
        with os.fdopen(os.open(self._path, _READ), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return
            data = json.loads(file.read(_MAX_BYTES))
        if data["v"] != FORMAT or data["boot"] != self._boot:
            return
        seen = {
            int(job): Seen(str(start), float(first), float(ended))
            for job, (start, first, ended) in data["seen"].items()
        }
        told = {int(job): str(what) for job, what in data["told"].items()}
        self.seen, self.told = seen, told

    def save(self, seen: Mapping[int, Seen], told: Mapping[int, str]) -> None:
        """Remember this and nothing else. OSError: it cannot be written, and the next run will not know it."""
        self.seen, self.told = dict(seen), dict(told)
        text = json.dumps({"v": FORMAT, "boot": self._boot, "seen": self.seen, "told": self.told}).encode("ascii")
        temporary = f"{self._path}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        with os.fdopen(os.open(temporary, _CREATE, 0o600), "wb") as file:
            file.write(text)
        os.rename(temporary, self._path)  # noqa: PTH104
