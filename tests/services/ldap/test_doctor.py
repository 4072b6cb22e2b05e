"""secure-slurm doctor's doors to a real directory: which groups are there, who is let in, by which certificate."""

from __future__ import annotations

from pathlib import Path

import pytest

from admin.doctor import probe
from admin.doctor.facts import Certificate, Clock, LdapGroups, LdapServer
from admin.doctor.finding import Finding
from admin.doctor.judge_certificates import ldap_certificates
from admin.doctor.judge_ldap import groups, ldap
from tests.testbed.pki import CA
from tests.testbed.slapd import SUFFIX, Slapd, group, group_dn, person, user
from tests.unit.hooks.conftest import POLICY

SITE = """\
version: 1
cluster: {{name: test, head_nodes: [head]}}
vault: {{address: "https://vault.example:8200", ca_file: /etc/ca.crt}}
ldap:
  flavour: openldap
  uris: ["{uri}"]
  ca_file: {ca}
  bind_dn: "{reader}"
  bind_password_file: {folder}/password
  base: {base}
"""


class Place:
    """A site file, a policy and a password beside it, for one server."""

    def __init__(self, folder: Path, server: Slapd, ca: CA) -> None:
        folder.chmod(0o755)
        self.folder, self.server = folder, server
        text = SITE.format(uri=server.uri, ca=ca.certificate, reader=server.reader_dn, folder=folder, base=SUFFIX)
        for name, content, mode in (
            ("secure-slurm.yaml", text, 0o644),
            ("policy.yaml", POLICY, 0o644),
            ("password", server.reader_password, 0o600),
        ):
            (folder / name).touch(mode=mode)
            (folder / name).write_text(content)

    def look(self) -> tuple[Finding, Finding]:
        """What is said of the login, and of the groups."""
        told = probe.ldap_groups(f"{self.folder}/secure-slurm.yaml", f"{self.folder}/policy.yaml", self.server.uri)
        self.refused = told.pop("refused", False)
        seen = LdapGroups(**{**told, "missing": tuple(told["missing"])})
        return ldap(seen, ()), groups(seen)


@pytest.fixture
def place(tmp_path: Path, own: Slapd, ca: CA) -> Place:
    return Place(tmp_path, own, ca)


def test_a_group_that_is_not_there(place: Place) -> None:
    login, found = place.look()
    assert login.state == "ok"
    assert (found.state, group_dn("phi-eu") in found.seen) == ("fail", True)
    place.server.add(user("alice") + group("phi-eu", [person("alice")]))
    assert place.look()[1].state == "ok"
    place.server.rename(group_dn("phi-eu"), "cn=phi-europe")
    assert place.look()[1].state == "fail"


def test_a_password_that_is_refused(place: Place) -> None:
    (place.folder / "password").write_text("wrong")
    login, found = place.look()
    assert (login.state, found.state, place.refused) == ("fail", "fail", True)
    assert "wrong" not in login.seen + login.fix


def test_a_server_that_is_away(place: Place) -> None:
    place.server.stop()
    login, _ = place.look()
    assert (login.state, place.refused) == ("fail", False)
    seen = certificate(place.server, place.server.ca.certificate)
    assert ldap_certificates((seen,), Clock(0.0, None)).state == "fail"


def certificate(server: Slapd, ca: Path) -> LdapServer:
    told = probe.ldap_tls(server.uri, str(ca))
    return LdapServer(told["uri"], Certificate(**told["certificate"]))


def test_its_certificate(shared: Slapd, tmp_path: Path) -> None:
    seen = certificate(shared, shared.ca.certificate)
    now = Clock(seen.certificate.ends - 43200, synchronised=True)
    assert ldap_certificates((seen,), now).state == "ok"
    assert ldap_certificates((seen,), Clock(seen.certificate.ends - 60, synchronised=True)).state == "fail"
    other = CA(tmp_path / "other", "somebody else")
    found = ldap_certificates((certificate(shared, other.certificate),), now)
    assert (found.state, "certificate" in found.seen) == ("fail", True)
