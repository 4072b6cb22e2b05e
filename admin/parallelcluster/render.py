"""``secure-slurm parallelcluster render``: a cluster's configuration from the site's files and the answers file."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from admin.output import printable, say, say_json
from admin.parallelcluster import aws, check, facts
from admin.parallelcluster.answers import Answers, load_answers
from admin.parallelcluster.look import Look
from admin.parallelcluster.parts import Sources
from admin.parallelcluster.text import document
from conf import policy as policy_file
from conf import site as site_file
from conf.errors import EXIT_OK, EXIT_REFUSED, ConfigError
from conf.policy import Policy, load_policy
from conf.quote import did_you_mean, quote
from conf.safefile import read_safely
from conf.site import Site, load_site
from conf.yamlmarks import Where, parse

# pcluster/constants.py, PCLUSTER_NAME_REGEX; slurm.conf(5), ClusterName, is kept in lower case
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
Problem = tuple[str, Where, str]


def sources_from(config: str, policy_path: str, answers_path: str) -> Sources:
    """All three files, checked by themselves and against each other. ConfigError with every mistake, one a line."""
    site, policy, answers = load_site(config), load_policy(policy_path), load_answers(answers_path)
    problems = [
        *((config, where, message) for where, message in _site(site)),
        *((answers_path, where, message) for where, message in _answers(answers, policy)),
    ]
    if problems:
        lines = [_line(*problem) for problem in problems]
        raise ConfigError("\n".join(lines), advice="nothing was written")
    jurisdiction = policy.jurisdiction_of_region(answers.region) or ""
    slurm = answers.slurm or aws.slurm_of(answers.parallelcluster) or ""
    return Sources(answers, site, policy, jurisdiction, slurm)


def _line(path: str, where: Where, message: str) -> str:
    document = parse(read_safely(path))
    mark = document.keys.get(where) or document.value_mark(where)
    return f"{path}:{mark.line}:{mark.column}: {message}"


def _site(site: Site) -> Iterator[tuple[Where, str]]:
    """What a site file must say on ParallelCluster, and need not elsewhere."""
    if not _NAME.fullmatch(site.cluster.name):
        yield (
            ("cluster", "name"),
            f"{quote(site.cluster.name)} is no name of a ParallelCluster: a-z, 0-9 and '-', a letter first, at most 40",
        )
    if site.cluster.slurm_bin != facts.SLURM_BIN:
        yield ("cluster", "slurm_bin"), f"cluster.slurm_bin must be {facts.SLURM_BIN}: Slurm is there"
    if site.cluster.slurm_user != "slurm":
        yield ("cluster", "slurm_user"), "cluster.slurm_user must be slurm: ParallelCluster's own"
    if len(site.cluster.head_nodes) != 1:
        yield ("cluster", "head_nodes"), "cluster.head_nodes must be one: ParallelCluster has no second head node"
    if facts.ADMIN_USER not in site.node.metadata_users:
        yield (
            ("node", "metadata_users"),
            f"node.metadata_users must have {facts.ADMIN_USER}, or ParallelCluster's own daemons lose that service",
        )
    if site.node.proof == "none":
        yield ("node", "proof"), "node.proof is none, with which every tagged job is refused; on EC2 it is ec2"


def _answers(answers: Answers, policy: Policy) -> Iterator[tuple[Where, str]]:
    """What the answers must have of the policy."""
    jurisdiction = policy.jurisdiction_of_region(answers.region)
    if jurisdiction is None:
        known = sorted(policy.regions())
        yield (
            ("region",),
            f"{quote(answers.region)} is in no jurisdiction of the policy{did_you_mean(answers.region, known)}",
        )
    names = [each.name for each in answers.queues]
    for index, queue in enumerate(answers.queues):
        place = policy.partition(queue.name).jurisdiction
        if jurisdiction is not None and place not in {None, jurisdiction}:
            yield (
                ("queues", index, "name"),
                f"the policy says that {quote(queue.name)} is in {quote(place)}, but {answers.region} is in "
                f"{quote(jurisdiction)}",
            )
    for name in policy.demanding_partitions():
        if name not in names:
            yield (
                ("queues",),
                f"the policy's partition {quote(name)}, which demands a tag, is no queue{did_you_mean(name, names)}",
            )


def run(args: argparse.Namespace) -> int:
    """Write the configuration, and look at it with our own rules. 1: they found an error in it."""
    sources = sources_from(args.config, args.policy, args.answers)
    text = document(sources)
    directory = Path(args.out)
    path = directory / f"{sources.site.cluster.name}.yaml"
    _write(directory, path, text)
    look = Look({}, sources.site, sources.policy, sources.answers, sources.slurm)
    told = check.ours(text.encode(), look)
    errors = sum(each.severity == "error" for each in told)
    if args.json:
        say_json({"written": str(path), "errors": errors, "findings": [check.as_row(e) for e in told]})
    else:
        say(printable(f"wrote {path}"))
        check.show_told(str(path), told)
        site = "" if args.config == site_file.DEFAULT_PATH else f"--config {args.config} "
        rules = "" if args.policy == policy_file.DEFAULT_PATH else f" --policy {args.policy}"
        say(printable(f"next: secure-slurm {site}parallelcluster check {path}{rules} --answers {args.answers}"))
    return EXIT_REFUSED if errors else EXIT_OK


def _write(directory: Path, path: Path, text: str) -> None:
    """Beside it and renamed: who reads it meanwhile has the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", advice="name a folder of yours by --out"
        ) from None
