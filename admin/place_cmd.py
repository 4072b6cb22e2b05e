"""``secure-slurm node manifest`` and ``node sign-manifest``: a node's place, signed by the site.

A manifest is signed where the private key is, which is no node of the cluster; the node shows what it needs for that.
"""

from __future__ import annotations

import argparse
import os
import socket
import stat
import sys
import time
from pathlib import Path

import attrs

from admin.output import printable, say, say_json
from conf.errors import EXIT_OK, EXIT_REFUSED, ConfigError, Refused, SecureSlurmError, UsageError
from conf.safefile import read_safely
from conf.site import load_site
from keys import machine, place_manifest
from keys.place_proof import Prover
from keys.secret import Secret

DAY = 86400.0
LONGEST_DAYS = 3650
_KEY_LIMIT = 4096


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``node manifest`` and ``node sign-manifest``."""
    show = commands.add_parser(
        "manifest",
        help="show this machine's fingerprints, and whether its manifest proves its place",
        description="Show this machine's fingerprints, and verify its manifest as the node daemon does. "
        "Exit 0: it proves the place; 1: it does not.",
        allow_abbrev=False,
    )
    show.add_argument("--node", metavar="NAME", default="", help="this node's name in Slurm (the host name)")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=run_manifest)
    sign = commands.add_parser(
        "sign-manifest",
        help="sign a node's manifest with the site's private key",
        description="Sign a manifest for one node, where the site's private key is: not on a node.",
        allow_abbrev=False,
    )
    sign.add_argument("--key", metavar="FILE", required=True, help="Ed25519 private key, PEM, mode 0600")
    sign.add_argument("--node", metavar="NAME", required=True, help="the node's name in Slurm")
    sign.add_argument("--region", metavar="ID", required=True, help="the region id, as in its place file")
    sign.add_argument(
        "--machine", metavar="PRINT", required=True, help="a fingerprint that 'node manifest' shows there"
    )
    sign.add_argument("--cluster", metavar="NAME", default="", help="ClusterName (that of the site file)")
    sign.add_argument("--days", metavar="N", type=_days, default=365, help="how long it is good for (%(default)s)")
    sign.add_argument("--out", metavar="FILE", default="", help="where to write it (standard output)")
    sign.set_defaults(run=run_sign)


def _days(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= LONGEST_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days from 1 to {LONGEST_DAYS}")
    return int(text)


def run_manifest(args: argparse.Namespace) -> int:
    """Show; 1 when the manifest does not prove the place."""
    if os.geteuid() != 0:
        raise Refused("node.not-root", "only root can read all of a machine's fingerprints", advice="run it as root")
    site = load_site(args.config)
    node = args.node or socket.gethostname().partition(".")[0]
    prints = {kind: machine.fingerprint(kind) for kind in machine.SOURCES}
    verdict, problem = "", ""
    try:
        prover = Prover(attrs.evolve(site, node=attrs.evolve(site.node, proof="manifest")), node)
        found = prover.prove(prover.read_place())
        verdict = found.summary()
        if machine.matches(found.machine) is not True:
            problem = "the manifest is for another machine"
    except SecureSlurmError as error:
        problem = f"{error}; {error.advice}" if error.advice else str(error)
    if args.json:
        say_json({"node": node, "fingerprints": prints, "verdict": verdict or None, "problem": problem or None})
        return EXIT_REFUSED if problem else EXIT_OK
    say(f"node {node}")
    for kind, found_print in prints.items():
        say(found_print or f"{kind}: none")
    say(printable(f"manifest: {verdict}" if not problem else f"problem: {problem}"))
    return EXIT_REFUSED if problem else EXIT_OK


def run_sign(args: argparse.Namespace) -> int:
    """Sign and write. UsageError: values that fit no manifest, or no key; ConfigError: a key file that is not safe."""
    cluster = args.cluster or load_site(args.config).cluster.name
    made = place_manifest.new(
        cluster, args.node, args.region, args.machine, now=time.time(), seconds=float(args.days) * DAY
    )
    with _private_key(args.key) as key:
        text = place_manifest.sign(made, bytes(key.reveal()))
    if not args.out:
        sys.stdout.write(text.decode("ascii"))
        return EXIT_OK
    path = Path(args.out)
    try:
        # never over something that is there: it may be the key
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", advice="name a file that is not there"
        ) from None
    say(printable(f"{path}: manifest {made.id} of node {made.node} in {made.region}, good for {args.days} days"))
    return EXIT_OK


def _private_key(path: str) -> Secret:
    text = read_safely(path, secret=True, limit=_KEY_LIMIT)
    if Path(path).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} can be opened by others than its owner", advice=f"chmod 0600 {path}")
    if not text:
        raise UsageError(f"{path} is empty", advice="make a key with: openssl genpkey -algorithm ed25519")
    return Secret(text)
