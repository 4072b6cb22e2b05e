import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import BackendUnavailable, ConfigError, Refused
from slurm_hooks import membersfile
from slurm_hooks import snapshot as module
from slurm_hooks.membersfile import Lines, dump, parse, parse_like
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot, SnapshotCache, write_snapshot

NOW = 1_800_000_000.0
PHI = "cn=phi-eu,ou=groups,dc=example,dc=org"
UID = os.geteuid()


def made(loaded_at: float = NOW, **members: str) -> Snapshot:
    groups = {f"cn={cn},dc=test": Group(cn, frozenset(names.split())) for cn, names in members.items()}
    return Snapshot(loaded_at, "ldaps://a", groups or {PHI: Group("phi-eu", frozenset({"alice"}))})


def document(**changes: Any) -> bytes:
    groups = {PHI: {"name": "phi-eu", "members": ["alice"]}}
    whole = {"version": 1, "loaded_at": NOW, "source": "ldaps://a", "groups": groups} | changes
    return json.dumps(whole).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "members.json"


def rule(path: Path, *, owner: int = UID, max_age: float = 600.0, now: float = NOW) -> str:
    with pytest.raises(Refused) as caught:
        Snapshot.load(path, owner, max_age=max_age, now=now)
    assert caught.value.advice
    return caught.value.rule


def test_no_file_is_refused(path: Path) -> None:
    assert rule(path) == "directory.missing"


def test_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "real.json", made())
    path.symlink_to(tmp_path / "real.json")
    assert rule(path) == "directory.unsafe"


def test_a_fifo_is_refused_and_does_not_hold_the_reader(path: Path) -> None:
    os.mkfifo(path, 0o600)
    assert rule(path) == "directory.unsafe"


def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    assert rule(path) == "directory.unsafe"


@pytest.mark.parametrize("mode", [0o660, 0o642, 0o666])
def test_a_file_that_others_may_write_is_refused(path: Path, mode: int) -> None:
    write_snapshot(path, made())
    path.chmod(mode)
    assert rule(path) == "directory.unsafe"


def test_a_file_of_somebody_else_is_refused(path: Path) -> None:
    write_snapshot(path, made())
    if UID == 0:  # root's files are always accepted, so give it away
        os.chown(path, 65534, -1)
    assert rule(path, owner=12345) == "directory.unsafe"
    assert Snapshot.load(path, path.stat().st_uid, max_age=600, now=NOW).groups_of("alice")


def test_a_file_without_end_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_snapshot(path, made())
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    assert rule(path) == "directory.unsafe"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        document()[:-20],
        document(loaded_at="now"),
        document(loaded_at=True),
        document(loaded_at=float("nan")),
        document(loaded_at=float("inf")),
        document(loaded_at=-1),
        document(loaded_at=None),
        document(source=5),
        document(groups=[]),
        document(groups=None),
        document(groups={PHI: []}),
        document(groups={PHI: {"name": "phi"}}),
        document(groups={PHI: {"name": "phi", "members": "alice"}}),
        document(groups={PHI: {"name": "phi", "members": [5]}}),
        document(groups={PHI: {"name": "phi", "members": ["al ice"]}}),
        document(groups={PHI: {"name": None, "members": ["alice"]}}),
        document(groups={PHI: {"name": "phi", "members": ["alice"], "missing": True}}),
        document(groups={PHI: {"name": "phi", "members": [], "missing": "no"}}),
    ],
)
def test_a_damaged_file_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o640)
    assert rule(path) == "directory.damaged"


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_an_unknown_version_is_refused(path: Path, version: object) -> None:
    path.write_bytes(document(version=version))
    path.chmod(0o640)
    assert rule(path) == "directory.version"


def test_a_file_without_groups_is_refused(path: Path) -> None:
    path.write_bytes(document(groups={}))
    path.chmod(0o640)
    assert rule(path) == "directory.empty"


@pytest.mark.parametrize(("age", "expected"), [(600.1, "directory.stale"), (-60.1, "directory.future")])
def test_a_file_outside_its_time_is_refused(path: Path, age: float, expected: str) -> None:
    write_snapshot(path, made(NOW - age))
    assert rule(path) == expected


@pytest.mark.parametrize("age", [0.0, 600.0, -60.0])
def test_a_file_inside_its_time_is_read(path: Path, age: float) -> None:
    write_snapshot(path, made(NOW - age))
    loaded = Snapshot.load(path, UID, max_age=600, now=NOW)
    assert loaded.age(NOW) == age
    assert loaded.source == "ldaps://a"


