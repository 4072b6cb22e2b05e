"""``secure-slurm parallelcluster vpc-check``: does anything in a CloudFormation template lead out of the VPC?

It reads the template alone: no credentials, no network. What a template cannot say (which group a parameter will name)
is told as an assumption for whoever makes the stack.
"""

from __future__ import annotations

import argparse

from admin.output import printable, say, say_json
from admin.vpc.rules import findings
from admin.vpc.template import Finding, Template, load_template
from conf.errors import EXIT_OK, EXIT_REFUSED

NAME = "vpc-check"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``parallelcluster vpc-check``."""
    check = commands.add_parser(
        NAME,
        help="look for ways out of the VPC in a CloudFormation template",
        description="Look for anything in a CloudFormation template that leads out of the VPC: routes, gateways, "
        "peerings, public addresses, IPv6, rules to addresses, endpoints and their policies, names, buckets. What is "
        "not known to stay inside is a finding. Reads the template only. Exit 0: nothing found; 1: findings; 3: it "
        "cannot be read.",
        allow_abbrev=False,
    )
    check.add_argument("template", nargs="+", metavar="FILE", help="a template, YAML or JSON")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> int:
    """Every finding of every template with its line; 1 if there is one. ConfigError if one cannot be read."""
    templates = [(path, load_template(path)) for path in args.template]
    judged = [(path, template, findings(template)) for path, template in templates]
    total = sum(len(found) for _, _, found in judged)
    if args.json:
        say_json({"findings": total, "files": [_as_json(*each) for each in judged]})
    else:
        for path, template, found in judged:
            _show(path, template, found)
        say(f"{total} findings" if total != 1 else "1 finding")
    return EXIT_REFUSED if total else EXIT_OK


def _show(path: str, template: Template, found: list[Finding]) -> None:
    for each in found:
        mark = template.mark(each.where)
        say(printable(f"{path}:{mark.line}:{mark.column}: {each.message} ({each.rule})"))
        say(printable(f"    {each.advice}"))
    for name, words in sorted(template.assumed.items()):
        mark = template.mark(("Parameters", name))
        say(printable(f"{path}:{mark.line}:{mark.column}: assumed: the parameter {name} is {words}"))


def _as_json(path: str, template: Template, found: list[Finding]) -> dict[str, object]:
    return {
        "file": path,
        "findings": [
            {
                "rule": each.rule,
                "line": template.mark(each.where).line,
                "column": template.mark(each.where).column,
                "resource": str(each.where[1]) if len(each.where) > 1 and each.where[0] == "Resources" else "",
                "message": each.message,
                "advice": each.advice,
            }
            for each in found
        ],
        "assumed": dict(sorted(template.assumed.items())),
    }
