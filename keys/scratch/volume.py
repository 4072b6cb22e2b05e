"""Backing store on a logical volume: one volume for each job, in a volume group that the admin gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keys.process import ProcessError, program, udevd_runs
from keys.scratch.errors import NodeBroken, ScratchTooLarge

if TYPE_CHECKING:
    from keys.process import Budget
    from keys.scratch.plan import ScratchPlan

_STEP = 30.0
TAG = "secure-slurm"
"""What every volume of a job's has, and no other."""
STRIPE = "64k"
"""As ParallelCluster's own volume has it."""
# without udevd nobody would answer LVM's cookies or make its device nodes; it has to be told in each of these ways
_NO_UDEV = "activation{udev_sync=0 udev_rules=0} devices{obtain_device_list_from_udev=0}"


def _lvm(command: str, *arguments: str) -> list[str]:
    config = [] if udevd_runs() else ["--config", _NO_UDEV]
    return [program(command), *config, *arguments]


def command(name: str, *arguments: str) -> list[str]:
    """The words that run one of LVM's programs, with udevd or without."""
    return _lvm(name, *arguments)


def node_path(volume: str) -> str:
    """The device node of ``<group>/<volume>``: device-mapper's own, with dashes doubled (lvm(8))."""
    return "/dev/mapper/" + "-".join(part.replace("-", "--") for part in volume.split("/", 1))


def create(plan: ScratchPlan, budget: Budget) -> str:
    """Make the volume and return its device.

    Neither zeroed nor searched for signatures: it holds ciphertext of ended jobs, and nothing that reads it is told.

    :raises ScratchTooLarge: the volume group has no space for it.
    :raises NodeBroken: it is there already, or the volume group is not.
    """
    path = plan.names.path
    argv = _lvm("lvcreate", "--yes", "--quiet", "--zero", "n", "--wipesignatures", "n", "--addtag", TAG)
    argv += ["--size", f"{plan.mapped_bytes}b", "--name", plan.names.mapper]
    stripes = _drives(plan.volume_group, budget) if plan.striped else 1
    try:
        if stripes > 1:
            try:
                budget.run(
                    [*argv, "--stripes", str(stripes), "--stripesize", STRIPE, "--", plan.volume_group], cap=_STEP
                )
            except ProcessError as error:
                # not so much is free on each of the drives; it may be on all of them together
                if error.returncode is None or not budget.left():
                    raise
            else:
                return node_path(path)
        budget.run([*argv, "--", plan.volume_group], cap=_STEP)
    except ProcessError as error:
        free = free_bytes(plan.volume_group, budget)
        if free < plan.mapped_bytes:
            raise ScratchTooLarge(
                f"node {plan.node} has no {plan.size_bytes} bytes of scratch free in its volume group ({free} are)"
            ) from None
        raise NodeBroken(f"cannot make the volume {path}: {error}") from None
    return node_path(path)


def _drives(group: str, budget: Budget) -> int:
    """How many drives a volume group has. Raises NodeBroken: there is no such group."""
    return _number("pv_count", group, budget)


def free_bytes(group: str, budget: Budget) -> int:
    """Bytes that a volume group can still give.

    :raises NodeBroken: there is no such group.
    """
    return _number("vg_free", group, budget)


def _number(field: str, group: str, budget: Budget) -> int:
    try:
        report = budget.run(
            _lvm("vgs", "--noheadings", "--nosuffix", "--units", "b", "--options", field, "--", group), cap=_STEP
        )
        return int(report.stdout)
    except (ProcessError, ValueError) as error:
        raise NodeBroken(f"the volume group {group} does not answer: {error}", advice=f"see: vgs {group}") from None


def exists(path: str, budget: Budget) -> bool:
    """Whether ``<group>/<volume>`` is there, active or not, whoever made it.

    :raises NodeBroken: LVM does not answer, or the group is not there: then nobody knows.
    """
    return _tags(path, budget) is not None


def _tags(path: str, budget: Budget) -> list[str] | None:
    """The tags of a volume; None: there is none of that name. Raises NodeBroken as :func:`exists`."""
    group, _, name = path.partition("/")
    argv = _lvm("lvs", "--noheadings", "--options", "lv_name,lv_tags", "--select", f"lv_name={name}", "--", group)
    try:
        words = budget.run(argv, cap=_STEP).stdout.decode("ascii", "replace").split()
    except ProcessError as error:
        raise NodeBroken(f"the volume group {group} does not answer: {error}", advice=f"see: vgs {group}") from None
    return ",".join(words[1:]).split(",") if words else None


def remove(path: str, budget: Budget) -> bool:
    """Remove ``<group>/<volume>``; whether it was there.

    :raises NodeBroken: it is still in use, or none of ours for all its name, or LVM does not answer.
    """
    tags = _tags(path, budget)
    if tags is None:
        return False
    if TAG not in tags:
        raise NodeBroken(
            f"the volume {path} has not the tag {TAG}, so it was not made for a job", advice=f"see: lvs {path}"
        )
    try:
        budget.run(_lvm("lvremove", "--yes", "--quiet", "--", path), cap=_STEP)
    except ProcessError as error:
        raise NodeBroken(f"cannot remove the volume {path}: {error}", advice=f"see: lvs {path}") from None
    return True
