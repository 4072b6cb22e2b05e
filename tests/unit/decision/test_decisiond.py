"""The daemon with real files behind it: policy, members, key and audit trail."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from audit.chain import AuditError
from conf.errors import ConfigError
from conf.tag import Tag
from slurm_hooks import decider as deciding
from slurm_hooks import decisiond, running, wire
from slurm_hooks.answering import Peer
from slurm_hooks.decider import Decider
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot, write_snapshot

Fields = dict[str, bytes]
ROOT = Path(__file__).parents[3]
ME = pwd.getpwuid(os.geteuid()).pw_name
PEER = Peer(1, 0, 0)
EU = "cn=phi-eu,ou=groups,dc=example,dc=org"

SITE = """\
version: 1
cluster: {{name: test, head_nodes: [head], slurm_user: {user}}}
controller: {{socket: {folder}/decide.sock, deadline: 1s, record_key: {folder}/record.key}}
lifecycle: {{state_dir: {folder}/life}}
vault: {{address: "https://vault.example:8200", ca_file: /etc/ca.crt}}
ldap:
  flavour: openldap
  uris: ["ldaps://ldap.example"]
  ca_file: /etc/ca.crt
  bind_dn: cn=x,dc=example,dc=org
  bind_password_file: /etc/password
  base: dc=example,dc=org
  snapshot: {folder}/members.json
audit: {{directory: {folder}/audit}}
"""
POLICY = """\
version: 1
jurisdictions: {eu: {feature: eu, regions: [eu-central-1]}}
classes:
  - {name: phi, residency: required, scratch: required, default_scratch: 1G, max_scratch: 1T}
roles:
  phi-eu: {groups: ["cn=phi-eu,ou=groups,dc=example,dc=org"], classes: [phi], jurisdictions: [eu]}
partitions: {phi: {demand_tag: true, jurisdiction: eu}}
"""


class Place:
    """A folder with everything the daemon reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "secure-slurm.yaml"
        self.policy = folder / "policy.yaml"
        self.config.write_text(SITE.format(user=ME, folder=folder))
        self.policy.write_text(POLICY)
        (folder / "record.key").write_bytes(b"k" * 32)
        (folder / "record.key").chmod(0o640)
        (folder / "audit").mkdir(mode=0o755)
        (folder / "audit" / "decision").mkdir(mode=0o750)
        self.members("alice")
        for path in (self.config, self.policy):
            path.chmod(0o644)

    def members(self, *names: str, loaded_at: float | None = None) -> None:
        group = Group("phi-eu", frozenset(names))
        write_snapshot(self.folder / "members.json", Snapshot(loaded_at or time.time(), "test", {EU: group}))

    def decider(self) -> Decider:
        return decisiond.build(str(self.config), str(self.policy), ME, ME)[0]

    def trail(self) -> list[dict[str, object]]:
        lines: list[dict[str, object]] = []
        for path in (self.folder / "audit").rglob("*.jsonl"):
            lines += [json.loads(line) for line in path.read_text().splitlines()]
        return lines


@pytest.fixture
def place(tmp_path: Path) -> Place:
    tmp_path.chmod(0o755)
    return Place(tmp_path)


def tagged(fields: Fields) -> Fields:
    return {**fields, "extra": b"secure-slurm:class=phi;residency=eu;scratch=1073741824"}


def ask(decider: Decider, fields: Fields) -> dict[str, bytes | str]:
    verb = decider.modify if fields["verb"] == b"modify" else decider.submit
    return verb(fields, PEER)


def test_decisions_are_in_the_trail_before_they_are_answered(place: Place, fields: Fields, plain: Fields) -> None:
    decider = place.decider()

    assert ask(decider, tagged(fields))["verdict"] == "allow"
    assert ask(decider, plain)["verdict"] == "allow"
    assert ask(decider, {**tagged(fields), "user_name": b"bob"})["verdict"] == "refuse"
    allowed, untagged, refused = place.trail()
    assert (allowed["event"], allowed["verdict"], allowed["rule"]) == ("decision", "allow", "allow.tagged")
    assert (allowed["uid"], allowed["class"], allowed["residency"], allowed["scratch"]) == (1001, "phi", "eu", 2**30)
    assert allowed["partition"] == "phi"
    assert len(str(allowed["nonce"])) == 32
    assert (untagged["rule"], "class" in untagged) == ("allow.untagged", False)
    assert (refused["verdict"], refused["rule"]) == ("refuse", "rbac.role")


def test_hostile_partitions_do_not_break_the_trail(place: Place, plain: Fields) -> None:
    decider = place.decider()

    assert ask(decider, {**plain, "partition": b"\xff\n\x1b" + b"x" * 4000})["verdict"] == "allow"
    assert len(place.trail()) == 1


