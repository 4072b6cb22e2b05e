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
# a restart of the lifecycle daemon, or a busy network, must stop no job
LEAST_GRACE = 10.0
# a certificate that nobody can take back must end soon, and one that ends too soon is never renewed in time
LONGEST_CERTIFICATE, SHORTEST_CERTIFICATE = 86400.0, 600.0
# who must prove something is asked within a year
LEAST_KEPT = 365 * 86400.0
_DIRECTORY = "/var/lib/secure-slurm/scratch"


def check_site(site: Raw) -> Findings:
    """Every contradiction in a site file: the path of the value, and what is wrong with it."""
    yield from _deadlines(site)
    yield from _scratch(section(site, "scratch"))
    yield from _retention(section(site, "audit"))
    yield from _enrol(site)
    vault = section(site, "vault")
    transit = vault.get("transit_mount", "secure-slurm-transit")
    if transit == vault.get("grants_mount", "secure-slurm-grants"):
        yield ("vault", "grants_mount"), "grants_mount and transit_mount must be two mounts"
    ldap = section(site, "ldap")
    refresh, max_age = duration(ldap, "refresh", 30.0), duration(ldap, "max_age", 600.0)
    if refresh is not None and max_age is not None and refresh >= max_age:
        yield ("ldap", "max_age" if "max_age" in ldap else "refresh"), "max_age must be longer than refresh"


def _deadlines(site: Raw) -> Findings:
    revocation = section(site, "revocation")
    grace = duration(revocation, "offline_grace", 900.0)
    if grace is not None and grace < LEAST_GRACE:
        yield (
            ("revocation", "offline_grace"),
            "revocation.offline_grace must be at least 10s, or a restart of the head node's daemon ends jobs",
        )
    patience = duration(revocation, "confirm_within", 10.0)
    if revocation.get("role_loss") in ("freeze", "revoke") and not section(site, "link").get("listen"):
        yield ("revocation", "role_loss"), "revocation.role_loss needs link.listen: without it no node can be told"
    start = duration(section(site, "lifecycle"), "start_deadline", 60.0)
    if patience is not None and start is not None and patience > start / 2:
        where = ("revocation", "confirm_within") if "confirm_within" in revocation else ("lifecycle", "start_deadline")
        yield where, "revocation.confirm_within must be at most half of lifecycle.start_deadline"
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


def _retention(audit: Raw) -> Findings:
    for key in ("keep", "keep_untagged"):
        kept = duration(audit, key, LEAST_KEPT)
        if kept is not None and kept < LEAST_KEPT:
            yield ("audit", key), f"audit.{key} must be at least 365d"
    classes = audit.get("keep_classes")
    names: set[object] = set()
    for number, one in enumerate(classes if isinstance(classes, list) else ()):
        if not isinstance(one, dict):
            continue
        kept = duration(one, "keep", LEAST_KEPT)
        if kept is not None and kept < LEAST_KEPT:
            yield ("audit", "keep_classes", number, "keep"), "audit.keep_classes: keep must be at least 365d"
        name = one.get("name")
        if isinstance(name, str) and name in names:
            yield ("audit", "keep_classes", number, "name"), f"the class {quote(name)} is named twice"
        names.add(name if isinstance(name, str) else None)


def _enrol(site: Raw) -> Findings:
    enrol = section(site, "enrol")
    lifetime = duration(enrol, "lifetime", LONGEST_CERTIFICATE)
    if lifetime is not None and not SHORTEST_CERTIFICATE <= lifetime <= LONGEST_CERTIFICATE:
        yield ("enrol", "lifetime"), "enrol.lifetime must be from 10m to 24h"
    if enrol.get("source") == "command" and not enrol.get("command"):
        yield ("enrol", "source"), "enrol.source 'command' needs 'command'"
    listen = enrol.get("listen")
    method = section(section(site, "vault"), "node").get("method")
    if method in ("jwt", "aws") and not listen:
        yield ("vault", "node", "method"), f"vault.node.method {method} needs enrol.listen: its daemon says who is who"
    if method == "aws" and not enrol.get("instance_roles"):
        yield ("vault", "node", "method"), "vault.node.method aws needs enrol.instance_roles"
    if not listen or not isinstance(listen, str):
        return
    if listen.rpartition(":")[2] == str(section(site, "link").get("listen")).rpartition(":")[2]:
        yield ("enrol", "listen"), "enrol.listen and link.listen need two ports"
    if not enrol.get("regions"):
        yield ("enrol", "listen"), "enrol.listen needs enrol.regions: a document of any other region is refused"
    node = section(site, "node")
    if not section(node, "ec2").get("account"):
        # AWS signs the documents of everybody's instances with the same key
        yield ("enrol", "listen"), "enrol.listen needs node.ec2.account, or instances of every account may enrol"


def _scratch(scratch: Raw) -> Findings:
    backing = scratch.get("backing", "file")
    needed = {"file": "directory", "lvm": "volume_group", "block": "device"}
    key = needed.get(backing) if isinstance(backing, str) else None
    if key and not scratch.get(key, "/var/lib" if key == "directory" else ""):
        where = ("scratch", key) if key in scratch else ("scratch", "backing")
        yield where, f"scratch.backing {quote(backing)} needs {quote(key)}"
    yield from _store(scratch, backing)
    if scratch.get("overcommit") is True and backing != "file":
        yield ("scratch", "overcommit"), "scratch.overcommit is for scratch.backing 'file' only"
    root = scratch.get("mount_root")
    if isinstance(root, str) and root.rstrip("/") in {"", "/home", "/tmp", "/etc", "/usr", "/var", "/dev", "/proc"}:  # noqa: S108 - names to refuse
        yield ("scratch", "mount_root"), "scratch.mount_root must be a directory of its own"
    elif isinstance(root, str) and root == scratch.get("directory"):
        yield ("scratch", "mount_root"), "scratch.mount_root and scratch.directory must be two directories"


def _store(scratch: Raw, backing: object) -> Findings:
    """What the keys for instance store, volumes and memory need of each other."""
    group, volume, directory = (scratch.get(key, "") for key in ("volume_group", "volume", "directory"))
    in_memory = backing == "memory" or (backing == "auto" and scratch.get("diskless") == "memory")
    if in_memory and not scratch.get("limit"):
        where = ("scratch", "backing" if backing == "memory" else "diskless")
        yield where, "scratch in memory needs scratch.limit: what is left of a node's memory is its jobs'"
    if backing == "auto" and not group and not volume:
        yield ("scratch", "backing"), "scratch.backing 'auto' needs 'volume_group' or 'volume': what to look for"
    if scratch.get("limit") and backing in ("lvm", "block"):
        yield ("scratch", "limit"), f"scratch.limit is not for scratch.backing {quote(backing)}: the store has a size"
    if scratch.get("take_over") and (backing not in ("lvm", "auto") or not group):
        yield ("scratch", "take_over"), "scratch.take_over is for scratch.backing 'lvm' with 'volume_group' only"
    if isinstance(volume, str) and volume and isinstance(directory, str) and backing in ("file", "auto"):
        if not (directory or _DIRECTORY).startswith(f"{volume.rstrip('/')}/"):
            where = ("scratch", "directory") if "directory" in scratch else ("scratch", "volume")
            yield where, "scratch.directory must be below scratch.volume"
    elif volume:
        yield ("scratch", "volume"), "scratch.volume is for scratch.backing 'file' and 'auto' only"
    if scratch.get("diskless", "refuse") != "refuse" and backing != "auto":
        yield ("scratch", "diskless"), "scratch.diskless is for scratch.backing 'auto': write backing: memory"
