from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SITE = """\
version: 1
cluster: {name: test, head_nodes: [head]}
vault: {address: "https://vault.example:8200", ca_file: /etc/secure-slurm/ca.crt}
ldap:
  flavour: openldap
  uris: [ldaps://ldap.example]
  ca_file: /etc/secure-slurm/ca.crt
  bind_dn: cn=reader,dc=example,dc=org
  bind_password_file: /etc/secure-slurm/ldap-password
  base: dc=example,dc=org
"""

POLICY = """\
version: 1
jurisdictions:
  eu: {feature: eu, regions: [eu-central-1, eu-west-1]}
  us: {feature: us, regions: [us-east-1]}
classes:
  - {name: internal, residency: optional, scratch: optional, exclusive_nodes: false}
  - {name: phi, residency: required, scratch: required, default_scratch: 1G, max_scratch: 1T}
roles:
  phi-eu:
    groups: ["cn=phi-eu,ou=groups,dc=example,dc=org"]
    classes: [phi]
    jurisdictions: [eu]
partitions:
  phi: {demand_tag: true, jurisdiction: eu}
  us: {jurisdiction: us}
"""


@pytest.fixture
def site_text() -> str:
    return SITE


@pytest.fixture
def policy_text() -> str:
    return POLICY


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A directory that passes the checks whatever the umask of the developer is."""
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.fixture
def written(room: Path) -> Callable[..., str]:
    """Write a file as an admin should: for nobody else to write."""

    def write(text: str | bytes, name: str = "file.yaml") -> str:
        path = room / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o644)
        return str(path)

    return write