def test_an_age_limit_that_is_no_number_refuses(path: Path) -> None:
    write_snapshot(path, made())
    assert rule(path, max_age=float("nan")) == "directory.stale"


def test_lookups(path: Path) -> None:
    write_snapshot(path, made(phi="alice bob", us="bob"))
    loaded = Snapshot.load(path, UID, max_age=600, now=NOW)
    assert loaded.groups_of("alice") == {"cn=phi,dc=test"}
    assert loaded.groups_of("bob") == {"cn=phi,dc=test", "cn=us,dc=test"}
    for nobody in ("", "Alice", "alice ", "carol", "cn=phi,dc=test"):
        assert loaded.groups_of(nobody) == frozenset()


def test_a_missing_group_is_remembered_as_missing(path: Path) -> None:
    write_snapshot(path, Snapshot(NOW, "x", {PHI: Group("phi-eu", frozenset(), missing=True)}))
    assert Snapshot.load(path, UID, max_age=600, now=NOW).groups[PHI] == Group("phi-eu", frozenset(), missing=True)


@pytest.mark.parametrize(
    "dn", ["cn=Smith\\, John,dc=test", 'cn=a\\"b', "cn=a\nb", "cn=日本\\, 語,dc=test", "cn=\u202eevil", "cn=\\\\,dc=x"]
)
def test_hostile_group_names_come_back_as_they_were(path: Path, dn: str) -> None:
    write_snapshot(path, Snapshot(NOW, "x", {dn: Group(dn, frozenset({"alice"}))}))
    loaded = Snapshot.load(path, UID, max_age=600, now=NOW)
    assert loaded.groups == {dn: Group(dn, frozenset({"alice"}))}
    assert loaded.groups_of("alice") == {dn}


def test_the_file_is_whole_private_and_alone(path: Path) -> None:
    old = os.umask(0)
    try:
        write_snapshot(path, made())
        write_snapshot(path, made(NOW + 1))
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o7777 == 0o640
    assert path.stat().st_gid == path.parent.stat().st_gid
    assert [each.name for each in path.parent.iterdir()] == ["members.json"]


def test_a_link_at_its_place_is_replaced_and_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path.symlink_to(victim)
    write_snapshot(path, made())
    assert victim.read_text() == "mine"
    assert not path.is_symlink()


def test_nothing_is_written_without_groups(path: Path) -> None:
    with pytest.raises(ConfigError):
        write_snapshot(path, Snapshot(NOW, "x", {}))
    assert not path.exists()


def test_nothing_is_written_where_anybody_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError):
        write_snapshot(tmp_path / "members.json", made())


def test_a_failed_write_leaves_the_old_file_and_no_rest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_snapshot(path, made())

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fchmod", fail)
    with pytest.raises(BackendUnavailable, match="No space left"):
        write_snapshot(path, made(NOW + 1))
    assert Snapshot.load(path, UID, max_age=600, now=NOW).loaded_at == NOW
    assert len(list(path.parent.iterdir())) == 1


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable):
        write_snapshot(tmp_path / "none" / "members.json", made())


def test_a_big_site_fits(path: Path) -> None:
    people = [f"user{number:05}" for number in range(50_000)]
    groups = {
        f"cn=g{number},dc=test": Group(f"g{number}", frozenset(people[number * 100 : number * 100 + 200] + people[:50]))
        for number in range(500)
    }
    write_snapshot(path, Snapshot(NOW, "x", groups))
    loaded = Snapshot.load(path, UID, max_age=600, now=NOW)
    assert loaded.groups == groups
    assert len(loaded.groups_of("user00000")) == 500
    assert loaded.groups_of("user49999") == {"cn=g498,dc=test", "cn=g499,dc=test"}
    assert loaded.groups_of("user50000") == frozenset()
    assert loaded.groups_of("user00000") is loaded.groups_of("user00000"), "asked of every group only once"


def test_what_is_remembered_of_users_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KNOWN_USERS", 2)
    snapshot = made(phi="alice bob carol")
    for _ in range(2):
        assert [len(snapshot.groups_of(name)) for name in ("alice", "bob", "carol", "dave")] == [1, 1, 1, 0]
    assert len(snapshot._known) == 2


@given(st.binary(max_size=200))
def test_any_bytes_are_a_snapshot_or_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        parse(data)


