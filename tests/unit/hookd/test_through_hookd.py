"""The stubs and a real hook server: what passes between them, and that nothing depends on the server but time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from slurm_hooks.hookrequest import FIXED, NAMES
from tests.unit.hookd.conftest import JOB, PYTHON, World

SHELLS = ["sh", *filter(None, [shutil.which("bash")])]
HOOKS = ("prolog", "epilog")


def given(hook: str) -> dict[str, str]:
    return {**FIXED, **{name: JOB[name] for name in NAMES[hook]}}


class TestServed:
    @pytest.mark.parametrize("shell", SHELLS)
    @pytest.mark.parametrize("hook", HOOKS)
    def test_the_server_runs_the_hook_as_python_would_be_started(self, world: World, hook: str, shell: str) -> None:
        world.start()
        hostile = {"LD_PRELOAD": "", "PYTHONPATH": "/x", "SLURM_JOB_NAME": "x", "begun": "1", "slot": "/x", "hook": "x"}
        code, out, err = world.run(hook, {**JOB, **hostile}, shell)
        assert (code, out) == (0, b"on stdout of 17\n")
        assert err == b"on stderr: a\\n  b $(x) *\n"
        assert world.ran(hook) == given(hook)
        assert (world.folder / "state").read_text().startswith("/ 0077 ")
        assert not (world.folder / "environ").exists()

    @pytest.mark.parametrize("hook", HOOKS)
    def test_its_exit_status_is_the_stubs(self, world: World, hook: str) -> None:
        world.start()
        assert world.run(hook, SLURM_JOB_ID="11")[0] == 1
        code, _, err = world.run(hook, SLURM_JOB_ID="13")
        assert code == 1
        assert b"ValueError: unlucky" in err

    @pytest.mark.parametrize(
        "value",
        [
            "secure-slurm '; touch {c}; '", "secure-slurm $(touch {c}) `touch {c}` *", "secure-slurm\nexit 17 1 0\nx",
            "secure-slurm \\000 \\n %s %d \\c", "secure-slurm \x1b[2J\x7f\udcff ñ", "-n secure-slurm=a=b",
            "secure-slurm " + "x" * 12_000,
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("shell", SHELLS)
    def test_a_users_text_arrives_as_it_is(self, world: World, value: str, shell: str) -> None:
        world.start()
        text = value.replace("{c}", f"{world.folder}/canary")
        assert world.run("prolog", JOB, shell, SLURM_JOB_EXTRA=text)[0] == 0
        assert world.ran() == {**given("prolog"), "SLURM_JOB_EXTRA": text}
        assert not (world.folder / "canary").exists()

    def test_each_process_serves_once(self, world: World) -> None:
        world.start()
        before = {path.name for path in world.ready()}
        first = [world.run()[0], world.worker()]
        (world.folder / "state").unlink()
        assert [first[0], world.run()[0]] == [0, 0]
        assert world.worker() != first[1]
        world.until(lambda: len({path.name for path in world.ready()} - before) >= 2)

    def test_many_at_once_each_get_their_own_answer(self, world: World) -> None:
        world.start()
        stubs = {job: world.stub("epilog", SLURM_JOB_ID=str(job)) for job in range(1000, 1012)}
        served = 0
        for job, stub in stubs.items():
            out, _ = stub.communicate(timeout=60)
            # more than are ready: the others start Python
            assert (stub.returncode, out) in ((0, f"on stdout of {job}\n".encode()), (PYTHON, b""))
            served += stub.returncode == 0
        assert served

    def test_nobody_else_can_reach_it(self, world: World) -> None:
        world.start()
        assert stat.S_IMODE(world.door.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in world.door.iterdir())

    def test_nothing_is_left_in_the_folder(self, world: World) -> None:
        world.start()
        for _ in range(3):
            world.run()
        world.until(lambda: not list(world.door.glob("*.mine")))
        assert world.stop() == 0
        world.until(lambda: {path.name for path in world.door.iterdir()} <= {"lock"})


class TestWithoutAServer:
    """The stub starts Python, with the same environment and no descriptor more than it had."""

    def falls_back(self, world: World, hook: str = "prolog", **more: str) -> None:
        assert world.run(hook, **more)[0] == PYTHON
        pairs = os.fsdecode((world.folder / "environ").read_bytes()).split("\0")[:-1]
        assert dict(pair.split("=", 1) for pair in pairs) == {**given(hook), **more}
        assert not {"3", "4"} & set((world.folder / "fds").read_text().split())

    @pytest.mark.parametrize("hook", HOOKS)
    def test_that_never_was(self, world: World, hook: str) -> None:
        self.falls_back(world, hook)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_that_has_ended(self, world: World, number: int) -> None:
        world.start()
        world.stop(number)
        world.until(lambda: not world.ready())
        self.falls_back(world)
        assert world.ran() is None

    def test_that_left_its_fifos(self, world: World) -> None:
        """As after the end of all its processes at once: nobody is there to remove them, or to answer."""
        world.start()
        processes = [path.name.partition("-")[0] for path in world.ready()]
        assert world.server is not None
        os.kill(world.server.pid, signal.SIGSTOP)
        for each in processes:
            os.kill(int(each), signal.SIGKILL)
        self.falls_back(world)
        assert world.ready()

    def test_whose_fifos_are_in_the_hands_of_the_dead_or_of_nobody(self, world: World) -> None:
        world.door.mkdir(mode=0o700)
        for name in ("1-a.ask", "1-a.say", f"{os.getpid()}-b.ask", f"{os.getpid()}-b.say"):
            os.mkfifo(world.door / name, 0o600)
        for _ in range(3):
            self.falls_back(world)

    def test_whose_installed_part_is_missing(self, world: World) -> None:
        world.start()
        (world.folder / "hooks/hookd.sh").unlink()
        self.falls_back(world)
        assert world.ran() is None

    def test_for_more_than_a_pipe_holds(self, world: World) -> None:
        world.start()
        self.falls_back(world, SLURM_JOB_NODELIST="n" * 60_000)
        assert world.ran() is None

    @pytest.mark.parametrize("job", ["", "x", "0", "1 2", "17\nbegun"])
    def test_for_what_is_no_job(self, world: World, job: str) -> None:
        world.start()
        self.falls_back(world, SLURM_JOB_ID=job)
        assert world.ran() is None

    def test_while_all_its_processes_are_busy(self, world: World) -> None:
        world.start()
        (world.folder / "wait").touch()
        busy = [world.stub() for _ in range(4)]
        world.until(lambda: not world.ready() or len(list(world.door.glob("*.mine"))) >= 4)
        for path in world.ready():
            (path.with_suffix(".mine")).touch()
        self.falls_back(world)
        (world.folder / "wait").unlink()
        for stub in busy:
            stub.communicate(timeout=60)
            assert stub.returncode == 0

    @pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="a mount namespace needs root")
    def test_in_another_mount_namespace(self, world: World) -> None:
        world.start()
        done = subprocess.run(
            ["unshare", "-m", "sh", str(world.folder / "hooks/prolog")], env={**JOB, "PATH": "/usr/bin:/bin"},
            check=False, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == PYTHON
        assert world.ran() is None


class TestAnotherVersion:
    @pytest.mark.parametrize("how", ["replaced", "changed", "gone"])
    def test_is_noticed_at_the_next_hook(self, world: World, how: str) -> None:
        world.start()
        if how == "gone":
            world.source.unlink()
        elif how == "changed":
            world.source.write_text("# the second version\n")
        else:
            shutil.copy2(world.source, world.folder / "new")
            (world.folder / "new").rename(world.source)
        assert world.run()[0] == PYTHON
        assert world.ran() is None
        assert world.server is not None
        # in its own main() it starts itself anew
        assert world.server.wait(30) == 7

    def test_a_second_server_does_not_take_over(self, world: World) -> None:
        world.start()
        first = world.server
        world.start()
        assert world.server is not None
        assert world.server.wait(30) == 1
        world.server = first
        assert world.run()[0] == 0


class TestDeath:
    def test_of_the_server_in_the_middle_changes_nothing(self, world: World) -> None:
        world.start()
        (world.folder / "wait").touch()
        stub = world.stub()
        world.worker()
        world.stop(signal.SIGKILL)
        (world.folder / "wait").unlink()
        out, _ = stub.communicate(timeout=60)
        assert (stub.returncode, out) == (0, b"on stdout of 17\n")

    def test_a_new_server_starts_while_a_hook_of_the_old_one_runs(self, world: World) -> None:
        world.start()
        (world.folder / "wait").touch()
        stub = world.stub()
        world.worker()
        world.stop(signal.SIGKILL)
        world.until(lambda: not world.ready())
        world.start()
        (world.folder / "wait").unlink()
        stub.communicate(timeout=60)
        assert stub.returncode == 0
        assert world.run()[0] == 0

    def test_of_the_process_ends_a_prolog_as_a_killed_one(self, world: World) -> None:
        world.start()
        code, _, err = world.run(SLURM_JOB_ID="99")
        assert code == 1
        assert b"has died" in err
        assert not (world.folder / "environ").exists()

    def test_of_the_process_has_an_epilog_begun_again(self, world: World) -> None:
        world.start()
        code, _, err = world.run("epilog", SLURM_JOB_ID="99")
        assert code == PYTHON
        assert b"has died" in err

    def test_of_the_stub_is_that_of_its_prolog(self, world: World) -> None:
        world.start()
        (world.folder / "wait").touch()
        stub = world.stub()
        process = world.worker()
        stub.kill()
        stub.communicate(timeout=60)
        world.until(lambda: not Path(f"/proc/{process}").exists())
        (world.folder / "wait").unlink()
        assert world.run(SLURM_JOB_ID="18")[0] == 0

    def test_of_the_stub_leaves_an_epilog_to_finish(self, world: World) -> None:
        world.start()
        (world.folder / "wait").touch()
        stub = world.stub("epilog")
        process = world.worker()
        stub.kill()
        stub.communicate(timeout=60)
        assert Path(f"/proc/{process}").exists()
        (world.folder / "wait").unlink()
        world.until(lambda: not Path(f"/proc/{process}").exists())

    def test_a_process_that_stands_still_before_it_begins_is_ended(self, world: World) -> None:
        world.start()
        stopped = [int(path.name.partition("-")[0]) for path in world.ready()]
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        assert world.run()[0] == PYTHON
        assert world.ran() is None
        assert world.stop() == 0
        for process in stopped:
            # the others would stand still for ever: nobody asked for them
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def test_a_claim_that_nobody_follows_up_is_taken_back(self, world: World) -> None:
        world.start()
        before = world.ready()
        for path in before:
            path.with_suffix(".mine").touch()
        world.until(lambda: world.ready() and not set(before) & set(world.ready()))
        assert world.run()[0] == 0
