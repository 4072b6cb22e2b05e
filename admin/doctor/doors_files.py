"""Doors to the files that the site file names: certificates, and what is secret."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from admin.doctor.facts import Certificate, SecretFile
from conf.slurmnames import for_node

if TYPE_CHECKING:
    from admin.doctor.scene import Scene
    from conf.site import Site

ENROL = "secure-enrol"


def certificates(scene: Scene) -> tuple[Certificate, ...]:
    """Those in files, of this machine's roles."""
    site = scene.need_site()
    files = {"the CA of Vault": (site.vault.ca_file, "")}
    if "head" in scene.roles:
        files["the CA of the directory"] = (site.ldap.ca_file, "")
    if "compute" in scene.roles:
        files["the node's"] = (for_node(site.vault.node.certificate, scene.node), scene.node)
    if site.link.listen:
        files["the CA of the link"] = (site.link.ca_file, "")
        if "head" in scene.roles:
            files["the link's"] = (site.link.certificate, "")
    if site.enrol.listen:
        files["the CA of enrolment"] = (site.enrol.ca_file, "")
        if "head" in scene.roles:
            files["the enrolment daemon's"] = (site.enrol.certificate, "")
    return tuple(_certificate(what, path, wanted) for what, (path, wanted) in files.items())


def _certificate(what: str, path: str, wanted: str) -> Certificate:
    """Of several in one file the one that goes on longest: old ones stay in bundles, and do no harm."""
    from cryptography import x509  # noqa: PLC0415 - 0.1 s that only a role with certificates pays
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    try:
        found = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except OSError as error:
        return Certificate(what, path, 0.0, 0.0, problem=error.strerror or "it cannot be read")
    except ValueError:
        return Certificate(what, path, 0.0, 0.0, problem="it holds no certificate (PEM)")
    if wanted:
        # a chain begins with the own one
        found = found[:1]
    last = max(found, key=lambda each: each.not_valid_after_utc)
    names = [str(each.value) for each in last.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    starts, ends = last.not_valid_before_utc.timestamp(), last.not_valid_after_utc.timestamp()
    return Certificate(what, path, starts, ends, names[0] if names else "", wanted=wanted)


def secrets(scene: Scene) -> tuple[SecretFile, ...]:
    """Who may read the files that hold secrets."""
    site = scene.need_site()
    files: list[tuple[str, str, str]] = []
    if "head" in scene.roles:
        files += [
            ("record key", site.controller.record_key, "secure-decide"),
            ("secret id", site.vault.head.secret_id_file, "secure-life"),
            ("bind password", site.ldap.bind_password_file, "secure-ldap"),
        ]
        files += [("link key", site.link.private_key, "secure-life")] if site.link.listen else []
        files += _enrolment_secrets(site) if site.enrol.listen else []
    if "compute" in scene.roles:
        files.append(("node key", for_node(site.vault.node.private_key, scene.node), "secure-node"))
    return tuple(SecretFile(what, path, secret_fault(path, account)) for what, path, account in files)


def _enrolment_secrets(site: Site) -> list[tuple[str, str, str]]:
    enrol = site.enrol
    found = [("enrolment key", enrol.private_key, ENROL), ("enrolment secret id", enrol.secret_id_file, ENROL)]
    return [*found, ("token key", enrol.token_key, ENROL)] if site.vault.node.method == "jwt" else found


def secret_fault(path: str, account: str) -> str:
    """Why a file does not hold a secret that ``account`` can use; empty: it does."""
    try:
        status, user = os.stat(path, follow_symlinks=False), pwd.getpwnam(account)  # noqa: PTH116
    except OSError as error:
        return error.strerror or "it cannot be looked at"
    except KeyError:
        return f"there is no account {account}"
    groups = {user.pw_gid, *(each.gr_gid for each in grp.getgrall() if account in each.gr_mem)}
    its_own = status.st_uid == user.pw_uid
    faults = (
        (not stat.S_ISREG(status.st_mode), "it is no plain file"),
        (status.st_mode & 0o027, f"others may read it, or more (mode {stat.S_IMODE(status.st_mode):04o})"),
        (status.st_uid != 0 and not its_own, f"it belongs to uid {status.st_uid}"),
        (
            not its_own and not (status.st_mode & 0o040 and status.st_gid in groups),
            f"{account} cannot read it",
        ),
    )
    return next((words for wrong, words in faults if wrong), "")
