from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import BackendUnavailable, ConfigError
from slurm_hooks import membership
from slurm_hooks.accounts import ACTIVE_DIRECTORY, OPENLDAP, Entry, Notes, Users, valid_user_name
from slurm_hooks.dn import normalise
from slurm_hooks.membership import Group, Members, escape_filter, read_members, walk

NOW = 1_800_000_000.0
BASE = "dc=test"


def user(name: str, dn: str = "", **more: str) -> Entry:
    attributes = {"uid": [name.encode()], **{key.lower(): [value.encode()] for key, value in more.items()}}
    return Entry(dn or f"uid={name},dc=test", attributes)


def group(cn: str, *members: str, kind: str = "groupOfNames", attribute: str = "member") -> Entry:
    values = [member.encode() for member in members]
    return Entry(f"cn={cn},dc=test", {"objectclass": [kind.encode()], "cn": [cn.encode()], attribute.lower(): values})


class Fake:
    """A directory of two lists; what a real one answers is tested against real ones."""

    def __init__(self, users: Sequence[Entry], groups: Sequence[Entry]) -> None:
        self.users, self.groups = users, {normalise(each.dn): each for each in groups}
        self.reads: list[str] = []

    def read(self, dn: str, attributes: Sequence[str]) -> Entry | None:
        self.reads.append(normalise(dn))
        return self.groups.get(normalise(dn))

    def search(self, base: str, query: str, attributes: Sequence[str]) -> Iterator[Entry]:
        yield from (self.users if query == "(uid=*)" else self.groups.values())


def read(source: Fake, *names: str) -> Members:
    return read_members(source, names, flavour=OPENLDAP, base=BASE, user_attribute="uid", now=NOW)


def members(source: Fake, name: str) -> frozenset[str]:
    return read(source, name).groups[name].members


PEOPLE = [user("alice"), user("bob"), user("carol"), user("dave", shadowExpire="1")]


def test_an_unknown_group_is_missing_and_empty() -> None:
    got = read(Fake(PEOPLE, []), "cn=phi,dc=test")
    assert got.groups == {"cn=phi,dc=test": Group("phi", frozenset(), missing=True)}
    assert "no such group" in got.notes[0]


@pytest.mark.parametrize("written", ["phi", "cn=phi,", "", "cn=\0"])
def test_a_name_that_is_none_is_a_missing_group(written: str) -> None:
    assert read(Fake(PEOPLE, []), written).groups[written] == Group(written, frozenset(), missing=True)


def test_an_entry_that_is_no_group_is_a_missing_group() -> None:
    source = Fake(PEOPLE, [group("phi", "uid=alice,dc=test", kind="organizationalRole")])
    assert read(source, "cn=phi,dc=test").groups["cn=phi,dc=test"].missing


def test_closed_accounts_and_strangers_are_not_members() -> None:
    source = Fake(PEOPLE, [group("phi", "uid=dave,dc=test", "uid=nobody,dc=test", "uid=alice,dc=other")])
    assert members(source, "cn=phi,dc=test") == frozenset()


def test_a_member_that_is_no_name_is_left_out_and_noted() -> None:
    source = Fake(PEOPLE, [group("phi", "alice", "uid=alice,dc=test#'0101'B", "uid=bob,dc=test")])
    got = read(source, "cn=phi,dc=test")
    assert got.groups["cn=phi,dc=test"].members == {"bob"}
    assert any("not a distinguished name" in note for note in got.notes)


def test_member_uid_counts_for_open_accounts_only() -> None:
    source = Fake(PEOPLE, [group("phi", "alice", "dave", "root", kind="posixGroup", attribute="memberUid")])
    assert members(source, "cn=phi,dc=test") == {"alice"}


def test_spelling_does_not_matter() -> None:
    people = [user("smith", "cn=Smith\\, John,dc=test")]
    source = Fake(people, [group("phi", "CN=smith\\2C  john, DC=Test")])
    assert members(source, "CN=PHI, DC=Test") == {"smith"}


def test_nested_groups_and_cycles_are_walked_once() -> None:
    source = Fake(
        PEOPLE,
        [
            group("phi", "uid=alice,dc=test", "cn=a,dc=test", "cn=phi,dc=test"),
            group("a", "uid=bob,dc=test", "cn=b,dc=test"),
            group("b", "uid=carol,dc=test", "cn=a,dc=test", "cn=phi,dc=test"),
        ],
    )
    assert members(source, "cn=phi,dc=test") == {"alice", "bob", "carol"}
    assert source.reads == ["cn=phi,dc=test", "cn=a,dc=test", "cn=b,dc=test"]


