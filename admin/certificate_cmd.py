"""``secure-slurm audit certificate``: the certificate of destruction of a job's keys, and the check of one.

Made on the head node, by root: the audit trails say which keys there were and what the nodes saw, the lifecycle daemon
asks Vault for each key and has Vault sign. A check needs the file and the public key, no service.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from admin.output import printable, say, say_json
from audit import certificate as form
from audit.story import read_events, story
from conf.errors import EXIT_OK, ConfigError, Refused, UsageError
from conf.site import Site, load_site
from keys.process import ProcessError, run
from slurm_hooks import wire

TIMEOUT = 60.0
SINFO_TIMEOUT = 20.0
"""Seconds each."""
MOST_KEYS = 1500
"""A line of a certificate has some 600 bytes, a message to the daemon and its answer 1 MiB."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``audit certificate`` and ``audit public-key``."""
    one = commands.add_parser(
        "certificate",
        help="the certificate of destruction of a job's keys, or the check of one",
        description="Make a signed certificate of destruction from the audit trails and Vault's answers, and print it. "
        "With --verify: check one, offline.",
        allow_abbrev=False,
    )
    one.add_argument("job", type=_job, metavar="JOB", help="job id")
    one.add_argument("--verify", type=Path, metavar="FILE", help="check this certificate instead of making one")
    one.add_argument("--public-key", type=Path, metavar="FILE", help="the key that signed it, PEM (audit public-key)")
    one.add_argument("--json", action="store_true", help="with --verify: print what is certified as JSON")
    one.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="audit files (default: audit.directory)")
    one.set_defaults(run=run_certificate)
    key = commands.add_parser("public-key", help="the public key of the certificates, PEM", allow_abbrev=False)
    key.set_defaults(run=run_public_key)


def _job(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a job id")
    return int(text)


def run_certificate(args: argparse.Namespace) -> int:
    """Make or check one; 1 when it is refused."""
    if args.verify is None:
        if args.public_key is not None:
            raise UsageError("--public-key is for --verify", advice="name the certificate with --verify FILE")
        return _make(args)
    if args.public_key is None:
        raise UsageError("--verify needs the key that signed", advice="add --public-key FILE")
    return _verify(args)


def run_public_key(args: argparse.Namespace) -> int:
    """Print it."""
    sys.stdout.write(wire.text(_ask(load_site(args.config), {"verb": "public-key"}), "pem"))
    return EXIT_OK


def _make(args: argparse.Namespace) -> int:
    site = load_site(args.config)
    keys = form.draft(story(read_events(args.paths or [Path(site.audit.directory)]), args.job))
    if not keys:
        raise Refused(
            "certificate.nothing",
            f"the audit trail has no key of job {args.job}",
            advice="the job had no tag, never started, or its trail is elsewhere: name the files",
        )
    if len(keys) > MOST_KEYS:
        raise Refused(
            "certificate.form",
            f"job {args.job} had {len(keys)} keys: more than one certificate can have that is asked for ({MOST_KEYS})",
            advice=f"what Vault said is in those that the daemon made: {site.audit.directory}/lifecycle/certificates",
        )
    silent = {key["node"] for key in keys if key["mapping"]["state"] == form.UNCONFIRMED}
    lost = _lost(site.cluster.slurm_bin, silent)
    for key in keys:
        if key["mapping"]["state"] == form.UNCONFIRMED and key["node"] in lost:
            key["mapping"]["state"] = form.LOST
    answer = _ask(site, {"verb": "certify", "job": str(args.job), "keys": json.dumps(keys)})
    sys.stdout.write(wire.text(answer, "document"))
    return EXIT_OK


def _ask(site: Site, request: dict[str, bytes | str]) -> dict[str, bytes]:
    answer = wire.exchange(site.lifecycle.socket, request, timeout=TIMEOUT)
    if answer.get("verdict") != b"allow":
        message, advice = (
            wire.text(answer, "message", "the lifecycle daemon gave no verdict"),
            answer.get("advice", b""),
        )
        raise Refused(wire.text(answer, "rule", "daemon.down"), message, advice=advice.decode("utf-8", "replace"))
    return answer


def _lost(slurm_bin: str, nodes: set[str]) -> set[str]:
    """Of these nodes, those that Slurm calls down or that do not respond; none when it does not answer."""
    if not nodes:
        return set()
    words = ("--noheader", "--Node", f"--nodes={','.join(sorted(nodes))}", "--format=%N %T")
    try:
        text = run((f"{slurm_bin}/sinfo", *words), timeout=SINFO_TIMEOUT, max_output=16 * 1024**2).stdout
    except ProcessError as error:
        sys.stderr.write(printable(f"secure-slurm: which nodes are lost is not known: {error}") + "\n")
        return set()
    return {
        name for name, state in read_nodes(text.decode("ascii", "replace")) if state.startswith("down") or "*" in state
    }


def read_nodes(text: str) -> list[tuple[str, str]]:
    """Names and states of sinfo's list; a star behind the state: the node does not respond (sinfo(1))."""
    words = (line.split() for line in text.splitlines())
    return [(each[0], each[1].lower()) for each in words if len(each) == 2]


def _verify(args: argparse.Namespace) -> int:
    # cryptography takes 0.1 s to load: only who checks pays
    from keys.certificate import verify  # noqa: PLC0415

    certificate = verify(_read(args.verify), _read(args.public_key))
    if certificate["job"] != args.job:
        raise Refused("certificate.job", f"the certificate is of job {certificate['job']}, not of job {args.job}")
    if args.json:
        say_json(certificate)
    else:
        _show(certificate)
    return EXIT_OK


def _show(certificate: dict[str, Any]) -> None:
    say(f"job {certificate['job']} on cluster {certificate['cluster']}: signed, and not changed since")
    say(f"issued by {certificate['issuer']} at {certificate['issued']}")
    for key in certificate["keys"]:
        mapping = key["mapping"]
        cipher = f", {mapping['cipher']} with {mapping['key_bits']} bits" if mapping["cipher"] else ""
        say(f"{key['node']}: key {key['key']}, made {key['made'] or 'at an unknown time'}")
        say(f"  in Vault: absent ({key['vault']['answer']}) at {key['vault']['at']}")
        say(f"  mapping{cipher}: {mapping['state']}{' at ' + mapping['at'] if mapping['at'] else ''}")
    say(certificate["backups"])


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(form.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > form.MAX_BYTES:
        raise UsageError(f"{path} is too large for a certificate")
    return data
