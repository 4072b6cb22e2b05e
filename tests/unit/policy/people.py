"""The people of an invented site, and a job of each kind that its policy allows: every test changes one thing."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

from slurm_hooks import engine
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot

SITE = Path(__file__).with_name("site.yaml")
NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC).timestamp()
MEMBERS = {
    "staff": {"ann", "bea", "cem", "dan"},
    "phi-eu": {"bea"},
    "phi-uk": {"cem"},
    "board": {"eva"},
    "export": {"fay"},
    "study": {"dan"},
}

Changes = dict[str, bytes | None]
Decide = Callable[..., engine.Decision]


def snapshot() -> Snapshot:
    """Who is in which group of the policy."""
    groups = {f"cn={name},dc=example": Group(name, frozenset(users)) for name, users in MEMBERS.items()}
    return Snapshot(NOW - 10, "test", groups)


# A batch job of each kind that is allowed as it stands: every test changes one thing.
COMMON: Changes = {
    "verb": b"submit",
    "submit_uid": b"1001",
    "user_id": b"1001",
    "has_script": b"1",
    "alloc_node": b"login1",
    "default_partition": b"batch",
    "demand_nodes": b"phi=n[1-2]\nphi-gpu=g[1-2]\nexport=x1",
}
JOBS: dict[str, Changes] = {
    "open": {**COMMON, "user_name": b"ann", "extra": b"secure-slurm:class=open"},
    "internal": {**COMMON, "user_name": b"ann", "extra": b"secure-slurm:class=internal;residency=eu"},
    "phi": {
        **COMMON,
        "user_name": b"bea",
        "extra": b"secure-slurm:class=phi;residency=eu",
        "partition": b"phi",
        "time_limit": b"60",
        "account": b"clinic",
        "qos": b"normal",
        "work_dir": b"/data/phi/bea",
        "name": b"job",
    },
    "export": {
        **COMMON,
        "user_name": b"fay",
        "extra": b"secure-slurm:class=export;residency=us",
        "partition": b"export",
    },
    "study": {
        **COMMON,
        "user_name": b"dan",
        "extra": b"secure-slurm:datasets=joint",
        "partition": b"phi-gpu",
        "time_limit": b"60",
        "work_dir": b"/data/phi",
    },
}
