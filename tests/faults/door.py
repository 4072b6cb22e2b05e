"""The door by which faults come in: copied beside the installed packages of a guest, and nowhere else.

The product has no hook for faults. The test bed appends a line to its *installed* modules (tests/faults/bed.py) which
calls :func:`arm`; from then on each step of set-up and tear-down asks :func:`at` whether something is to happen here.
Standard library only: it runs inside root's hooks under ``python3 -IS``.
"""

# ruff: noqa: PTH104, PTH110, PTH123
from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = "/run/faults"
"""``plan.json``: what is to happen; ``fired/ID``: the process it has happened to; ``go/ID``: those who wait go on."""

PATIENCE = 300.0
"""Seconds that a step waits for ``go`` at most: a driver that died must not stop the cluster."""


def at(step: str) -> None:
    """A step is reached. A plan strikes once: the first process that reaches its step.

    :raises OSError: EIO, if that is the plan.
    """
    try:
        with open(f"{FOLDER}/plan.json", encoding="ascii") as file:
            plan = json.load(file)
        if plan["step"] != step:
            return
        fired = f"{FOLDER}/fired/{plan['id']}"
        # stays: who comes next to this step, a reaper say, is not struck
        os.close(os.open(f"{fired}.once", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except (OSError, ValueError):
        return
    with os.fdopen(os.open(f"{fired}.new", os.O_WRONLY | os.O_CREAT, 0o644), "w") as file:
        file.write(f"{os.getpid()} {os.environ.get('SLURMD_NODENAME', '')}")
    os.rename(f"{fired}.new", fired)
    _strike(plan["act"], plan["id"])


def _strike(act: str, name: str) -> None:
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "error":
        raise OSError(errno.EIO, os.strerror(errno.EIO), "injected")
    elif act == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif act == "wait":
        end = time.monotonic() + PATIENCE
        while not os.path.exists(f"{FOLDER}/go/{name}") and time.monotonic() < end:
            time.sleep(0.02)


def _before(owner: Any, name: str, step: str) -> None:
    act = getattr(owner, name)

    def struck(*args: Any, **kwargs: Any) -> Any:
        at(step)
        return act(*args, **kwargs)

    setattr(owner, name, struck)


def _after(owner: Any, name: str, step: str) -> None:
    act = getattr(owner, name)

    def struck(*args: Any, **kwargs: Any) -> Any:
        result = act(*args, **kwargs)
        at(step)
        return result

    setattr(owner, name, struck)


def _journal(module: Any) -> None:
    _after(module.Journal, "claim_incarnation", "set-up: claimed")
    write = module.Journal.write

    def struck(self: Any, record: Any) -> Any:
        written = write(self, record)
        if record.state != "destroyed":
            at(f"set-up: {record.state}")
        return written

    module.Journal.write = struck


def _teardown(module: Any) -> None:
    closing = module._Closing
    _before(closing, "_unmount_each", "tear-down: unmount")
    _before(closing, "_remove_mount_point", "tear-down: mount point")
    _before(closing, "_close", "tear-down: close")
    _before(closing, "_remove_backing", "tear-down: backing")
    _before(module, "_write_destroyed", "tear-down: destroyed")


def _head(module: Any) -> None:
    _after(module.VaultHead, "write_grant", "start: grant")
    _after(module.VaultHead, "create_key", "start: key")
    _after(module.VaultHead, "allow_deletion", "start: deletable")
    _before(module.VaultHead, "delete_key", "end: key")
    _before(module.VaultHead, "delete_grant", "end: grant")


_ARMS: dict[str, Callable[[Any], None]] = {
    "keys.journal": _journal,
    "keys.scratch.teardown": _teardown,
    "keys.vault_head": _head,
    "slurm_hooks.prolog": lambda module: _before(module, "_ask", "set-up: asked"),
    "slurm_hooks.epilog_slurmctld": lambda module: _after(module, "_note", "end: note"),
}


class _Module:
    """A module by its own dictionary: while it is being imported nothing else has it."""

    def __init__(self, names: dict[str, Any]) -> None:
        object.__setattr__(self, "_names", names)

    def __getattr__(self, name: str) -> Any:
        return object.__getattribute__(self, "_names")[name]

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_names")[name] = value


def arm(name: str, names: dict[str, Any]) -> None:
    """Called by the last line of an installed module, with its ``__name__`` and ``globals()``."""
    with contextlib.suppress(KeyError):
        if names.get("_fault_door_armed") is None:
            names["_fault_door_armed"] = True
            _ARMS[name](_Module(names))
