"""The commands of break-glass and their daemon; several people are one here, and real ones are in tests/cluster."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from admin import break_glass_cmd
from admin.main import main
from slurm_hooks import answering
from slurm_hooks import breakglass_papers as papers
from tests.unit.glass.test_glassd import Daemon

SHIPPED = Path(__file__).parents[3] / "conf" / "secure-slurm.yaml"
POLICY = """\
version: 1
jurisdictions: {eu: {feature: eu, regions: [eu-central-1]}}
classes: [{name: phi, residency: required, scratch: optional}]
roles: {phi-eu: {groups: ["cn=phi,dc=x"], classes: [phi], jurisdictions: [eu]}}
break_glass: {requesters: ["cn=a,dc=x"], approvers: ["cn=b,dc=x"], longest: 8h}
"""
ME, OTHER = 4711, 4712
SOMEBODY = next(each.pw_name for each in pwd.getpwall() if each.pw_uid not in (0, os.geteuid()))


class Place:
    def __init__(self, folder: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        self.daemon = daemon
        daemon.now = time.time()
        self.folder = daemon.folder
        self.policy = folder / "policy.yaml"
        self.policy.write_text(POLICY)
        self.site = folder / "secure-slurm.yaml"
        shutil.copy(SHIPPED, self.site)
        text = self.site.read_text().replace(
            "# break_glass_socket: /run/secure-slurm/glass/glass.sock", f"break_glass_socket: {daemon.socket}"
        )
        self.site.write_text(text.replace("snapshot: /run", f"snapshot: {folder}/run"))
        for path in (self.policy, self.site):
            path.chmod(0o644)
        self._patch = monkeypatch
        monkeypatch.setattr(answering, "peer_of", lambda _: answering.Peer(1, daemon.uid, 1))
        self.become(ME)

    def become(self, uid: int, *, said: int | None = None) -> None:
        """Who runs the command from now on; ``said``: whom it takes itself to be run by."""
        self.daemon.uid = uid
        self._patch.setattr(break_glass_cmd, "_me", lambda: uid if said is None else said)

    def run(self, *words: str) -> int:
        return main(["--config", str(self.site), "break-glass", *words, "--policy", str(self.policy)])

    def request(self, *more: str) -> int:
        words = ["--user", SOMEBODY, "--role", "phi-eu", "--for", "4h", "--reason", "ward 3"]
        return self.run("request", *words, *more)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    @property
    def id(self) -> str:
        return self.files()[0].partition(".")[0]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    # below /tmp itself: the path of a socket has 107 bytes (unix(7))
    with tempfile.TemporaryDirectory() as folder, Daemon(Path(folder)) as daemon:
        yield Place(tmp_path, daemon, monkeypatch)


def listed(place: Place, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert place.run("list", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_root_is_nobody(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.become(0)
    assert place.request() == 1
    assert "without sudo" in capsys.readouterr().err
    # the daemon's word on it is the one that counts
    place.become(0, said=ME)
    assert place.request() == 1
    assert "without sudo" in capsys.readouterr().err
    place.become(ME)
    assert place.request() == 0
    for said in (0, OTHER):
        place.become(0, said=said)
        assert place.run("approve", place.id, "--reason", "yes") == 1
    assert place.files() == [f"{place.id}.request"]


@pytest.mark.parametrize(
    ("code", "more"),
    [
        (1, ["--for", "9h"]),
        (2, ["--for", "4"]),
        (2, ["--for", "0h"]),
        (1, ["--for", "1ms"]),
        (2, ["--role", "phi-us"]),
        (2, ["--user", "a b"]),
        (2, ["--reason", ""]),
        (2, ["--reason", "a\nb"]),
        (2, ["--reason", "x" * 201]),
    ],
)
def test_a_request_that_could_not_count_is_not_written(
    place: Place, capsys: pytest.CaptureFixture[str], code: int, more: list[str]
) -> None:
    assert place.request(*more) == code
    assert place.files() == []
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert all(line.startswith("secure-slurm: ") for line in told)


@pytest.mark.parametrize("words", [["--role", "phi-eu", "--job", "7"], [], ["--job", "x"]])
def test_one_role_or_one_job(place: Place, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        place.run("request", "--user", SOMEBODY, "--for", "1h", "--reason", "x", *words)
    assert ended.value.code == 2


def test_a_job_that_is_none(place: Place) -> None:
    assert place.run("request", "--user", SOMEBODY, "--for", "1h", "--reason", "x", "--job", "0") == 2


def test_a_site_without_break_glass(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.policy.write_text(POLICY.partition("break_glass")[0])
    assert place.request() == 1
    assert "break_glass" in capsys.readouterr().err


def test_a_daemon_that_is_not_there(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.site.write_text(place.site.read_text().replace(place.daemon.socket, "/nowhere/glass.sock"))
    for words in (["list"], ["approve", "g1", "--reason", "x"], ["end", "g1", "--reason", "x"]):
        assert place.run(*words) == 4
        assert "does secure-slurm-glassd run" in capsys.readouterr().err
    assert place.request() == 4


def test_a_folder_that_others_can_write_to(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.folder.chmod(0o777)
    for words in (["list"], ["approve", "g1", "--reason", "x"], ["end", "g1", "--reason", "x"]):
        assert place.run(*words) == 4
        assert "by others" in capsys.readouterr().err
    assert place.request() == 4


def test_nobody_approves_what_they_ask_for_or_get(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.request()
    for uid, said in ((ME, ME), (ME, OTHER), (pwd.getpwnam(SOMEBODY).pw_uid, None)):
        place.become(uid, said=said)
        assert place.run("approve", place.id, "--reason", "yes") == 1
        assert "nobody approves" in capsys.readouterr().err
    assert len(place.files()) == 1


def test_what_is_not_there_is_not_approved(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.request()
    place.become(OTHER)
    capsys.readouterr()
    for name in ("no-such", "../x", "a b", ""):
        assert place.run("approve", name, "--reason", "yes") == 2
        assert repr(name) in capsys.readouterr().err
    path = place.folder / f"{place.id}.request"
    path.chmod(0o666)
    assert place.run("approve", place.id, "--reason", "yes") == 1
    assert "others than its owner" in capsys.readouterr().err
    path.chmod(0o640)
    path.write_text("{}\n")
    assert place.run("approve", place.id, "--reason", "yes") == 1


def test_asked_and_approved(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.request("--json") == 0
    told = json.loads(capsys.readouterr().out)
    path = place.folder / f"{told['id']}.request"
    assert told["sha256"] == papers.digest(path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o640
    asked = papers.parse_request(told["id"], path.read_bytes())
    assert (asked.user, asked.role, asked.until - asked.time, asked.reason) == (SOMEBODY, "phi-eu", 4 * 3600, "ward 3")

    place.become(OTHER)
    assert place.run("approve", place.id, "--reason", "by telephone") == 0
    shown = capsys.readouterr().out
    assert f"role phi-eu for {SOMEBODY}" in shown
    assert "ward 3" in shown
    note = papers.parse_approval(place.id, (place.folder / f"{place.id}.approval").read_bytes())
    assert note == papers.Note(place.id, OTHER, told["sha256"], "by telephone")
    place.become(OTHER + 1)
    assert place.run("approve", place.id, "--reason", "again") == 1


def test_what_is_listed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(place, capsys) == {"grants": [], "ignored": [], "members": False}
    place.request()
    (place.folder / "junk").touch()
    found = listed(place, capsys)
    (grant,) = found["grants"]
    # a uid without a name counts for nothing, and a list says so
    assert (grant["state"], grant["rule"], grant["requester"]) == ("refused", "glass.requester", ME)
    assert (grant["user"], grant["role"], grant["reason"]) == (SOMEBODY, "phi-eu", "ward 3")
    assert found["ignored"] == [
        {"file": "junk", "uid": os.geteuid(), "problem": "is none of the files that belong here"}
    ]
    assert place.run("list") == 0
    shown = capsys.readouterr().out
    assert "role phi-eu" in shown
    assert "ignored: 'junk'" in shown
    assert "only root may read the members" in shown


def test_the_end(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.request()
    place.become(OTHER)
    assert place.run("end", place.id, "--reason", "x") == 1
    assert "only its requester" in capsys.readouterr().err
    place.become(ME)
    assert place.run("end", "no-such", "--reason", "x") == 2
    assert place.run("end", place.id, "--reason", "not needed") == 0
    assert papers.parse_end(place.id, (place.folder / f"{place.id}.end").read_bytes()).reason == "not needed"
    assert listed(place, capsys)["grants"][0]["state"] in ("ended", "refused")
    assert place.run("end", place.id, "--reason", "again") == 1


def test_root_may_end(place: Place) -> None:
    place.request()
    place.become(0)
    assert place.run("end", place.id, "--reason", "x") == 0
