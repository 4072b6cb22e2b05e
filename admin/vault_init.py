"""``secure-slurm vault init``: mounts, policies and roles in Vault or OpenBao, as secure-slurm.yaml names them.

It needs an admin's token, from standard input or a file that only its owner can open; never from the command line or
the environment, which other users can read. It can be run again at any time: it changes only what differs.
"""

from __future__ import annotations

import argparse
import getpass
import ipaddress
import json
import os
import pwd
import re
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from admin.vault_plan import CHANGED, CREATED, DIFFERENT, MISSING, UNCHANGED, Step, Wishes
from admin.vault_plan_enrol import EnrolSetup, setup_of
from conf.errors import EXIT_OK, EXIT_REFUSED, ConfigError, UsageError
from conf.safefile import read_safely
from conf.site import load_site
from conf.units import parse_duration
from keys import nodecert, vault_jwt
from keys.secret import Secret
from keys.vault import VaultSession

if TYPE_CHECKING:
    from collections.abc import Callable

# glob patterns of Vault; no "_", see keys.names
_NODE_PATTERN = re.compile(r"[A-Za-z0-9.*-]{1,63}", re.ASCII)
_TOKEN = re.compile(r"[!-~]{1,4096}", re.ASCII)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``vault init`` to the command's subparsers."""
    vault = subparsers.add_parser("vault", help="set up Vault or OpenBao, or check it", allow_abbrev=False)
    commands = vault.add_subparsers(dest="vault_command", required=True, metavar="COMMAND")
    parser = commands.add_parser(
        "init",
        help="create or compare mounts, policies and roles",
        description="Create what secure-slurm needs in Vault or OpenBao; run again, it changes only what differs. "
        "The admin's token is read from standard input unless --token-file is given.",
        allow_abbrev=False,
    )
    parser.add_argument("--token-file", metavar="FILE", help="file with the admin's token, mode 0600")
    parser.add_argument(
        "--check", action="store_true", help="only compare; exit 1 when something is missing or differs"
    )
    parser.add_argument("--node-ca", metavar="FILE", help="PEM file of the CA that signs the nodes' certificates")
    parser.add_argument(
        "--node-name",
        metavar="PATTERN",
        action="append",
        default=[],
        help="common names that may log in as a node, such as 'queue1-*' (repeatable)",
    )
    parser.add_argument(
        "--head-cidr", metavar="CIDR", action="append", default=[], help="addresses of the head nodes (repeatable)"
    )
    parser.add_argument(
        "--node-cidr", metavar="CIDR", action="append", default=[], help="addresses of the compute nodes (repeatable)"
    )
    parser.add_argument(
        "--secret-id-ttl", metavar="DURATION", help="how long a secret id is valid, such as 90d (first time: 365d)"
    )
    parser.add_argument("--secret-id-out", metavar="FILE", help="make a new secret id and write it to FILE (0600)")
    parser.add_argument(
        "--enrol-secret-id-out", metavar="FILE", help="the same for the enrolment daemon, secure-enrol's"
    )
    parser.add_argument(
        "--token-key-out",
        metavar="FILE",
        help="make a new key for nodes' tokens, secure-enrol's",
    )
    parser.add_argument(
        "--node-ca-out", metavar="FILE", help="write the CA of enrolled nodes to FILE, for link.ca_file"
    )
    parser.add_argument(
        "--owner", metavar="USER", default="secure-life", help="who owns the secret id's file, as root (%(default)s)"
    )
    parser.add_argument(
        "--enrol-owner", metavar="USER", default="secure-enrol", help="the same for the enrolment daemon (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the steps as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it; 0, or 1 when ``--check`` found something. Raises SecureSlurmError."""
    outputs = (args.secret_id_out, args.enrol_secret_id_out, args.node_ca_out, args.token_key_out)
    if args.check and any(outputs):
        raise UsageError("--check changes nothing, --secret-id-out and its like do", advice="leave one of them out")
    site = load_site(args.config)
    if any(outputs[1:]) and not site.enrol.listen:
        raise UsageError("there is no enrolment in this site file", advice="set enrol.listen first: docs/admin.md")
    wishes = Wishes(
        node_ca=_read_ca(args.node_ca) if args.node_ca else "",
        node_names=tuple(_checked_pattern(name) for name in args.node_name),
        head_cidrs=tuple(_checked_cidr(cidr) for cidr in args.head_cidr),
        node_cidrs=tuple(_checked_cidr(cidr) for cidr in args.node_cidr),
        secret_id_ttl=int(parse_duration(args.secret_id_ttl)) if args.secret_id_ttl else 0,
    )
    owner = _owner(args.owner) if args.secret_id_out else -1
    enrol_owner = _owner(args.enrol_owner) if args.enrol_secret_id_out or args.token_key_out else -1
    with (
        read_token(args.token_file) as token,
        VaultSession(site.vault.address, site.vault.ca_file, site.vault.timeout, token=token) as session,
    ):
        setup = setup_of(session, site, wishes, check=args.check)
        steps = setup.steps()
        steps.append(_role_id_file(setup.role_id(), site.vault.head.role_id_file, check=args.check))
        if args.secret_id_out:
            _write_file(Path(args.secret_id_out), setup.new_secret_id, mode=0o600, owner=owner)
            steps.append(Step(f"secret id in {args.secret_id_out}", CREATED))
        if isinstance(setup, EnrolSetup):
            steps.append(_role_id_file(setup.enrol_role_id(), site.enrol.role_id_file, check=args.check))
            steps += _enrol_files(setup, args, enrol_owner)
    return _report(steps, as_json=args.json)


def _enrol_files(setup: EnrolSetup, args: argparse.Namespace, owner: int) -> list[Step]:
    steps = []
    if args.enrol_secret_id_out:
        _write_file(Path(args.enrol_secret_id_out), setup.new_enrol_secret_id, mode=0o600, owner=owner)
        steps.append(Step(f"secret id in {args.enrol_secret_id_out}", CREATED))
    if args.token_key_out:
        if setup.method != "jwt":
            raise UsageError("nodes log in without tokens here", advice="set vault.node.method: jwt first")
        key = nodecert.new_key()
        # the file first: Vault would trust a key that nobody has
        _write_file(Path(args.token_key_out), lambda: key.decode("ascii").strip(), mode=0o600, owner=owner)
        steps += [
            Step(f"key of nodes' tokens in {args.token_key_out}", CREATED),
            setup.trust(vault_jwt.public_key(key)),
        ]
    if args.node_ca_out:
        _write_file(Path(args.node_ca_out), lambda: setup.nodes_ca().strip(), mode=0o644)
        steps.append(Step(f"CA of the nodes in {args.node_ca_out}", CREATED))
    return steps


def _role_id_file(wanted: str, file: str, *, check: bool) -> Step:
    path = Path(file)
    what = f"role id in {path}"
    exists = os.path.lexists(path)
    if exists and wanted and read_safely(path, limit=4096).decode("ascii", "replace").strip() == wanted:
        return Step(what, UNCHANGED)
    if check:
        return Step(what, DIFFERENT if exists and wanted else MISSING)
    # not a secret by itself; the daemon that reads it is not root
    _write_file(path, lambda: wanted, mode=0o644)
    return Step(what, CHANGED if exists else CREATED)


def _report(steps: list[Step], *, as_json: bool) -> int:
    drift = any(step.state in {MISSING, DIFFERENT} for step in steps)
    changed = any(step.state in {CREATED, CHANGED} for step in steps)
    if as_json:
        print(json.dumps({"changed": changed, "drift": drift, "steps": [step._asdict() for step in steps]}))
    else:
        for step in steps:
            print(f"{step.state:<10} {step.what}" + (f": {step.detail}" if step.detail else ""))
    return EXIT_REFUSED if drift else EXIT_OK


def read_token(token_file: str | None) -> Secret:
    """An admin's token, from a file of mode 0600, the terminal, or standard input. ConfigError, UsageError: none."""
    if token_file is not None:
        text = read_safely(token_file, secret=True, limit=4096).decode("ascii", "replace")
        if Path(token_file).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{token_file} can be opened by others than its owner", advice=f"chmod 0600 {token_file}")
    elif sys.stdin.isatty():
        text = getpass.getpass("Vault token of an admin (not shown): ")
    else:
        text = sys.stdin.readline()
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise UsageError("there is no Vault token", advice="give it on standard input, or --token-file FILE")
    return Secret(token.encode("ascii"))


def _read_ca(path: str) -> str:
    """The PEM text of a CA certificate; ConfigError for a key, or for a certificate that may not sign others."""
    from cryptography import x509  # noqa: PLC0415 - 0.1 s that only this option needs

    data = read_safely(path)
    if b"PRIVATE KEY" in data:
        raise ConfigError(f"{path} holds a private key", advice="give the certificate alone: Vault needs no more")
    try:
        certificates = x509.load_pem_x509_certificates(data)
        signs = all(
            certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            for certificate in certificates
        )
    except (ValueError, x509.ExtensionNotFound):
        signs = False
    if not signs:
        raise ConfigError(f"{path} is not the PEM certificate of a CA", advice="give the CA of the nodes' certificates")
    return data.decode("ascii")


def _checked_pattern(pattern: str) -> str:
    if not _NODE_PATTERN.fullmatch(pattern):
        raise UsageError(
            f"--node-name {pattern!r} is not a pattern for node names",
            advice="use letters, digits, '.', '-' and '*'; a node name with '_' cannot be protected",
        )
    return pattern


def _checked_cidr(cidr: str) -> str:
    try:
        return str(ipaddress.ip_network(cidr))
    except ValueError as error:
        raise UsageError(f"{cidr!r} is not a range of addresses: {error}", advice="write 10.0.0.0/24") from None


def _owner(user: str) -> int:
    """The uid for the secret id's file; -1 (leave it) unless root runs this."""
    if os.geteuid() != 0:
        return -1
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UsageError(
            f"there is no user {user} here, who should own the secret id's file",
            advice="run this on the head node after the installation, or name another with --owner",
        ) from None


def _write_file(path: Path, content: Callable[[], str], *, mode: int, owner: int = -1) -> None:
    """Put what ``content`` makes into ``path`` by rename; it is only asked for once the file can be written."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", advice="check its directory") from None
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), mode)
            os.fchown(file.fileno(), owner, -1)
            file.write(content() + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
