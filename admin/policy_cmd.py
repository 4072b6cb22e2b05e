"""``secure-slurm policy check``, ``test`` and ``replay``: a policy is tried before anybody depends on it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from admin import policy_cases, policy_nodes, policy_replay
from admin.findings import Finding
from admin.members import load_members
from admin.output import printable, say, say_json
from admin.policy_lint import lint
from conf.errors import EXIT_OK, EXIT_REFUSED
from conf.policy import DEFAULT_PATH, load_policy
from conf.safefile import read_safely
from conf.site import load_site
from conf.yamlmarks import Document, Mark, parse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``policy check``, ``policy test`` and ``policy replay``."""
    policy = subparsers.add_parser("policy", help="check, test or replay a policy")
    commands = policy.add_subparsers(dest="policy_command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="what can never hold, or is never used",
        description="Look for what a policy without mistakes says and cannot mean. Exit 0: no error; 1: errors; "
        "3: the policy cannot be used at all; 4: slurmctld does not answer.",
        allow_abbrev=False,
    )
    check.add_argument("policy", nargs="?", metavar="FILE", default=DEFAULT_PATH, help="the policy (%(default)s)")
    check.add_argument("--members", metavar="SNAPSHOT", help="the members file, to compare the groups with")
    check.add_argument("--slurm", action="store_true", help="ask slurmctld, and compare partitions and nodes")
    check.add_argument("--strict", action="store_true", help="warnings are errors")
    check.set_defaults(run=run_check)
    test = commands.add_parser(
        "test",
        help="run the policy's test cases",
        description="Judge each case's job with the engine of the decision daemon. Exit 0: all passed; 1: some failed; "
        "3: a file cannot be used.",
        allow_abbrev=False,
    )
    test.add_argument("policy", nargs="?", metavar="POLICY", default=DEFAULT_PATH, help="the policy (%(default)s)")
    test.add_argument(
        "--cases", metavar="FILE", help=f"the test cases (default: {policy_cases.DEFAULT_NAME} beside the policy)"
    )
    test.set_defaults(run=run_test)
    for parser in (check, test):
        parser.add_argument("--json", action="store_true", help="print JSON")
    policy_replay.add_parser(commands)


def run_check(args: argparse.Namespace) -> int:
    """Every finding with its line; 1 if one is an error."""
    policy = load_policy(args.policy)
    document = parse(read_safely(args.policy))
    members = load_members(args.members) if args.members else None
    findings = lint(policy, members, now=time.time())
    if args.slurm:
        findings += policy_nodes.compare(policy, policy_nodes.ask_slurm(load_site(args.config).cluster.slurm_bin))
    if args.strict:
        findings = [each._replace(severity="error") for each in findings]
    placed = sorted(((_mark(each, document), each) for each in findings), key=lambda pair: pair[0])
    errors = sum(each.severity == "error" for each in findings)
    warnings = len(findings) - errors
    if args.json:
        told = [_as_json(mark, each) for mark, each in placed]
        say_json({"file": args.policy, "errors": errors, "warnings": warnings, "findings": told})
    else:
        for mark, each in placed:
            where = f"{args.policy}:{mark.line}:{mark.column}"
            say(printable(f"{where}: {each.severity}: {each.message} ({each.check})"))
            say(printable(f"    {each.advice}"))
        say(f"{errors} errors, {warnings} warnings")
    return EXIT_REFUSED if errors else EXIT_OK


def _mark(finding: Finding, document: Document) -> Mark:
    # a word of a list has a value, and no key; a role has both, and the key is what its author looks for
    return document.keys.get(finding.where) or document.value_mark(finding.where)


def _as_json(mark: Mark, finding: Finding) -> dict[str, object]:
    return {
        "severity": finding.severity,
        "check": finding.check,
        "line": mark.line,
        "column": mark.column,
        "message": finding.message,
        "advice": finding.advice,
    }


def run_test(args: argparse.Namespace) -> int:
    """One line for each case, and how many passed; 1 if one failed."""
    policy = load_policy(args.policy)
    cases = args.cases or str(Path(args.policy).with_name(policy_cases.DEFAULT_NAME))
    results = policy_cases.run(cases, policy)
    failed = sum(bool(each.differences) for each in results)
    if args.json:
        told = [_result_as_json(each) for each in results]
        counts = {"passed": len(results) - failed, "failed": failed}
        say_json({"policy": args.policy, "hash": policy.hash, "cases": cases, **counts, "results": told})
        return EXIT_REFUSED if failed else EXIT_OK
    for each in results:
        if not each.differences:
            say(printable(f"ok    {each.case.name}"))
        for difference in each.differences:
            say(printable(f"FAIL  {each.case.name} ({cases}:{each.line}): {difference}"))
    say(f"{len(results) - failed} passed, {failed} failed")
    return EXIT_REFUSED if failed else EXIT_OK


def _result_as_json(result: policy_cases.Result) -> dict[str, object]:
    decision = result.decision
    return {
        "name": result.case.name,
        "line": result.line,
        "passed": not result.differences,
        "differences": result.differences,
        "verdict": "allow" if decision.allowed else "refuse",
        "rule": decision.rule,
        "message": decision.message,
        "advice": decision.advice,
        "set": dict(result.values),
    }
