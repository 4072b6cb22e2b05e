"""Reading the accounting: a stream in any pieces, hostile files, and sacct asked part by part."""

from __future__ import annotations

import calendar
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin import sacct
from admin.sacct import Damaged, Parser
from conf.errors import BackendUnavailable, ConfigError

NOW = 1_795_300_000.0
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def parsed(data: bytes, size: int = 1 << 20) -> list[object]:
    found: list[object] = []
    parser = Parser(found.append)
    for at in range(0, len(data), size):
        parser.feed(data[at : at + size])
    parser.close()
    return found


def document(jobs: list[object]) -> bytes:
    return json.dumps({"meta": {"a": [1]}, "jobs": jobs, "errors": []}).encode()


class TestParser:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"   ",
            b"[]",
            b"{}",
            b'{"meta": {}}',
            b'{"jobs": {}}',
            b'{"jobs": null}',
            b'{"jobs": [}',
            b'{"jobs": [1 2]}',
            b'{"jobs": [1,]}',
            b'{"jobs": [{"a": }]}',
            b'{"jobs": []',
            b'{"jobs": [',
            b'{"jobs": [{"a": "b',
            b'{"jobs": []} {"jobs": []}',
            b'{"jobs" []}',
            b"sacct: error: slurm_persist_conn_open_without_init",
            b"\xef\xbb\xbf",
            b'{"jobs": [' + b"9" * 5000 + b"]}",
        ],
    )
    def test_what_sacct_does_not_write_is_damaged(self, data: bytes) -> None:
        with pytest.raises(Damaged):
            parsed(data)

    def test_a_nesting_without_end_is_damaged(self) -> None:
        with pytest.raises(Damaged):
            parsed(b'{"jobs": [' + b"[" * 200_000)

    def test_an_entry_without_end_is_damaged_long_before_the_memory_is_full(self) -> None:
        parser = Parser(lambda _: None)
        parser.feed(b'{"jobs": [{"name": "')
        with pytest.raises(Damaged, match="more than"):
            for _ in range(64):
                parser.feed(b"x" * (1 << 20))

    def test_whatever_is_an_entry_is_taken(self) -> None:
        assert parsed(b'{"jobs": [1, null, "a", [2], {"b": 3}, NaN]}') == [1, None, "a", [2], {"b": 3}, None]

    def test_control_characters_and_what_is_no_utf_8_stay_as_they_are(self) -> None:
        assert parsed(b'{"jobs": ["a\x1b\n\xff", "\\ud800"]}') == ["a\x1b\n\udcff", "\ud800"]

    @given(st.lists(JSON_VALUES, max_size=6), st.integers(1, 40))
    def test_in_any_pieces_it_is_the_same(self, jobs: list[object], size: int) -> None:
        before = sacct._CHUNK
        try:
            # a step after every piece
            sacct._CHUNK = 1
            assert parsed(document(jobs), size) == json.loads(json.dumps(jobs))
        finally:
            sacct._CHUNK = before

    def test_only_what_is_not_yet_whole_is_kept(self) -> None:
        entry = json.dumps({"name": "x" * 1000})
        parser = Parser(lambda _: None)
        parser.feed(b'{"jobs": [')
        for _ in range(200):
            parser.feed((",\n".join([entry] * 50) + ",\n").encode())
        assert parser.entries > 9000
        assert len(parser._text) <= 2000
        assert sum(map(len, parser._pieces)) <= sacct._CHUNK


class TestFile:
    def test_it_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="No such file"):
            sacct.read(str(tmp_path / "none.json"), lambda _: None)

    def test_it_is_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            sacct.read(str(tmp_path), lambda _: None)

    def test_there_can_be_no_such_name(self) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            sacct.read("a\0b", lambda _: None)

    def test_the_damaged_entry_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "jobs.json"
        path.write_text('{"jobs": [{}, {}, {"a" 1}]}')
        with pytest.raises(ConfigError, match=r"at its entry 3: .*delimiter"):
            sacct.read(str(path), lambda _: None)

    def test_what_the_reader_of_an_entry_raises_is_no_fault_of_the_file(self, tmp_path: Path) -> None:
        def take(_: object) -> None:
            raise BrokenPipeError

        path = tmp_path / "jobs.json"
        path.write_bytes(document([{}]))
        with pytest.raises(BrokenPipeError):
            sacct.read(str(path), take)