def test_a_name_that_waits_for_somebody_is_told() -> None:
    """An account that is made under the name of a deleted one would be in its groups."""
    left = group("phi", "uid=alice,dc=test", "uid=gone,dc=test", "uid=dave,dc=test", "cn=inner,dc=test")
    inner = group("inner", "uid=also-gone,dc=test")
    inner.attributes["memberuid"] = [b"bob", b"dave", b"nobody"]
    got = read(Fake(PEOPLE, [left, inner]), "cn=phi,dc=test")
    assert got.groups["cn=phi,dc=test"].members == {"alice", "bob"}
    told = [note for note in got.notes if "no user and no group" in note]
    assert [note.partition(";")[0] for note in told] == [
        "'cn=inner,dc=test': 2 of its members are no user and no group, such as 'nobody'",
        "'cn=phi,dc=test': 1 of its members are no user and no group, such as 'uid=gone,dc=test'",
    ]


def test_a_member_that_is_gone_costs_no_question() -> None:
    source = Fake(PEOPLE, [group("phi", *(f"uid=gone{number},dc=test" for number in range(50)))])
    assert members(source, "cn=phi,dc=test") == frozenset()
    assert source.reads == ["cn=phi,dc=test"]


def test_groups_below_the_depth_limit_are_left_out() -> None:
    chain = [group(f"g{number}", f"cn=g{number + 1},dc=test") for number in range(5)]
    chain.append(group("g5", "uid=alice,dc=test"))
    by_key = {normalise(each.dn): each for each in chain}
    users = Users({"uid=alice,dc=test": "alice"})
    notes = Notes()
    assert walk(chain[0], by_key.get, users, notes, max_depth=5) == {"alice"}
    assert not notes.all()
    assert walk(chain[0], by_key.get, users, notes, max_depth=4) == frozenset()
    assert "nested deeper" in notes.all()[0]


def test_too_many_members_is_an_error_and_not_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_MEMBERS", 2)
    source = Fake(PEOPLE, [group("phi", *(f"uid={name},dc=test" for name in ("alice", "bob", "carol")))])
    with pytest.raises(ConfigError, match="more than 2 members"):
        read(source, "cn=phi,dc=test")


def test_too_many_groups_is_an_error_and_not_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_GROUPS_READ", 2)
    inner = [group(f"g{number}", "uid=alice,dc=test") for number in range(3)]
    source = Fake(PEOPLE, [group("phi", *(each.dn for each in inner)), *inner])
    with pytest.raises(ConfigError, match="more than 2 groups"):
        read(source, "cn=phi,dc=test")


def test_a_ranged_answer_is_an_error_and_not_a_part() -> None:
    source = Fake(PEOPLE, [group("phi", "uid=alice,dc=test", attribute="member;range=0-1499")])
    with pytest.raises(ConfigError, match="only a part"):
        read(source, "cn=phi,dc=test")


def test_an_error_in_the_middle_is_no_answer() -> None:
    class Broken(Fake):
        def read(self, dn: str, attributes: Sequence[str]) -> Entry | None:
            if len(self.reads) == 1:
                raise BackendUnavailable("gone")
            return super().read(dn, attributes)

    with pytest.raises(BackendUnavailable):
        read(Broken(PEOPLE, [group("a", "uid=alice,dc=test"), group("b")]), "cn=a,dc=test", "cn=b,dc=test")


def test_one_group_in_two_spellings_is_read_once_and_kept_under_both() -> None:
    source = Fake(PEOPLE, [group("phi", "uid=alice,dc=test")])
    got = read(source, "cn=phi,dc=test", "CN=PHI,dc=test")
    assert list(got.groups) == ["cn=phi,dc=test", "CN=PHI,dc=test"]
    assert got.groups["cn=phi,dc=test"] == got.groups["CN=PHI,dc=test"]
    assert source.reads == ["cn=phi,dc=test"]


@given(st.dictionaries(st.integers(0, 8), st.sets(st.integers(0, 11), max_size=6), max_size=9))
def test_the_walk_finds_exactly_what_can_be_reached(edges: dict[int, set[int]]) -> None:
    """0 to 8 are groups (any graph, with every cycle), 9 to 11 people."""
    names = {number: f"uid=u{number},dc=test" if number > 8 else f"cn={number},dc=test" for number in range(12)}
    groups = [group(str(number), *(names[each] for each in edges.get(number, ()))) for number in range(9)]
    reached, left = set(), [0]
    while left:
        number = left.pop()
        if number not in reached:
            reached.add(number)
            left += edges.get(number, ())
    source = Fake([user(f"u{number}") for number in range(9, 12)], groups)
    assert members(source, "cn=0,dc=test") == {f"u{number}" for number in reached if number > 8}


@given(st.text(max_size=40))
def test_a_value_cannot_leave_its_place_in_a_filter(value: str) -> None:
    escaped = escape_filter(value.encode("utf-8", "replace").decode())
    assert not set("()*\0|&!=<>~,") & set(escaped)
    assert escaped.isascii()
    raw = bytearray()
    position = 0
    while position < len(escaped):
        if escaped[position] == "\\":
            raw += bytes.fromhex(escaped[position + 1 : position + 3])
            position += 3
        else:
            raw += escaped[position].encode()
            position += 1
    assert raw.decode() == value.encode("utf-8", "replace").decode()


