"""Whether a job's data would lie on this node's disks in clear: in swap, in core dumps, in /tmp.

Only root can have arranged any of it, so each is the node's own fault, and drains it. What is judged is what the kernel
and Slurm's files say at the start of the job; ``node.swap`` and ``node.core_dumps`` in secure-slurm.yaml, and a class's
``private_tmp``, say how strictly.
Standard library only (root hooks import it under ``python3 -IS``).
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH118, PTH120, PTH123

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from conf.errors import Refused, SecureSlurmError
from keys import atrest
from slurm_hooks import tmpconf

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = frozenset({"node.swap", "node.core-dumps", "node.private-tmp"})
KERNEL = "/proc/sys/kernel"
_NOWHERE = frozenset({"/bin/false", "/usr/bin/false", "/bin/true", "/usr/bin/true"})
"""Programs that a core dump may be piped to: they keep nothing of it."""
_DUMP_ADVICE = "sysctl kernel.core_pattern='|/bin/false', and the same in /etc/sysctl.d"
SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "hooks/private_tmp")  # noqa: PTH100
"""The InitScript, where install.sh puts it: beside the folder that this module is in."""


def judge(config: dict[str, Any], name: str, classes: tuple[str, ...], slurm_conf: str) -> None:
    """Refuse a node that would leak what a job of one of these classes writes.

    :param config: hooks.json; ``name``: the node's; ``slurm_conf``: SLURM_CONF as slurmd gave it.
    :raises Refused: one of :data:`RULES`.
    """
    for fault in faults(config, name, classes, slurm_conf):
        raise fault


def faults(config: dict[str, Any], name: str, classes: tuple[str, ...], slurm_conf: str) -> Iterator[Refused]:
    """Every reason for which such a job's data would be on a disk of this node in clear. What cannot be told is one."""
    node = config["node"]
    if node.get("swap") != "allow":
        yield from _swap(name)
    if node.get("core_dumps") != "allow":
        fault = _core_dumps()
        if fault:
            yield Refused("node.core-dumps", f"core dumps on node {name} are in clear: {fault}", advice=_DUMP_ADVICE)
    # what was rendered before there was a choice is taken for the strict one
    wanted = {config.get("private_tmp", {}).get(each, "scratch") for each in classes} - {"none"}
    for each in sorted(wanted):
        yield from _private_tmp(name, each, slurm_conf)


def _swap(name: str) -> Iterator[Refused]:
    try:
        found = atrest.swap_faults()
    except OSError as error:
        found = [f"{atrest.SWAPS}: {error.strerror}"]
    if found:
        yield Refused(
            "node.swap",
            f"memory of jobs on node {name} may be swapped out in clear: {'; '.join(found)}",
            advice="swapoff it, or have it encrypted with a key of each boot (crypttab(5), option swap)",
        )


def _core_dumps() -> str:
    """Why a core dump may be on a disk in clear (core(5)); empty: there is none, or it is encrypted.

    Limits do not help: a program behind ``|`` is given every dump (core(5)), and with a file the job's user may have a
    limit of their own (sbatch(1), ``--propagate``).
    """
    try:
        pattern, with_pid = _sysctl("core_pattern"), _sysctl("core_uses_pid")
    except OSError as error:
        return f"what happens to them cannot be told ({error.strerror})"
    if not pattern and with_pid == "0":
        return ""
    if pattern.startswith("|"):
        program = pattern[1:].split(" ")[0]
        return "" if program in _NOWHERE else f"they are given to {program or 'a program'}, which may keep them"
    if not pattern.startswith("/"):
        return f"they are written to the working directory of the process, as {pattern or 'core'!r}"
    # the part before the first folder that differs from dump to dump
    folder = os.path.dirname(pattern.split("%")[0])
    return atrest.place_fault(folder)


def _sysctl(name: str) -> str:
    with open(f"{KERNEL}/{name}", encoding="utf-8", errors="surrogateescape") as file:
        # proc_sys_kernel: the kernel adds the line feed; a pattern may begin or end with blanks of its own
        return file.read(4096).removesuffix("\n")


def _private_tmp(name: str, wanted: str, slurm_conf: str) -> Iterator[Refused]:
    try:
        fault, advice = tmp_fault(tmpconf.read(slurm_conf, name), wanted)
    except SecureSlurmError as error:
        fault, advice = str(error), error.advice
    if fault:
        yield Refused("node.private-tmp", f"a job's /tmp on node {name} would be in clear: {fault}", advice=advice)


def tmp_fault(found: tmpconf.TmpConf, wanted: str) -> tuple[str, str]:
    """What is wrong, and what to do; both empty: nothing. ``wanted``: ``scratch`` or ``encrypted``."""
    old, new = tmpconf.PLUGINS
    where = "in job_container.conf"
    missing = [each for each in tmpconf.DIRECTORIES if each not in found.dirs]
    faults_of = (
        (
            found.plugin not in tmpconf.PLUGINS,
            f"slurm.conf names {found.plugin or 'no plugin'}, which is not known to give each job a /tmp of its own",
            f"set JobContainerType={old}, from Slurm 25.11 on NamespaceType={new}",
        ),
        (
            "runinjob" in found.flags,
            "with PrologFlags=RunInJob Slurm makes a job's /tmp before its scratch is there",
            "use PrologFlags=Contain instead",
        ),
        (found.base.lower() in ("", "none"), f"there is no BasePath {where} for this node", f"set BasePath {where}"),
        (
            bool(missing),
            f"Dirs {where} lacks {' and '.join(missing)}",
            f"set Dirs={','.join(tmpconf.DIRECTORIES)} {where}",
        ),
        (
            wanted == "scratch" and os.path.realpath(found.script) != os.path.realpath(SCRIPT),
            f"InitScript {where} is {found.script or 'not set'}",
            f"set InitScript={SCRIPT} {where}",
        ),
    )
    for wrong, what, advice in faults_of:
        if wrong:
            return what, advice
    fault = "" if wanted == "scratch" else atrest.place_fault(found.base)
    return fault, fault and "put BasePath on a tmpfs or on an encrypted file system"
