"""Exports for WORM storage, and deleting what they have: nothing is lost that must be kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from admin import audit_export, audit_prune
from admin.main import main
from audit import bundle
from audit import chain as chain_module
from audit.chain import Chain
from audit.line import Link
from audit.retention import Retention, classes_of, keep_until
from audit.verify import verify
from conf.errors import Refused
from keys.certificate import block, pem
from tests.unit.hooks.conftest import SITE

YEAR = 365 * 86400


class World:
    """An audit directory with a trail over three months, and a site file that names it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, patch
        self.audit = folder / "audit"
        (self.audit / "lifecycle").mkdir(parents=True)
        self.chain = Chain(self.audit / "lifecycle", "lifecycle", "head")
        self.site = folder / "secure-slurm.yaml"
        self.site.write_text(SITE.format(user="root", folder=folder))
        self.site.chmod(0o644)

    def tell(self, month: str, event: str = "vault.login", **fields: object) -> None:
        with self._patch.context() as patch:
            patch.setattr(chain_module, "_now", lambda: f"{month}-10T12:00:00.000000Z")
            self.chain.append(event, durable=True, **(fields or {"result": "ok"}))

    def three_months(self) -> None:
        for month in ("2022-01", "2022-01", "2022-02", "2022-03"):
            self.tell(month)

    def run(self, *words: str) -> int:
        return main(["--config", str(self.site), "audit", *words])

    def export(self, name: str = "out", until: str = "2022-02-20") -> Path:
        assert self.run("export", "--until", until, "--to", str(self.folder / name)) == 0
        return self.folder / name

    def trails(self) -> list[str]:
        return sorted(path.name for path in (self.audit / "lifecycle").glob("*.jsonl*") if ".head" not in path.name)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# -- export ----------------------------------------------------------------------------------------------------------


