"""Whether a job carries the tag that it must, and as strong a one as it must."""

from __future__ import annotations

import re

from conf.errors import UsageError
from conf.quote import quote
from conf.tag import Tag
from conf.units import format_size
from slurm_hooks import hostnames, record
from slurm_hooks.filters import asked
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict
from slurm_hooks.hostlist import contains

_IPV4 = re.compile(r"[0-9]+(?:\.[0-9]+){3}", re.ASCII)


def asked_tag(job: SubmitJob, context: Context) -> Verdict:
    """``tag.syntax``, ``tag.missing``, ``tag.weaker-than-script``, ``tag.weaker-than-environment``."""
    if job.script_overflow:
        return Deny("tag.syntax", "the script has more #SECURE lines than are read", "keep one, at its beginning")
    try:
        script = asked.from_script(job.script_lines)
        environment = asked.from_environment(dict(job.environment))
    except UsageError as error:
        return Deny("tag.syntax", str(error), error.advice)
    if job.tag is None:
        return _not_asked([*script, *environment])
    for rule, found in (("tag.weaker-than-script", script), ("tag.weaker-than-environment", environment)):
        for each in found:
            short = each.weaker(job.tag, context.policy)
            if short is not None:
                advice = "the command line may strengthen it, never weaken it: correct one of the two"
                return Deny(rule, f"{each.source} asks for {short}", advice)
    return ALLOW


def _not_asked(found: list[asked.Asked]) -> Verdict:
    if not found:
        return ALLOW
    return Deny(
        "tag.missing",
        f"{found[0].source} asks for protection, but the job carries no tag",
        "submit it with secure-sbatch instead of sbatch, with the same options",
    )


def demanded_tag(job: SubmitJob, context: Context) -> Verdict:
    """``tag.missing``: some partitions take tagged jobs only."""
    demanding = context.policy.demanding_partitions()
    if job.tag is not None or not demanding:
        return ALLOW
    if not job.partitions:
        return Deny(
            "tag.missing",
            "the job names no partition, and the default one is not known",
            "name one with --partition",
        )
    wanted = [name for name in job.partitions if name in demanding]
    if not wanted:
        return ALLOW
    return Deny(
        "tag.missing",
        f"partition {quote(wanted[0])} takes only jobs that carry a tag",
        "submit it with secure-sbatch --secure-class=..., or to another partition",
    )


def inherited_tag(job: SubmitJob, context: Context) -> Verdict:
    """``tag.inherit``: what is submitted from a node where protected data is mounted must be tagged, and stay there.

    So must what is submitted from a node where a tagged job of the same user runs: it may come from inside that job.
    A host without a name may be any node. slurmctld names hosts by reverse DNS, and writes the address when that fails.
    """
    hosts = _names(job.alloc_node, context)
    around = _around(job, context, hosts)
    if around is not ALLOW:
        return around
    nameless = hosts is None
    for partition, nodes in job.demand_nodes.items():
        if not any(_is_among(host, nodes) for host in hosts or ()) and not nameless:
            continue
        verdict = _inherits(job.tag, partition, context)
        if isinstance(verdict, Deny):
            return _without_a_name(verdict, job.alloc_node) if nameless else verdict
    return ALLOW


def _names(host: str | None, context: Context) -> tuple[str, ...] | None:
    """What the host is called in Slurm; None: it may be any node."""
    if not host or _is_nameless(host):
        return None
    if not hostnames.is_made_up(host):
        return (host,)
    nodes = hostnames.nodes_of(host, context.hosts)
    # by its own name too: a node may be called so in Slurm itself
    return None if nodes is None else (host, *nodes)


