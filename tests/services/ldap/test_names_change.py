"""What becomes of people and groups that are renamed, moved, closed, deleted and made again, in a real slapd."""

import time
from collections.abc import Callable, Iterator

import pytest

from slurm_hooks.reading import Reading, Request, read_directory
from tests.testbed.pki import CA
from tests.testbed.slapd import SUFFIX, Slapd, group, group_dn, ldif, person, user

MakeRequest = Callable[..., Request]
STAFF = f"ou=staff,{SUFFIX}"


def read(request: Request) -> Reading:
    return read_directory(request, time.time())


def members(request: Request) -> frozenset[str]:
    (found,) = read(request).members.groups.values()
    return found.members


def told(request: Request, words: str) -> bool:
    return any(words in note for note in read(request).members.notes)


@pytest.fixture(scope="module")
def tidy(tmp_path_factory: pytest.TempPathFactory, ca: CA) -> Iterator[Slapd]:
    """A server that keeps references right (slapo-refint) and knows password policies (slapo-ppolicy)."""
    overlays = (
        f"overlay refint\nrefint_attributes member\nrefint_nothing cn=nobody,{SUFFIX}\n"
        f"overlay ppolicy\nppolicy_default cn=policy,{SUFFIX}\n"
    )
    directory = tmp_path_factory.mktemp("tidy")
    with Slapd(directory, ca, modules=["refint", "ppolicy"], overlays=overlays) as server:
        server.add(ldif(STAFF, {"objectClass": ["organizationalUnit"], "ou": ["staff"]}))
        yield server


@pytest.fixture(scope="module", autouse=True)
def _staff(shared: Slapd) -> None:
    shared.add(ldif(STAFF, {"objectClass": ["organizationalUnit"], "ou": ["staff"]}))


def test_a_new_login_name_is_somebody_new_until_the_group_says_it(shared: Slapd, request_to: MakeRequest) -> None:
    shared.add(user("maiden") + user("other") + group("brides", [person("maiden"), person("other")]))
    request = request_to(shared, group_dn("brides"))
    shared.rename(person("maiden"), "uid=married")
    assert members(request) == {"other"}
    assert told(request, "1 of its members are no user and no group, such as 'uid=maiden,")
    shared.set_members("brides", [person("married"), person("other")])
    assert members(request) == {"married", "other"}


def test_a_login_name_changed_in_place_moves_the_membership_to_the_new_name(
    shared: Slapd, request_to: MakeRequest
) -> None:
    dn = f"cn=In Place,ou=people,{SUFFIX}"
    account = {"objectClass": ["inetOrgPerson"], "cn": ["In Place"], "sn": ["x"], "uid": ["before"]}
    shared.add(ldif(dn, account) + group("in-place", [dn]))
    request = request_to(shared, group_dn("in-place"))
    assert members(request) == {"before"}
    shared.replace(dn, "uid", "after")
    assert members(request) == {"after"}


def test_somebody_who_was_moved_is_nobody_until_the_group_says_it(shared: Slapd, request_to: MakeRequest) -> None:
    shared.add(user("mover") + user("stayer") + group("movers", [person("mover"), person("stayer")]))
    request = request_to(shared, group_dn("movers"))
    shared.rename(person("mover"), "uid=mover", STAFF)
    assert members(request) == {"stayer"}
    shared.set_members("movers", [f"uid=mover,{STAFF}"])
    assert members(request) == {"mover"}


@pytest.mark.parametrize(
    ("name", "rdn", "parent"), [("renamed", "cn=renamed-now", ""), ("relocated", "cn=relocated", STAFF)]
)
def test_a_group_with_another_name_is_not_the_policys_group(
    shared: Slapd, request_to: MakeRequest, name: str, rdn: str, parent: str
) -> None:
    shared.add(user(name) + group(name, [person(name)]))
    request = request_to(shared, group_dn(name))
    assert members(request) == {name}
    shared.rename(group_dn(name), rdn, parent)
    (found,) = read(request).members.groups.values()
    assert found.missing
    assert not found.members
    assert told(request, "the directory has no such group; nobody is in it")
    assert members(request._replace(groups=(f"{rdn},{parent or f'ou=groups,{SUFFIX}'}",))) == {name}


