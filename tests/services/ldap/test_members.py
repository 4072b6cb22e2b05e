"""Who a real slapd says is in a group."""

import time
from collections.abc import Callable

import pytest

from conf.errors import ConfigError
from slurm_hooks.reading import Reading, Request, read_directory
from tests.testbed.slapd import SUFFIX, Slapd, group, group_dn, ldif, person, user

MakeRequest = Callable[..., Request]


def read(request: Request) -> Reading:
    return read_directory(request, time.time())


def members(request: Request) -> frozenset[str]:
    (found,) = read(request).members.groups.values()
    return found.members


def test_an_unknown_group_is_missing_and_empty(shared: Slapd, request_to: MakeRequest) -> None:
    reading = read(request_to(shared, group_dn("no-such"), f"cn=x,ou=no-such,{SUFFIX}", "cn=x,dc=elsewhere"))
    for found in reading.members.groups.values():
        assert found.missing
        assert not found.members
    assert len(reading.members.notes) == 3


def test_closed_accounts_strangers_and_deleted_people_are_not_members(shared: Slapd, request_to: MakeRequest) -> None:
    yesterday = str(int(time.time() // 86400) - 1)
    shared.add(user("expired", shadowExpire=[yesterday]) + user("open", shadowExpire=["-1"]) + user("deleted"))
    shared.add(group("doors", [person("expired"), person("open"), person("deleted"), person("never-was")]))
    shared.delete(person("deleted"))
    assert members(request_to(shared, group_dn("doors"))) == {"open"}


def test_two_entries_for_one_name_are_nobody(shared: Slapd, request_to: MakeRequest) -> None:
    other = f"ou=contractors,{SUFFIX}"
    shared.add(ldif(other, {"objectClass": ["organizationalUnit"], "ou": ["contractors"]}))
    shared.add(user("twin") + user("twin", parent=other) + group("twins", [person("twin"), f"uid=twin,{other}"]))
    reading = read(request_to(shared, group_dn("twins")))
    assert reading.members.groups[group_dn("twins")].members == frozenset()
    assert any("two entries for user twin" in note for note in reading.members.notes)


@pytest.mark.parametrize(("kind", "attribute"), [("groupOfNames", "member"), ("groupOfUniqueNames", "uniqueMember")])
def test_members_by_name(shared: Slapd, request_to: MakeRequest, kind: str, attribute: str) -> None:
    uid = attribute.lower()
    shared.add(user(uid) + group(f"by-{attribute}", [person(uid)], kind=kind, attribute=attribute))
    assert members(request_to(shared, group_dn(f"by-{attribute}"))) == {uid}


def test_members_of_a_posix_group(shared: Slapd, request_to: MakeRequest) -> None:
    dn = group_dn("posix")
    attributes = {"objectClass": ["posixGroup"], "cn": ["posix"], "gidNumber": ["7"], "memberUid": ["pia", "root"]}
    shared.add(user("pia") + ldif(dn, attributes))
    assert members(request_to(shared, dn)) == {"pia"}


def test_nested_groups_and_a_cycle(shared: Slapd, request_to: MakeRequest) -> None:
    shared.add(user("outer") + user("middle") + user("inner"))
    shared.add(group("ring-a", [person("outer"), group_dn("ring-b"), group_dn("ring-a")]))
    shared.add(group("ring-b", [person("middle"), group_dn("ring-c")]))
    shared.add(group("ring-c", [person("inner"), group_dn("ring-a"), group_dn("ring-b")]))
    for name in ("ring-a", "ring-b", "ring-c"):
        assert members(request_to(shared, group_dn(name))) == {"outer", "middle", "inner"}


def test_a_removed_member_is_gone_at_the_next_reading(shared: Slapd, request_to: MakeRequest) -> None:
    shared.add(user("stays") + user("leaves") + group("leaving", [person("stays"), person("leaves")]))
    request = request_to(shared, group_dn("leaving"))
    assert members(request) == {"stays", "leaves"}
    shared.set_members("leaving", [person("stays")])
    assert members(request) == {"stays"}


def test_a_group_removed_from_a_group_takes_its_people_along(shared: Slapd, request_to: MakeRequest) -> None:
    shared.add(user("direct") + user("indirect") + group("leaf", [person("indirect")]))
    shared.add(group("tree", [person("direct"), group_dn("leaf")]))
    request = request_to(shared, group_dn("tree"))
    assert members(request) == {"direct", "indirect"}
    shared.set_members("tree", [person("direct")])
    assert members(request) == {"direct"}


@pytest.mark.parametrize(
    ("number", "cn", "written"),
    [
        (1, "Smith, John", "Smith\\, John"),
        (2, 'the "boss"', "the \\22boss\\22"),
        (3, "line\nbreak", "line\\0Abreak"),
        (4, "Grün (EU) * \\ #1", "GRÜN (eu) * \\\\ \\231"),
        (5, "研究 班", "\\E7\\A0\\94\\E7\\A9\\B6 班"),
        (6, "a+b=c;d<e>", "a\\+b\\3Dc\\;d\\<e\\>"),
        (7, "#1 of all", "\\#1 of all"),
        (8, " in  the middle ", "\\20in  the middle\\20"),
        (9, "back\\slash, \tand tab\r", "back\\5Cslash\\2C \\09and tab\\0D"),
    ],
)
def test_hostile_names_of_people_and_groups(
    shared: Slapd, request_to: MakeRequest, number: int, cn: str, written: str
) -> None:
    uid = f"hostile{number}"
    account = {"objectClass": ["inetOrgPerson"], "cn": [cn], "sn": ["x"], "uid": [uid]}
    shared.add(ldif(f"cn={written},ou=people,{SUFFIX}", account))
    # the group names its member, and the policy names the group, in another spelling than the directory's own
    member = f"CN={written}, OU=People,DC=example,DC=org"
    dn = f"cn={written},ou=groups,{SUFFIX}"
    shared.add(ldif(dn, {"objectClass": ["groupOfNames"], "cn": [cn], "member": [member]}))
    reading = read(request_to(shared, dn))
    assert reading.members.groups[dn].members == {uid}
    assert reading.members.groups[dn].name == cn


@pytest.mark.parametrize("uid", ["-rf", "1001", "a b", "eve,alice", 'e"ve', "evë", "eve\nalice", "a=b"])
def test_what_is_no_login_name_is_nobody(shared: Slapd, request_to: MakeRequest, uid: str) -> None:
    mark = uid.encode().hex()
    dn = f"cn={mark},ou=people,{SUFFIX}"
    shared.add(ldif(dn, {"objectClass": ["inetOrgPerson"], "cn": [mark], "sn": ["x"], "uid": [uid]}))
    shared.add(group(f"odd-{mark}", [dn]))
    reading = read(request_to(shared, group_dn(f"odd-{mark}")))
    assert reading.members.groups[group_dn(f"odd-{mark}")].members == frozenset()
    assert any("is not a login name" in note for note in reading.members.notes)
    shared.delete(dn)


def test_more_people_than_a_page(shared: Slapd, request_to: MakeRequest) -> None:
    names = [f"many{number:04}" for number in range(1201)]
    shared.add("".join(user(name) for name in names) + group("many", [person(name) for name in names]))
    assert members(request_to(shared, group_dn("many"))) == set(names)


def test_a_server_that_stops_early_gives_no_answer_instead_of_a_part(
    tmp_path_factory: pytest.TempPathFactory, shared: Slapd, request_to: MakeRequest
) -> None:
    with Slapd(tmp_path_factory.mktemp("small"), shared.ca, size_limit="5") as small:
        small.add("".join(user(f"u{number}") for number in range(9)) + group("phi", [person("u0")]))
        with pytest.raises(ConfigError, match="LIMIT_EXCEEDED") as caught:
            read(request_to(small, group_dn("phi")))
        assert "limit" in caught.value.advice


def test_a_base_that_is_not_there_is_an_error_and_not_nobody(shared: Slapd, request_to: MakeRequest) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_OBJECT") as caught:
        read(request_to(shared, group_dn("phi"), base=f"ou=gone,{SUFFIX}"))
    assert "ldap.base" in caught.value.advice


def test_an_account_that_may_see_nothing_gets_an_error_and_not_nobody(own: Slapd, request_to: MakeRequest) -> None:
    own.add(user("alice", userPassword=["alices-password"]) + group("phi", [person("alice")]))
    request = request_to(own, group_dn("phi"), bind_dn=person("alice"))
    with open(request.bind_password_file, "w") as file:  # noqa: PTH123 - written in place, its mode stays
        file.write("alices-password")
    with pytest.raises(ConfigError, match="NO_SUCH_OBJECT"):
        read(request)
