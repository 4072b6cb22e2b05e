"""Every way to tamper with a trail that the verifier promises to find, and the honest accidents it lets pass."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.chain import Chain
from audit.findings import Report
from audit.line import canonical, line_hash
from audit.verify import verify
from conf.errors import ConfigError

NAME = "n1-node.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o750)
    chain = Chain(tmp_path, "node", "n1")
    for number in range(1, 7):
        chain.append("node.lost", durable=True, node=f"n{number}")
    return tmp_path


def raw_lines(folder: Path) -> list[str]:
    return (folder / NAME).read_text().splitlines(keepends=True)


def write(folder: Path, lines: list[str]) -> None:
    (folder / NAME).write_text("".join(lines))


def kinds(report: Report) -> list[tuple[str, int]]:
    return [(finding.kind, finding.line) for finding in report.findings]


def forged(line: str, **changes: object) -> str:
    """The line changed by someone who knows how the hash is made."""
    parsed = {**json.loads(line), **changes}
    return canonical({**parsed, "hash": line_hash(parsed)}) + "\n"


def test_changed_value(folder: Path) -> None:
    lines = raw_lines(folder)
    write(folder, [*lines[:2], lines[2].replace("n3", "n9"), *lines[3:]])
    report = verify([folder])
    assert kinds(report) == [("changed", 3)]
    assert report.findings[0].file == str(folder / NAME)


def test_changed_seq_is_one_finding(folder: Path) -> None:
    lines = raw_lines(folder)
    write(folder, [*lines[:2], lines[2].replace('"seq":3', '"seq":30'), *lines[3:]])
    assert kinds(verify([folder])) == [("changed", 3)]


def test_changed_line_with_its_hash_made_anew(folder: Path) -> None:
    lines = raw_lines(folder)
    write(folder, [*lines[:2], forged(lines[2], node="n9"), *lines[3:]])
    assert kinds(verify([folder])) == [("changed", 3)]


def test_changed_last_line_with_its_hash_made_anew_is_found_by_the_head(folder: Path) -> None:
    lines = raw_lines(folder)
    write(folder, [*lines[:-1], forged(lines[-1], node="n9")])
    assert kinds(verify([folder])) == [("changed", 6)]


@pytest.mark.parametrize("space", [" ", "\t"])
def test_one_added_space_is_a_change(folder: Path, space: str) -> None:
    lines = raw_lines(folder)
    write(folder, [lines[0].replace('"seq":', f'"seq":{space}'), *lines[1:]])
    assert kinds(verify([folder])) == [("changed", 1)]


def test_a_second_value_for_a_key_is_a_change(folder: Path) -> None:
    lines = raw_lines(folder)
    write(folder, [*lines[:3], lines[3].replace('"node":"n4"', '"node":"n9","node":"n4"'), *lines[4:]])
    assert kinds(verify([folder])) == [("changed", 4)]


def test_missing_lines(folder: Path) -> None:
    lines = raw_lines(folder)
    write(folder, [lines[0], *lines[3:]])
    report = verify([folder])
    assert kinds(report) == [("missing", 2)]
    assert "lines 2 to 3" in report.findings[0].message


def test_missing_first_line(folder: Path) -> None:
    write(folder, raw_lines(folder)[1:])
    assert kinds(verify([folder])) == [("missing", 1)]


def test_reordered_lines(folder: Path) -> None:
    lines = raw_lines(folder)
    write(folder, [lines[0], lines[2], lines[1], *lines[3:]])
    assert kinds(verify([folder])) == [("reordered", 3)]


def test_repeated_line(folder: Path) -> None:
    lines = raw_lines(folder)
    write(folder, [*lines, lines[2]])
    assert kinds(verify([folder])) == [("repeated", 7)]


def test_cut_tail(folder: Path) -> None:
    write(folder, raw_lines(folder)[:-2])
    report = verify([folder])
    assert kinds(report) == [("truncated", 4)]
    assert "2 more" in report.findings[0].message


def test_emptied_file(folder: Path) -> None:
    write(folder, [])
    assert kinds(verify([folder])) == [("truncated", 0)]


def test_cut_tail_stays_visible_after_the_writer_went_on(folder: Path) -> None:
    write(folder, raw_lines(folder)[:-2])
    Chain(folder, "node", "n1").append("daemon.start", durable=True)
    assert kinds(verify([folder])) == [("missing", 5)]


def test_removed_or_broken_head(folder: Path) -> None:
    side = folder / f"{NAME}.head"
    side.write_text("")
    assert kinds(verify([folder])) == [("head", 1)]
    side.unlink()
    assert kinds(verify([folder])) == [("head", 0)]


def test_removed_file(folder: Path) -> None:
    Chain(folder, "prolog", "n1").append("daemon.start", durable=True)
    (folder / NAME).unlink()
    report = verify([folder])
    assert [(finding.kind, finding.file) for finding in report.findings] == [("truncated", f"{folder / NAME}.head")]


def test_rotated_file_alone_is_measured_by_the_head(folder: Path) -> None:
    lines = raw_lines(folder)
    (folder / NAME).rename(folder / f"{NAME}.1")
    assert verify([folder]).whole
    (folder / f"{NAME}.1").write_text("".join(lines[:-1]))
    assert kinds(verify([folder])) == [("truncated", 5)]


@pytest.mark.parametrize("foreign", ["\n", "hello\n", '{"v":1}\n', "[1]\n", "\x00\x00\n", "x" * 70000 + "\n"])
def test_foreign_line(folder: Path, foreign: str) -> None:
    lines = raw_lines(folder)
    write(folder, [*lines[:4], foreign, *lines[4:]])
    found = kinds(verify([folder]))
    assert found
    assert {kind for kind, _ in found} == {"foreign"}
    assert found[0][1] == 5


def test_line_of_another_writer(folder: Path) -> None:
    lines = raw_lines(folder)
    write(folder, [*lines, forged(lines[5], seq=7, writer="prolog")])
    assert kinds(verify([folder])) == [("foreign", 7)]


def test_unknown_event_and_smuggled_field(folder: Path) -> None:
    lines = raw_lines(folder)
    last = json.loads(lines[-1])["hash"]
    seventh = forged(lines[5], seq=7, prev=last, event="node.exploded")
    eighth = forged(lines[5], seq=8, prev=json.loads(seventh)["hash"], user="alice")
    write(folder, [*lines, seventh, eighth])
    assert kinds(verify([folder])) == [("schema", 7), ("schema", 8)]


def test_unfinished_last_line(folder: Path) -> None:
    (folder / NAME).write_bytes((folder / NAME).read_bytes() + b'{"v":1')
    assert kinds(verify([folder])) == [("foreign", 7)]


def test_a_torn_line_that_the_writer_told_of_is_a_note(folder: Path) -> None:
    (folder / NAME).write_bytes((folder / NAME).read_bytes() + b'{"v":1,"se')
    Chain(folder, "node", "n1").append("daemon.start", durable=True)
    report = verify([folder])
    assert report.whole
    assert [(note.kind, note.line) for note in report.notes] == [("torn", 7)]


def test_more_garbage_than_told_is_a_finding(folder: Path) -> None:
    (folder / NAME).write_bytes((folder / NAME).read_bytes() + b'{"v":1,"se')
    Chain(folder, "node", "n1").append("daemon.start", durable=True)
    lines = raw_lines(folder)
    write(folder, [*lines[:6], "hello\n", *lines[6:]])
    assert kinds(verify([folder])) == [("foreign", 7), ("foreign", 8)]


def test_second_genesis_in_one_boot(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    Chain(other, "node", "n1").append("daemon.start", durable=True)
    report = verify([folder, other])
    assert kinds(report) == [("genesis", 1)]
    write(folder, [*raw_lines(folder), (other / NAME).read_text()])
    assert kinds(verify([folder])) == [("genesis", 7)]


def test_second_genesis_after_another_boot_is_a_new_disk(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    chain = Chain(other, "node", "n1")
    chain.boot = "11111111-2222-3333-4444-555555555555"
    chain.append("daemon.start", durable=True)
    assert verify([folder, other]).whole


def test_rotated_files_are_one_chain(folder: Path) -> None:
    (folder / NAME).rename(folder / f"{NAME}.1")
    Chain(folder, "node", "n1").append("daemon.start", durable=True)
    report = verify([folder])
    assert report.whole
    assert (report.files, report.events, report.writers) == (2, 7, ["n1-node"])
    assert kinds(verify([folder / NAME])) == [("missing", 1)]


def test_several_writers_and_one_bad_file_is_named(folder: Path) -> None:
    for writer in ("prolog", "epilog"):
        Chain(folder, writer, "n1").append("daemon.start", durable=True)
    (folder / "n1-prolog.jsonl").write_text("hello\n")
    report = verify([folder])
    assert report.writers == ["n1-epilog", "n1-node", "n1-prolog"]
    assert {finding.file for finding in report.findings} == {str(folder / "n1-prolog.jsonl")}


def test_directories_are_read_to_their_depth(folder: Path) -> None:
    below = folder / "node-n2"
    below.mkdir(mode=0o750)
    Chain(below, "node", "n2").append("daemon.start", durable=True)
    assert verify([folder]).writers == ["n1-node", "n2-node"]
    (below / "n2-node.jsonl").unlink()
    assert [finding.file for finding in verify([folder]).findings] == [str(below / "n2-node.jsonl.head")]


def test_a_folder_that_cannot_be_read_is_not_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = folder / "node-n2"
    below.mkdir()
    scandir = os.scandir

    def denied(path: str) -> object:
        # root may read everything, and tests run as root
        if str(path) == str(below):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ConfigError, match=r"cannot read .*node-n2"):
        verify([folder])


def test_unreadable_is_a_config_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        verify([folder / "none.jsonl"])
    with pytest.raises(ConfigError, match="no audit file"):
        verify([])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(place=st.integers(min_value=0), value=st.integers(min_value=0, max_value=255))
def test_any_one_byte_changed_is_found(folder: Path, place: int, value: int) -> None:
    path = folder / NAME
    original = path.read_bytes()
    place %= len(original)
    changed = original[:place] + bytes([value]) + original[place + 1 :]
    try:
        path.write_bytes(changed)
        assert verify([folder]).whole == (changed == original)
    finally:
        path.write_bytes(original)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(order=st.lists(st.integers(min_value=0, max_value=5), max_size=8))
def test_any_other_selection_or_order_of_lines_is_found(folder: Path, order: list[int]) -> None:
    lines = raw_lines(folder)
    try:
        write(folder, [lines[index] for index in order])
        assert verify([folder]).whole == (order == [0, 1, 2, 3, 4, 5])
    finally:
        write(folder, lines)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(name=st.sampled_from(["v", "seq", "time", "host", "boot", "event", "node", "prev", "hash", "x"]), value=JSON)
def test_hostile_json_is_a_finding_never_a_crash(folder: Path, name: str, value: object) -> None:
    lines = raw_lines(folder)
    hostile = {**json.loads(lines[3]), name: value}
    try:
        write(folder, [*lines[:3], json.dumps(hostile, separators=(",", ":")) + "\n", *lines[4:]])
        assert verify([folder]).whole == (repr(hostile) == repr(json.loads(lines[3])))
    finally:
        write(folder, lines)


def test_forged_recovery_with_a_wrong_type_is_a_finding(folder: Path) -> None:
    lines = raw_lines(folder)
    last = json.loads(lines[-1])["hash"]
    write(folder, [*lines, "hello\n", forged(lines[5], seq=7, prev=last, event="audit.recovered", bytes="x", lost=0)])
    assert kinds(verify([folder])) == [("schema", 8), ("foreign", 7)]
