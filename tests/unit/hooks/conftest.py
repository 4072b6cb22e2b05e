from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.policy import Policy, load_policy
from conf.site import Site, load_site
from slurm_hooks import blame

ME = pwd.getpwuid(os.geteuid()).pw_name

SITE = """\
version: 1
cluster: {{name: test, head_nodes: [head], slurm_user: {user}}}
controller: {{socket: {folder}/decide.sock, record_key: {folder}/record.key}}
lifecycle: {{socket: {folder}/lifecycle.sock, state_dir: {folder}/state}}
node: {{run_dir: {folder}/node-%n, place_file: {folder}/place, proof: file}}
vault: {{address: "https://vault.example:8200", ca_file: /etc/ca.crt}}
ldap:
  flavour: openldap
  uris: ["ldaps://ldap.example"]
  ca_file: /etc/ca.crt
  bind_dn: cn=x,dc=example,dc=org
  bind_password_file: /etc/password
  base: dc=example,dc=org
  snapshot: {folder}/members.json
audit: {{directory: {folder}/audit}}
"""
POLICY = """\
version: 1
jurisdictions:
  eu: {feature: eu, regions: [eu-central-1]}
  us: {feature: us, regions: [us-east-1]}
classes:
  - {name: internal, residency: optional, scratch: optional, max_scratch: 100G, exclusive_nodes: false}
  - {name: phi, residency: required, scratch: required, default_scratch: 1G, max_scratch: 1T}
roles:
  phi-eu:
    groups: ["cn=phi-eu,ou=groups,dc=example,dc=org"]
    classes: [phi, internal]
    jurisdictions: [eu]
    partitions: [phi]
partitions: {phi: {demand_tag: true, jurisdiction: eu}, us: {jurisdiction: us}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with everything that a daemon reads, but the members."""
    tmp_path.chmod(0o755)
    for name, text in (("secure-slurm.yaml", SITE.format(user=ME, folder=tmp_path)), ("policy.yaml", POLICY)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644)
    (tmp_path / "record.key").write_bytes(b"k" * 32)
    (tmp_path / "record.key").chmod(0o640)
    (tmp_path / "audit" / "lifecycle").mkdir(parents=True, mode=0o750)
    return tmp_path


@pytest.fixture
def site(folder: Path) -> Site:
    return load_site(str(folder / "secure-slurm.yaml"))


@pytest.fixture
def policy(folder: Path) -> Policy:
    return load_policy(str(folder / "policy.yaml"))


@pytest.fixture
def place(folder: Path) -> Callable[[str | None], None]:
    """Writes the node's place file."""

    def write(region: str | None) -> None:
        path = folder / "place"
        path.unlink(missing_ok=True)
        if region is not None:
            path.write_bytes(region.encode("utf-8", "surrogateescape"))
            path.chmod(0o644)

    return write


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What slurmctld refuses is refused at once; a test of the patience sets its own."""
    monkeypatch.setattr(blame, "PATIENCE", 0.0)
