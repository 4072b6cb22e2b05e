"""What becomes of people and groups that are renamed, moved, deleted and made again in a real Active Directory."""

import time
from collections.abc import Callable

import pytest

from slurm_hooks.reading import Reading, Request, read_directory
from tests.testbed.samba_ad import BASE, USERS, SambaAD

MakeRequest = Callable[..., Request]
ELSEWHERE = f"OU=staff,{BASE}"


def read(request: Request) -> Reading:
    return read_directory(request, time.time())


def members(request: Request) -> frozenset[str]:
    (found,) = read(request).members.groups.values()
    return found.members


@pytest.fixture(scope="module", autouse=True)
def _staff(ad: SambaAD) -> None:
    ad.add_entry(ELSEWHERE, {"objectClass": "organizationalUnit"})


def with_group(ad: SambaAD, name: str) -> str:
    """A group of one user, both of this name; the group's entry."""
    ad.add_user(name)
    dn = ad.add_group(f"{name}-group")
    ad.add_members(f"{name}-group", [name])
    return dn


def test_a_new_login_name_takes_the_membership_along(ad: SambaAD, request_to: MakeRequest) -> None:
    request = request_to(with_group(ad, "maiden"))
    ad.replace(f"CN=maiden,{USERS}", "sAMAccountName", "married")
    assert members(request) == {"married"}


def test_a_moved_and_renamed_entry_stays_a_member_under_its_login_name(ad: SambaAD, request_to: MakeRequest) -> None:
    request = request_to(with_group(ad, "mover"))
    ad.rename(f"CN=mover,{USERS}", "CN=Mover\\, Dr.", ELSEWHERE)
    assert members(request) == {"mover"}


def test_who_is_deleted_and_made_again_is_somebody_else(ad: SambaAD, request_to: MakeRequest) -> None:
    request = request_to(with_group(ad, "heir"))
    ad.delete(f"CN=heir,{USERS}")
    assert members(request) == frozenset()
    ad.add_user("heir")
    reading = read(request)
    assert [found.members for found in reading.members.groups.values()] == [frozenset()]
    assert not reading.members.notes


@pytest.mark.parametrize(("name", "parent"), [("renamed", ""), ("relocated", ELSEWHERE)])
def test_a_group_with_another_name_is_not_the_policys_group(
    ad: SambaAD, request_to: MakeRequest, name: str, parent: str
) -> None:
    dn = with_group(ad, name)
    ad.rename(dn, f"CN={name}-now", parent)
    (found,) = read(request_to(dn)).members.groups.values()
    assert found.missing
    assert not found.members
    assert members(request_to(f"CN={name}-now,{parent or USERS}")) == {name}


def test_the_other_parts_of_the_forest_are_neither_followed_nor_reported(ad: SambaAD, request_to: MakeRequest) -> None:
    """Samba, like Windows, points to CN=Configuration and others in every answer below the domain's base."""
    dn = with_group(ad, "local")
    reading = read(request_to(dn, f"CN=x,CN=Users,DC=other,{BASE}", "CN=x,DC=elsewhere,DC=test"))
    assert reading.members.groups[dn].members == {"local"}
    assert sum(found.missing for found in reading.members.groups.values()) == 2
    assert not any("other servers have parts" in note for note in reading.members.notes)