class FakeAD:
    def __init__(self, entry: Entry | None, people: Sequence[Entry] = (), loose: Sequence[Entry] = ()) -> None:
        self.entry, self.people, self.loose = entry, people, loose
        self.queries: list[str] = []

    def read(self, dn: str, attributes: Sequence[str]) -> Entry | None:
        return self.entry

    def search(self, base: str, query: str, attributes: Sequence[str]) -> Iterator[Entry]:
        self.queries.append(query)
        yield from (self.loose if "(objectClass=group)" in query else self.people)


def ad_group(kind: str | None = "-2147483646", name: str = "CN=phi,DC=test") -> Entry:
    attributes = {"objectclass": [b"top", b"group"], "cn": [b"phi"]}
    if kind is not None:
        attributes["grouptype"] = [kind.encode()]
    return Entry(name, attributes)


def ad_user(name: str, control: str = "512") -> Entry:
    return Entry(f"CN={name},DC=test", {"samaccountname": [name.encode()], "useraccountcontrol": [control.encode()]})


def read_ad(source: FakeAD) -> Members:
    return read_members(
        source, ["CN=phi,DC=test"], flavour=ACTIVE_DIRECTORY, base="DC=test", user_attribute="sAMAccountName", now=NOW
    )


@pytest.mark.parametrize("kind", ["2", "junk", None, "8"])
def test_a_group_that_gives_no_rights_in_windows_gives_none_here(kind: str | None) -> None:
    got = read_ad(FakeAD(ad_group(kind), [ad_user("alice")]))
    assert got.groups["CN=phi,DC=test"].members == frozenset()
    assert "not a security group" in got.notes[0]


@pytest.mark.parametrize("entry", [None, Entry("CN=phi,DC=test", {"objectclass": [b"user"]})])
def test_what_is_no_group_in_active_directory_is_missing(entry: Entry | None) -> None:
    assert read_ad(FakeAD(entry, [ad_user("alice")])).groups["CN=phi,DC=test"].missing


def test_active_directory_members_are_the_open_accounts_in_lower_case() -> None:
    source = FakeAD(ad_group(), [ad_user("Alice"), ad_user("bob", "514"), ad_user("e ve")])
    assert read_ad(source).groups["CN=phi,DC=test"].members == {"alice"}


def test_a_distribution_group_inside_is_told() -> None:
    source = FakeAD(ad_group(), [ad_user("alice")], [Entry("CN=list,DC=test", {})])
    assert any("distribution group 'CN=list,DC=test'" in note for note in read_ad(source).notes)


def test_the_name_of_the_group_is_escaped_in_the_query() -> None:
    source = FakeAD(ad_group(name="CN=a\\,b)(cn=*,DC=test"))
    read_ad(source)
    for query in source.queries:
        assert "1941:=CN\\3da\\5c\\2cb\\29\\28cn\\3d\\2a\\2cDC\\3dtest)" in query


ODD = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [
            *(b"alice", b"uid=alice,dc=test", b"cn=a,dc=test", b"cn=b,dc=test", b"", b"\xff", b"cn=a, dc=test "),
            *(b"groupOfNames", b"posixGroup", b"group", b"9" * 5000, b"-2147483646", b"512", b"cn=\\0a,dc=test"),
            *(b"#x", b'"', b"uid=#04"),
        ]
    ),
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(
        [
            *("objectclass", "cn", "member", "uniquemember", "memberuid", "member;range=0-1", "grouptype", "uid"),
            *("shadowexpire", "pwdendtime", "nsaccountlock", "pwdaccountlockedtime"),
            *("useraccountcontrol", "accountexpires"),
        ]
    ),
    st.lists(ODD, max_size=4),
    max_size=6,
)
ENTRIES = st.builds(
    Entry, st.sampled_from(["cn=a,dc=test", "cn=b,dc=test", "uid=alice,dc=test", "x", "", "cn=\n"]), ATTRIBUTES
)


class Anything:
    """Answers every question with whatever there is."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    def read(self, dn: str, attributes: Sequence[str]) -> Entry | None:
        return self.entries[len(dn) % len(self.entries)] if self.entries else None

    def search(self, base: str, query: str, attributes: Sequence[str]) -> Iterator[Entry]:
        yield from self.entries


@given(st.lists(ENTRIES, max_size=5), st.sampled_from([OPENLDAP, ACTIVE_DIRECTORY]))
def test_whatever_a_directory_answers_is_members_or_a_reason(entries: list[Entry], flavour: str) -> None:
    asked = ("cn=a,dc=test", "cn=b,dc=test", "nonsense")
    try:
        got = read_members(Anything(entries), asked, flavour=flavour, base=BASE, user_attribute="uid", now=NOW)
    except ConfigError as error:
        assert "only a part" in str(error)
        return
    assert set(got.groups) == set(asked)
    for each in got.groups.values():
        assert all(map(valid_user_name, each.members))
        assert not (each.missing and each.members)
    assert all(note.isprintable() for note in got.notes)
