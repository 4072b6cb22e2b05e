"""secure-slurm doctor, on Vault, the directory, certificates and the clock: what is wrong is seen, and only that."""

from __future__ import annotations

import re

import pytest

from admin.doctor.facts import (
    Certificate,
    Clock,
    LdapGroups,
    LdapServer,
    Members,
    VaultOwn,
    VaultPolicy,
    VaultServer,
    VaultStep,
)
from admin.doctor.finding import Silence
from admin.doctor.judge_certificates import certificates, ldap_certificates, vault_certificate
from admin.doctor.judge_ldap import groups, ldap, members
from admin.doctor.judge_vault import clock, login, policies, setup, vault
from admin.doctor.policies import shipped
from admin.doctor.probe import skew
from admin.vault_policies import Roles, node_word, policy_words, render_policy
from conf.site import Cluster, Ldap, Site, Vault

DAY = 86400.0
NOW = Clock(1_795_000_000.0, synchronised=True)
CERTIFICATE = Certificate("Vault's", "vault:8200", NOW.now - DAY, NOW.now + 364 * DAY)
SERVER = VaultServer("https://vault:8200", 200, "2.6.2", 0.0, CERTIFICATE)
SITE = Site(
    version=1,
    cluster=Cluster(name="test", head_nodes=("head",)),
    vault=Vault(address="https://vault:8200", ca_file="/etc/ca.crt"),
    ldap=Ldap(
        flavour="openldap",
        uris=("ldaps://ldap",),
        ca_file="/etc/ca.crt",
        bind_dn="cn=x",
        bind_password_file="/etc/password",
        base="dc=x",
    ),
)
NAMES = Roles.of("test")
FILES = {NAMES.head_policy: "head.hcl", NAMES.node_policy: "node.hcl"}


def own(change: tuple[str, str] = ("", ""), name: str = NAMES.head_policy) -> VaultOwn:
    """Both policies as ``vault init`` writes them, one of them changed."""
    found = []
    for each, file in FILES.items():
        text = render_policy(file, policy_words(SITE, node_word(SITE, lambda _mount: "auth_cert_1a2b3c4d")))
        if each == name and change[0]:
            assert change[0] in text
            text = text.replace(*change, 1)
        found.append(VaultPolicy(each, shipped(file, SITE), text))
    return VaultOwn("", "", tuple(found))


