"""The fault matrix: the steps, the faults, what each pair is expected to do, and which pairs every test run has.

How a start may go (``how``), besides that in the end the job has run and nothing is left:

``straight``     it ran at its first start, and its user saw nothing
``requeued``     Slurm started it once more by itself
``held [RULE]``  it was held with that rule in its reason, and ran when an admin released it
``held by Slurm``  held without a reason of ours: the node's Prolog failed, and the node is drained with Slurm's reason;
                   or slurmctld went away before it could be told the reason

``requeued by an admin``  slurmctld ended while a Prolog or PrologSlurmctld was at work, and came back with a job that
                   it calls RUNNING and never starts on its nodes

``drains``: the node is drained, rightly: its own hook was killed, hung, or met a broken disk, and Slurm drains a node
for that; or its disk is full of something else than scratch. No other pair may drain any node. A drained node is
resumed by the matrix as by an admin.
"""

from __future__ import annotations

from typing import NamedTuple

ASKED, CLAIMED = "set-up: asked", "set-up: claimed"
SETUP = (
    ASKED,
    CLAIMED,
    *(f"set-up: {state}" for state in ("planned", "backing", "loop", "mapping", "filesystem", "mount", "ready")),
)
TEARDOWN = tuple(f"tear-down: {step}" for step in ("unmount", "mount point", "close", "backing", "destroyed"))
START = ("start: grant", "start: key", "start: deletable")
NOTE = "end: note"
END = (NOTE, "end: key", "end: grant")
STEPS = (*START, *SETUP, *TEARDOWN, *END)
"""In the order in which a job meets them; the tear-down and the end go on side by side."""

VAULT = ("Vault stopped", "Vault sealed", "Vault 403", "Vault 429", "Vault standby")
RESTARTS = ("slurmd restart", "slurmctld restart")
FAULTS = (
    "SIGKILL",
    "error",
    "hang",
    "reboot",
    "disk full",
    *VAULT,
    "LDAP away",
    *RESTARTS,
    "double Epilog",
    "no Epilog",
)


class Cell(NamedTuple):
    """One step and one fault."""

    step: str
    fault: str

    def __str__(self) -> str:
        return f"{self.step} x {self.fault}"


class Expected(NamedTuple):
    """What may be seen (see the top)."""

    how: tuple[str, ...]
    drains: bool = False


# no process reaches this step without EpilogSlurmctld
UNDEFINED = {Cell(NOTE, "no Epilog")}
CELLS = tuple(Cell(step, fault) for step in STEPS for fault in FAULTS if Cell(step, fault) not in UNDEFINED)

# every step and every fault at least once, the quick ones where there is a choice
REPRESENTATIVE = (
    Cell("start: grant", "LDAP away"),
    Cell("start: key", "slurmd restart"),
    Cell("start: deletable", "no Epilog"),
    Cell("set-up: asked", "Vault 429"),
    Cell("set-up: claimed", "Vault standby"),
    Cell("set-up: planned", "Vault sealed"),
    Cell("set-up: backing", "Vault 403"),
    Cell("set-up: loop", "error"),
    Cell("set-up: mapping", "slurmd restart"),
    Cell("set-up: filesystem", "Vault stopped"),
    Cell("set-up: mount", "LDAP away"),
    Cell("set-up: ready", "Vault standby"),
    Cell("tear-down: unmount", "reboot"),
    Cell("tear-down: mount point", "double Epilog"),
    Cell("tear-down: close", "disk full"),
    Cell("tear-down: backing", "slurmctld restart"),
    Cell("tear-down: destroyed", "Vault 429"),
    Cell("end: note", "error"),
    Cell("end: key", "hang"),
    Cell("end: grant", "SIGKILL"),
)

_STRAIGHT = Expected(("straight",))
_NODES_OWN = Expected(("held by Slurm", "held [node.broken]", "requeued"), drains=True)
# what a service is to blame for waits, is tried once more, or is held with the reason
_OUTAGE = ("straight", "requeued", "held [service.outage]", "held [service.trial]")
_UNAVAILABLE = Expected(("held [backend.unavailable]", *_OUTAGE))
# whether a request is refused or the login before it; or the destruction of the first try's keys, in the words of that
_DENIED = Expected(("held [vault.denied]", "held [vault.login]", *_UNAVAILABLE.how))


def expected(cell: Cell) -> Expected:
    """What is documented of this pair."""
    if cell.step in SETUP:
        return _setup(cell)
    if cell.step in TEARDOWN:
        return _teardown(cell)
    return _start(cell) if cell.step in START else _STRAIGHT


def _setup(cell: Cell) -> Expected:
    if cell.fault in ("SIGKILL", "error", "hang", "double Epilog", "no Epilog"):
        return _NODES_OWN
    if cell.fault == "reboot":
        return Expected(("requeued", "held by Slurm"))
    if cell.fault == "disk full":
        return _disk_full(cell)
    if cell.fault in VAULT and cell.step == ASKED:
        return _DENIED if cell.fault == "Vault 403" else _UNAVAILABLE
    if cell.fault in RESTARTS:
        return Expected(("straight", "requeued", "requeued by an admin"))
    return _STRAIGHT


def _disk_full(cell: Cell) -> Expected:
    if cell.step in (ASKED, CLAIMED):
        # nothing can be written into the trail
        return Expected(("held [backend.unavailable]", "held [audit.unwritable]", "requeued"))
    # something else than scratch has filled it: that node is of no use to any job
    return Expected(("held [node.no-space]", "requeued"), drains=True)


def _teardown(cell: Cell) -> Expected:
    # an Epilog's process that is killed is begun once more by its stub (decision 0028)
    if cell.fault in ("error", "hang"):
        return Expected(("straight",), drains=True)
    return _STRAIGHT


def _start(cell: Cell) -> Expected:
    if cell.fault == "reboot":
        return Expected(("held by Slurm", "requeued by an admin", *_UNAVAILABLE.how))
    if cell.fault == "slurmctld restart":
        return Expected(("straight", "requeued", "requeued by an admin"))
    if cell.fault in ("SIGKILL", "hang", "no Epilog"):
        return _UNAVAILABLE
    if cell.fault == "error":
        # what nobody has foreseen in the daemon is asked for again
        return Expected(("straight", "requeued"))
    if cell.fault in VAULT:
        return _DENIED if cell.fault == "Vault 403" else _UNAVAILABLE
    return _STRAIGHT
