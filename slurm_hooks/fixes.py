"""What about a request may be changed so that a rule has nothing against it any more: small steps, by rule. Pure.

Each is a guess that costs nothing: whether it helps, the whole chain says (:mod:`slurm_hooks.nearest`). No step asks
for less protection, and none changes where data stays once that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from conf.errors import UsageError
from conf.policy import DataClass
from conf.quote import nearest as most_like
from conf.tag import Tag, parse_extra
from conf.units import format_size
from slurm_hooks.filters import judge_who
from slurm_hooks.filters.job import SubmitJob, partitions
from slurm_hooks.filters.judge_class import shown_minutes, tasks
from slurm_hooks.filters.verdict import Context

Fields = Mapping[str, bytes]
MAX_CHOICES = 12
"""Values that are tried of one option."""
_SMALL_SCRATCH = 10 * 2**30


class Change(NamedTuple):
    """One option of secure-sbatch, as it must be: ``value`` None leaves it out."""

    option: str
    value: str | None


class Fix(NamedTuple):
    """A change, and what it makes of the request's fields: None takes one away."""

    change: Change
    fields: Mapping[str, bytes | None]


Finder = Callable[[Fields, SubmitJob, Context], Iterator[Fix]]


def _tag(fields: Fields) -> Tag | None:
    try:
        return parse_extra(fields.get("extra", b"").decode("utf-8", "surrogateescape"))
    except UsageError:
        return None


def _in_tag(option: str, value: str | None, tag: Tag) -> Fix:
    return Fix(Change(option, value), {"extra": tag.to_extra().encode()})


def _out(option: str, *names: str) -> Finder:
    """Leave an option out."""

    def find(fields: Fields, _job: SubmitJob, _context: Context) -> Iterator[Fix]:
        if any(name in fields for name in names):
            yield Fix(Change(option, None), dict.fromkeys((*names, *(f"{name}.cut" for name in names))))

    return find


def _set(option: str, field: str, value: str) -> Fix:
    return Fix(Change(option, value), {field: value.encode()})