def test_without_the_trail_nothing_tagged_starts(
    place: Place, fields: Fields, plain: Fields, mocker: MockerFixture
) -> None:
    decider = place.decider()
    stuck = mocker.patch("audit.chain.Chain.append", side_effect=AuditError("no space"))

    answer = ask(decider, tagged(fields))
    assert (answer["verdict"], answer["rule"]) == ("refuse", "audit.unwritable")
    assert not [name for name in answer if name.startswith("set.")]
    assert ask(decider, plain)["verdict"] == "allow"
    assert ask(decider, {**plain, "partition": b"phi"})["rule"] == "tag.missing"
    mocker.stop(stuck)
    assert ask(decider, tagged(fields))["verdict"] == "allow"


def test_a_missing_audit_folder_for_real(place: Place, fields: Fields, plain: Fields) -> None:
    decider = place.decider()
    shutil.rmtree(place.folder / "audit")

    assert ask(decider, tagged(fields))["rule"] == "audit.unwritable"
    assert ask(decider, plain)["verdict"] == "allow"


def test_a_changed_policy_is_taken_over(place: Place, fields: Fields, caplog: pytest.LogCaptureFixture) -> None:
    decider = place.decider()
    place.policy.write_text(POLICY.replace("name: phi,", "name: other,").replace("classes: [phi]", "classes: [other]"))
    assert ask(decider, tagged(fields))["verdict"] == "allow"
    decider.look()
    assert ask(decider, tagged(fields))["rule"] == "class.unknown"

    place.policy.write_text("version: [")
    decider.look()
    decider.look()
    assert ask(decider, tagged(fields))["rule"] == "class.unknown"
    assert "stays" in caplog.text

    place.policy.unlink()
    decider.look()
    assert ask(decider, tagged(fields))["rule"] == "class.unknown"

    place.policy.write_text(POLICY)
    decider.look()
    assert ask(decider, tagged(fields))["verdict"] == "allow"


def test_changed_members_are_taken_over(place: Place, fields: Fields) -> None:
    decider = place.decider()
    place.members("bob")
    decider.look()

    assert ask(decider, tagged(fields))["rule"] == "rbac.role"


def test_old_or_missing_members_refuse_tagged_jobs(place: Place, fields: Fields, plain: Fields) -> None:
    place.members("alice", loaded_at=time.time() - 3600)
    decider = place.decider()
    assert ask(decider, tagged(fields))["rule"] == "rbac.snapshot"
    assert ask(decider, plain)["verdict"] == "allow"
    (place.folder / "members.json").unlink()
    decider.look()
    assert ask(decider, tagged(fields))["rule"] == "rbac.snapshot"


@pytest.mark.parametrize("missing", ["secure-slurm.yaml", "policy.yaml", "record.key"])
def test_without_its_files_it_does_not_start(place: Place, missing: str) -> None:
    (place.folder / missing).unlink()

    with pytest.raises(ConfigError):
        place.decider()
    assert (
        decisiond.main(
            [
                "--config",
                str(place.config),
                "--policy",
                str(place.policy),
                "--snapshot-user",
                ME,
                "--lifecycle-user",
                ME,
            ]
        )
        == 3
    )


def test_an_unknown_user_is_a_mistake_of_the_admin(place: Place) -> None:
    with pytest.raises(ConfigError, match="no-such-user"):
        decisiond.build(str(place.config), str(place.policy), "no-such-user", ME)


