import logging
from pathlib import Path

import pytest
from attrs import evolve, fields

from conf.errors import BackendUnavailable, ConfigError
from conf.policy import BreakGlass, Policy, Role
from conf.site import Ldap
from slurm_hooks import ldapd, live
from slurm_hooks.directory import CredentialsRefused
from slurm_hooks.ldapd import JITTER, NOTICING, PROMISED, Reader, changes, groups_of_policy
from slurm_hooks.membership import Group, Members
from slurm_hooks.notify import Systemd
from slurm_hooks.reading import Reading
from slurm_hooks.snapshot import Snapshot

NOW = 1_800_000_000.0
UNHEARD = Systemd({})


def site(tmp_path: Path) -> Ldap:
    return Ldap(
        flavour="openldap",
        uris=("ldaps://a",),
        ca_file="/nowhere/ca.crt",
        bind_dn="cn=reader,dc=test",
        bind_password_file="/nowhere/password",
        base="dc=test",
        refresh=30.0,
        max_age=600.0,
        snapshot=str(tmp_path / "members.json"),
    )


class World:
    """A clock and a directory that do what a test says."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW
        self.next: Exception | Members = BackendUnavailable("away", advice="look at it")
        self.reader = Reader(site(tmp_path), ["cn=phi,dc=test"], clock=lambda: self.now)
        monkeypatch.setattr(ldapd, "read_directory", self.read)

    def read(self, *arguments: object, **named: object) -> Reading:
        if isinstance(self.next, Exception):
            raise self.next
        self.now += 5.0
        return Reading("ldaps://a", self.next)

    def says(self, *names: str, notes: tuple[str, ...] = ()) -> None:
        self.next = Members({"cn=phi,dc=test": Group("phi", frozenset(names))}, notes)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> World:
    caplog.set_level(logging.INFO)
    return World(tmp_path, monkeypatch)


def load(world: World) -> Snapshot:
    import os

    return Snapshot.load(world.reader.site.snapshot, os.geteuid(), max_age=600.0, now=world.now)


def test_a_failure_writes_nothing(world: World) -> None:
    with pytest.raises(BackendUnavailable):
        world.reader.refresh()
    assert not Path(world.reader.site.snapshot).exists()
    assert "nothing" not in world.reader.situation()
    assert "tagged jobs are refused" in world.reader.situation()


def test_a_reading_is_dated_when_it_began(world: World) -> None:
    world.says("alice")
    world.reader.refresh()
    assert load(world).loaded_at == NOW
    assert world.now == NOW + 5


def test_a_failure_keeps_the_old_file_and_its_date(world: World) -> None:
    world.says("alice")
    world.reader.refresh()
    world.next = BackendUnavailable("away")
    world.now = NOW + 500
    said = ldapd._attempt(world.reader, UNHEARD)
    assert said.startswith("the directory was not read; the reading of 500 s ago stays in use")
    assert load(world).loaded_at == NOW
    assert "the reading of 500 s ago stays in use" in world.reader.situation()
    world.now = NOW + 601
    assert "tagged jobs are refused" in world.reader.situation()


def test_one_line_for_each_change(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[str]:
        text = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return text

    world.says("alice", notes=("odd entry",))
    world.reader.refresh()
    assert lines() == ["odd entry", "members read from ldaps://a: 1 groups, 1 people"]
    world.reader.refresh()
    assert lines() == []
    world.says("bob", "carol")
    world.reader.refresh()
    assert lines() == ["'cn=phi,dc=test': +bob +carol -alice"]
    world.next = BackendUnavailable("away", advice="look at it")
    ldapd._attempt(world.reader, UNHEARD)
    assert len(lines()) == 1
    world.says("bob", "carol")
    world.reader.refresh()
    assert lines() == ["members read from ldaps://a: 1 groups, 2 people"]


def test_refused_logins_are_asked_less_and_less_often(world: World) -> None:
    world.next = CredentialsRefused("no")
    delays = []
    for _ in range(6):
        with pytest.raises(CredentialsRefused):
            world.reader.refresh()
        delays.append(world.reader.delay())
    for delay, expected in zip(delays, (60, 120, 240, 480, 600, 600), strict=True):
        assert expected * 0.9 - 1 <= delay <= expected
    world.says("alice")
    world.reader.refresh()
    assert 26 <= world.reader.delay() <= 30


def test_an_unreachable_server_is_asked_at_the_usual_pace(world: World) -> None:
    for _ in range(5):
        with pytest.raises(BackendUnavailable):
            world.reader.refresh()
    assert 26 <= world.reader.delay() <= 30


def test_who_is_removed_from_a_group_counts_for_less_than_a_minute_with_what_is_shipped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any readings of up to 25 s, any jitter: removed just after a reading passed the group, until a decider knows."""
    world.reader.site = evolve(world.reader.site, refresh=fields(Ldap).refresh.default)
    assert live.LOOK_EVERY < NOTICING
    for took in (0.0, 1.0, 4.9, 5.0, 12.5, 24.9, 25.0):
        for jitter in (1 - JITTER, 0.95, 1.0):
            monkeypatch.setattr("random.uniform", lambda *_, value=jitter: value)
            world.reader._took = took
            waited = took + world.reader.delay() + took  # the reading that missed it, the wait, the one that sees it
            assert waited + live.LOOK_EVERY <= waited + NOTICING <= world.reader.longest() <= PROMISED


