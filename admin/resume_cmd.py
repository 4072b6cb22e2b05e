"""``secure-slurm resume``: have jobs go on that ``secure-slurm revoke --freeze`` has frozen.

The lifecycle daemon of this head node does the work, and goes on with it after this command has ended.
"""

from __future__ import annotations

import argparse
import re

from admin.output import printable, say, say_json
from admin.revoke_cmd import KINDS, add_kinds, ask, linked_config, parsed, tell_rows
from conf.errors import EXIT_BACKEND, EXIT_OK, UsageError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``resume``."""
    parser = subparsers.add_parser(
        "resume",
        help="have frozen jobs go on",
        description="Have jobs go on that 'secure-slurm revoke --freeze' has frozen: name what was named there, or the "
        "revocation. Each node asks Vault for the key again. It may be repeated; what was revoked for good stays so.",
        allow_abbrev=False,
    )
    what = add_kinds(parser)
    what.add_argument("--id", metavar="ID", help="what this revocation has frozen: secure-slurm revoke --list")
    parser.add_argument("--reason", default="", help="for the audit trail")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_resume)


def run_resume(args: argparse.Namespace) -> int:
    """Exit code 0: every node has confirmed. 4: not yet all, the daemon goes on."""
    config = linked_config("resume jobs")
    kind = next(kind for kind in (*KINDS, "id") if getattr(args, kind) is not None)
    value = getattr(args, kind)
    if kind == "id" and not re.fullmatch(r"[0-9a-f]{16}", value, re.ASCII):
        raise UsageError(f"{value!r} is not a revocation's name", advice="see: secure-slurm revoke --list")
    request = {"verb": "resume", "kind": kind, "value": value, "reason": args.reason}
    report = parsed(ask(config, request), "report")
    if args.json:
        say_json(report)
    else:
        say(f"resumed: {printable(report['kind'])} {printable(report['value'])} (revocation {report['id']})")
        tell_rows([report])
        say(
            "every node has confirmed; held jobs stay held until 'scontrol release'"
            if report["confirmed"]
            else "not all have confirmed; the lifecycle daemon goes on: secure-slurm revoke --list"
        )
    return EXIT_OK if report["confirmed"] else EXIT_BACKEND
