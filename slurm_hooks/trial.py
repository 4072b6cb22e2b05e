"""A job that nobody submitted, decided by the real engine: how a policy is tried before it is in use.

The job becomes the same request that ``job_submit.lua`` would send, and goes through :mod:`slurm_hooks.engine` as a
whole. Nothing is read or written; the record key is made up, so that no record of a trial is worth anything.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

import attrs

from conf.policy import Policy
from conf.tag import PREFIX
from keys.secret import Secret
from slurm_hooks.engine import Decision, Signer, decide_submit
from slurm_hooks.filters.job import partitions
from slurm_hooks.filters.verdict import Context
from slurm_hooks.membership import Group
from slurm_hooks.request import Submission
from slurm_hooks.snapshot import Snapshot

USER = "trial"
_UID = 1000
_LOGIN = "login"

TEXTS = {
    "account": "account",
    "admin_comment": "admin_comment",
    "array": "array_inx",
    "batch": "batch_features",
    "chdir": "work_dir",
    "clusters": "clusters",
    "comment": "comment",
    "constraint": "features",
    "container": "container",
    "dependency": "dependency",
    "error": "std_err",
    "exclude": "exc_nodes",
    "input": "std_in",
    "licenses": "licenses",
    "mail_user": "mail_user",
    "name": "name",
    "nodelist": "req_nodes",
    "output": "std_out",
    "partition": "partition",
    "prefer": "prefer",
    "qos": "qos",
    "reservation": "reservation",
}
"""sbatch's word for an option (``-`` as ``_``), and Slurm's name of the field that carries it."""


@attrs.frozen(kw_only=True)
class Trial:
    """A batch job as it reaches slurmctld.

    ``tag`` is what secure-sbatch writes, by ``class``, ``residency``, ``scratch`` and ``datasets``; empty: a plain
    sbatch. ``fields`` and ``numbers`` are by Slurm's names, ``texts``, which count more, by sbatch's words
    (:data:`TEXTS`), ``script`` all lines of the script, ``environment`` by variable.
    ``from_partition``: submitted on a node of that partition, not on a login node. ``shared_by_force``: its partition
    has OverSubscribe=FORCE.
    """

    user: str = USER
    tag: Mapping[str, str] = attrs.field(factory=dict)
    fields: Mapping[str, str] = attrs.field(factory=dict)
    numbers: Mapping[str, int] = attrs.field(factory=dict)
    texts: Mapping[str, str] = attrs.field(factory=dict)
    script: tuple[str, ...] = ()
    environment: Mapping[str, str] = attrs.field(factory=dict)
    default_partition: str | None = None
    from_partition: str | None = None
    shared_by_force: bool = False
    het: bool = False
    cron: bool = False

    def text(self, field: str) -> str:
        """What the job says in a field, by Slurm's name."""
        return next((text for word, text in self.texts.items() if TEXTS[word] == field), self.fields.get(field, ""))


def members(user: str, groups: Iterable[str]) -> Snapshot:
    """Group members of one user. ``groups``: as the policy writes them."""
    return Snapshot(1.0, USER, {dn: Group(dn, frozenset({user})) for dn in groups})


def decide(trial: Trial, policy: Policy, snapshot: Snapshot | None, *, now: float) -> Decision:
    """What the decision daemon would answer with this policy. Never raises; a snapshot of None is one that is lost.

    ``now``: Unix seconds.
    """
    signer = Signer(USER, Secret(secrets.token_bytes(32)), frozenset({0}))
    return decide_submit(request(trial, policy), Context(policy, snapshot, now=now), signer)


def request(trial: Trial, policy: Policy) -> dict[str, bytes]:
    """The fields of the request, as job_submit.lua writes them."""
    # slurm.conf cannot be asked here: each partition that demands a tag gets one made-up node
    hosts = {name: f"{USER}{index}" for index, name in enumerate(policy.demanding_partitions())}
    default = trial.default_partition or None
    tag = PREFIX + ";".join(f"{key}={text}" for key, text in trial.tag.items()) if trial.tag else None
    texts = {**trial.fields, **{TEXTS[word]: text for word, text in trial.texts.items()}}
    return Submission(
        uid=_UID,
        user=trial.user,
        texts={"extra": tag, **texts},
        numbers={**trial.numbers, "het_job_offset": 0 if trial.het else None},
        script="\n".join(trial.script).encode("utf-8", "surrogateescape"),
        environment=trial.environment,
        host=hosts.get(trial.from_partition or "", _LOGIN),
        default_partition=default,
        demand_nodes=hosts,
        forced_sharing=partitions(texts.get("partition", default)) if trial.shared_by_force else (),
        cron=trial.cron,
    ).fields()
