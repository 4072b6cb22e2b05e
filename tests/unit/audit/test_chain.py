"""Writing: who may write where, what survives a crash, what happens when nothing can be written."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest

from audit import store
from audit.chain import AuditError, Chain
from audit.line import ZERO_HASH, line_hash


def lines(folder: Path, name: str = "n1-node.jsonl") -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def head(folder: Path) -> dict[str, object]:
    parsed: dict[str, object] = json.loads((folder / "n1-node.jsonl.head").read_text())
    return parsed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o750)
    return tmp_path


@pytest.fixture
def chain(folder: Path) -> Chain:
    return Chain(folder, "node", "n1")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_directory_that_others_can_change_is_refused(folder: Path, chain: Chain, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(AuditError, match="owner or a mode"):
        chain.append("daemon.start", durable=True)


def test_a_shared_sticky_directory_is_accepted(folder: Path, chain: Chain) -> None:
    folder.chmod(0o1770)
    assert chain.append("daemon.start", durable=True).seq == 1


def test_a_missing_directory_is_an_audit_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="No such file") as caught:
        Chain(tmp_path / "none", "node", "n1").append("daemon.start", durable=False)
    assert caught.value.advice
    assert caught.value.exit_code == 4


def test_a_symlink_in_the_files_place_is_refused(
    folder: Path, chain: Chain, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("elsewhere") / "victim"
    target.write_text("")
    (folder / "n1-node.jsonl").symlink_to(target)
    with pytest.raises(AuditError):
        chain.append("daemon.start", durable=True)
    assert target.read_text() == ""


def test_a_directory_reached_by_a_symlink_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "audit"
    link.symlink_to(folder)
    with pytest.raises(AuditError):
        Chain(link, "node", "n1").append("daemon.start", durable=True)


def test_a_hard_linked_or_writable_file_is_refused(folder: Path, chain: Chain) -> None:
    chain.append("daemon.start", durable=True)
    (folder / "n1-node.jsonl").chmod(0o660)
    with pytest.raises(AuditError, match="only we can write"):
        chain.append("daemon.stop", durable=True)
    (folder / "n1-node.jsonl").chmod(0o640)
    (folder / "second").hardlink_to(folder / "n1-node.jsonl")
    with pytest.raises(AuditError, match="only we can write"):
        chain.append("daemon.stop", durable=True)


@pytest.mark.parametrize(
    ("writer", "host"), [("../x", "n1"), ("node", ""), ("node", "a/b"), ("Node", "n1"), ("", "n1")]
)
def test_names_that_are_no_file_names_are_refused(folder: Path, writer: str, host: str) -> None:
    with pytest.raises(ValueError, match="not a host or writer name"):
        Chain(folder, writer, host)


def test_an_event_outside_the_schema_writes_nothing(folder: Path, chain: Chain) -> None:
    with pytest.raises(ValueError, match="field not allowed"):
        chain.append("daemon.start", durable=True, user="alice")
    assert list(folder.iterdir()) == []


def test_a_full_disk_leaves_no_half_line(folder: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.append("daemon.start", durable=True)
    before = (folder / "n1-node.jsonl").read_bytes()
    real_write = os.write

    def half(fd: int, data: bytes) -> int:
        return real_write(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(AuditError, match=os.strerror(errno.ENOSPC)):
        chain.append("daemon.stop", durable=False)
    monkeypatch.undo()
    assert (folder / "n1-node.jsonl").read_bytes() == before
    assert chain.append("daemon.stop", durable=True).seq == 2


def test_a_lock_that_is_never_released_is_an_audit_error(
    folder: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.append("daemon.start", durable=True)
    monkeypatch.setattr(store, "LOCK_DEADLINE", 0.0)
    with (folder / "n1-node.jsonl").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(AuditError, match="holds its lock"):
            chain.append("daemon.stop", durable=False)


def test_lines_are_chained_and_canonical(folder: Path, chain: Chain) -> None:
    chain.append("daemon.start", durable=True, version="0.1.0")
    chain.append("scratch.gone", durable=False, node="n1", evidence="no mapping \n\x1b[31m\udcff é")
    first, second = lines(folder)
    assert first["prev"] == ZERO_HASH
    assert second["prev"] == first["hash"] == line_hash(first)
    assert second["hash"] == line_hash(second)
    raw = (folder / "n1-node.jsonl").read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == 2
    assert b"\x1b" not in raw
    assert second["evidence"] == "no mapping \n\x1b[31m\udcff é"
    assert list(first)[:7] == ["v", "seq", "time", "host", "writer", "boot", "event"]


def test_modes_do_not_depend_on_the_umask(folder: Path, chain: Chain) -> None:
    old = os.umask(0o077)
    try:
        chain.append("daemon.start", durable=True)
    finally:
        os.umask(old)
    for name in ("n1-node.jsonl", "n1-node.jsonl.head"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o640
    assert len(list(folder.iterdir())) == 2


def test_the_head_follows_durable_lines_and_flushes_only(folder: Path, chain: Chain) -> None:
    chain.append("daemon.start", durable=False)
    assert head(folder)["seq"] == 1  # the first line always
    chain.append("daemon.stop", durable=False)
    assert head(folder)["seq"] == 1
    link = chain.flush()
    assert head(folder) == {"seq": 2, "hash": link.hash}
    chain.append("daemon.start", durable=True)
    assert head(folder)["seq"] == 3


def test_flush_without_a_file_is_nothing(folder: Path, chain: Chain) -> None:
    assert chain.flush().seq == 0
    assert list(folder.iterdir()) == []


def test_two_chains_on_one_file_see_each_other(folder: Path, chain: Chain) -> None:
    other = Chain(folder, "node", "n1")
    for turn in (chain, other, other, chain, chain):
        turn.append("daemon.start", durable=False)
    assert [line["seq"] for line in lines(folder)] == [1, 2, 3, 4, 5]


def _write_many(folder: str, count: int) -> None:
    chain = Chain(folder, "node", "n1")
    for number in range(count):
        chain.append("node.lost", durable=number % 10 == 0, node="n1")


def test_processes_do_not_tear_each_others_lines(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(str(folder), 40)) for _ in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0, 0, 0, 0]
    written = lines(folder)
    assert [line["seq"] for line in written] == list(range(1, 161))
    assert all(later["prev"] == earlier["hash"] for earlier, later in itertools.pairwise(written))


def test_a_torn_last_line_is_closed_and_told(folder: Path, chain: Chain) -> None:
    chain.append("daemon.start", durable=True)
    with (folder / "n1-node.jsonl").open("ab") as file:
        file.write(b'{"v":1,"seq":2,"ti')
    chain.append("daemon.stop", durable=True)
    text = (folder / "n1-node.jsonl").read_text().splitlines()
    recovered = json.loads(text[2])
    assert (recovered["event"], recovered["seq"], recovered["bytes"], recovered["lost"]) == (
        "audit.recovered",
        2,
        18,
        0,
    )
    assert json.loads(text[3])["seq"] == 3


def test_a_cut_tail_leaves_a_gap_for_ever(folder: Path, chain: Chain) -> None:
    for _ in range(3):
        chain.append("daemon.start", durable=True)
    path = folder / "n1-node.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    chain.append("daemon.stop", durable=True)
    assert [(line["seq"], line["event"]) for line in lines(folder)[1:]] == [(4, "audit.recovered"), (5, "daemon.stop")]
    assert lines(folder)[1]["lost"] == 2


def test_a_rotated_file_is_gone_on_with(folder: Path, chain: Chain) -> None:
    link = chain.append("daemon.start", durable=True)
    (folder / "n1-node.jsonl").rename(folder / "n1-node.jsonl.1")
    chain.append("daemon.stop", durable=True)
    (line,) = lines(folder)
    assert (line["seq"], line["prev"]) == (2, link.hash)


def test_a_daemon_keeps_the_file_open_and_trusts_nothing_about_it(folder: Path, chain: Chain) -> None:
    for _ in range(3):
        chain.append("daemon.start", durable=False)
    path = folder / "n1-node.jsonl"
    path.chmod(0o660)
    with pytest.raises(AuditError, match="only we can write"):
        chain.append("daemon.stop", durable=False)
    path.chmod(0o640)
    folder.chmod(0o777)
    with pytest.raises(AuditError, match="owner or a mode"):
        chain.append("daemon.stop", durable=False)
    folder.chmod(0o750)
    assert chain.append("daemon.stop", durable=False).seq == 4


def test_a_folder_that_was_replaced_is_seen_while_the_file_is_open(folder: Path) -> None:
    (folder / "a").mkdir(mode=0o750)
    chain = Chain(folder / "a", "node", "n1")
    for _ in range(3):
        chain.append("daemon.start", durable=False)
    (folder / "a").rename(folder / "b")
    with pytest.raises(AuditError, match="No such file"):
        chain.append("daemon.stop", durable=False)
    (folder / "b").rename(folder / "a")
    assert chain.append("daemon.stop", durable=False).seq == 4


def test_a_rotated_file_is_left_while_it_is_open(folder: Path, chain: Chain) -> None:
    for _ in range(3):
        chain.append("daemon.start", durable=False)
    chain.flush()
    (folder / "n1-node.jsonl").rename(folder / "n1-node.jsonl.1")
    assert chain.append("daemon.stop", durable=False).seq == 4
    assert len(lines(folder, "n1-node.jsonl.1")) == 3
    assert head(folder)["seq"] == 3
    assert chain.flush().seq == 4


def _write_after_fork(chain: Chain, count: int) -> None:
    for _ in range(count):
        chain.append("daemon.start", durable=False)


def test_a_fork_with_the_file_open_shares_no_lock(folder: Path, chain: Chain) -> None:
    _write_after_fork(chain, 3)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_write_after_fork, args=(chain, 200)) for _ in range(2)]
    for child in children:
        child.start()
    _write_after_fork(chain, 200)
    for child in children:
        child.join()
    written = lines(folder)
    assert [line["seq"] for line in written] == list(range(1, 604))
    assert all(later["prev"] == earlier["hash"] for earlier, later in itertools.pairwise(written))


def test_threads_write_one_chain(folder: Path, chain: Chain) -> None:
    def write() -> None:
        for number in range(100):
            chain.append("daemon.start", durable=number % 50 == 0)
            if number % 10 == 0:
                chain.flush()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    written = lines(folder)
    assert [line["seq"] for line in written] == list(range(1, 401))
    assert all(later["prev"] == earlier["hash"] for earlier, later in itertools.pairwise(written))
