"""The script is found without knowing the scheduler's options, and nothing that sbatch reads is consumed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.errors import UsageError
from submit import script


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "job.sh").write_text("#!/bin/sh\n#SECURE --class=phi\n")
    (tmp_path / "other.sh").write_text("#!/bin/sh\n")
    (tmp_path / "data.csv").write_text("a,b\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "inpath").write_text("#!/bin/sh\n")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["job.sh"], 0),
        (["-N", "2", "job.sh", "other.sh"], 2),
        (["-N2", "--mem=1G", "job.sh"], 2),
        (["-J", "name", "./job.sh"], 2),
        (["--", "job.sh"], 1),
        (["-p", "inpath", "job.sh"], 2),  # a file that is here comes before a program that bears a value's name
        (["-N", "2", "inpath"], 2),
        # not scripts, or beyond where a script can be
        (["data.csv"], None),
        (["data.csv", "job.sh"], None),
        (["-N", "2", "data.csv", "job.sh"], None),
        (["folder"], None),
        (["fifo"], None),
        (["missing.sh"], None),
        (["bad\0name"], None),
        ([""], None),
        ([], None),
        # sbatch makes the script itself
        (["--wrap", "./job.sh"], None),
        (["--wrap=hostname", "job.sh"], None),
        (["--wra", "./job.sh"], None),
        (["-N", "2", "--wrap", "./job.sh"], None),
    ],
)
def test_guess(words: list[str], found: int | None) -> None:
    assert script.guess(words).script == found


def test_wait_is_not_wrap() -> None:
    assert script.guess(["--wait", "job.sh"]).script == 1


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["hostname", "--extra=x"], 0),
        (["-n", "2", "hostname", "--extra=x"], 1 + 1),
        (["-n2", "hostname", "--extra=x"], 1),
        (["--mem=1G", "hostname"], 1),
        (["--mem", "1G"], 2),
        (["--exclusive", "hostname", "--extra=x"], 3),  # hostname may be an option's value
        (["--", "hostname"], 1),
        (["-"], 0),
    ],
)
def test_where_options_certainly_end(words: list[str], end: int) -> None:
    assert script.options_end(words) == end


@pytest.mark.parametrize(
    ("options", "sets"),
    [(["--extra", "x"], True), (["--extra=x"], True), (["--extra-node-info=1"], False), (["-J", "extra"], False)],
)
def test_an_extra_of_the_users_own(options: list[str], sets: bool) -> None:
    assert script.sets_extra(options) is sets


@pytest.fixture
def stdin() -> Iterator[None]:
    saved = os.dup(0)
    yield
    os.dup2(saved, 0)
    os.close(saved)


@pytest.mark.usefixtures("stdin")
def test_a_plain_file_on_stdin_keeps_its_offset(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"skipped\n#!/bin/sh\n")
    fd = os.open(tmp_path / "in", os.O_RDONLY)
    os.lseek(fd, 8, os.SEEK_SET)
    os.dup2(fd, 0)
    os.close(fd)
    assert script.read_stdin() == b"#!/bin/sh\n"
    assert os.read(0, 100) == b"#!/bin/sh\n"


def _pipe(data: bytes) -> None:
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            while data:
                data = data[os.write(send, data) :]
        finally:
            os._exit(0)
    os.close(send)
    os.dup2(receive, 0)
    os.close(receive)


@pytest.mark.usefixtures("stdin")
def test_a_pipe_is_handed_on_whole() -> None:
    text = b"#!/bin/sh\n#SECURE --class=phi\n" + b"#" * 200_000
    _pipe(text)
    assert script.read_stdin() == text
    assert os.get_inheritable(0)
    with os.fdopen(os.dup(0), "rb") as again:
        assert again.read() == text


@pytest.mark.usefixtures("stdin")
def test_a_pipe_without_end_is_refused() -> None:
    _pipe(b"#" * (script.SCRIPT_LIMIT + 1))
    with pytest.raises(UsageError, match="longer than"):
        script.read_stdin()


@pytest.mark.usefixtures("stdin")
def test_devices_and_closed_stdin_are_left_alone() -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    assert script.read_stdin() == b""
    os.close(0)
    assert script.read_stdin() == b""
