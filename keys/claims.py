"""Which secured jobs a node has: every claim of a start, and every journal of scratch that is not destroyed.

Standard library only. Reading takes no lock: what is written is written whole (keys/journal.py).
"""

# pathlib is left out on purpose: root's daemons import this
# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from conf.errors import SecureSlurmError
from keys.scratch.paths import open_directory

if TYPE_CHECKING:
    from keys.journal import Journal

_CLAIM = re.compile(r"([1-9][0-9]{0,9})\.claim", re.ASCII)
_INCARNATION = re.compile(rb"[0-9a-f]{32}", re.ASCII)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def jobs_here(journal: Journal, dead: dict[int, int]) -> dict[int, str]:
    """Job and incarnation; an incarnation that cannot be read is "".

    :param dead: what is known from one call to the next: destroyed jobs and when their journal was written.
    :raises SecureSlurmError, OSError: the journal cannot be trusted or read: which jobs there are is not known.
    """
    found = _claims(journal)
    for job in journal.jobs():
        try:
            written = os.stat(f"{journal.run_dir.rstrip('/')}/journal/{job}.json").st_mtime_ns
            if dead.get(job) == written:
                continue
            record = journal.read(job)
        except FileNotFoundError:
            continue
        except SecureSlurmError:
            # damaged: there was something, and its mapping has a name all the same
            found.setdefault(job, "")
            continue
        if record is not None and record.state != "destroyed":
            found.setdefault(job, record.incarnation)
        else:
            dead[job] = written
    return found


def _claims(journal: Journal) -> dict[int, str]:
    found: dict[int, str] = {}
    try:
        folder = open_directory(f"{journal.run_dir.rstrip('/')}/journal", private=True)
    except FileNotFoundError:
        return found
    try:
        for match in filter(None, map(_CLAIM.fullmatch, os.listdir(folder))):
            try:
                descriptor = os.open(match[0], _READ, dir_fd=folder)
            except FileNotFoundError:
                continue
            with os.fdopen(descriptor, "rb") as file:
                text = file.read(64)
            found[int(match[1])] = text.decode() if _INCARNATION.fullmatch(text) else ""
    finally:
        os.close(folder)
    return found
