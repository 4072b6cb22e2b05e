from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import BackendUnavailable, ConfigError
from slurm_hooks import membership
from slurm_hooks.accounts import ACTIVE_DIRECTORY, MAX_NOTES, OPENLDAP, Entry, Notes, Users, valid_user_name
from slurm_hooks.dn import normalise
from slurm_hooks.membership import RANGE, Group, Members, Source, read_members, walk

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


def test_what_is_said_of_a_group_is_not_lost_among_remarks_about_people() -> None:
    odd = [user(f"not a login name {number}", f"cn={number},dc=test") for number in range(2 * MAX_NOTES)]
    notes = read(Fake(odd, []), "cn=phi,dc=test").notes
    assert "no such group" in notes[0]
    assert f"and {MAX_NOTES} more remarks" in notes


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


class FakeAD:
    """An Active Directory that never gives more than ``limit`` values of an attribute."""

    def __init__(self, people: Sequence[Entry], groups: Sequence[Entry], limit: int = 1500) -> None:
        self.people, self.groups, self.limit = people, {normalise(each.dn): each for each in groups}, limit
        self.asked: list[str] = []

    def read(self, dn: str, attributes: Sequence[str]) -> Entry | None:
        entry = self.groups.get(normalise(dn))
        if entry is None:
            return None
        self.asked.append(attributes[-1])
        answer = {
            name.lower(): entry.attributes[name.lower()] for name in attributes if name.lower() in entry.attributes
        }
        first, last = map(int, attributes[-1].removeprefix("member;range=").split("-"))
        members = entry.attributes.get("member", [])
        some = members[first : min(last + 1, first + self.limit)]
        if some:
            end = "*" if first + len(some) == len(members) else str(first + len(some) - 1)
            answer[f"member;range={first}-{end}"] = some
        return Entry(entry.dn, answer)

    def search(self, base: str, query: str, attributes: Sequence[str]) -> Iterator[Entry]:
        yield from (self.groups.values() if query == "(objectClass=group)" else self.people)


def ad_group(*members: str, kind: str | None = "-2147483646", name: str = "phi") -> Entry:
    attributes = {"objectclass": [b"top", b"group"], "cn": [name.encode()]}
    attributes["member"] = [f"CN={member},DC=test".encode() for member in members]
    if kind is not None:
        attributes["grouptype"] = [kind.encode()]
    return Entry(f"CN={name},DC=test", attributes)


def ad_user(name: str, control: str = "512") -> Entry:
    return Entry(f"CN={name},DC=test", {"samaccountname": [name.encode()], "useraccountcontrol": [control.encode()]})


def read_ad(source: Source) -> Members:
    return read_members(
        source, ["CN=phi,DC=test"], flavour=ACTIVE_DIRECTORY, base="DC=test", user_attribute="sAMAccountName", now=NOW
    )


def ad_members(source: Source) -> frozenset[str]:
    return read_ad(source).groups["CN=phi,DC=test"].members


@pytest.mark.parametrize("kind", ["2", "junk", None, "8"])
def test_a_group_that_gives_no_rights_in_windows_gives_none_here(kind: str | None) -> None:
    got = read_ad(FakeAD([ad_user("alice")], [ad_group("alice", kind=kind)]))
    assert got.groups["CN=phi,DC=test"] == Group("phi", frozenset())
    assert "not a security group" in got.notes[0]


@pytest.mark.parametrize("entry", [None, Entry("CN=phi,DC=test", {"objectclass": [b"user"]})])
def test_what_is_no_group_in_active_directory_is_missing(entry: Entry | None) -> None:
    source = FakeAD([ad_user("alice")], [entry] if entry is not None else [])
    assert read_ad(source).groups["CN=phi,DC=test"].missing


def test_active_directory_members_are_the_open_accounts_in_lower_case() -> None:
    people = [ad_user("Alice"), ad_user("bob", "514"), ad_user("e ve"), ad_user("outside")]
    got = read_ad(FakeAD(people, [ad_group("Alice", "bob", "e ve", "inner", "host$"), ad_group("inner", name="inner")]))
    assert got.groups["CN=phi,DC=test"].members == {"alice"}
    assert not any("no user and no group" in note for note in got.notes), "a link that is left names nobody"