def test_a_name_given_again_is_in_the_groups_that_still_have_it(shared: Slapd, request_to: MakeRequest) -> None:
    """LDAP's own meaning of a member that is a name: whoever has it. The log says so before it happens."""
    shared.add(user("heir") + user("rest") + group("estate", [person("heir"), person("rest")]))
    request = request_to(shared, group_dn("estate"))
    shared.delete(person("heir"))
    assert members(request) == {"rest"}
    assert told(request, "whoever is given such a name is in the group")
    shared.add(user("heir", uidNumber=["4711"]))
    assert members(request) == {"heir", "rest"}


def test_where_references_are_kept_right_a_name_given_again_is_in_no_group(
    tidy: Slapd, request_to: MakeRequest
) -> None:
    tidy.add(user("heir") + user("rest") + group("estate", [person("heir"), person("rest")]))
    request = request_to(tidy, group_dn("estate"))
    tidy.delete(person("heir"))
    tidy.add(user("heir", uidNumber=["4711"]))
    assert members(request) == {"rest"}
    assert not told(request, "no user and no group")
    tidy.rename(person("rest"), "uid=rested", STAFF)
    assert members(request) == {"rested"}


@pytest.mark.parametrize(
    ("attribute", "closed", "opened"),
    [
        ("pwdAccountLockedTime", "000001010000Z", "20991231235959Z"),
        ("pwdEndTime", "20200101000000Z", "20991231235959Z"),
        ("pwdStartTime", "20991231235959Z", "20200101000000Z"),
        ("shadowExpire", "1", "-1"),
    ],
)
def test_closed_accounts_count_again_when_they_are_opened(
    tidy: Slapd, request_to: MakeRequest, attribute: str, closed: str, opened: str
) -> None:
    uid = attribute.lower()
    tidy.add(user(uid) + group(f"g-{uid}", [person(uid)]))
    request = request_to(tidy, group_dn(f"g-{uid}"))
    assert members(request) == {uid}
    tidy.replace(person(uid), attribute, closed)
    assert members(request) == frozenset()
    assert not told(request, "no user and no group"), "it is known, and closed"
    tidy.replace(person(uid), attribute, opened)
    assert members(request) == {uid}


def test_with_everybody_closed_nobody_is_in_any_group(tidy: Slapd, request_to: MakeRequest) -> None:
    names = [f"over{number}" for number in range(3)]
    tidy.add("".join(user(name, shadowExpire=["1"]) for name in names))
    tidy.add(group("over", [person(name) for name in names]))
    (found,) = read(request_to(tidy, group_dn("over"))).members.groups.values()
    assert not found.missing
    assert found.members == frozenset()


def test_what_lies_behind_a_referral_is_not_there(
    tmp_path_factory: pytest.TempPathFactory, shared: Slapd, request_to: MakeRequest
) -> None:
    """The other server is the shared one, which would answer: nobody goes there."""
    shared.add(user("abroad") + group("abroad", [person("abroad")]))
    with Slapd(tmp_path_factory.mktemp("refers"), shared.ca, settings=f"referral {shared.uri}") as server:
        server.stop()
        server.load(
            ldif(
                f"ou=abroad,{SUFFIX}",
                {
                    "objectClass": ["referral", "extensibleObject"],
                    "ou": ["abroad"],
                    "ref": [f"{shared.uri}/ou=people,{SUFFIX}"],
                },
            )
        )
        server.start()
        server.add(user("home") + group("here", [person("home"), f"uid=abroad,ou=abroad,{SUFFIX}"]))
        here, behind, outside = group_dn("here"), f"cn=abroad,ou=abroad,{SUFFIX}", "cn=abroad,dc=elsewhere"
        reading = read(request_to(server, here, behind, outside))
    assert reading.members.groups[here].members == {"home"}
    assert reading.members.groups[behind].missing
    assert reading.members.groups[outside].missing
    notes = reading.members.notes
    assert sum("another server has it, which is not asked" in note for note in notes) == 2
    assert any("other servers have parts of 'dc=example,dc=org'" in note for note in notes)
