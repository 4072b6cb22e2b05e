"""``secure-slurm node check``: would this node leave something of a job on its disks in clear?

The same questions that the Prolog asks before each tagged job, for every class of the policy at once; so that an admin
knows before a job does.
"""

from __future__ import annotations

import argparse
import os
import socket

from admin.output import printable, say, say_json
from conf.errors import EXIT_OK, EXIT_REFUSED, Refused
from conf.hookconf import HOOKS_JSON, read_hook_config
from slurm_hooks import clear


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``node check``."""
    check = commands.add_parser(
        "check",
        help="whether swap, core dumps or /tmp of jobs would be in clear here",
        description="Show what would leave something of a tagged job on this node's disks in clear, and what to do: "
        "swap, core dumps, and /tmp of the classes that want it private. Exit 0: nothing; 1: a tagged job of some "
        "class would drain this node.",
        allow_abbrev=False,
    )
    check.add_argument("--node", metavar="NAME", default="", help="this node's name in Slurm (the host name)")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> int:
    """Show every finding; 1 when there is one. Refused to anybody but root, who alone sees all of it."""
    if os.geteuid() != 0:
        raise Refused(
            "node.not-root", "only root can ask the kernel for all of it", advice="run it as root on the node"
        )
    config = read_hook_config(HOOKS_JSON, check_sources=False)
    node = args.node or socket.gethostname().partition(".")[0]
    classes = tuple(sorted(config.get("private_tmp", {}))) or ("",)
    found = list(clear.faults(config, node, classes, os.environ.get("SLURM_CONF", "")))
    if args.json:
        say_json({"node": node, "findings": [{"rule": e.rule, "message": str(e), "advice": e.advice} for e in found]})
    else:
        for each in found:
            say(printable(f"[{each.rule}] {each}"))
            say(printable(f"  {each.advice}"))
        if not found:
            say(f"node {node}: swap, core dumps and /tmp of jobs are not in clear")
    return EXIT_REFUSED if found else EXIT_OK