def test_lines_up_to_a_date(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.three_months()
    folder = world.export()
    out = capsys.readouterr().out
    assert "UNSIGNED: " in out
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert [(one["first"], one["last"], one["whole"]) for one in files] == [(1, 2, True), (3, 3, True)]
    assert world.run("verify-export", str(folder)) == 0
    assert "signature: none" in capsys.readouterr().out
    assert world.run("verify", str(world.audit)) == 0


def test_of_a_file_that_is_being_written_only_the_beginning(world: World) -> None:
    world.tell("2022-01")
    world.tell("2022-01")
    (one,) = json.loads((world.export() / "manifest.json").read_text())["files"]
    assert (one["whole"], one["last"], one["source"]) == (False, 2, "lifecycle/head-lifecycle.jsonl")
    assert one["path"].startswith("lifecycle/head-lifecycle.jsonl.000000000001-000000000002-")


def test_the_same_date_gives_the_same_bytes(world: World) -> None:
    world.three_months()
    first = content(world.export("a"))
    world.tell("2022-03")
    assert content(world.export("b")) == first


def test_nothing_is_written_over(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.three_months()
    folder = world.export()
    before = content(folder)
    assert world.run("export", "--until", "2022-03-01", "--to", str(folder)) == 1
    assert "there already" in capsys.readouterr().err
    assert content(folder) == before
    (world.folder / "link").symlink_to("/nowhere")
    assert world.run("export", "--until", "2022-03-01", "--to", str(world.folder / "link")) == 1


@pytest.mark.parametrize("until", ["yesterday", "2022-02-30", "20220201"])
def test_dates_that_are_none(world: World, until: str) -> None:
    world.three_months()
    with pytest.raises(SystemExit) as caught:
        world.run("export", "--until", until, "--to", str(world.folder / "out"))
    assert caught.value.code == 2
    assert not (world.folder / "out").exists()


def test_a_date_that_is_not_over(world: World) -> None:
    world.three_months()
    assert world.run("export", "--until", "2999-01-01", "--to", str(world.folder / "out")) == 2
    assert not (world.folder / "out").exists()


def test_a_file_that_changes_while_it_is_exported_is_refused(world: World) -> None:
    world.three_months()
    path = world.audit / "lifecycle/head-lifecycle.jsonl"
    part = bundle.part_of(path, world.audit, "2022-04-01T")
    assert part is not None
    path.write_bytes(path.read_bytes().replace(b'"ok"', b'"no"'))
    with pytest.raises(Refused) as caught:
        audit_export._copy(part, world.folder / "copy")
    assert caught.value.rule == "bundle.changed"


def test_nothing_so_old(world: World) -> None:
    world.three_months()
    assert world.run("export", "--until", "2021-01-01", "--to", str(world.folder / "out")) == 1


def test_a_damaged_trail_is_exported_and_said(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.three_months()
    path = world.audit / "lifecycle/head-lifecycle.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"ok"', b'"no"'))
    assert world.run("export", "--until", "2022-02-20", "--to", str(world.folder / "out")) == 1
    assert "look first" in capsys.readouterr().err
    assert (world.folder / "out/manifest.json").exists()


def test_what_was_exported_is_in_roots_own_trail(world: World) -> None:
    world.three_months()
    folder = world.export()
    (path,) = (world.audit / "admin").glob("*-admin.jsonl")
    line = json.loads(path.read_text())
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert (line["event"], line["digest"], line["state"], line["count"]) == ("audit.exported", digest, "unsigned", 2)


@pytest.fixture
def signed(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed export and the public key of it."""
    key = Ed25519PrivateKey.generate()

    def sign(_: object, digest: str) -> tuple[bytes, str]:
        return json.dumps(block(key.sign(bundle.digest_bytes(digest)), 1)).encode() + b"\n", ""

    monkeypatch.setattr(audit_export, "_signed", sign)
    world.three_months()
    public = world.folder / "public.pem"
    public.write_text(pem(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)))
    return public


def test_a_signed_one(world: World, signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world.export()
    assert world.run("verify-export", str(folder), "--public-key", str(signed)) == 0
    assert "signature: good" in capsys.readouterr().out
    assert world.run("verify-export", str(folder)) == 0
    assert "signature: not checked" in capsys.readouterr().out
    other = world.folder / "other.pem"
    other.write_text(pem(Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)))
    assert world.run("verify-export", str(folder), "--public-key", str(other)) == 1


def change_a_line(folder: Path, files: list[dict[str, Any]]) -> None:
    path = folder / files[0]["path"]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b'"ok"', b'"no"'))


def cut_a_file(folder: Path, files: list[dict[str, Any]]) -> None:
    path = folder / files[0]["path"]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


def remove_a_file(folder: Path, files: list[dict[str, Any]]) -> None:
    (folder / files[1]["path"]).unlink()


def add_a_file(folder: Path, _: list[dict[str, Any]]) -> None:
    (folder / "lifecycle/more.jsonl").write_text("x\n")


def link_a_file(folder: Path, files: list[dict[str, Any]]) -> None:
    path = folder / files[0]["path"]
    shutil.copy(path, folder.parent / "elsewhere")
    path.unlink()
    path.symlink_to(folder.parent / "elsewhere")


def change_the_manifest(folder: Path, _: list[dict[str, Any]]) -> None:
    path = folder / "manifest.json"
    path.chmod(0o600)
    path.write_text(path.read_text().replace('"2022-02-20"', '"2022-02-21"'))


@pytest.mark.parametrize(
    "act", [change_a_line, cut_a_file, remove_a_file, add_a_file, link_a_file, change_the_manifest]
)
def test_what_was_done_to_a_bundle_shows(world: World, signed: Path, act: Any) -> None:
    folder = world.export()
    act(folder, json.loads((folder / "manifest.json").read_text())["files"])
    assert world.run("verify-export", str(folder), "--public-key", str(signed)) == 1


def test_a_segment_that_does_not_follow_its_predecessor(world: World) -> None:
    world.three_months()
    folder = world.export()
    text = json.loads((folder / "manifest.json").read_text())
    text["files"] = text["files"][1:]
    (folder / "manifest.json").chmod(0o600)
    (folder / "manifest.json").write_text(json.dumps(text))
    next((folder / "lifecycle").glob("*-000000000002-*")).unlink()
    # the second part alone is whole by itself, from the line that it names
    assert bundle.check(folder, text) == []
    text["files"][0]["prev"] = "ab" * 32
    assert [finding.kind for finding in bundle.check(folder, text)] != []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 9999,
        b'{"kind":"secure-slurm audit export","v":1,"files":[{"path":"../../etc/passwd"}]}',
    ],
)
def test_manifests_that_are_none(world: World, text: bytes) -> None:
    (world.folder / "x").mkdir()
    (world.folder / "x/manifest.json").write_bytes(text)
    assert world.run("verify-export", str(world.folder / "x")) == 1


# -- retention -------------------------------------------------------------------------------------------------------

RULE = Retention(3 * YEAR, 1 * YEAR, {"internal": 2.0 * YEAR})


@pytest.mark.parametrize(
    ("line", "years"),
    [
        ({"event": "key.create", "job": 1}, 3),
        ({"event": "key.create", "job": 2}, 2),
        ({"event": "key.create", "job": 3}, 3),
        ({"event": "decision"}, 1),
        ({"event": "decision", "class": "phi"}, 3),
        ({"event": "decision", "class": "internal"}, 2),
        ({"event": "decision.folded"}, 1),
        ({"event": "start.judged", "job": 1}, 3),
    ],
)
def test_how_long_a_line_is_kept(line: dict[str, object], years: int) -> None:
    jobs = [{"job": 1, "class": "phi"}, {"job": 2, "class": "internal"}, {"job": 3, "class": "internal"}]
    classes = classes_of([*jobs, {"job": 3, "class": "phi"}, {"event": "decision"}])
    at = 1795313286.0
    assert keep_until({"time": "2026-11-22T02:08:06Z", **line}, RULE, classes) == at + years * YEAR


def test_a_line_without_a_time_is_kept_for_ever() -> None:
    assert keep_until({"event": "decision", "time": "then"}, RULE, {}) == float("inf")


# -- prune -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.three_months()
    folder = world.export()
    before = world.trails()
    assert world.run("prune", "--exported", str(folder)) == 0
    assert "2 of 4 files would go" in capsys.readouterr().out
    assert world.trails() == before


def test_what_is_exported_and_old_goes_and_the_chain_stays_whole(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.three_months()
    folder = world.export()
    assert world.run("prune", "--exported", str(folder), "--delete") == 0
    assert world.trails() == ["head-lifecycle.jsonl", "head-lifecycle.jsonl.base"]
    report = verify([world.audit])
    assert report.findings == []
    assert [note.kind for note in report.notes] == ["pruned"]
    capsys.readouterr()
    # the writer goes on, and the next export follows the first
    world.tell("2022-04")
    second = world.export("second", "2022-04-01")
    (one,) = [each for each in json.loads((second / "manifest.json").read_text())["files"] if each["whole"]]
    assert one["first"] == 4
    assert one["prev"] == json.loads((folder / "manifest.json").read_text())["files"][-1]["hash"]
    assert world.run("verify-export", str(second)) == 0
    assert world.run("prune", "--exported", str(second), "--delete") == 0
    assert verify([world.audit]).findings == []


def test_a_deletion_that_root_did_not_tell_is_a_finding(world: World) -> None:
    world.three_months()
    world.export()
    sealed = sorted((world.audit / "lifecycle").glob("*.jsonl.0*"))
    last = json.loads(sealed[0].read_text().splitlines()[-1])
    sealed[0].unlink()
    base = {"seq": last["seq"], "hash": last["hash"], "manifest": "ab" * 32}
    (world.audit / "lifecycle/head-lifecycle.jsonl.base").write_text(json.dumps(base))
    assert [finding.kind for finding in verify([world.audit]).findings] == ["missing"]
    # and so is one whose rest does not follow
    (world.audit / "lifecycle/head-lifecycle.jsonl.base").write_text(json.dumps(base | {"hash": "cd" * 32}))
    assert "changed" in [finding.kind for finding in verify([world.audit]).findings]


def kept(world: World, *folders: Path, now: float | None = None) -> list[str]:
    exports = [audit_prune._verified(folder, None) for folder in folders]
    found = audit_prune.candidates(world.audit, RULE, exports, time.time() if now is None else now)
    return [one.why for one in found if one.path.parent.name == "lifecycle"]


def test_what_stays(world: World) -> None:
    world.three_months()
    folder = world.export()
    assert kept(world) == ["no export has it whole"] * 2 + ["it is being written"]
    assert kept(world, folder) == ["", "", "it is being written"]
    early = kept(world, folder, now=1650000000.0)
    assert early[0] == "a line of it is kept until 2025-01-09"
    assert early[1].startswith("a line of it is kept")
    sealed = sorted((world.audit / "lifecycle").glob("*.jsonl.0*"))[0]
    sealed.chmod(0o600)
    sealed.write_bytes(sealed.read_bytes() + b"x\n")
    assert kept(world, folder)[:2] == ["it is not what was exported", "an older file of its chain stays"]


def test_an_export_that_was_changed_lets_nothing_go(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.three_months()
    folder = world.export()
    change_a_line(folder, json.loads((folder / "manifest.json").read_text())["files"])
    before = world.trails()
    assert world.run("prune", "--exported", str(folder), "--delete") == 1
    assert "not what its manifest says" in capsys.readouterr().err
    assert world.trails() == before


def test_an_unsigned_export_is_not_enough_where_a_key_is_named(world: World, signed: Path) -> None:
    folder = world.export()
    assert world.run("prune", "--exported", str(folder), "--public-key", str(signed), "--delete") == 0
    os.umask(0o022)
    world.three_months()
    unsigned = world.folder / "unsigned"
    shutil.copytree(folder, unsigned)
    (unsigned / "manifest.signature.json").unlink()
    assert world.run("prune", "--exported", str(unsigned), "--public-key", str(signed)) == 2


def test_an_export_that_another_key_signed_lets_nothing_go(
    world: World, signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world.export()
    other = world.folder / "other.pem"
    other.write_text(pem(Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)))
    before = world.trails()
    assert world.run("prune", "--exported", str(folder), "--public-key", str(other), "--delete") == 1
    assert "not signed with that key" in capsys.readouterr().err
    assert world.trails() == before


def test_nothing_is_deleted_outside_the_audit_directory(world: World) -> None:
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.jsonl.000000000001").write_text("x\n")
    (world.audit / "link").symlink_to(elsewhere)
    one = audit_prune.Candidate(world.audit / "link/x.jsonl.000000000001", "", "ab" * 32, Link(1, "cd" * 32))
    with pytest.raises(Refused) as caught:
        audit_prune._delete_one(world.audit, one)
    assert caught.value.rule == "bundle.source"
    assert list(elsewhere.iterdir()) == [elsewhere / "x.jsonl.000000000001"]
