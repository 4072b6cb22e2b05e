"""The door for processes: what it refuses, what it never tells, and that a deadline kills the whole group."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from conf.errors import InternalError
from keys import process
from keys.process import MAX_OUTPUT, ProcessError, ProcessTimeout, ProgramMissing, program, run
from keys.secret import Secret

PYTHON = sys.executable


def python(code: str, **options: object) -> process.Completed:
    options.setdefault("timeout", 20.0)
    return run([PYTHON, "-IS", "-c", code], **options)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie (in a container nobody may reap an orphan)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestRefused:
    @pytest.mark.parametrize("argv", [[], "/bin/true", ["true"], ["./true"], [""]])
    def test_anything_but_a_list_with_an_absolute_path(self, argv: list[str]) -> None:
        with pytest.raises(ProcessError):
            run(argv, timeout=5)

    @pytest.mark.parametrize("timeout", [0, -1.0])
    def test_without_time_nothing_is_started(self, timeout: float, tmp_path: Path) -> None:
        with pytest.raises(ProcessTimeout):
            run([program("touch"), str(tmp_path / "x")], timeout=timeout)
        assert not (tmp_path / "x").exists()

    def test_a_program_that_is_not_there(self) -> None:
        with pytest.raises(ProcessError, match="could not be started"):
            run(["/nonexistent/program"], timeout=5)

    @pytest.mark.parametrize("name", ["", "../bin/true", "/bin/true", "a\0b", "no-such-program-at-all"])
    def test_names_that_are_no_program(self, name: str) -> None:
        with pytest.raises(ProgramMissing):
            program(name)


class TestProgram:
    @pytest.fixture(autouse=True)
    def _elsewhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(process, "SEARCH_PATH", (str(tmp_path),))
        program.cache_clear()
        tmp_path.chmod(0o755)
        (tmp_path / "tool").write_text("#!/bin/sh\n")
        (tmp_path / "tool").chmod(0o755)

    @pytest.fixture(autouse=True)
    def _cache(self) -> object:
        yield
        program.cache_clear()

    @pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
    def test_writable_by_others(self, mode: int, tmp_path: Path) -> None:
        (tmp_path / "tool").chmod(mode)
        with pytest.raises(ProgramMissing, match="can be changed"):
            program("tool")

    def test_of_another_owner(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(tmp_path / "tool", 12345, 0)
        with pytest.raises(ProgramMissing, match="can be changed"):
            program("tool")

    def test_directory_writable_by_others(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        with pytest.raises(ProgramMissing, match="can be changed"):
            program("tool")

    def test_behind_a_symlink_the_target_counts(self, tmp_path: Path) -> None:
        (tmp_path / "loose").write_text("#!/bin/sh\n")
        (tmp_path / "loose").chmod(0o777)
        (tmp_path / "link").symlink_to(tmp_path / "loose")
        with pytest.raises(ProgramMissing):
            program("link")

    def test_only_what_root_owns(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            assert program("tool") == str(tmp_path / "tool")
        else:
            with pytest.raises(ProgramMissing):
                program("tool")


class TestFailure:
    def test_exit_code_and_last_line(self) -> None:
        with pytest.raises(ProcessError, match=r"failed with exit code 7: the last words$") as caught:
            python("import sys; print('first', file=sys.stderr); print('the last words', file=sys.stderr); sys.exit(7)")
        assert caught.value.returncode == 7
        assert caught.value.stderr == "the last words"
        assert isinstance(caught.value, InternalError)

    def test_allowed_codes_are_no_failure(self) -> None:
        assert python("import sys; sys.exit(5)", allowed=(0, 5)).returncode == 5

    def test_killed_by_a_signal(self) -> None:
        with pytest.raises(ProcessError, match="killed by signal 9") as caught:
            python("import os; os.kill(os.getpid(), 9)")
        assert caught.value.returncode == -9

    def test_the_complaint_is_printable_and_short(self) -> None:
        with pytest.raises(ProcessError) as caught:
            python("import sys; sys.stderr.write('\\x1b[31m' + 'x' * 5000); sys.exit(1)")
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 500

    @pytest.mark.parametrize("code", ["import sys; sys.stdin.buffer.read(); sys.exit(3)", "import sys; sys.exit(3)"])
    def test_the_input_is_never_told(self, code: str) -> None:
        with pytest.raises(ProcessError) as caught:
            python(code, input=Secret(b"hunter2-hunter2"))
        error: BaseException | None = caught.value
        while error is not None:
            assert "hunter2" not in repr(error) + str(error) + str(getattr(error, "stderr", ""))
            error = error.__cause__ or error.__context__

    def test_too_much_output_is_an_error_and_not_cut_short(self) -> None:
        with pytest.raises(ProcessError, match="more than"):
            python(f"print('x' * {MAX_OUTPUT + 10})")

    def test_too_many_complaints_are_dropped(self) -> None:
        done = python("import sys; [sys.stderr.write('y' * 1000 + '\\n') for _ in range(300)]; sys.stderr.write('end')")
        assert len(done.stderr) <= MAX_OUTPUT
        assert done.stderr.endswith(b"end")


class TestDeadline:
    def test_the_whole_group_is_killed(self, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        code = (
            "import os, time\n"
            "pid = os.fork()\n"
            f"if pid: open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{pid}}')\n"
            "time.sleep(600)\n"
        )
        with pytest.raises(ProcessTimeout, match="did not end within") as caught:
            python(code, timeout=3.0)
        assert caught.value.returncode is None
        pids = [int(word) for word in note.read_text().split()]
        assert len(pids) == 2
        for _ in range(100):
            if not any(alive(pid) for pid in pids):
                break
            time.sleep(0.05)
        assert not any(alive(pid) for pid in pids)

    def test_a_child_left_in_the_background_is_not_waited_for(self) -> None:
        code = "import os, time\nif os.fork() == 0: os.setsid(); time.sleep(60)\nelse: os.write(1, b'42\\n')"
        done = python(code)
        assert done.returncode == 0
        assert done.stdout == b"42\n"

    @pytest.mark.parametrize("code", ["import time; time.sleep(600)", "import sys; sys.exit(1)", "pass"])
    def test_a_secret_can_be_wiped_while_the_failure_is_handled(self, code: str) -> None:
        """No view of it may be left in a frame that the exception still holds."""
        secret = Secret(b"x" * 1_000_000)
        try:
            python(code, input=secret, timeout=2.0)
        except ProcessError:
            secret.wipe()
        secret.wipe()
        assert len(secret) == 0

    def test_told_to_stop(self) -> None:
        asked: list[int] = []

        def stop() -> bool:
            asked.append(1)
            return len(asked) > 3

        with pytest.raises(ProcessTimeout, match="was stopped"):
            python("import time; time.sleep(600)", stop=stop)

    def test_a_budget_is_one_for_all(self) -> None:
        budget = process.Budget(0.0)
        assert budget.left() == 0.0
        with pytest.raises(ProcessTimeout, match="no time is left"):
            budget.run([PYTHON, "-c", "pass"], cap=60)
        with pytest.raises(ProcessTimeout, match=r"within 0\.5 s"):
            process.Budget(600).run([PYTHON, "-c", "import time; time.sleep(60)"], cap=0.5)

    def test_one_that_reads_no_input(self) -> None:
        with pytest.raises(ProcessTimeout):
            python("import time; time.sleep(600)", input=b"x" * 1_000_000, timeout=1.0)


class TestSurroundings:
    def test_environment_is_built(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LD_PRELOAD_TEST", "evil")
        monkeypatch.setenv("VAULT_TOKEN", "evil")
        done = python("import os; print(sorted(os.environ))", env_extra={"ONE_MORE": "1"})
        names = set(eval(done.stdout))  # noqa: S307
        assert names - {"DM_DISABLE_UDEV", "LC_CTYPE"} == {"PATH", "LC_ALL", "ONE_MORE"}

    @pytest.mark.parametrize("runs", [True, False])
    def test_libdevmapper_waits_for_udevd_only_if_there_is_one(
        self, runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        control = tmp_path / "control"
        if runs:
            control.touch()
        monkeypatch.setattr(process, "_UDEV_CONTROL", str(control))
        assert ("DM_DISABLE_UDEV" in process.environment()) is not runs

    def test_directory_input_and_group(self) -> None:
        code = "import os, stat; print(os.getcwd(), os.getpgrp() == os.getpid(), stat.S_ISCHR(os.fstat(0).st_mode))"
        assert python(code).stdout == b"/ True True\n"

    def test_no_other_file_is_passed_on(self, tmp_path: Path) -> None:
        with (tmp_path / "open").open("w") as held:
            os.set_inheritable(held.fileno(), True)
            done = python(f"import os\ntry: os.fstat({held.fileno()}); print('open')\nexcept OSError: print('closed')")
        assert done.stdout == b"closed\n"

    @pytest.mark.parametrize("data", [b"", b"abc", memoryview(b"abc"), Secret(b"abc"), os.urandom(400_000)])
    def test_input_arrives_whole(self, data: bytes | memoryview | Secret) -> None:
        done = python("import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())", input=data)
        import hashlib

        expected = data.reveal() if isinstance(data, Secret) else data
        assert done.stdout.decode().strip() == hashlib.sha256(expected).hexdigest()

    def test_input_that_nobody_reads_is_no_failure(self) -> None:
        assert python("import os; os.close(0)", input=b"x" * 500_000).returncode == 0

    def test_system_programs_are_found(self) -> None:
        path = program("sh")
        assert path.startswith("/")
        assert stat.S_ISREG(Path(path).stat().st_mode)


class TestSink:
    def test_it_takes_all_and_nothing_is_kept(self) -> None:
        taken: list[bytes] = []
        code = f"import sys; sys.stdout.write('x' * {MAX_OUTPUT * 4}); sys.stderr.write('y')"
        done = python(code, sink=taken.append)
        assert len(b"".join(taken)) == MAX_OUTPUT * 4
        assert (done.stdout, done.stderr) == (b"", b"y")

    def test_what_it_raises_ends_the_program(self, tmp_path: Path) -> None:
        def take(_: bytes) -> None:
            raise LookupError

        pid = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
        code = f"import os, time; {pid}; print(1, flush=True); time.sleep(60)"
        with pytest.raises(LookupError):
            python(code, sink=take)
        assert not alive(int((tmp_path / "pid").read_text()))

    def test_a_failure_is_one_all_the_same(self) -> None:
        with pytest.raises(ProcessError, match="exit code 3"):
            python("print(1); raise SystemExit(3)", sink=lambda _: None)