def wait_for(path: str, alive: Callable[[], bool]) -> None:
    """Until somebody listens there: the file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as probe:
        while probe.connect_ex(path):
            assert alive()
            time.sleep(0.01)


@contextlib.contextmanager
def serving(place: Place) -> Iterator[str]:
    decider, site, slurm = decisiond.build(str(place.config), str(place.policy), ME, ME)
    stop = threading.Event()
    running = threading.Thread(target=decisiond.run, args=(decider, site, slurm, stop))
    running.start()
    try:
        wait_for(site.controller.socket, running.is_alive)
        yield site.controller.socket
    finally:
        stop.set()
        running.join(20)
    assert not running.is_alive()


def test_systemd_hears_that_it_answers(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "n"))
        told.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000")
        with serving(place) as path:
            assert told.recv(1000).startswith(b"READY=1\nSTATUS=policy ")
            assert wire.exchange(path, {"verb": "ping"}, timeout=60)["verdict"] == b"allow"
            assert b"WATCHDOG=1" in told.recv(1000)
            # somebody else has its socket: it runs on, and serves nobody
            Path(path).unlink()
            told.settimeout(1)
            with pytest.raises(TimeoutError):
                for _ in range(1000):
                    told.recv(1000)
        told.settimeout(60)
        assert told.recv(1000).startswith(b"STOPPING=1\n")


def test_over_the_socket(place: Place, fields: Fields) -> None:
    with serving(place) as path:
        answer = wire.exchange(path, tagged(fields), timeout=5)
        assert answer["verdict"] == b"allow"
        assert answer["set.features"] == b"eu"
        assert answer["set.admin_comment"].startswith(b"secure-slurm/1 cluster=test uid=1001 user=alice class=phi")
        again = {
            "verb": b"modify",
            "modify_uid": b"1001",
            "rec.user_id": b"1001",
            "rec.extra": tagged(fields)["extra"],
            "rec.admin_comment": answer["set.admin_comment"],
            "name": b"other",
        }
        assert wire.exchange(path, again, timeout=5)["rule"] == b"allow.tagged"
        assert wire.exchange(path, {"verb": "ping"}, timeout=5)["verdict"] == b"allow"
        status = wire.exchange(path, {"verb": "status"}, timeout=5)
        if os.geteuid() == 0:
            assert status["decided.allow"] == b"2"
            assert status["audit"] == b"written"
            assert b"s old" in status["members"]
    assert [line["verb"] for line in place.trail()] == ["submit", "modify"]
    assert list((place.folder / "audit").rglob("*.head"))


def test_notes_are_in_the_trail_and_confirmed(place: Place, plain: Fields) -> None:
    with serving(place) as path:
        answer = wire.exchange(path, {**plain, "verb": b"note"}, timeout=5)

    policy = hashlib.sha256(POLICY.encode()).hexdigest()[:16]
    assert (answer["verdict"], answer["count"], answer["policy"]) == (b"allow", b"1", policy.encode())
    (line,) = place.trail()
    assert (line["event"], line["verb"], line["verdict"], line["rule"]) == (
        "decision",
        "note",
        "allow",
        "allow.untagged",
    )
    assert (line["uid"], line["policy"], line["partition"]) == (1002, policy, "open")


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ({"partition": b"phi"}, "tag.missing"),
        ({"extra": b"secure-slurm:class=phi"}, "residency.required"),
        ({"extra": b"secure-slurm:class=phi;residency=eu"}, "allow.tagged"),
        ({"submit_uid": b"x"}, "engine.error"),
    ],
)
def test_a_note_that_the_engine_would_not_have_let_pass_raises_the_alarm(
    place: Place, plain: Fields, more: Fields, rule: str
) -> None:
    place.members("alice", "bob")
    decider = place.decider()
    assert decider.note({**plain, "verb": b"note"}, PEER)["policy"]

    answer = decider.note({**plain, "verb": b"note", "user_id": b"1002", **more, "user_name": b"bob"}, PEER)

    # no more jobs pass without a question, until there is another policy
    assert answer == {"verdict": "allow"}
    assert "policy" not in ask(decider, plain)
    told = place.trail()[1:3]
    assert [(line["event"], line["verb"]) for line in told] == [("decision", "note"), ("decision.differs", "note")]
    assert told[0]["verdict"] == "allow"
    assert told[1]["rule"] == rule
    place.policy.write_text(POLICY + "# new\n")
    decider.look()
    assert ask(decider, plain)["policy"]


def test_users_with_a_running_tagged_job_are_named(
    place: Place, plain: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    decider = place.decider()
    assert ask(decider, plain)["ask_about"] == ""
    folder = place.folder / "life" / "running"
    folder.mkdir(parents=True)
    for job, uid in ((7, 1003), (8, 1001), (9, 1003)):
        running.write(str(folder), job, uid, Tag("phi", "eu"), ("n1", "n2"))
    decider.look()
    assert ask(decider, plain)["ask_about"] == "1001,1003"
    assert decider.note({**plain, "verb": b"note"}, PEER)["ask_about"] == "1001,1003"

    monkeypatch.setattr(deciding, "MAX_USERS", 8)
    assert not {"policy", "ask_about"} & ask(decider, plain).keys()


def test_the_daemon_as_a_process(place: Place, plain: Fields) -> None:
    command = [sys.executable, "-m", "slurm_hooks.decisiond", "--config", str(place.config)]
    command += ["--policy", str(place.policy), "--snapshot-user", ME, "--lifecycle-user", ME]
    path = place.folder / "decide.sock"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(str(path), lambda: process.poll() is None)
            assert wire.exchange(str(path), plain, timeout=5)["verdict"] == b"allow"
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)

    assert process.returncode == 0, errors
    assert "deciding at" in errors
    assert not path.exists()
