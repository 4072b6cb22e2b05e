"""Backing store in memory, for nodes without a disk: ciphertext in anonymous memory, on a loop device.

The memory has no path (memfd_create(2)): nobody can open it by name, it is on no file system, and it is given back with
the last of its users: the mapping, or the process that set it up and was killed before there was one. It is reserved as
a whole before the job starts, so that a job which writes cannot bring the node down, and counts as memory of whoever
reserves it, which is the hook server's or slurmd's service and not the job. What is reserved in all is bounded by
``scratch.limit``, and that much has to be kept from jobs: ``MemSpecLimit`` (slurm.conf(5)).

Swap is refused altogether. Only ciphertext could get there; but what is promised is that scratch is on no disk.
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import TYPE_CHECKING

from conf.errors import Refused
from keys.scratch.backing import refuse_over_limit
from keys.scratch.errors import NodeBroken, ScratchTooLarge
from keys.scratch.plan import SECTOR, memory_path

if TYPE_CHECKING:
    from keys.process import Budget
    from keys.scratch.plan import ScratchPlan

SWAPS = "/proc/swaps"
MEMINFO = "/proc/meminfo"
SYSFS = "/sys/block"
KEEP_BYTES = 1024**3
KEEP_PART = 20
"""What stays available, as of a disk: a gibibyte, or a twentieth of a machine with less than 20 of them."""

_NOEXEC_SEAL = 8
"""MFD_NOEXEC_SEAL (linux/memfd.h): never to be run. Where vm.memfd_noexec is 2, the kernel refuses all others."""
_PIECE = 64 * 1024**2
"""Bytes reserved at once: between two pieces a signal is heard, and the time is looked at."""


def make(plan: ScratchPlan, budget: Budget) -> int:
    """Reserve the memory and return its descriptor: closed, it is gone.

    :raises ScratchTooLarge: the limit would be passed, or too little memory would stay available.
    :raises Refused: ``node.swap``: the machine has swap, of whatever kind.
    :raises NodeBroken: there is no limit, the kernel has no such memory, or it took too long.
    """
    if not plan.limit:
        raise NodeBroken("scratch in memory needs a limit", advice="set scratch.limit and render the configuration")
    refuse_swap(f"node {plan.node}")
    refuse_over_limit(plan, taken())
    _check_room(plan)
    file = _create(plan.names.mapper)
    try:
        os.ftruncate(file, plan.mapped_bytes)
        _reserve(file, plan, budget)
    except BaseException:
        os.close(file)
        raise
    return file


def _create(name: str) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise NodeBroken(f"no memory for scratch: {error.strerror}") from None
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)  # a kernel before 6.3
    except OSError as error:
        raise NodeBroken(f"no memory for scratch: {error.strerror}") from None


def check_limit(plan: ScratchPlan) -> None:
    """For when the job's own is on its loop device: starts at the same moment do not see each other before.

    :raises ScratchTooLarge: together they are over the limit; at worst each of them gives way.
    """
    if plan.backing == "memory":
        refuse_over_limit(plan, taken(but=plan.names.path))


def refuse_swap(where: str) -> None:
    """:raises Refused: ``node.swap``; ``where`` is for its message."""
    try:
        with open(SWAPS, encoding="utf-8", errors="surrogateescape") as file:
            areas = [line.split()[0] for line in file.read().splitlines()[1:] if line.strip()]
    except OSError as error:
        areas = [f"({SWAPS}: {error.strerror})"]
    if areas:
        raise Refused(
            "node.swap",
            f"scratch on {where} is in memory, and there is swap: {', '.join(map(ascii, areas))}",
            advice="swapoff -a, and take it out of /etc/fstab",
        )


def available() -> int:
    """Bytes that could be had without swapping (proc_meminfo(5), MemAvailable). Raises NodeBroken: it is not said."""
    return _meminfo("MemAvailable")


def keep() -> int:
    """Bytes that stay available."""
    return min(KEEP_BYTES, _meminfo("MemTotal") // KEEP_PART)


def taken(but: str = "") -> int:
    """Bytes of memory that the scratch of jobs has on this machine, of all its slurmds; ``but``: one path left out.

    :raises NodeBroken: there is no sysfs to tell by.
    """
    prefix = memory_path("secure-")
    total = 0
    try:
        devices = os.listdir(SYSFS)
    except OSError as error:
        raise NodeBroken(f"what memory scratch has cannot be told: {SYSFS}: {error.strerror}") from None
    for device in devices:
        # another kind of device, or it went away while it was looked at
        with contextlib.suppress(OSError, ValueError):
            with open(f"{SYSFS}/{device}/loop/backing_file", "rb") as file:
                path = os.fsdecode(file.read().rstrip(b"\n")).removesuffix(" (deleted)")
            if path.startswith(prefix) and path != but:
                with open(f"{SYSFS}/{device}/size", "rb") as file:
                    total += int(file.read()) * SECTOR
    return total


def _check_room(plan: ScratchPlan) -> None:
    free, kept = available(), keep()
    if free - plan.mapped_bytes < kept:
        raise ScratchTooLarge(
            f"node {plan.node} has no {plan.size_bytes} bytes of memory for scratch ({free} are available, {kept} stay)"
        )


def _reserve(file: int, plan: ScratchPlan, budget: Budget) -> None:
    """fallocate(2) in pieces. On memory it takes every page at once, so the time it takes grows with the size."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = 0
    while done < plan.mapped_bytes:
        if not budget.left() or (budget.stop is not None and budget.stop()):
            raise NodeBroken(
                f"node {plan.node} could not reserve {plan.size_bytes} bytes of memory in time",
                advice="see node.prolog_deadline, and what keeps the node's memory busy",
            )
        piece = min(_PIECE, plan.mapped_bytes - done)
        if libc.fallocate(ctypes.c_int(file), 0, ctypes.c_long(done), ctypes.c_long(piece)) == 0:
            done += piece
            continue
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.ENOMEM):
            raise ScratchTooLarge(f"node {plan.node} has no {plan.size_bytes} bytes of memory for scratch")
        if number != errno.EINTR:
            raise NodeBroken(f"memory for scratch cannot be reserved: {os.strerror(number)}")


def _meminfo(field: str) -> int:
    try:
        with open(MEMINFO, encoding="ascii", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name == field:
                    return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    raise NodeBroken(f"{MEMINFO} does not say {field}")
