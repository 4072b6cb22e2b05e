"""``secure-slurm parallelcluster check``: our rules on a configuration, and ParallelCluster's own where it is there."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from admin.output import printable, say, say_json
from admin.parallelcluster import (
    aws,
    places,
    rules_actions,
    rules_answers,
    rules_ca,
    rules_enrol,
    rules_network,
    rules_nodes,
    rules_scratch,
    rules_slurm,
    rules_storage,
    rules_trust,
)
from admin.parallelcluster import theirs as validators
from admin.parallelcluster.answers import load_answers
from admin.parallelcluster.look import Look, scalars
from conf import policy as policy_file
from conf import site as site_file
from conf.errors import EXIT_BACKEND, EXIT_OK, EXIT_REFUSED, BackendUnavailable
from conf.quote import quote
from conf.safefile import read_safely
from conf.yamlmarks import Document, Mark, Where, parse

RULES = (
    *rules_nodes.RULES,
    *rules_actions.RULES,
    *rules_enrol.RULES,
    *rules_slurm.RULES,
    *rules_scratch.RULES,
    *rules_storage.RULES,
    *rules_ca.RULES,
    *rules_network.RULES,
    *rules_trust.RULES,
    *rules_answers.RULES,
)
# what ParallelCluster says as well, with less: not told twice of one line
_SAME = {
    "CustomSlurmSettingsValidator": "setting-denied",
    "CustomSlurmSettingsIncludeFileOnlyValidator": "setting-file",
    "LdapTlsReqCertValidator": "directory-unverified",
    "DomainAddrValidator": "directory-clear",
}
# YAML 1.1, which ParallelCluster reads: these are truth values there and texts to YAML 1.2
_TRUTH = frozenset({"yes", "no", "on", "off", "y", "n"})
# keys of ParallelCluster's that are true or false; it also takes 'false', 'off' or 0, and the rules here do not
_TRUE_OR_FALSE = frozenset(
    {
        *("AssignPublicIp", "DisableManagedDns", "EnableWriteAccess", "Enabled", "Encrypted", "EncryptionInTransit"),
        *("JobExclusiveAllocation", "Secured", "UseEc2Hostnames"),
    }
)
_NAME = "cluster"


class Told(NamedTuple):
    """One finding at its place. ``check``: a stable word of ours, or the name of ParallelCluster's validator."""

    mark: Mark
    severity: str
    check: str
    message: str
    advice: str


class Result(NamedTuple):
    """Everything that was found. ``theirs`` None: ParallelCluster's own did not run, for the reason ``why``."""

    told: list[Told]
    theirs: validators.Answer | None
    why: str

    def count(self, severity: str) -> int:
        """How many findings are that."""
        return sum(each.severity == severity for each in self.told)


def check(data: bytes, look: Look, python: str | None, *, name: str = _NAME) -> Result:
    """Every finding, in the order of the file. ``python``: None for the one of the ``pcluster`` on the PATH."""
    document = parse(data)
    told = ours(data, look, document)
    if not document.readable:
        return Result(told, None, "the file cannot be read as YAML")
    theirs, why = _theirs(data, look._replace(raw=document.data), python, name)
    if theirs is not None:
        told = sorted(dict.fromkeys([*told, *_placed(document, theirs, told)]))
    return Result(told, theirs, why)


def ours(data: bytes, look: Look, document: Document | None = None) -> list[Told]:
    """What our own rules find, in the order of the file."""
    document = document or parse(data)
    told = [Told(each.mark, "error", "yaml", each.message, "correct it") for each in document.problems]
    if not document.readable:
        return told
    told += _truths(document, data)
    for rule in RULES:
        for each in rule(look._replace(raw=document.data)):
            mark = document.keys.get(each.where) or document.value_mark(each.where)
            told.append(Told(mark, each.severity, each.check, each.message, each.advice))
    return sorted(dict.fromkeys(told))


def _theirs(data: bytes, look: Look, python: str | None, name: str) -> tuple[validators.Answer | None, str]:
    try:
        found = python or validators.find_python()
        return validators.ask(found, data, name=name, region=look.region or "us-east-1"), ""
    except BackendUnavailable as error:
        return None, f"{error}; {error.advice}"


def _placed(document: Document, theirs: validators.Answer, ours: list[Told]) -> list[Told]:
    found = []
    lines = {(each.check, each.mark.line) for each in ours}
    for said in theirs.said:
        where = places.place(document, said)
        mark = document.keys.get(where) or document.value_mark(where)
        message, advice = places.words(said)
        if (_SAME.get(said.validator, ""), mark.line) not in lines:
            found.append(Told(mark, said.severity, said.validator, message, advice))
    return found


