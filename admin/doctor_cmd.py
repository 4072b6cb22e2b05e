"""``secure-slurm doctor``: is this machine as it should be? One line for each check: what was seen, and the fix.

It changes nothing, and can be run at any time and as often as wanted. What it looks at: docs/doctor.md.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from admin.doctor.gather import gather
from admin.doctor.plan import chosen, doors_of, judge
from admin.doctor.scene import ROLES, Scene, node_name, roles_here
from admin.output import printable, say, say_json, say_table
from admin.vault_init import read_token
from conf.errors import EXIT_OK, EXIT_REFUSED, ConfigError, Refused
from conf.policy import DEFAULT_PATH as POLICY
from conf.policy import load_policy
from conf.site import load_site

if TYPE_CHECKING:
    from admin.doctor.finding import Finding
    from conf.policy import Policy
    from conf.site import Site

ROOTS = frozenset({"head", "compute"})
"""Roles whose checks only root can make."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="check everything that this machine needs, and say how to mend it",
        description="Check everything that this machine needs for its role, with what was seen and the fix. It changes "
        "nothing. With --role it also tries, as an ordinary user, whether there is a way out of the network. "
        "Exit 0: nothing is wrong, warnings allowed; 1: something is.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--role",
        choices=ROLES,
        action="append",
        help="what this machine is, repeatable (by what is installed or runs here)",
    )
    parser.add_argument("--node", metavar="NAME", default="", help="this node's name in Slurm (the host name)")
    parser.add_argument("--policy", metavar="FILE", default=POLICY, help="the policy file (%(default)s)")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="also 'vault init --check', with an admin's token from this file, mode 0600",
    )
    parser.add_argument("--quiet", action="store_true", help="only what is not ok")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, judge, show; 1 when a check fails. Refused to anybody but root on head and compute nodes."""
    scene = scene_of(args)
    if scene.roles & ROOTS and os.geteuid() != 0:
        roles = " and ".join(sorted(scene.roles & ROOTS))
        raise Refused(
            "node.not-root", f"only root can check a {roles} node", advice="run it as root, or with --role login"
        )
    checks = chosen(scene)
    facts = gather(doors_of(checks, scene), scene)
    found = {check.name: judge(check, facts) for check in checks}
    failed = any(each.state == "fail" for each in found.values())
    shown = {name: each for name, each in found.items() if not (args.quiet and each.state == "ok")}
    if args.json:
        say_json({"checks": [{"check": name, **each._asdict()} for name, each in shown.items()]})
    else:
        show(scene, shown, quiet=args.quiet)
    return EXIT_REFUSED if failed else EXIT_OK


def scene_of(args: argparse.Namespace) -> Scene:
    """This machine. A file that cannot be used is not the end: a check says so."""
    site, policy = _site(args.config), _policy(args.policy)
    node = node_name(args.node, site)
    token = read_token(args.token_file) if args.token_file else None
    roles = frozenset(args.role) if args.role else roles_here(site, node)
    return Scene(roles, bool(args.role), node, args.config, args.policy, site, policy, token)


def _site(path: str) -> Site | None:
    try:
        return load_site(path)
    except ConfigError:
        return None


def _policy(path: str) -> Policy | None:
    try:
        return load_policy(path)
    except ConfigError:
        return None


def show(scene: Scene, found: dict[str, Finding], *, quiet: bool) -> None:
    """The table: with rich on a terminal, aligned text elsewhere. Quiet and nothing to say: nothing is printed."""
    if found:
        rows = [(each.state, name, each.seen, each.fix) for name, each in found.items()]
        say_table(("", "CHECK", "SEEN", "FIX"), rows)
    if quiet:
        return
    count = {state: sum(each.state == state for each in found.values()) for state in ("ok", "warn", "fail")}
    what = ", ".join(sorted(scene.roles)) + (f" (node {scene.node})" if "compute" in scene.roles else "")
    say(printable(f"{what}: {count['ok']} ok, {count['warn']} warnings, {count['fail']} failed"))
