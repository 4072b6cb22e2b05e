"""What may be changed about a stored job, and by whom. Pure; the record's MAC was checked before.

Slurm applies an update field by field and does not undo the first when the second fails (slurmctld, _update_job), so
everything is decided here, before any of it. The record is the authority on the tag; the stored ``extra`` only marks.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from conf.quote import quote
from conf.tag import Tag, mentions_tag
from slurm_hooks import record
from slurm_hooks.filters.job import STRINGS, cut_fields, demand_nodes, loose_text, number, optional_text, partitions
from slurm_hooks.filters.judge_routes import expansion
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict
from slurm_hooks.wire import WireError

# Of no consequence for where, as whom and under which key the job runs.
PLAIN = frozenset(
    [
        *("name", "nice", "priority", "time_limit", "time_min", "begin_time", "comment", "mail_type", "mail_user"),
        *("min_nodes", "max_nodes", "min_cpus", "max_cpus", "min_mem_per_node", "min_mem_per_cpu"),
    ]
)
# Judged again on the merged job.
PLACE = frozenset({"features", "prefer", "partition"})
# An operator who is neither the owner nor root may hold, release and order jobs.
OPERATOR = frozenset({"priority", "nice"})
_PROTOCOL = frozenset({"verb", "nonce", "modify_uid", "default_partition", "demand_nodes", "forced_sharing"})
# Filled in by slurmctld or by its API in every request, whatever was asked
_NOT_ASKED = frozenset({"user_name", "het_job_offset", "argc", "alloc_node"})
_MAX_SUFFIX = 4096


@attrs.frozen(kw_only=True)
class Change:
    """A request to change a job: what was ``asked``, and what is ``stored`` of it (Slurm's names, raw bytes)."""

    modify_uid: int
    asked: Mapping[str, bytes]
    stored: Mapping[str, bytes]
    cut: frozenset[str]
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


def tagged(change: Change, tag: Tag, privileged: frozenset[int]) -> Verdict:
    """``modify.tag``, ``modify.record``, ``modify.field``, ``identity.modify-uid``: which fields may change at all."""
    fixed = _tag_kept(change, tag)
    if fixed is not ALLOW:
        return fixed
    may = _allowed(change, privileged)
    for name in sorted(change.asked.keys() - {"extra"}):
        if name not in may:
            return _not_allowed(name, change, privileged)
    if change.asked.get("requeue", b"1") == b"0":
        return Deny("modify.field", "requeue cannot be turned off for a job that carries a tag", "leave it as it is")
    return _record_kept(change)


def _tag_kept(change: Change, tag: Tag) -> Verdict:
    extra = change.asked_text("extra")
    if extra is not None and extra != tag.to_extra():
        return Deny(
            "modify.tag",
            "the tag of a job cannot be changed, not even by an admin",
            "cancel the job and submit it again with the tag that it should have",
        )
    return ALLOW


def _allowed(change: Change, privileged: frozenset[int]) -> frozenset[str]:
    if change.modify_uid in privileged:
        return PLAIN | PLACE | {"requeue", "admin_comment"}
    if change.modify_uid == change.owner:
        return PLAIN | PLACE | {"requeue"}
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
        "cancel the job and submit it again as it should be",
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
    """Whether the change has to be judged as a place to run, or only has texts and numbers of no consequence."""
    return bool(change.asked.keys() & PLACE)


def texts(change: Change) -> dict[str, str]:
    """What was asked, as texts of the user's."""
    return {name: loose_text(change.asked[name]) for name in STRINGS if name in change.asked and name != "extra"}
