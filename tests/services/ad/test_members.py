"""Who a real Active Directory (Samba) says is in a group."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, ConfigError
from slurm_hooks.directory import CredentialsRefused
from slurm_hooks.membership import Group
from slurm_hooks.reading import Reading, Request, read_directory
from tests.testbed.pki import CA
from tests.testbed.samba_ad import BASE, USERS, SambaAD, ticks

MakeRequest = Callable[..., Request]


def read(request: Request) -> Reading:
    return read_directory(request, time.time())


def group_of(request: Request) -> Group:
    (found,) = read(request).members.groups.values()
    return found


def test_an_unknown_group_is_missing_and_empty(request_to: MakeRequest) -> None:
    dn = f"CN=no-such,{USERS}"
    assert group_of(request_to(dn)) == Group("no-such", frozenset(), missing=True)


def test_what_is_no_group_is_missing(ad: SambaAD, request_to: MakeRequest) -> None:
    assert group_of(request_to(ad.add_user("person"))).missing


def test_disabled_and_expired_accounts_are_not_members(ad: SambaAD, request_to: MakeRequest) -> None:
    dn = ad.add_group("doors")
    for name in ("opened", "disabled", "expired", "ends-later"):
        ad.add_user(name)
    ad.add_members("doors", ["opened", "disabled", "expired", "ends-later"])
    assert group_of(request_to(dn)).members == {"opened", "disabled", "expired", "ends-later"}
    ad.disable("disabled")
    ad.replace(f"CN=expired,{USERS}", "accountExpires", str(ticks(time.time() - 1)))
    ad.replace(f"CN=ends-later,{USERS}", "accountExpires", str(ticks(time.time() + 86400)))
    assert group_of(request_to(dn)).members == {"opened", "ends-later"}


def test_nested_groups_and_a_cycle(ad: SambaAD, request_to: MakeRequest) -> None:
    dns = [ad.add_group(f"ring{number}") for number in range(3)]
    for number in range(3):
        ad.add_user(f"walker{number}")
        ad.add_members(f"ring{number}", [f"walker{number}", f"ring{(number + 1) % 3}"])
    for dn in dns:
        assert group_of(request_to(dn)).members == {"walker0", "walker1", "walker2"}


def test_a_removed_member_is_gone_at_the_next_reading(ad: SambaAD, request_to: MakeRequest) -> None:
    dn = ad.add_group("leaving")
    ad.add_group("leaving-inner")
    for name in ("stays", "leaves", "leaves-inner"):
        ad.add_user(name)
    ad.add_members("leaving", ["stays", "leaves", "leaving-inner"])
    ad.add_members("leaving-inner", ["leaves-inner"])
    assert group_of(request_to(dn)).members == {"stays", "leaves", "leaves-inner"}
    ad.remove_members("leaving", ["leaves"])
    assert group_of(request_to(dn)).members == {"stays", "leaves-inner"}
    ad.remove_members("leaving", ["leaving-inner"])
    assert group_of(request_to(dn)).members == {"stays"}


def test_names_are_lower_case_and_the_policy_may_spell_the_group_as_it_likes(
    ad: SambaAD, request_to: MakeRequest
) -> None:
    dn = ad.add_group("Spelling")
    ad.add_user("Capital")
    ad.add_members("Spelling", ["Capital"])
    written = dn.lower().replace(",", ", ")
    assert read(request_to(written)).members.groups == {written: Group("Spelling", frozenset({"capital"}))}


@pytest.mark.parametrize("name", ["a(b)*", "a, b", "grün & 研究", "a#+;<x"])
def test_hostile_names_of_groups(ad: SambaAD, request_to: MakeRequest, name: str) -> None:
    uid = "h" + name.encode().hex()[:16]
    ad.add_user(uid)
    escaped = "".join(f"\\{char}" if char in ',+;<>#"\\' else char for char in name)
    dn = f"CN={escaped},{USERS}"
    ad.add_entry(dn, {"objectClass": "group", "sAMAccountName": uid + "-g", "member": f"CN={uid},{USERS}"})
    assert read(request_to(dn)).members.groups == {dn: Group(name, frozenset({uid}))}


def test_a_distribution_group_gives_nothing(ad: SambaAD, request_to: MakeRequest) -> None:
    dn = ad.add_group("mailing", security=False)
    ad.add_user("subscriber")
    ad.add_members("mailing", ["subscriber"])
    reading = read(request_to(dn))
    assert reading.members.groups[dn].members == frozenset()
    assert any("not a security group" in note for note in reading.members.notes)


def test_a_distribution_group_inside_gives_nothing_and_is_told(ad: SambaAD, request_to: MakeRequest) -> None:
    dn = ad.add_group("with-list")
    ad.add_group("the-list", security=False)
    ad.add_user("listed")
    ad.add_members("the-list", ["listed"])
    ad.add_members("with-list", ["the-list"])
    reading = read(request_to(dn))
    assert reading.members.groups[dn].members == frozenset()
    assert any("the-list" in note and "not a security group" in note for note in reading.members.notes)


def test_a_primary_group_does_not_count(ad: SambaAD, request_to: MakeRequest) -> None:
    """The documented limit: everybody's primary group has no members to see, so it lets nobody in."""
    ad.add_user("primary")
    assert "primary" not in group_of(request_to(f"CN=Domain Users,{USERS}")).members


def test_more_people_than_a_page(ad: SambaAD, request_to: MakeRequest) -> None:
    dn = ad.add_group("many")
    names = [f"many{number:04}" for number in range(610)]
    ad.add_bare_users(names)
    ad.add_members("many", names)
    assert group_of(request_to(dn)).members == set(names)


def test_a_wrong_password_is_told_apart_and_never_shown(request_to: MakeRequest) -> None:
    request = request_to(f"CN=x,{BASE}")
    Path(request.bind_password_file).write_text("open-sesame")
    with pytest.raises(CredentialsRefused) as caught:
        read(request)
    assert "open-sesame" not in str(caught.value)


def test_another_authority_is_refused(tmp_path: Path, request_to: MakeRequest) -> None:
    other = CA(tmp_path / "other", "somebody else")
    with pytest.raises(BackendUnavailable, match="certificate"):
        read(request_to(f"CN=x,{BASE}", ca_file=str(other.certificate)))


def test_a_base_that_is_not_there_is_an_error_and_not_nobody(ad: SambaAD, request_to: MakeRequest) -> None:
    dn = ad.add_group("based")
    with pytest.raises((ConfigError, BackendUnavailable)):
        read(request_to(dn, base="OU=gone,DC=ad,DC=test"))


def test_read_as_the_other_flavour_it_gives_nobody(ad: SambaAD, request_to: MakeRequest) -> None:
    dn = ad.add_group("flavour")
    ad.add_user("first")
    ad.add_members("flavour", ["first"])
    assert group_of(request_to(dn, flavour="openldap")).missing