def _around(job: SubmitJob, context: Context, hosts: tuple[str, ...] | None) -> Verdict:
    names = dict.fromkeys(name for host in hosts or () for name in (host.lower(), host.lower().partition(".")[0]))
    if hosts is None and hostnames.is_made_up(job.alloc_node or ""):
        names = dict.fromkeys(context.running)
    for name in names if context.running else ():
        for inside in context.running.get(name, ()):
            if inside.uid != job.user_id:
                continue
            source = f"job {inside.job}, which runs on {quote(name)}, where this one was submitted,"
            if job.tag is None:
                return Deny(
                    "tag.inherit",
                    f"{source} carries a tag, and this one might come from inside it",
                    "submit it with secure-sbatch and the tag of that job, or from a login node",
                )
            tag = inside.tag
            short = asked.Asked(source, tag.klass, tag.residency, None, tag.datasets).weaker(job.tag, context.policy)
            if short is not None:
                return Deny(
                    "tag.inherit",
                    f"{source} has {short}",
                    "submit it with a tag at least as strong, or from a login node",
                )
    return ALLOW


def _is_nameless(host: str | None) -> bool:
    return not host or ":" in host or _IPV4.fullmatch(host) is not None


def _without_a_name(verdict: Deny, host: str | None) -> Deny:
    if hostnames.is_made_up(host or ""):
        return Deny(
            verdict.rule,
            f"which node the host {quote(host or '')} is, is not known, so the job is judged as one from a node: "
            f"{verdict.message}",
            f"tell an admin to look at the log of secure-slurm-lifecycled; until then {verdict.advice}",
        )
    shown = f"a host of which only the address {quote(host)} is known" if host else "a host that is not known"
    return Deny(
        verdict.rule,
        f"the job was submitted from {shown}, so it is judged as one from a node: {verdict.message}",
        f"tell an admin to correct the reverse DNS of that host on the head node; until then {verdict.advice}",
    )


def _inherits(tag: Tag | None, partition: str, context: Context) -> Verdict:
    if tag is None:
        return Deny(
            "tag.inherit",
            f"the job was submitted from a node of partition {quote(partition)}, where every job carries a tag",
            "submit it with secure-sbatch and the tag of the job that you are in, or from a login node",
        )
    demands = context.policy.partition(partition)
    if demands.least_class is not None and not context.policy.at_least(tag.klass, demands.least_class):
        return Deny(
            "tag.inherit",
            f"the job was submitted from a node of partition {quote(partition)}, whose data needs class "
            f"{quote(demands.least_class)} or stronger",
            f"submit it with class {quote(demands.least_class)}, or from a login node",
        )
    place = demands.jurisdiction
    if place is not None and tag.residency != place:
        return Deny(
            "tag.inherit",
            f"the job was submitted from a node of partition {quote(partition)}, whose data stays in {quote(place)}",
            f"submit it with residency {quote(place)}, or from a login node",
        )
    return ALLOW


def _is_among(host: str, nodes: str) -> bool:
    if nodes.lower() == "all":
        return True
    try:
        return contains(nodes, host) or contains(nodes, host.partition(".")[0])
    except UsageError:
        return True


def scratch(job: SubmitJob, context: Context) -> Verdict:
    """``scratch.required``, ``scratch.too-large``: what the class says of encrypted scratch."""
    data_class = None if job.tag is None else context.policy.data_class(job.tag.klass)
    if job.tag is None or data_class is None:
        return ALLOW if job.tag is None else Deny("class.unknown", "this cluster has no such data class")
    if job.tag.scratch is None:
        if data_class.scratch == "required":
            return Deny(
                "scratch.required",
                f"class {quote(data_class.name)} needs encrypted scratch, and the tag names no size",
                "add a size, for example --secure-scratch=10G",
            )
        return ALLOW
    if data_class.max_scratch is None:
        return Deny(
            "scratch.too-large",
            f"jobs of class {quote(data_class.name)} get no encrypted scratch on this cluster",
            "leave the scratch size out",
        )
    if job.tag.scratch > data_class.max_scratch:
        most = format_size(data_class.max_scratch)
        return Deny(
            "scratch.too-large",
            f"{format_size(job.tag.scratch)} of scratch is more than class {quote(data_class.name)} may have",
            f"ask for {most} or less",
        )
    return ALLOW


def foreign_record(job: SubmitJob, _context: Context) -> Verdict:
    """``record.foreign``: only this daemon writes decision records."""
    if record.looks_like(job.string("admin_comment")):
        return Deny(
            "record.foreign",
            "the job's admin comment looks like a decision record, which only secure-slurm may write",
            "leave --admin-comment out",
        )
    return ALLOW