def _truths(document: Document, data: bytes) -> list[Told]:
    """Words that are true or false to ParallelCluster's reader and a text to everybody else."""
    lines = data.decode("utf-8").split("\n")
    found = []
    for place, said in _answered(document.data, ()):
        message = f"{place[-1]} is {quote(str(said))}, which ParallelCluster takes for true or false, and a text here"
        at = document.keys.get(place) or document.value_mark(place)
        found.append(Told(at, "error", "yaml", message, f"write {place[-1]}: true, or {place[-1]}: false"))
    for where, value in scalars(document.data):
        mark = document.values.get(where)
        if mark is None or value.lower() not in _TRUTH:
            continue
        if lines[mark.line - 1][mark.column - 1] not in {'"', "'"}:
            advice = "write true or false, or put it in quotes if the text is meant"
            found.append(
                Told(mark, "error", "yaml", f"{value} is a truth value to ParallelCluster and a text here", advice)
            )
    return found


def _answered(value: object, where: Where) -> Iterator[tuple[Where, object]]:
    """Each key that is true or false to ParallelCluster, and has another value here."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key in _TRUE_OR_FALSE and isinstance(each, str | int) and not isinstance(each, bool):
                yield (*where, key), each
            yield from _answered(each, (*where, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _answered(each, (*where, index))


def look_from(config: str, policy: str, answers: str | None) -> tuple[Look, list[str]]:
    """What a configuration is compared with, and a line for each thing that is not there.

    A file that is not where it is by default is passed over; one that an option names must be there (ConfigError).
    """
    missing = []
    site = rules = None
    if config != site_file.DEFAULT_PATH or os.path.lexists(config):
        site = site_file.load_site(config)
    else:
        missing.append(f"not compared with secure-slurm.yaml: there is no {config} (--config before the command)")
    if policy != policy_file.DEFAULT_PATH or os.path.lexists(policy):
        rules = policy_file.load_policy(policy)
    else:
        missing.append(f"not compared with policy.yaml: there is no {policy} (--policy)")
    given = load_answers(answers) if answers else None
    slurm = None
    if given is None:
        missing.append("endpoints of the VPC not looked at: they are in the answers file (--answers)")
    else:
        slurm = given.slurm or aws.slurm_of(given.parallelcluster)
    return Look({}, site, rules, given, slurm), missing


def run(args: argparse.Namespace) -> int:
    """Check one file. 1: errors; 4: none, but ParallelCluster's own rules were not run; 0: neither."""
    look, missing = look_from(args.config, args.policy, args.answers)
    name = look.site.cluster.name if look.site else Path(args.file).stem
    result = check(read_safely(args.file), look, args.pcluster_python, name=name)
    if args.strict:
        told = [each._replace(severity="error") if each.severity == "warning" else each for each in result.told]
        result = result._replace(told=told)
    if args.json:
        say_json(as_json(args.file, result, missing))
    else:
        show(args.file, result, missing)
    return code(result)


def code(result: Result) -> int:
    """The exit code of a result."""
    if result.count("error"):
        return EXIT_REFUSED
    return EXIT_OK if result.theirs is not None else EXIT_BACKEND


def show(file: str, result: Result, missing: list[str]) -> None:
    """For people: each finding with its place, then what was not looked at, then how many."""
    show_told(file, result.told)
    for line in missing:
        say(printable(f"note: {line}"))
    if result.theirs is None:
        say(printable(f"note: ParallelCluster's own rules were NOT run: {result.why}"))
    elif not result.theirs.run:
        say(
            printable(f"ParallelCluster {result.theirs.version}: its schema refuses it; its validators come after that")
        )
    else:
        ran, left = len(result.theirs.run), len(result.theirs.not_run)
        by = f"ParallelCluster {result.theirs.version}: its schema and {ran} of its validators were run"
        say(printable(f"{by}; {left} need AWS, and run at 'pcluster create-cluster --dryrun true'"))
    say(f"{result.count('error')} errors, {result.count('warning')} warnings")


def show_told(file: str, told: list[Told]) -> None:
    """The findings alone."""
    shown = file if file.isprintable() else quote(file)
    for each in told:
        say(printable(f"{shown}:{each.mark.line}:{each.mark.column}: {each.severity}: {each.message} ({each.check})"))
        say(printable(f"    {each.advice}"))


def as_row(told: Told) -> dict[str, object]:
    """One finding, for programs."""
    return {
        "severity": told.severity,
        "check": told.check,
        "line": told.mark.line,
        "column": told.mark.column,
        "message": told.message,
        "advice": told.advice,
    }


def as_json(file: str, result: Result, missing: list[str]) -> dict[str, object]:
    """For programs."""
    theirs: dict[str, object] = {"run": result.theirs is not None, "why": result.why}
    if result.theirs is not None:
        theirs |= {"version": result.theirs.version, "validators": result.theirs.run, "need_aws": result.theirs.not_run}
    return {
        "file": file,
        "errors": result.count("error"),
        "warnings": result.count("warning"),
        "parallelcluster": theirs,
        "not_compared": missing,
        "findings": [as_row(each) for each in result.told],
    }
