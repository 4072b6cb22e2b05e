"""``secure-slurm node enrol``: get this node its certificate now, or show the one that it has.

For the node's set-up, before slurmd starts: afterwards the node daemon renews it. Root starts it, and everything is
done as the node daemon's account, whose key and folder they are.
"""

from __future__ import annotations

import argparse
import os
import pwd
import socket
import time

from admin.output import say, say_json
from conf.errors import EXIT_OK, EXIT_REFUSED, BackendUnavailable, ConfigError, Refused, UsageError
from conf.site import load_site
from slurm_hooks.enrolment import WAIT_FIRST, Enrolment
from slurm_hooks.instances import RULE

ACCOUNT = "secure-node"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``node enrol``."""
    parser = commands.add_parser(
        "enrol",
        help="get this node its certificate from the head node, or show it",
        description="Make this node's key if there is none, and have the head node give it a certificate, by the "
        "certificate of before if it is still good, else by the instance's identity document. Exit 0: there is one.",
        allow_abbrev=False,
    )
    parser.add_argument("--node", metavar="NAME", default="", help="this node's name in Slurm (the host name)")
    parser.add_argument("--wait", metavar="SECONDS", type=_seconds, default=0.0, help="go on trying for so long (0)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--if-due", action="store_true", help="do nothing while half of the certificate's life is left")
    what.add_argument("--anew", action="store_true", help="by the identity document, whatever there is")
    what.add_argument("--show", action="store_true", help="only show what there is; exit 1 when there is none")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_enrol)


def _seconds(text: str) -> float:
    if not text.isascii() or not text.isdigit() or int(text) > 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 86400")
    return float(text)


def run_enrol(args: argparse.Namespace) -> int:
    """Do it. Raises Refused when the head node says no, BackendUnavailable when none answers in time."""
    site = load_site(args.config)
    if not site.enrol.listen:
        raise UsageError("nodes do not enrol here: enrol.listen is empty", advice="see docs/admin.md, Node identity")
    _become(ACCOUNT)
    enrolment = Enrolment(site, args.node or socket.gethostname().partition(".")[0])
    if not args.show and not (args.if_due and enrolment.due() > 0):
        _until(enrolment, args.wait, anew=args.anew)
    held = enrolment.held()
    if args.json:
        say_json(None if held is None else held._asdict())
    elif held is None:
        say("this node has no certificate that is good")
    else:
        left = (held.ends - time.time()) / 3600
        say(f"node {held.node} of {held.cluster} is {held.instance}; certificate {held.serial}, good for {left:.1f} h")
    return EXIT_REFUSED if held is None else EXIT_OK


def _until(enrolment: Enrolment, seconds: float, *, anew: bool) -> None:
    """A refusal is final, unless who started the instance may not have said yet which node it is."""
    end, wait = time.monotonic() + seconds, WAIT_FIRST
    while True:
        try:
            enrolment.once(anew=anew)
        except (BackendUnavailable, Refused) as error:
            final = isinstance(error, Refused) and error.rule != RULE
            if final or time.monotonic() + wait > end:
                raise
            time.sleep(wait)
            wait = min(2 * wait, 30.0)
        else:
            return


def _become(name: str) -> None:
    """Give up being root for good; whoever is not root stays who they are."""
    if os.geteuid() != 0:
        return
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"there is no user {name} here", advice="was the node's part installed? install.sh") from None
    os.initgroups(name, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    os.umask(0o077)
