"""What may be changed about a stored job, and by whom. Pure; the record's MAC was checked before.

Slurm applies an update field by field and does not undo the first when the second fails (slurmctld, _update_job), so
everything is decided here, before any of it. The record is the authority on the tag; the stored ``extra`` only marks.

A field is plain, judged on the merged job, or refused; one that nobody knows is refused. Some that ``scontrol update``
can set never reach a filter: SiteFactor, Deadline, ClusterFeatures, the list in ``NumNodes=1,3``, ResetAccrueTime and,
before 26.05, CoreSpec. None of them says where, as whom or under which key a job runs (docs/admin.md has them all).
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from conf.quote import quote
from conf.tag import mentions_tag
from slurm_hooks import record
from slurm_hooks.filters.job import NUMBERS, cut_fields, demand_nodes, number, optional_text, partitions
from slurm_hooks.filters.judge_routes import expansion
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict
from slurm_hooks.wire import WireError

# Of no consequence for where, as whom and under which key the job runs, nor for anything that a class or role limits.
PLAIN = frozenset(
    [
        *("name", "comment", "wckey", "priority", "nice", "begin_time", "time_min", "delay_boot"),
        # of an array only how many tasks run at once, and slurmctld has set it before it asks (_update_job)
        "array_inx",
        *("min_cpus", "max_cpus", "cpus_per_task", "pn_min_cpus", "cpus_per_tres", "core_spec", "thread_spec"),
        *("min_mem_per_node", "min_mem_per_cpu", "mem_per_tres", "pn_min_tmp_disk"),
        # which of the nodes that the job may have are fit for it, and how it lies on them
        *("sockets_per_node", "cores_per_socket", "threads_per_core", "contiguous", "req_switch", "wait4switch"),
        *("tres_bind", "tres_freq"),
    ]
)
# Judged again on the merged job, by the judges of a submission.
JUDGED = frozenset(
    [
        *("features", "prefer", "partition", "req_nodes", "exc_nodes"),
        *("reservation", "account", "qos", "licenses"),
        *("work_dir", "std_in", "std_out", "std_err", "mail_type", "mail_user", "dependency"),
        *("time_limit", "min_nodes", "max_nodes", "num_tasks", "ntasks_per_node", "ntasks_per_socket"),
        *("tres_per_job", "tres_per_node", "tres_per_socket", "tres_per_task"),
    ]
)
# A running job's nodes hold its scratch, and its grant names them.
_WHILE_PENDING = frozenset({"min_nodes", "max_nodes", "req_nodes"})
# An operator who is neither the owner nor root may hold, release, order and extend jobs.
OPERATOR = frozenset({"priority", "nice", "array_inx", "time_limit"})
_ADVICE = {"end_time": "change its time limit instead"}
_PROTOCOL = frozenset({"verb", "nonce", "modify_uid", "default_partition", "demand_nodes", "forced_sharing"})
# Filled in by slurmctld, its API or the filter in every request, whatever was asked
_DEFAULTS = frozenset({"default_account", "default_qos", "dependency_uids"})
_NOT_ASKED = frozenset({"user_name", "het_job_offset", "argc", "alloc_node"}) | _DEFAULTS
# Names under which slurmctld keeps what a request calls otherwise (slurm_lua.c)
_STORED_AS = {"reservation": "resv_name"}
_NO_VAL = frozenset({b"65534", b"4294967294", b"18446744073709551614"})
# Judged when asked for, and never again: the job that it waits for may be gone since
_PASSED = frozenset({"dependency"})
# What a number for each task depends on. slurmctld shows no filter how many tasks a stored job has
_BY_TASK = frozenset({"tres_per_task", "num_tasks", "ntasks_per_node", "ntasks_per_socket", "min_nodes", "max_nodes"})
_STATE_BASE = 0xFF  # slurm.h, JOB_STATE_BASE
_PENDING = 0  # slurm.h, JOB_PENDING
_MAX_SUFFIX = 4096


@attrs.frozen(kw_only=True)
class Change:
    """A request to change a job: what was ``asked``, and what is ``stored`` of it (Slurm's names, raw bytes)."""

    modify_uid: int
    asked: Mapping[str, bytes]
    stored: Mapping[str, bytes]
    cut: frozenset[str]
    defaults: Mapping[str, bytes] = attrs.field(factory=dict)
    demand_nodes: Mapping[str, str] = attrs.field(factory=dict)
    forced_sharing: tuple[str, ...] = ()

    def asked_text(self, name: str) -> str | None:
        """A text that was asked for; None when it is not to change."""
        return optional_text(self.asked, name)

    def stored_text(self, name: str) -> str | None:
        """A text of the job as it is."""
        return optional_text(self.stored, name)

    @property
    def owner(self) -> int | None:
        """The uid that the job belongs to."""
        return number(self.stored, "user_id")

    @property
    def pending(self) -> bool:
        """Whether it certainly holds no nodes."""
        state = number(self.stored, "job_state")
        return state is not None and state & _STATE_BASE == _PENDING


def from_fields(fields: Mapping[str, bytes]) -> Change:
    """The change in a ``modify`` request. WireError without ``modify_uid``."""
    modify_uid = number(fields, "modify_uid")
    if modify_uid is None:
        raise WireError("the request lacks the field modify_uid")
    asked = {
        name: value
        for name, value in fields.items()
        if name not in _PROTOCOL | _NOT_ASKED and not name.startswith("rec.") and not name.endswith(".cut")
    }
    if asked.get("user_id") == fields.get("rec.user_id"):
        asked.pop("user_id", None)
    stored = {name.removeprefix("rec."): value for name, value in fields.items() if name.startswith("rec.")}
    return Change(
        modify_uid=modify_uid,
        asked=asked,
        stored=stored,
        cut=cut_fields(fields),
        defaults={name: fields[name] for name in _DEFAULTS if name in fields},
        demand_nodes=demand_nodes(fields),
        forced_sharing=partitions(optional_text(fields, "forced_sharing")),
    )


def untagged(change: Change, context: Context) -> Verdict:
    """``modify.tag``, ``record.foreign``, ``tag.missing``, ``route.*``, ``input.too-long``: no tag, now or later."""
    cut = sorted(change.cut & {"extra", "partition", "admin_comment", "dependency"})
    if cut:
        return Deny("input.too-long", f"the job's {cut[0]} is too long to be judged", "shorten it to below 8 KB")
    if mentions_tag(change.asked_text("extra")):
        return Deny(
            "modify.tag",
            "a job cannot be given a tag after it was submitted",
            "cancel it and submit it again with secure-sbatch",
        )
    if record.looks_like(change.asked_text("admin_comment")):
        return Deny("record.foreign", "only secure-slurm writes decision records", "leave the admin comment alone")
    demanding = context.policy.demanding_partitions()
    wanted = [name for name in partitions(change.asked_text("partition")) if name in demanding]
    if wanted:
        return Deny(
            "tag.missing",
            f"partition {quote(wanted[0])} takes only jobs that carry a tag",
            "cancel the job and submit it again with secure-sbatch",
        )
    return expansion(change.asked_text("dependency"))


def tagged(change: Change, privileged: frozenset[int]) -> Verdict:
    """``modify.*``, ``identity.modify-uid``: which fields may change, and by whom; never the tag."""
    if not change.asked:
        return Deny(
            "modify.unseen",
            "nothing of this change reaches the filter, so what it would do to a job that carries a tag is not known",
            "cancel the job and submit it again as it should be",
        )
    may = _allowed(change, privileged)
    for name in sorted(change.asked.keys() - {"extra"}):
        if name not in may:
            return _not_allowed(name, change, privileged)
    held = sorted(change.asked.keys() & _WHILE_PENDING)
    if held and not change.pending:
        return Deny(
            "modify.running",
            f"a job that carries a tag keeps the nodes that it has, so {quote(held[0])} cannot be changed any more",
            "let it end, or cancel it and submit it again",
        )
    if change.asked.get("requeue", b"1") == b"0":
        return Deny("modify.field", "requeue cannot be turned off for a job that carries a tag", "leave it as it is")
    return _record_kept(change)


def _allowed(change: Change, privileged: frozenset[int]) -> frozenset[str]:
    if change.modify_uid in privileged:
        return PLAIN | JUDGED | {"requeue", "admin_comment"}
    if change.modify_uid == change.owner:
        return PLAIN | JUDGED | {"requeue"}
    return OPERATOR


def _not_allowed(name: str, change: Change, privileged: frozenset[int]) -> Deny:
    if change.modify_uid != change.owner and change.modify_uid not in privileged:
        return Deny(
            "identity.modify-uid",
            f"only its owner may change {quote(name)} of a job that carries a tag",
            "hold or release it, or ask its owner",
        )
    return Deny(
        "modify.field",
        f"{quote(name)} of a job that carries a tag cannot be changed",
        _ADVICE.get(name, "cancel the job and submit it again as it should be"),
    )


def _record_kept(change: Change) -> Verdict:
    asked = change.asked_text("admin_comment")
    if asked is None:
        return ALLOW
    kept, suffix = record.split(asked)
    stored, _ = record.split(change.stored_text("admin_comment") or "")
    if "admin_comment" in change.cut or kept != stored or len(suffix) > _MAX_SUFFIX or not _printable(suffix):
        return Deny(
            "modify.record",
            "the decision record at the beginning of the admin comment cannot be changed",
            f"keep it as it is and add your text behind {quote(record.SEPARATOR)}",
        )
    return ALLOW


def _printable(text: str) -> bool:
    return text.isprintable()


def moves(change: Change) -> bool:
    """Whether the change has to be judged on the merged job, or only has texts and numbers of no consequence.

    ``%x`` puts a name into the path of an output (sbatch(1), filename pattern), and a name may be ``..``.
    """
    return bool(change.asked.keys() & (JUDGED | {"name"}))


def merged(change: Change) -> dict[str, bytes]:
    """The job as it would be, as the fields of a submission: what is stored and judged, with what is asked over it.

    What is stored of preference, node lists and mail is not among them, for slurmctld shows no filter what it is; each
    was judged when it was asked for. It counts as a batch job, whose output is in its working directory by default.
    """
    found = {**change.defaults, "has_script": b"1"}
    passed = _PASSED if change.asked.keys() & _BY_TASK else _PASSED | {"tres_per_task"}
    for name in JUDGED | {"name"}:
        value = change.stored.get(_STORED_AS.get(name, name), b"")
        if name not in passed and not _unset(name, value):
            found[name] = value
    cut = {name for name in found if name not in change.asked and f"rec.{_STORED_AS.get(name, name)}" in change.cut}
    found.update((name, value) for name, value in change.asked.items() if name not in {"extra", "user_id"})
    found.update((f"{name}.cut", b"1") for name in cut | (change.cut & change.asked.keys()))
    return found


def _unset(name: str, value: bytes) -> bool:
    # slurmctld keeps "no maximum" as 0 (job_mgr.c)
    return not value or (name in NUMBERS and value in _NO_VAL) or (name == "max_nodes" and value == b"0")