class TestCache:
    def cache(self, path: Path) -> SnapshotCache:
        return SnapshotCache(path, UID, 600.0)

    def refused(self, cache: SnapshotCache, now: float = NOW) -> str:
        with pytest.raises(Refused) as caught:
            cache.current(now)
        return caught.value.rule

    def test_before_the_first_look_everything_is_refused(self, path: Path) -> None:
        write_snapshot(path, made())
        assert self.refused(self.cache(path)) == "directory.missing"

    def test_without_a_file_everything_is_refused(self, path: Path) -> None:
        cache = self.cache(path)
        assert not cache.poll(NOW)
        assert self.refused(cache) == "directory.missing"

    def test_the_reason_of_the_refusal_is_told(self, path: Path) -> None:
        path.write_bytes(b"junk")
        path.chmod(0o640)
        cache = self.cache(path)
        assert not cache.poll(NOW)
        assert self.refused(cache) == "directory.damaged"

    def test_a_new_file_is_taken_and_an_old_one_not_read_again(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = self.cache(path)
        write_snapshot(path, made(phi="alice"))
        assert cache.poll(NOW)
        first = cache.current(NOW)
        monkeypatch.setattr(module, "_read_safely", lambda *_: pytest.fail("read again"))
        assert not cache.poll(NOW)
        monkeypatch.undo()
        write_snapshot(path, made(phi="bob"))
        assert cache.poll(NOW)
        assert cache.current(NOW).groups_of("bob")
        assert not cache.current(NOW).groups_of("alice")
        assert first.groups_of("alice")

    def test_a_lookup_touches_no_file(self, path: Path) -> None:
        cache = self.cache(path)
        write_snapshot(path, made())
        cache.poll(NOW)
        path.unlink()
        assert cache.current(NOW).groups_of("alice") == {PHI}

    @pytest.mark.parametrize("damage", ["gone", "junk", "mode", "link"])
    def test_the_last_good_one_stays_until_it_is_too_old(self, path: Path, damage: str) -> None:
        cache = self.cache(path)
        write_snapshot(path, made())
        assert cache.poll(NOW)
        if damage == "gone":
            path.unlink()
        elif damage == "junk":
            path.write_bytes(b"junk")
        elif damage == "mode":
            write_snapshot(path, made(phi="mallory"))
            path.chmod(0o666)
        else:
            path.rename(path.with_suffix(".real"))
            path.symlink_to(path.with_suffix(".real"))
        assert not cache.poll(NOW + 1)
        assert cache.problem is not None
        assert cache.current(NOW + 600).groups_of("alice") == {PHI}
        assert self.refused(cache, NOW + 600.1) == "directory.stale"

    def test_a_mended_mode_is_seen(self, path: Path) -> None:
        cache = self.cache(path)
        write_snapshot(path, made())
        path.chmod(0o666)
        assert not cache.poll(NOW)
        path.chmod(0o640)
        assert cache.poll(NOW)
        assert cache.problem is None

    def test_a_clock_that_was_set_back_refuses(self, path: Path) -> None:
        cache = self.cache(path)
        write_snapshot(path, made())
        cache.poll(NOW)
        assert self.refused(cache, NOW - 61) == "directory.future"

    def test_an_older_reading_in_a_newer_file_is_taken_by_its_own_date(self, path: Path) -> None:
        cache = self.cache(path)
        write_snapshot(path, made(NOW - 601))
        assert not cache.poll(NOW)
        assert self.refused(cache) == "directory.stale"


def test_a_reading_that_changes_nothing_is_not_indexed_again(tmp_path: Path) -> None:
    path = tmp_path / "members.json"
    groups = {"cn=a": Group("a", frozenset({"alice"}))}
    write_snapshot(path, Snapshot(1000.0, "ldaps://one", groups))
    cache = SnapshotCache(path, os.geteuid(), 600)
    assert cache.poll(1000.0)
    first = cache.current(1000.0)
    write_snapshot(path, Snapshot(1030.0, "ldaps://one", groups))
    assert cache.poll(1030.0)
    again = cache.current(1030.0)
    assert again.loaded_at == 1030.0
    assert again.groups is first.groups
    assert again.groups_of("alice") == {"cn=a"}
    write_snapshot(path, Snapshot(1060.0, "ldaps://one", {"cn=a": Group("a", frozenset({"bob"}))}))
    assert cache.poll(1060.0)
    assert cache.current(1060.0).groups_of("alice") == frozenset()


@pytest.mark.parametrize("date", ["NaN", "true", '"1000"', "-1", "1e12", '1000,"version":2'])
def test_only_the_date_is_new_and_is_bad(tmp_path: Path, date: str) -> None:
    path = tmp_path / "members.json"
    write_snapshot(path, Snapshot(1000.0, "ldaps://one", {"cn=a": Group("a", frozenset({"alice"}))}))
    cache = SnapshotCache(path, os.geteuid(), 600)
    assert cache.poll(1000.0)
    text = path.read_text().replace("1000.0", date)
    path.unlink()
    path.write_text(text)
    path.chmod(0o640)
    assert not cache.poll(1000.0)
    assert cache.problem is not None
    assert cache.current(1000.0).loaded_at == 1000.0


GROUPS = {
    "cn=a\n,dc=test": Group('"a"\n', frozenset({"alice", "bob"})),
    "cn=b,dc=test": Group("b", frozenset(), missing=True),
    "cn=c}\n}},dc=test": Group("c", frozenset({"alice"})),
}


def test_what_is_written_is_read_line_by_line_and_as_a_whole() -> None:
    data = dump(NOW, "ldaps://a", GROUPS)
    assert data.count(b"\n") == len(GROUPS) + 1
    read = parse_like(data, None)
    assert read.content == parse(data) == (NOW, "ldaps://a", GROUPS)
    assert len(read.groups) == len(GROUPS)


def test_only_the_groups_that_changed_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = parse_like(dump(NOW, "ldaps://a", GROUPS), None)
    changed = {**GROUPS, "cn=b,dc=test": Group("b", frozenset({"carol"})), "cn=d": Group("d", frozenset())}
    del changed["cn=a\n,dc=test"]
    read: list[bytes] = []
    really = membersfile._parse_line
    monkeypatch.setattr(membersfile, "_parse_line", lambda line: read.append(line) or really(line))
    second = parse_like(dump(NOW + 30, "ldaps://b", changed), first)
    assert second.content == (NOW + 30, "ldaps://b", changed)
    assert len(read) == 2
    assert second.content.groups["cn=c}\n}},dc=test"] is first.content.groups["cn=c}\n}},dc=test"]


def test_groups_in_another_order_are_read_as_they_stand() -> None:
    first = parse_like(dump(NOW, "x", GROUPS), None)
    turned = dict(reversed(GROUPS.items()))
    second = parse_like(dump(NOW, "x", turned), first)
    assert list(second.content.groups) == list(turned)
    assert second.content.groups == GROUPS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"members":["alice"]', b'"members":["al ice"]'),
        (b'"members":["alice"]', b'"members":["alice"],"missing":true'),
        (b'"members":["alice"]', b'"members":["alice"]},"cn=x":{"name":"x","members":["eve"]'),
        (b'"cn=b,dc=test":', b'"cn=c}\\n}},dc=test":'),
        (b'"cn=b,dc=test":{', b'"cn=b,dc=test":['),
        (b'"version":1', b'"version":1,'),
        (b'"source":"ldaps://a"', b'"source":7'),
        (b"\n}}", b"\n}}}"),
        (b"\n}}", b",\n\n}}"),
    ],
)
def test_a_damaged_line_refuses_the_whole_file(path: Path, old: bytes, new: bytes) -> None:
    data = dump(NOW, "ldaps://a", GROUPS)
    first = parse_like(data, None)
    assert old in data
    for last in (None, first):
        with pytest.raises(Refused) as caught:
            parse_like(data.replace(old, new), last)
        assert caught.value.rule == "directory.damaged"
    write_snapshot(path, Snapshot(NOW, "ldaps://a", GROUPS))
    cache = SnapshotCache(path, UID, 600.0)
    assert cache.poll(NOW)
    path.write_bytes(data.replace(old, new))
    os.utime(path, ns=(1, 1))
    assert not cache.poll(NOW)
    assert cache.current(NOW).groups == GROUPS


NAMES = st.frozensets(st.sampled_from(["alice", "bob", "carol", "x.y-z@w"]))
FILES = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.builds(Group, st.text(st.characters(exclude_categories=["Cs"]), max_size=4), NAMES, st.just(False)),
    min_size=1,
    max_size=5,
)


@given(st.lists(FILES, min_size=1, max_size=4))
def test_a_file_read_after_others_says_what_it_says_alone(files: list[dict[str, Group]]) -> None:
    last: Lines | None = None
    for number, groups in enumerate(files):
        last = parse_like(dump(NOW + number, "x", groups), last)
        assert last.content == (NOW + number, "x", groups)


@given(st.data())
def test_a_file_that_was_cut_or_spoilt_is_read_as_a_whole_would_be_or_refused(data: st.DataObject) -> None:
    whole = dump(NOW, "x", GROUPS)
    at = data.draw(st.integers(0, len(whole) - 1))
    spoilt = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + data.draw(st.integers(0, 3)) :]
    try:
        read = parse_like(spoilt, parse_like(whole, None)).content
    except Refused:
        return
    assert read == parse(spoilt)
