"""``secure-slurm audit export`` and ``audit verify-export``: audit files up to a date, for WORM storage.

A bundle is a folder that is there whole or not at all. The lifecycle daemon has Vault sign its manifest; where it does
not answer (on a node, on a machine of the auditors), the bundle is unsigned, and that is said.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path

from admin.output import printable, say, say_json
from audit import bundle
from audit.chain import Chain
from audit.findings import Finding
from audit.reading import find_files
from audit.verify import ADMIN, verify
from conf.errors import EXIT_OK, EXIT_REFUSED, ConfigError, Refused, SecureSlurmError, UsageError
from conf.site import Site, load_site
from keys.certificate import verify_block
from slurm_hooks import wire

TIMEOUT = 60.0


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``audit export`` and ``audit verify-export``."""
    one = commands.add_parser(
        "export",
        help="write audit files up to a date, with a signed manifest, into a new folder",
        description="Write every audit line before a date into a new folder, for storage that is written once. "
        "Exit 1: written, and 'audit verify' finds something in what was exported.",
        allow_abbrev=False,
    )
    one.add_argument(
        "--until", required=True, type=_date, metavar="DATE", help="lines before this day (UTC), 2027-01-31"
    )
    one.add_argument("--to", required=True, type=Path, metavar="DIR", help="the folder, which must not be there")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.set_defaults(run=run_export)
    check = commands.add_parser(
        "verify-export",
        help="check an export: its files, its manifest, its signature",
        description="Check what 'audit export' wrote, offline. Exit 0: whole; 1: not whole, or the signature is wrong.",
        allow_abbrev=False,
    )
    check.add_argument("folder", type=Path, metavar="DIR")
    check.add_argument("--public-key", type=Path, metavar="FILE", help="the key that signed it, PEM (audit public-key)")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run_verify)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII) else "")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date such as 2027-01-31") from None


def run_export(args: argparse.Namespace) -> int:
    """Write it. Refused ``bundle.exists``: the folder is there; ``bundle.empty``: there is nothing so old."""
    if args.until > datetime.now(UTC).date():
        raise UsageError(
            f"--until {args.until} is in the future",
            advice="name today, or a day before it: later lines are not written yet",
        )
    site = load_site(args.config)
    root = Path(site.audit.directory)
    files = find_files([root])
    report = verify([root])
    parts = [part for path in files if (part := bundle.part_of(path, root, f"{args.until.isoformat()}T"))]
    if not parts:
        raise Refused(
            "bundle.empty", f"no audit line below {root} is older than {args.until}", advice="name a later day"
        )
    text = bundle.manifest(site.cluster.name, args.until.isoformat(), parts)
    digest = hashlib.sha256(text).hexdigest()
    signature, why = _signed(site, digest)
    _write(args.to, parts, text, signature)
    unsigned = "" if signature else why
    _tell(root, digest, len(parts), signed=bool(signature))
    told = {
        "folder": str(args.to),
        "files": len(parts),
        "bytes": sum(part.size for part in parts),
        "manifest": digest,
        "signed": bool(signature),
        "unsigned_because": unsigned,
        "findings": len(report.findings),
    }
    if args.json:
        say_json(told)
    else:
        say(f"{args.to}: {len(parts)} files, {told['bytes']} bytes, manifest {digest}")
        say("signed with the key of the certificates" if signature else f"UNSIGNED: {printable(why)}")
    if report.findings:
        sys.stderr.write(
            f"secure-slurm: the trails have {len(report.findings)} findings: look first (secure-slurm audit verify)\n"
        )
    return EXIT_REFUSED if report.findings else EXIT_OK


def _signed(site: Site, digest: str) -> tuple[bytes, str]:
    """The signature as a file, or why there is none."""
    try:
        answer = wire.exchange(site.lifecycle.socket, {"verb": "sign-export", "digest": digest}, timeout=TIMEOUT)
        if answer.get("verdict") != b"allow":
            return b"", wire.text(answer, "message", "the lifecycle daemon gave no verdict")
        return answer.get("signature", b"") + b"\n", ""
    except SecureSlurmError as error:
        return b"", str(error)


def _write(folder: Path, parts: Iterable[bundle.Part], text: bytes, signature: bytes) -> None:
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        if folder.exists() or folder.is_symlink():
            raise Refused("bundle.exists", f"{folder} is there already", advice="an export is never written over")
        temporary.mkdir(mode=0o700)
        for part in parts:
            _copy(part, temporary / part.entry["path"])
        _put(temporary / bundle.MANIFEST, text)
        if signature:
            _put(temporary / bundle.SIGNATURE, signature)
        for where, _, _ in os.walk(temporary, topdown=False):
            _sync(Path(where))
        temporary.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            advice=f"remove {temporary}, if it is there, and try again",
        ) from None


def _copy(part: bundle.Part, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), part.size
    with part.path.open("rb") as source, target.open("xb") as copy:
        while left and (block := source.read(min(left, 1 << 20))):
            digest.update(block)
            copy.write(block)
            left -= len(block)
        copy.flush()
        os.fsync(copy.fileno())
    target.chmod(0o440)
    if left or digest.hexdigest() != part.entry["sha256"]:
        raise Refused("bundle.changed", f"{part.path} changed while it was exported", advice="export again")


def _put(path: Path, text: bytes) -> None:
    with path.open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o440)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tell(root: Path, digest: str, count: int, *, signed: bool) -> None:
    admin_chain(root).append("audit.exported", durable=True, digest=digest, count=count, state=_state(signed=signed))


def _state(*, signed: bool) -> str:
    return "signed" if signed else "unsigned"


def admin_chain(root: Path) -> Chain:
    """Root's own trail, about the trails."""
    folder = root / ADMIN
    folder.mkdir(mode=0o755, exist_ok=True)
    return Chain(folder, ADMIN, socket.gethostname().split(".")[0])


def run_verify(args: argparse.Namespace) -> int:
    """Check one; 1 when it is not whole."""
    text, found = bundle.read_manifest(args.folder)
    findings = bundle.check(args.folder, found)
    signature = signature_of(args.folder, text, args.public_key)
    if signature == "wrong":
        what = "the manifest was changed, or was signed with another key"
        findings.append(Finding("signature", str(args.folder / bundle.SIGNATURE), 0, what))
    if args.json:
        told = {"whole": not findings, "signature": signature, "manifest": hashlib.sha256(text).hexdigest()}
        say_json(told | {"findings": [finding._asdict() for finding in findings]})
    else:
        for finding in findings:
            say(printable(f"{finding.file}: {finding.kind}: {finding.message}"))
        count = len(found["files"])
        say(f"{count} files up to {printable(found.get('until'))}: {'whole' if not findings else 'NOT whole'}")
        say(f"signature: {signature}")
    return EXIT_REFUSED if findings else EXIT_OK


def signature_of(folder: Path, text: bytes, public_key: Path | None) -> str:
    """``none``, ``not checked`` (without a key), ``good`` or ``wrong``."""
    path = folder / bundle.SIGNATURE
    if not path.exists():
        if public_key is not None:
            raise UsageError(f"{folder} has no signature", advice="leave --public-key out: then it is only compared")
        return "none"
    if public_key is None:
        return "not checked"
    try:
        part, key = json.loads(path.read_bytes()), public_key.read_bytes()
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    except (ValueError, RecursionError):
        return "wrong"
    return "good" if verify_block(bundle.signed_bytes(text), part, key) else "wrong"
