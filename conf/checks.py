"""What only the whole file can show: names that refer to nothing, values that contradict each other.

The checks look at what YAML read, not at the finished classes, so that they are told together with every other mistake.
Whatever has the wrong shape is passed over here: the loader has already said so.
"""

from __future__ import annotations

from conf.quote import quote
from conf.rawchecks import Findings, Raw, duration, section

# BatchStartTimeout, MessageTimeout and cred_expire (slurm.conf(5)): the first of them that passes fails the job
PROLOG_LIMIT = 60.0
# slurmctld answers nobody while job_submit runs
CONTROLLER_LIMIT = 1.0
# an instance that was stopped and started elsewhere must not live on an old verdict
PROOF_LIMIT = 3600.0


def check_site(site: Raw) -> Findings:
    """Every contradiction in a site file: the path of the value, and what is wrong with it."""
    yield from _deadlines(site)
    yield from _scratch(section(site, "scratch"))
    vault = section(site, "vault")
    transit = vault.get("transit_mount", "secure-slurm-transit")
    if transit == vault.get("grants_mount", "secure-slurm-grants"):
        yield ("vault", "grants_mount"), "grants_mount and transit_mount must be two mounts"
    ldap = section(site, "ldap")
    refresh, max_age = duration(ldap, "refresh", 30.0), duration(ldap, "max_age", 600.0)
    if refresh is not None and max_age is not None and refresh >= max_age:
        yield ("ldap", "max_age" if "max_age" in ldap else "refresh"), "max_age must be longer than refresh"


def _deadlines(site: Raw) -> Findings:
    deadline = duration(section(site, "controller"), "deadline", 0.2)
    if deadline is not None and deadline > CONTROLLER_LIMIT:
        yield ("controller", "deadline"), "controller.deadline must be at most 1s: slurmctld stands still meanwhile"
    kept = duration(section(site, "node"), "proof_lifetime", 60.0)
    if kept is not None and kept > PROOF_LIMIT:
        yield (
            ("node", "proof_lifetime"),
            "node.proof_lifetime must be at most 1h: a verdict on a node's place grows old",
        )
    prolog = duration(section(site, "node"), "prolog_deadline", 45.0)
    if prolog is not None and prolog >= PROLOG_LIMIT:
        yield ("node", "prolog_deadline"), "node.prolog_deadline must be below 60s, or Slurm fails the job first"
    timeout = duration(section(site, "vault"), "timeout", 5.0)
    if prolog is not None and timeout is not None and timeout >= prolog:
        where = ("vault", "timeout") if "timeout" in section(site, "vault") else ("node", "prolog_deadline")
        yield where, "vault.timeout must be shorter than node.prolog_deadline"


def _scratch(scratch: Raw) -> Findings:
    backing = scratch.get("backing", "file")
    needed = {"file": "directory", "lvm": "volume_group", "block": "device"}
    key = needed.get(backing) if isinstance(backing, str) else None
    if key and not scratch.get(key, "/var/lib" if key == "directory" else ""):
        where = ("scratch", key) if key in scratch else ("scratch", "backing")
        yield where, f"scratch.backing {quote(backing)} needs {quote(key)}"
    if scratch.get("overcommit") is True and backing != "file":
        yield ("scratch", "overcommit"), "scratch.overcommit is for scratch.backing 'file' only"
    root = scratch.get("mount_root")
    if isinstance(root, str) and root.rstrip("/") in {"", "/home", "/tmp", "/etc", "/usr", "/var", "/dev", "/proc"}:  # noqa: S108 - names to refuse
        yield ("scratch", "mount_root"), "scratch.mount_root must be a directory of its own"
    elif isinstance(root, str) and root == scratch.get("directory"):
        yield ("scratch", "mount_root"), "scratch.mount_root and scratch.directory must be two directories"