class TestVault:
    @pytest.mark.parametrize(
        ("status", "state", "words"),
        [
            (0, "fail", "cannot be reached"),
            (501, "fail", "not initialised"),
            (503, "fail", "sealed"),
            (472, "fail", "disaster"),
            (500, "fail", "500"),
            (404, "fail", "404"),
            (429, "warn", "standby"),
            (473, "warn", "standby"),
            (200, "ok", "2.6.2"),
        ],
    )
    def test_its_health(self, status: int, state: str, words: str) -> None:
        found = vault(SERVER._replace(status=status, problem="it cannot be reached"))
        assert (found.state, words in found.seen, bool(found.fix)) == (state, True, state != "ok")

    def test_a_login_that_is_refused(self) -> None:
        found = login(VaultOwn("Vault refused to accept the login", "is its certificate current?", ()))
        assert found == ("fail", "Vault refused to accept the login", "is its certificate current?")
        assert login(own()).state == "ok"

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            (NAMES.head_policy, ('capabilities = ["create", "update", "read", "delete"]', 'capabilities = ["sudo"]')),
            (NAMES.head_policy, ("path ", 'path "*" { capabilities = ["read"] }\npath ')),
            (NAMES.head_policy, ('"exportable"             = [false]', '"exportable"             = []')),
            (NAMES.node_policy, ("{{identity.entity.aliases.auth_cert_1a2b3c4d.name}}_*", "*")),
            (NAMES.node_policy, ("secure-slurm-grants", "other-grants")),
            (NAMES.node_policy, ('["read"]', '["read", "list"]')),
        ],
    )
    def test_a_policy_that_was_changed(self, name: str, change: tuple[str, str]) -> None:
        found = policies(own(change, name))
        assert found.state == "fail"
        assert f"{name} is not the shipped one" in found.seen
        assert "vault init" in found.fix

    def test_a_policy_that_was_cut_or_has_more(self) -> None:
        seen = own()
        one = seen.policies[0]
        for text in ("", one.text[: len(one.text) // 2].rpartition("\n}")[0] + "\n}", one.text + '\npath "x" {}\n'):
            assert policies(seen._replace(policies=(one._replace(text=text),))).state == "fail"

    def test_a_policy_that_may_not_be_read_is_not_the_shipped_one(self) -> None:
        one = own().policies[0]._replace(text="", problem="permission denied")
        found = policies(VaultOwn("", "", (one,)))
        assert found.state == "fail"
        assert "the shipped one could be read" in found.seen

    @pytest.mark.parametrize(
        ("word", "fits"),
        [
            ("identity.entity.aliases.auth_cert_1a2b.name", True),
            ("identity.entity.metadata.secure-slurm-test", False),
            ("identity.entity.aliases.auth_cert_1a2b.metadata.any", False),
            ("identity.entity.name", False),
            ("*", False),
        ],
    )
    def test_by_what_a_node_is_known_is_the_sites_but_for_the_accessor(self, word: str, fits: bool) -> None:
        (line,) = (each for each in shipped("node.hcl", SITE) if "/data/" in each and "grants" in each)
        text = f'path "{SITE.vault.grants_mount}/data/{{{{{word}}}}}/+" {{'
        assert bool(re.fullmatch(line, text)) is fits

    def test_without_a_login_nothing_is_known_of_them(self) -> None:
        assert policies(VaultOwn("refused", "", ())).state == "fail"

    def test_as_shipped(self) -> None:
        assert policies(own()).state == "ok"
        assert policies(own(("path ", "# a remark of an admin's\n\n  path "))).state == "ok"

    @pytest.mark.parametrize("state", ["missing", "different"])
    def test_an_admins_look_at_everything(self, state: str) -> None:
        good = VaultStep("secrets engine", "unchanged", "")
        found = setup((good, VaultStep("role secure-slurm-node (cert)", state, "token_policies")))
        assert (found.state, "token_policies" in found.seen, found.fix) == ("fail", True, "secure-slurm vault init")
        assert setup((good,)).state == "ok"


class TestCertificates:
    @pytest.mark.parametrize(
        ("life", "left", "state"),
        [
            (365.0, -1.0, "fail"),  # over
            (365.0, 1.0, "fail"),  # tomorrow
            (365.0, 6.0, "fail"),
            (365.0, 20.0, "warn"),
            (365.0, 40.0, "ok"),
            (3650.0, 6.0, "fail"),  # of a CA: nobody needs more than two months to renew one
            (3650.0, 59.0, "warn"),
            (3650.0, 61.0, "ok"),
            (1.0, 0.5, "ok"),  # renewed every few hours
            (1.0, 0.05, "warn"),
            (1.0, 0.01, "fail"),
        ],
    )
    def test_how_long_it_goes_on(self, life: float, left: float, state: str) -> None:
        ends = NOW.now + left * DAY
        assert certificates((CERTIFICATE._replace(starts=ends - life * DAY, ends=ends),), NOW).state == state

    def test_one_that_is_not_valid_yet(self) -> None:
        found = certificates((CERTIFICATE._replace(starts=NOW.now + 3600),), NOW)
        assert (found.state, "not valid yet" in found.seen) == ("fail", True)

    def test_one_that_cannot_be_read_beside_a_good_one(self) -> None:
        found = certificates((CERTIFICATE, CERTIFICATE._replace(what="the link's", problem="No such file")), NOW)
        assert found.state == "fail"
        assert "the link's" in found.seen

    @pytest.mark.parametrize("name", ["n2", ""])
    def test_one_of_another_node(self, name: str) -> None:
        found = certificates((CERTIFICATE._replace(what="the node's", name=name, wanted="n1"),), NOW)
        assert (found.state, "not for n1" in found.seen) == ("fail", True)

    def test_what_a_server_shows(self) -> None:
        wrong = CERTIFICATE._replace(problem="self-signed certificate", ends=0.0)
        assert vault_certificate(SERVER._replace(certificate=wrong), NOW).state == "fail"
        assert vault_certificate(SERVER._replace(certificate=CERTIFICATE._replace(ends=0.0)), NOW).state == "fail"
        assert vault_certificate(SERVER, NOW).state == "ok"
        assert (
            ldap_certificates((LdapServer("ldaps://a", CERTIFICATE), LdapServer("ldaps://b", wrong)), NOW).state
            == "fail"
        )
        assert ldap_certificates((LdapServer("ldaps://a", CERTIFICATE),), NOW).state == "ok"


class TestClock:
    @pytest.mark.parametrize(
        ("skew", "synchronised", "state"),
        [
            (61.0, True, "fail"),
            (3600.0, True, "fail"),
            (10.0, True, "warn"),
            (0.0, False, "warn"),
            (1.0, True, "ok"),
            (1.0, None, "ok"),
        ],
    )
    def test_beside_vaults(self, skew: float, synchronised: bool | None, state: str) -> None:
        assert clock(Clock(NOW.now, synchronised), SERVER._replace(skew=skew)).state == state

    @pytest.mark.parametrize("server", [Silence("no answer"), SERVER._replace(skew=None)])
    def test_alone(self, server: VaultServer | Silence) -> None:
        assert clock(NOW._replace(synchronised=None), server).state == "warn"
        assert clock(NOW._replace(synchronised=False), server).state == "warn"
        assert clock(NOW, server).state == "ok"

    @pytest.mark.parametrize(
        ("before", "told", "after", "expected"),
        [
            (100.5, 100, 100.6, 0.0),  # it tells whole seconds
            (100.5, 107, 108.0, 0.0),  # whatever time the exchange took
            (100.5, 90, 100.6, 9.5),
            (100.5, 110, 100.6, 9.4),
            (100.5, None, 100.6, None),
            (100.5, "100", 100.6, None),
            (100.5, True, 100.6, None),
        ],
    )
    def test_how_far_it_is(self, before: float, told: object, after: float, expected: float | None) -> None:
        assert skew(before, told, after) == (None if expected is None else pytest.approx(expected))


class TestDirectory:
    SEEN = LdapGroups("ldaps://a", 3, ())
    SERVERS = (LdapServer("ldaps://a", CERTIFICATE), LdapServer("ldaps://b", CERTIFICATE))

    def test_a_login_that_is_refused(self) -> None:
        seen = self.SEEN._replace(problem="the login failed (INVALID_CREDENTIALS)", advice="check ldap.bind_dn")
        assert ldap(seen, self.SERVERS) == ("fail", seen.problem, seen.advice)
        assert groups(seen).state == "fail"

    def test_a_second_server_that_is_away(self) -> None:
        away = LdapServer("ldaps://b", CERTIFICATE._replace(problem="Connection refused"))
        found = ldap(self.SEEN, (self.SERVERS[0], away))
        assert (found.state, "ldaps://b: Connection refused" in found.seen) == ("warn", True)
        assert ldap(self.SEEN, self.SERVERS).state == "ok"

    def test_a_group_that_is_not_there(self) -> None:
        found = groups(self.SEEN._replace(missing=("cn=phi-eu,dc=x",)))
        assert (found.state, "cn=phi-eu,dc=x" in found.seen) == ("fail", True)
        assert groups(self.SEEN).state == "ok"

    def test_the_members_file(self) -> None:
        assert members(Members(0.0, (), (), "there is none", "start ldapd")) == ("fail", "there is none", "start ldapd")
        assert members(Members(3.0, ("cn=phi-eu",), ())).state == "fail"
        assert members(Members(3.0, (), ("cn=phi-eu",))).state == "warn"
        assert members(Members(3.0, (), ())).state == "ok"