def test_the_promise_is_about_the_defaults_and_a_longer_refresh_is_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.reader.site = evolve(world.reader.site, refresh=120.0)
    world.says("alice")
    world.reader.refresh()
    world.reader.refresh()
    assert caplog.text.count("may count for 122 s more, not for 60") == 1
    world.reader.site = evolve(world.reader.site, refresh=30.0)
    world.reader.refresh()
    world.reader.site = evolve(world.reader.site, refresh=120.0)
    world.reader.refresh()
    assert caplog.text.count("may count for 122 s more, not for 60") == 2


def test_a_slow_directory_is_not_asked_without_a_pause(world: World) -> None:
    world.reader._took = 100.0
    assert world.reader.delay() == pytest.approx(30 / 6, rel=JITTER)
    assert world.reader.longest() > PROMISED


def test_an_earlier_file_is_known_after_a_restart(world: World) -> None:
    world.reader.recall()
    assert world.reader.last is None
    world.says("alice")
    world.reader.refresh()
    again = Reader(world.reader.site, ["cn=phi,dc=test"], clock=lambda: NOW + 10)
    again.recall()
    assert again.last is not None
    assert again.last.groups_of("alice")


def snap(**members: str) -> Snapshot:
    return Snapshot(NOW, "x", {cn: Group(cn, frozenset(names.split())) for cn, names in members.items()})


def test_changes_name_groups_that_came_and_went() -> None:
    assert changes(snap(a="x"), snap(b="x y")) == ["'b': new in the policy, 2 people", "'a': no longer in the policy"]


def test_a_long_change_is_cut() -> None:
    many = " ".join(f"user{number:02}" for number in range(30))
    (line,) = changes(snap(a=""), snap(a=many))
    assert line.endswith("+user09 (+20 more)")


def test_the_groups_of_a_policy_are_each_named_once() -> None:
    role = Role(groups=("cn=a,dc=b", "cn=c,dc=b"), classes=("phi",), jurisdictions=("eu",))
    policy = Policy(
        version=1, jurisdictions={}, classes=(), roles={"x": role, "y": evolve(role, groups=("cn=a,dc=b",))}
    )
    assert groups_of_policy(policy) == ("cn=a,dc=b", "cn=c,dc=b")
    # who may ask for an exception, or approve it, is looked up in the same file
    glass = BreakGlass(requesters=("cn=ask,dc=b", "cn=a,dc=b"), approvers=("cn=approve,dc=b",), longest=3600.0)
    assert groups_of_policy(evolve(policy, break_glass=glass)) == (
        *("cn=a,dc=b", "cn=c,dc=b", "cn=ask,dc=b", "cn=approve,dc=b"),
    )


def test_missing_files_end_the_program_with_the_code_for_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = ldapd.main(["--config", str(tmp_path / "none"), "--policy", str(tmp_path / "none"), "--once"])
    assert code == ConfigError.exit_code