def _any(*finders: Finder) -> Finder:
    def find(fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
        for each in finders:
            yield from each(fields, job, context)

    return find


def _misspelt_class(fields: Fields, _job: SubmitJob, context: Context) -> Iterator[Fix]:
    tag = _tag(fields)
    meant = None if tag is None else most_like(tag.klass, [each.name for each in context.policy.classes])
    if tag is not None and meant is not None:
        yield _in_tag("--secure-class", meant, tag._replace(klass=meant))


def _stronger_class(fields: Fields, _job: SubmitJob, context: Context) -> Iterator[Fix]:
    """The next stronger classes; or none at all, where the datasets say which."""
    tag, policy = _tag(fields), context.policy
    if tag is None:
        return
    if tag.datasets and tag.klass:
        yield _in_tag("--secure-class", None, tag._replace(klass=""))
    rank = policy.class_rank(tag.klass)
    for each in policy.classes[rank + 1 :][:MAX_CHOICES] if rank is not None else ():
        yield _in_tag("--secure-class", each.name, tag._replace(klass=each.name))


def _residencies(fields: Fields, _job: SubmitJob, context: Context) -> Iterator[Fix]:
    """A residency for a tag that names none, or the one that a misspelt name meant."""
    tag, places = _tag(fields), context.policy.jurisdictions
    if tag is None or tag.residency in places:
        return
    meant = None if tag.residency is None else most_like(tag.residency, places)
    for name in [meant] if meant else list(places)[:MAX_CHOICES] if tag.residency is None else []:
        yield _in_tag("--secure-residency", name, tag._replace(residency=name))


def _datasets(fields: Fields, _job: SubmitJob, context: Context) -> Iterator[Fix]:
    tag, known = _tag(fields), context.policy.datasets
    if tag is None:
        return
    meant = [name if name in known else most_like(name, known) for name in tag.datasets]
    names = tuple(sorted({name for name in meant if name is not None}))
    if names and None not in meant:
        yield _in_tag("--secure-dataset", ",".join(names), tag._replace(datasets=names))


def _scratch(fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    """The most that the class gives, or a small size where none was named; none at all, last."""
    tag, data_class = _tag(fields), _class_of(job, context)
    if tag is None or data_class is None:
        return
    if data_class.max_scratch is not None:
        wanted = data_class.default_scratch or _SMALL_SCRATCH if tag.scratch is None else tag.scratch
        size = min(wanted, data_class.max_scratch)
        if size != tag.scratch:
            yield _in_tag("--secure-scratch", format_size(size), tag._replace(scratch=size))
    elif tag.scratch is not None:
        yield _in_tag("--secure-scratch", None, tag._replace(scratch=None))


def _class_of(job: SubmitJob, context: Context) -> DataClass | None:
    return None if job.tag is None else context.policy.data_class(job.tag.klass)


def _partitions(fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    """Those that were asked for one by one, then those of the user's roles and of the class, then all of the policy."""
    policy = context.policy
    asked = fields.get("partition", b"").decode("utf-8", "surrogateescape")
    groups = frozenset() if context.members is None else context.members.groups_of(job.user_name or "")
    mine = [
        name
        for role, each in (policy.roles_for(job.tag.klass) if job.tag else ())
        if each.partitions and judge_who.holds(role, groups, context)
        for name in each.partitions
    ]
    data_class = _class_of(job, context)
    several = partitions(asked) if "," in asked else ()
    bound = (data_class.partitions or ()) if data_class else ()
    found = [name for name in dict.fromkeys([*several, *mine, *bound, *policy.partitions]) if name != asked]
    forced = partitions(fields.get("forced_sharing", b"").decode("utf-8", "surrogateescape"))
    for name in found[:MAX_CHOICES]:
        # of a partition that was not asked for, only slurmctld knows whether it shares its nodes by force
        sharing = name.encode() if name in forced else None
        yield Fix(Change("--partition", name), {"partition": name.encode(), "forced_sharing": sharing})


def _of_roles(option: str, field: str, key: str) -> Finder:
    """What the user's roles for this class allow of an option; and without it, if it may be left out."""

    def find(fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
        groups = frozenset() if context.members is None else context.members.groups_of(job.user_name or "")
        roles = context.policy.roles_for(job.tag.klass) if job.tag else ()
        allowed = [
            word for name, role in roles if judge_who.holds(name, groups, context) for word in getattr(role, key) or ()
        ]
        yield from _out(option, field)(fields, job, context)
        yield from (_set(option, field, word) for word in list(dict.fromkeys(allowed))[:MAX_CHOICES])

    return find


def _nodes(_fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    data_class = _class_of(job, context)
    if data_class is not None and data_class.max_nodes is not None:
        most = str(data_class.max_nodes)
        yield Fix(Change("--nodes", most), {"min_nodes": most.encode(), "max_nodes": most.encode()})


def _time(_fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    data_class = _class_of(job, context)
    if data_class is not None and data_class.max_time is not None and data_class.max_time >= 60:
        most = int(data_class.max_time // 60)
        yield Fix(Change("--time", shown_minutes(most)), {"time_limit": str(most).encode()})


_GPUS = {
    "--gpus": "tres_per_job",
    "--gpus-per-node": "tres_per_node",
    "--gpus-per-task": "tres_per_task",
    "--gpus-per-socket": "tres_per_socket",
}


def _gpus(fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    """As many as the class may have, where the job asks for them as a whole; else without what is too much."""
    data_class = _class_of(job, context)
    if data_class is None or data_class.max_gpus is None:
        return
    kept = fields.get("tres_per_job", b"").decode("utf-8", "surrogateescape")
    if kept and "," not in kept and kept.count(":") <= 1 and data_class.max_gpus > 0:
        most = data_class.max_gpus
        yield Fix(Change("--gpus", str(most)), {"tres_per_job": f"gres/gpu:{most}".encode()})
    yield from _gres(fields, job, context)


def _gres(fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    for option, field in _GPUS.items():
        yield from _out(option, field)(fields, job, context)


def _array(fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    """The first part of a plain range; the rest is for another job."""
    data_class = _class_of(job, context)
    asked = fields.get("array_inx", b"").decode("utf-8", "surrogateescape")
    low, dash, _ = asked.partition("%")[0].partition("-")
    if data_class is None or data_class.max_array is None or not dash or not low.isascii() or not low.isdigit():
        return
    part = f"{low}-{int(low) + data_class.max_array - 1}" + "".join(asked.partition("%")[1:])
    if data_class.max_array > 0 and len(low) < 10 and (tasks(asked) or 0) > data_class.max_array:
        yield _set("--array", "array_inx", part)


def _work_dir(_fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    data_class = _class_of(job, context)
    for path in (data_class.work_dirs or ())[:MAX_CHOICES] if data_class else ():
        yield _set("--chdir", "work_dir", path)


def _output(fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    data_class = _class_of(job, context)
    for path in (data_class.output_dirs or ())[:MAX_CHOICES] if data_class else ():
        yield _set("--output", "std_out", f"{path.rstrip('/')}/slurm-%j.out")
        if "std_err" in fields:
            yield _set("--error", "std_err", f"{path.rstrip('/')}/slurm-%j.err")
    yield from _out("--error", "std_err")(fields, job, context)
    yield from _out("--input", "std_in")(fields, job, context)


def _mail(fields: Fields, _job: SubmitJob, _context: Context) -> Iterator[Fix]:
    if "mail_user" in fields:
        yield Fix(Change("--mail-user", None), {"mail_user": None})
    if fields.get("mail_type", b"0") != b"0":
        yield Fix(Change("--mail-type", None), {"mail_type": None})


def _environment(_fields: Fields, job: SubmitJob, context: Context) -> Iterator[Fix]:
    data_class = _class_of(job, context)
    if data_class is not None and data_class.environment == "none":
        yield Fix(Change("--export", "NONE"), {"user_environment": None, "env.slurm_get_user_env": b"1"})
    # what is not sent is not compared, either: the tag says the same
    nothing = ("user_environment", "env.slurm_get_user_env")
    yield Fix(Change("--export", "NIL"), dict.fromkeys(nothing))
    yield Fix(Change("--get-user-env", None), dict.fromkeys(nothing))


_CONSTRAINTS = _any(_out("--constraint", "features"), _out("--prefer", "prefer"), _out("--batch", "batch_features"))
BY_RULE: dict[str, Finder] = {
    "class.unknown": _misspelt_class,
    "class.partition": _partitions,
    "dataset.class": _stronger_class,
    "dataset.residency": _residencies,
    "dataset.unknown": _datasets,
    "limit.array": _array,
    "limit.gpus": _gpus,
    "limit.gres": _gres,
    "limit.nodes": _nodes,
    "limit.time": _time,
    "partition.class": _any(_partitions, _stronger_class),
    "partition.sharing": _partitions,
    "path.output": _output,
    "path.work-dir": _work_dir,
    "rbac.role": _residencies,
    "residency.constraint": _CONSTRAINTS,
    "residency.partition": _any(_residencies, _partitions),
    "residency.required": _residencies,
    "residency.unknown": _residencies,
    "role.account": _of_roles("--account", "account", "accounts"),
    "role.license": _of_roles("--licenses", "licenses", "licenses"),
    "role.partition": _partitions,
    "role.qos": _of_roles("--qos", "qos", "qos"),
    "role.reservation": _of_roles("--reservation", "reservation", "reservations"),
    "route.burst-buffer": _out("--bb", "burst_buffer"),
    "route.clusters": _out("--clusters", "clusters"),
    "route.container": _out("--container", "container"),
    "route.dependency-expand": _out("--dependency", "dependency", "dependency_uids"),
    "route.dependency-other": _out("--dependency", "dependency", "dependency_uids"),
    "route.environment": _environment,
    "route.mail": _mail,
    "route.user-env": _environment,
    "scratch.required": _scratch,
    "scratch.too-large": _scratch,
    "tag.inherit": _any(_residencies, _stronger_class),
    "tag.weaker-than-environment": _stronger_class,
    "tag.weaker-than-script": _stronger_class,
}