def test_a_distribution_group_inside_gives_nothing_and_is_told() -> None:
    people = [ad_user("alice"), ad_user("bob")]
    source = FakeAD(people, [ad_group("bob", "list"), ad_group("alice", name="list", kind="2")])
    assert ad_members(source) == {"bob"}
    assert any("'CN=list,DC=test': not a security group" in note for note in read_ad(source).notes)


@pytest.mark.parametrize("limit", [1, 7, 1499, 1500, 5000])
@pytest.mark.parametrize("count", [0, 1, 1500, 1501, 3000])
def test_a_group_is_read_in_parts_to_its_end(limit: int, count: int) -> None:
    names = [f"p{number}" for number in range(count)]
    source = FakeAD([ad_user(name) for name in names], [ad_group(*names)], limit)
    assert ad_members(source) == set(names)
    assert len(source.asked) == max(1, -(-count // min(limit, RANGE)))


@pytest.mark.parametrize(
    "answers",
    [
        [{"member;range=0-0": [b"CN=a,DC=test"]}, None],
        [{"member;range=0-0": [b"CN=a,DC=test"]}, {}],
        [{"member;range=0-0": [b"CN=a,DC=test"]}, {"member;range=0-0": [b"CN=a,DC=test"]}],
        [{"member;range=0-0": [b"CN=a,DC=test"]}, {"member;range=2-*": [b"CN=a,DC=test"]}],
        [{"member;range=5-*": [b"CN=a,DC=test"]}],
        [{"member;range=0-9": [b"CN=a,DC=test"]}],
        [{"member;range=0-0": [b"CN=a,DC=test"], "member;range=1-*": []}],
    ],
)
def test_a_part_that_does_not_follow_is_an_error_and_not_a_part(answers: list[dict[str, list[bytes]] | None]) -> None:
    left = list(answers)

    def part(*arguments: object) -> Entry | None:
        attributes = left.pop(0)
        return None if attributes is None else Entry("CN=phi,DC=test", {**ad_group().attributes, **attributes})

    source = FakeAD([ad_user("a")], [ad_group()])
    source.read = part  # type: ignore[method-assign]
    for each in answers:
        if each is not None:
            each.update({"objectclass": [b"group"], "grouptype": [b"-2147483646"]})
    with pytest.raises(BackendUnavailable, match=r"members of|parts of"):
        read_ad(source)


def test_a_group_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_MEMBERS", 10)
    with pytest.raises(ConfigError, match="more than 10 members"):
        read_ad(FakeAD([], [ad_group(*map(str, range(20)))], limit=3))


def test_two_groups_whose_names_fold_to_one_are_both_left_out_of_others() -> None:
    outer = group("outer", "cn=\u212aelvin,dc=test")
    one, other = group("kelvin", "uid=alice,dc=test"), group("\u212aelvin", "uid=bob,dc=test")
    source = Fake(PEOPLE, [outer])
    source.search = lambda base, query, attributes: iter(  # type: ignore[assignment,method-assign,misc]
        PEOPLE if query == "(uid=*)" else [outer, one, other]
    )
    got = read(source, "cn=outer,dc=test")
    assert got.groups["cn=outer,dc=test"].members == frozenset()
    assert any("two groups are called" in note for note in got.notes)


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
            *(
                "objectclass",
                "cn",
                "member",
                "uniquemember",
                "memberuid",
                "member;range=0-1",
                "member;range=0-*",
                "grouptype",
                "uid",
            ),
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
    except (ConfigError, BackendUnavailable) as error:
        assert "only a part" in str(error) or "member" in str(error) or "two parts" in str(error)
        return
    assert set(got.groups) == set(asked)
    for each in got.groups.values():
        assert all(map(valid_user_name, each.members))
        assert not (each.missing and each.members)
    assert all(note.isprintable() for note in got.notes)