class TestDatabase:
    @pytest.fixture
    def slurm_bin(self, tmp_path: Path) -> Path:
        return tmp_path

    def program(self, slurm_bin: Path, body: str) -> None:
        path = slurm_bin / "sacct"
        path.write_text(f'#!/bin/sh\necho "$TZ $*" >> {slurm_bin}/calls\n{body}\n')
        path.chmod(0o755)

    def answers(self, slurm_bin: Path, *answers: list[Any]) -> None:
        """One answer for each call, in turn; then no jobs."""
        for number, jobs in enumerate(answers, 1):
            (slurm_bin / f"{number}.json").write_bytes(document(list(jobs)))
        (slurm_bin / "none.json").write_bytes(document([]))
        (slurm_bin / "calls").write_text("")
        self.program(slurm_bin, f"cd {slurm_bin}; n=$(wc -l < calls); [ -e $n.json ] || n=none; exec cat $n.json")

    def parts(self, slurm_bin: Path) -> list[int]:
        """The seconds that each call was about, which together are the whole time without a gap."""
        times = [re.findall(r"time=(\S+)", line) for line in (slurm_bin / "calls").read_text().splitlines()]
        for before, after in itertools.pairwise(times):
            assert before[1] == after[0]
        assert len(times[-1]) == 1, "the last one goes on until now"
        starts = [calendar.timegm(time.strptime(each[0], "%Y-%m-%dT%H:%M:%S")) for each in times]
        return [after - before for before, after in itertools.pairwise([*starts, int(NOW)])]

    def asked(self, slurm_bin: Path, days: int) -> list[Any]:
        found: list[Any] = []
        sacct.ask(str(slurm_bin), days, found.append, NOW)
        return found

    def test_it_fails(self, slurm_bin: Path) -> None:
        self.program(slurm_bin, "echo 'slurmdbd: Connection refused' >&2; exit 1")
        with pytest.raises(BackendUnavailable, match="Connection refused"):
            self.asked(slurm_bin, 1)

    def test_it_is_not_there(self, slurm_bin: Path) -> None:
        with pytest.raises(BackendUnavailable):
            self.asked(slurm_bin, 1)

    def test_it_fails_after_some_jobs(self, slurm_bin: Path) -> None:
        self.program(slurm_bin, """printf '{"jobs": [{"job_id": 1}'; exit 3""")
        with pytest.raises(BackendUnavailable):
            self.asked(slurm_bin, 1)

    def test_it_is_cut_short(self, slurm_bin: Path) -> None:
        self.program(slurm_bin, """printf '{"jobs": [{"job_id": 1}'""")
        with pytest.raises(BackendUnavailable, match="cannot be read"):
            self.asked(slurm_bin, 1)

    def test_it_writes_something_else(self, slurm_bin: Path) -> None:
        self.program(slurm_bin, "echo Slurm accounting storage is disabled")
        with pytest.raises(BackendUnavailable, match="cannot be read"):
            self.asked(slurm_bin, 1)

    def test_it_does_not_end(self, slurm_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sacct, "ASK_TIMEOUT", 0.3)
        self.program(slurm_bin, "sleep 600")
        with pytest.raises(BackendUnavailable, match="did not end"):
            self.asked(slurm_bin, 1)

    def test_it_is_asked_in_utc(self, slurm_bin: Path) -> None:
        self.answers(slurm_bin)
        self.asked(slurm_bin, 2)
        first, *_, last = (slurm_bin / "calls").read_text().splitlines()
        options = "UTC --json=v0.0.42 --allusers --allocations "
        assert first == options + "--starttime=2026-11-19T22:26:40 --endtime=2026-11-19T23:26:40"
        assert last.startswith(options)
        assert "--endtime" not in last

    def test_few_jobs_are_asked_for_by_the_day(self, slurm_bin: Path) -> None:
        self.answers(slurm_bin)
        self.asked(slurm_bin, 30)
        parts = self.parts(slurm_bin)
        assert sum(parts) == 30 * sacct.DAY
        assert max(parts) == sacct.DAY
        assert len(parts) < 40

    def test_many_jobs_are_asked_for_in_short_parts(self, slurm_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sacct, "MANY", 10)
        jobs = [{"job_id": number, "time": {"end": 1}} for number in range(11)]
        self.answers(slurm_bin, *[jobs] * 8)
        assert len(self.asked(slurm_bin, 1)) == 88
        assert self.parts(slurm_bin)[:8] == [3600, 1800, 900, 450, 300, 300, 300, 300]

    def test_jobs_that_are_told_again_are_no_reason_for_shorter_parts(
        self, slurm_bin: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sacct, "MANY", 10)
        running = [{"job_id": number, "time": {"end": 0}} for number in range(100)]
        new = [{"job_id": number, "time": {"end": 1}} for number in range(1000, 1020)]
        self.answers(slurm_bin, running, *[[*running, *new]] * 3)
        assert len(self.asked(slurm_bin, 1)) == 160
        assert self.parts(slurm_bin)[:4] == [3600, 1800, 1800, 1800]

    def test_a_job_of_two_parts_is_told_once(self, slurm_bin: Path) -> None:
        border = int(NOW) - sacct.DAY + sacct.FIRST
        short = {"job_id": 1, "cluster": "c", "time": {"end": border - 1}}
        exact = {"job_id": 4, "cluster": "c", "time": {"end": border}}
        long = {"job_id": 2, "cluster": "c", "time": {"end": border + 5}}
        waits = {"job_id": 3, "cluster": "c", "time": {"end": 0}}
        other = {"job_id": 2, "cluster": "d", "time": {"end": border + 5}}
        self.answers(slurm_bin, [short, exact, long, waits], [exact, long, waits, other], [waits])
        assert self.asked(slurm_bin, 1) == [short, exact, long, waits, other]

    @pytest.mark.parametrize("entry", [1, None, [], {"time": 5}, {"time": {"end": "x"}}, {"job_id": {"a": [1]}}])
    def test_no_entry_stops_it(self, slurm_bin: Path, entry: Any) -> None:
        self.answers(slurm_bin, [entry])
        assert self.asked(slurm_bin, 2) == [entry]

    def test_a_large_answer_is_not_held(self, slurm_bin: Path) -> None:
        self.program(
            slurm_bin,
            """printf '{"jobs": ['; i=0; while [ $i -lt 300 ]; do printf '{"name": "%01000d"},' $i; i=$((i+1)); done
            printf '{}]}'""",
        )
        assert len(self.asked(slurm_bin, 1)) % 301 == 0


def test_the_form_is_named() -> None:
    assert re.fullmatch(r"--json=v0\.0\.\d\d", sacct.JSON)
