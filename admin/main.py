"""The ``secure-slurm`` command: one module for each subcommand, imported when it is called.

Here is the one place where an error becomes an exit code: 0 done, 1 refused or findings, 2 usage, 3 configuration,
4 a service did not answer, 5 a defect.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING

from admin.output import PROGRAM, say, say_error
from conf.errors import EXIT_INTERNAL, EXIT_OK, SecureSlurmError
from conf.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_CONFIG = "/etc/secure-slurm/secure-slurm.yaml"
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

# name -> module with add_parser(subparsers), which sets args.run; and the line in the list of commands
COMMANDS = {
    "audit": ("admin.audit_cmd", "verify the audit trail, or show what happened to a job"),
    "break-glass": ("admin.break_glass_cmd", "ask for an exception from the policy, or approve one"),
    "conf": ("admin.conf_cmd", "check, show and render the configuration"),
    "doctor": ("admin.doctor_cmd", "check everything that this machine needs, and say how to mend it"),
    "explain": ("admin.explain_cmd", "say what the policy would make of a job, step by step, and what it would accept"),
    "node": ("admin.node_cmd", "show what there is of encrypted scratch on this node, or take it down"),
    "parallelcluster": (
        "admin.parallelcluster_cmd",
        "make and check configurations of AWS ParallelCluster, and their VPCs",
    ),
    "policy": ("admin.policy_cmd", "look for what cannot be meant in a policy, test it, and try it on past jobs"),
    "resume": ("admin.resume_cmd", "have frozen jobs go on"),
    "revoke": ("admin.revoke_cmd", "end running jobs and their keys, now, and let nothing like them start"),
    "status": ("admin.status_cmd", "show what is pending on the head node, and how the services answer"),
    "vault": ("admin.vault_init", "set up Vault or OpenBao, or check it"),
    "why": ("admin.why_cmd", "say why a job is where it is"),
    "version": ("", "print the version"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser(words).parse_args(words)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        code = run(args)
        sys.stdout.flush()
    except SecureSlurmError as error:
        return _failed(error, debug=args.debug)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader (head, less) has seen enough; nothing may be flushed into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 - the last place that can turn a defect into one line
        return _defect(error, debug=args.debug)
    return code


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Administer secure-slurm.",
        epilog="Exit codes: 0 done, 1 refused or findings, 2 usage, 3 configuration, 4 unavailable, 5 defect.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", default=DEFAULT_CONFIG, help="the site file (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        if name == "version":
            subparsers.add_parser(name, help=summary).set_defaults(run=_version)
        elif name in words:
            # a word that merely looks like a command costs an import, nothing else
            import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _version(_: argparse.Namespace) -> int:
    say(f"{PROGRAM} {__version__}")
    return EXIT_OK


def _failed(error: SecureSlurmError, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    say_error(error)
    return error.exit_code


def _defect(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    # only its name: the text of an exception that is not ours may hold anything, a secret too
    sys.stderr.write(f"{PROGRAM}: error: a defect of secure-slurm ({type(error).__name__})\n")
    sys.stderr.write(f"{PROGRAM}: run it again with --debug before the command, and report what it shows\n")
    return EXIT_INTERNAL


if __name__ == "__main__":
    sys.exit(main())
