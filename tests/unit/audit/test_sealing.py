"""Rotation by the writer itself: the chain goes on, and what is sealed is written no more."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from audit import chain as module
from audit import sealing
from audit.chain import Chain
from audit.line import ZERO_HASH
from audit.sealing import SEALED
from audit.verify import verify


def append(chain: Chain, count: int = 1, *, durable: bool = True) -> None:
    for _ in range(count):
        chain.append("vault.login", durable=durable, result="ok")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.jsonl*") if not path.name.endswith(".head"))


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path, "node", "n1")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "SEGMENT_BYTES", 1000)


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.usefixtures("small")
def test_a_large_file_is_sealed_and_the_chain_goes_on(tmp_path: Path, chain: Chain, durable: bool) -> None:
    append(chain, 14, durable=durable)
    chain.flush()
    *sealed, current = sorted(names(tmp_path), key=lambda name: name == "n1-node.jsonl")
    assert current == "n1-node.jsonl"
    assert len(sealed) > 2
    before = {"seq": 0, "hash": ZERO_HASH}
    for name in (*sealed, current):
        text = (tmp_path / name).read_text().splitlines()
        assert json.loads(text[0])["prev"] == before["hash"]
        before = json.loads(text[-1])
    for name in sealed:
        found = SEALED.fullmatch(name)
        assert found is not None
        last = json.loads((tmp_path / name).read_text().splitlines()[-1])
        assert (int(found["last"]), found["hash"]) == (last["seq"], last["hash"][:8])
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o440
    report = verify([tmp_path])
    assert (report.findings, report.events) == ([], 14)


@pytest.mark.usefixtures("small")
def test_what_is_sealed_is_on_the_disk_and_in_the_head(tmp_path: Path, chain: Chain) -> None:
    while len(names(tmp_path)) < 2:
        append(chain, durable=False)
    head = json.loads((tmp_path / "n1-node.jsonl.head").read_text())
    sealed = next(name for name in names(tmp_path) if name != "n1-node.jsonl")
    assert f"-{head['seq']:012d}-{head['hash'][:8]}" in sealed
    # a crash right here: only the line in the new file is lost
    (tmp_path / "n1-node.jsonl").write_bytes(b"")
    append(Chain(tmp_path, "node", "n1"))
    assert verify([tmp_path]).findings == []


@pytest.mark.parametrize("durable", [True, False])
def test_a_new_month_is_a_new_file(
    tmp_path: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    for month in ("2026-11", "2026-11", "2026-12", "2027-01"):
        monkeypatch.setattr(module, "_now", lambda month=month: f"{month}-30T23:59:59.000000Z")
        append(chain, durable=durable)
    chain.flush()
    assert len(names(tmp_path)) == 3
    assert verify([tmp_path]).events == 4
    assert verify([tmp_path]).findings == []


@pytest.mark.usefixtures("small")
def test_a_torn_end_is_not_sealed_over(tmp_path: Path, chain: Chain) -> None:
    append(chain, 3)
    with (tmp_path / "n1-node.jsonl").open("ab") as file:
        file.write(b'{"v":1,"seq":4' + b"x" * 1000)
    append(Chain(tmp_path, "node", "n1"), 8)
    report = verify([tmp_path])
    assert report.findings == []
    assert [note.kind for note in report.notes] == ["torn"]


@pytest.mark.usefixtures("small")
def test_a_file_that_lost_lines_is_not_sealed_before_that_is_told(tmp_path: Path, chain: Chain) -> None:
    append(chain, 6)
    text = (tmp_path / "n1-node.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "n1-node.jsonl").write_bytes(b"".join(text[:-1]))
    append(Chain(tmp_path, "node", "n1"), 8)
    assert {finding.kind for finding in verify([tmp_path]).findings} == {"missing"}
    assert any("audit.recovered" in path.read_text() for path in tmp_path.glob("n1-node.jsonl*"))


@pytest.mark.usefixtures("small")
def test_a_file_that_cannot_be_sealed_is_written_on(
    tmp_path: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    append(chain, 9)
    assert names(tmp_path) == ["n1-node.jsonl"]
    assert verify([tmp_path]).events == 9


def _write(folder: str) -> None:
    sealing.SEGMENT_BYTES = 1000
    chain = Chain(folder, "node", "n1")
    for number in range(40):
        chain.append("vault.login", durable=number % 3 == 0, result="ok")


def test_several_processes_seal_one_chain(tmp_path: Path) -> None:
    processes = [multiprocessing.Process(target=_write, args=(str(tmp_path),)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    Chain(tmp_path, "node", "n1").flush()
    report = verify([tmp_path])
    assert (report.findings, report.events) == ([], 160)
