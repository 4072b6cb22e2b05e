"""The reaper on real nodes.

What no job has any more goes, within a minute and with a line in the audit trail; what lives is never touched, whatever
Slurm says or does not say.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_hooks.steps import running_steps
from tests.testbed import settings
from tests.testbed.cluster import SLURMCTLD, Cluster
from tests.testbed.nodes import on_node, slurmd_pid
from tests.testbed.people import BIN, TRIES

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
REAPER = f"{settings.PREFIX}/hooks/reaper"
STATE = "/var/lib/secure-slurm/node-n1"
HOOKS = Path(settings.PREFIX) / "hooks"
# what a user's job cannot have
NOBODY = 999_001


def reap(*words: str, node: str = "n1") -> dict[int, dict[str, Any]]:
    """``secure-slurm node reap`` on the node: job to outcome."""
    text = on_node(node, [f"{BIN}/secure-slurm", "node", "reap", "--node", node, "--json", *words], check=False)
    return {each["job"]: each for each in json.loads(text)["jobs"]}


def reap_kind(job: int, *words: str) -> str:
    """What became of a job; asked again where Slurm had no answer, as one that is busy has none within 10 s."""
    for _ in range(TRIES):
        outcome = reap(*words).get(job)
        if outcome is None or outcome["kind"] != "silent":
            break
    return outcome["kind"] if outcome else "nothing"


def healed(cluster: Cluster, job: int, since: int = 0, *, node: str = "n1") -> list[dict[str, Any]]:
    """What the node's trail says of the reaper and this job."""
    text = cluster.tool("audit", "show", "--json", f"{settings.LOG}/node-{node}").stdout
    return [e for e in json.loads(text) if e["event"] == "reaper.healed" and e.get("job") == job and e["seq"] > since]


def gone_told(cluster: Cluster, job: int) -> bool:
    """Whether the node's trail says that nothing is left of it, which ``audit verify`` and certificates go by."""
    text = cluster.tool("audit", "show", "--json", "--job", str(job), f"{settings.LOG}/node-n1").stdout
    return any(line["event"] == "scratch.gone" for line in json.loads(text))


def on_node_left(job: int, left: dict[str, list[str]]) -> dict[str, list[str]]:
    return {kind: what for kind, what in left.items() if kind not in ("keys", "grants") and what}


@contextlib.contextmanager
def replaced(cluster: Cluster, hook: str, text: str) -> Iterator[None]:
    """Another text in the place of a hook's stub."""
    path = HOOKS / hook
    before = path.read_text()
    cluster.write(path, text, mode=0o755)
    try:
        yield
    finally:
        cluster.write(path, before, mode=0o755)


@contextlib.contextmanager
def no_slurmctld(cluster: Cluster) -> Iterator[None]:
    """slurmctld ended, and started again from its saved state.

    Not killed: then it may come back with a state from before the job, and gives out its number again.
    """
    cluster.command(["pkill", "-f", SLURMCTLD], check=False)
    cluster.until(lambda: cluster.command(["pgrep", "-f", SLURMCTLD], check=False).returncode != 0, "slurmctld to end")
    cluster.until(lambda: "DOWN" in cluster.command(["scontrol", "ping"], check=False).stdout, "slurmctld to be away")
    try:
        yield
    finally:
        cluster.command(["slurmctld"])
        cluster.until(lambda: "UP" in cluster.command(["scontrol", "ping"], check=False).stdout, "slurmctld")


@contextlib.contextmanager
def changed(cluster: Cluster, section: str, name: str, value: object) -> Iterator[None]:
    """Something else in what the hooks read of the configuration."""
    hooks = Path(f"{settings.ETC}/hooks.json")
    before = hooks.read_text()
    config = json.loads(before)
    config[section][name] = value
    cluster.write(hooks, json.dumps(config))
    try:
        yield
    finally:
        cluster.write(hooks, before)


@contextlib.contextmanager
def lying(cluster: Cluster, script: str) -> Iterator[None]:
    """The node's scontrol replaced by way of ``slurm_bin``; nothing else of Slurm is."""
    folder = Path("/opt/lying")
    folder.mkdir(exist_ok=True)
    cluster.write(folder / "scontrol", script, mode=0o755)
    with changed(cluster, "cluster", "slurm_bin", str(folder)):
        yield


def mapping_of_ours(job: int, name: str = "") -> str:
    """A mapping as set-up makes it, on a backing file in the node's own folder, with nobody who knows of it."""
    file = f"/var/lib/secure-slurm/scratch/n1-{job}.img"
    name = name or f"secure-n1-{job}"
    script = (
        f"truncate -s 32M {file} && chmod 600 {file} && device=$(losetup --find --show {file}) && "
        f"head -c 64 /dev/urandom | cryptsetup open --type plain --batch-mode --cipher aes-xts-plain64 --key-size 512 "
        f"--key-file=- $device {name} && losetup -d $device"
    )
    on_node("n1", ["sh", "-c", script])
    return name


def start(cluster: Cluster, *words: str) -> int:
    job = cluster.submit("alice", *TAG, "-w", "n1", *words)
    cluster.wait_state(job, "RUNNING")
    cluster.until(lambda: cluster.leftovers(job)["task"], f"job {job} to have its scratch", 60)
    return job


@contextlib.contextmanager
def paused_at(step: str) -> Iterator[None]:
    """The Prolog stands still when it has written this step into its journal."""
    module = Path(f"{settings.PREFIX}/lib/keys/journal.py")
    before = module.read_text()
    caches = list(module.parent.glob("__pycache__/journal.*"))
    kept = {cache: cache.read_bytes() for cache in caches}
    changed = before.replace(
        "            self._replace(folder, name, text)\n        return record\n",
        f"            self._replace(folder, name, text)\n        if record.state == {step!r}:\n"
        "            time.sleep(600)\n        return record\n",
    )
    assert changed != before
    for cache in caches:
        cache.unlink()
    module.write_text(changed)
    try:
        yield
    finally:
        module.write_text(before)
        for cache, data in kept.items():
            cache.write_bytes(data)


def prolog_pid() -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"slurm_hooks.prolog import main" in (folder / "cmdline").read_bytes():
                return int(folder.name)
    return 0


def idle_again(cluster: Cluster) -> None:
    """Take back the drain that a killed Prolog rightly was."""
    cluster.command(["scontrol", "update", "NodeName=n1", "State=RESUME"], check=False)
    cluster.wait_idle("n1")


NO_EPILOG = "#!/bin/sh\nexit 0\n"


class TestWithoutAnEpilog:
    def test_it_goes_after_the_second_word_of_slurm_and_the_trail_says_so(self, clean: Cluster) -> None:
        job = start(clean, "--wrap=sleep 600")
        assert Path(f"{STATE}/{job}.json").exists()
        assert reap_kind(job) == "alive"
        with replaced(clean, "epilog", NO_EPILOG):
            clean.command(["scancel", str(job)])
            clean.wait_end(job)
        left = on_node_left(job, clean.leftovers(job))
        assert set(left) == {"mappings", "backing", "loops", "journals", "task"}
        assert reap_kind(job, "--once") in ("young", "suspect")
        assert on_node_left(job, clean.leftovers(job)) == left
        clean.until(lambda: reap_kind(job) == "healed", "the reaper", 60)
        clean.wait_gone(job, 30)
        assert not Path(f"{STATE}/{job}.json").exists()
        (line,) = healed(clean, job)
        assert line["result"] == "gone"
        assert line["key"].startswith(f"n1_test-{job}-")
        assert "CANCELLED" in line["reason"]
        assert f"mapping: secure-n1-{job}" in line["evidence"]
        assert reap_kind(job) == "nothing"
        clean.tool("audit", "verify", settings.LOG)

    def test_the_timers_own_way(self, clean: Cluster) -> None:
        job = start(clean, "--wrap=sleep 600")
        with replaced(clean, "epilog", NO_EPILOG):
            clean.command(["scancel", str(job)])
            clean.wait_end(job)
        on_node("n1", [REAPER, "n1"])
        on_node("n1", [REAPER, "n1"])
        clean.wait_gone(job, 10)
        assert healed(clean, job)

    def test_with_a_shell_of_the_user_in_it(self, clean: Cluster) -> None:
        job = start(clean, "--wrap=sleep 600")
        with replaced(clean, "epilog", NO_EPILOG):
            clean.command(["scancel", str(job)])
            clean.wait_end(job)
            shell = subprocess.Popen(
                ["nsenter", f"--mount=/proc/{slurmd_pid('n1')}/ns/mnt", "setpriv", "--reuid=alice", "--regid=alice",
                 "--init-groups", "sh", "-c", f"cd /secure-scratch/{job} && echo in && exec sleep 600"],
                stdout=subprocess.PIPE,
            )  # fmt: skip
            assert shell.stdout is not None
            assert shell.stdout.readline() == b"in\n"
            clean.until(lambda: reap_kind(job) == "healed", "the reaper", 90)
        assert shell.wait(10) == -signal.SIGKILL
        clean.wait_gone(job, 10)

    def test_an_epilog_afterwards_and_another_change_nothing(self, clean: Cluster) -> None:
        job = start(clean, "--wrap=sleep 600")
        with replaced(clean, "epilog", NO_EPILOG):
            clean.command(["scancel", str(job)])
            clean.wait_end(job)
        environment = {
            "SLURM_JOB_ID": str(job),
            "SLURMD_NODENAME": "n1",
            "SLURM_JOB_UID": "0",
            "SLURM_JOB_EXTRA": "secure-slurm:class=phi",
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        clean.until(lambda: reap_kind(job) == "healed", "the reaper", 90)
        for _ in range(2):
            on_node("n1", ["env", *words, f"{HOOKS}/epilog"])
        clean.wait_gone(job, 10)
        assert len(healed(clean, job)) == 1


def record(job: int) -> dict[str, object] | None:
    try:
        return json.loads(Path(f"{STATE}/{job}.json").read_text())
    except FileNotFoundError:
        return None


def test_the_next_start_of_the_same_job_takes_what_its_first_left(clean: Cluster) -> None:
    job = start(clean, "--wrap=sleep 600")
    first = json.loads(Path(f"{STATE}/{job}.json").read_text())
    with replaced(clean, "epilog", NO_EPILOG):
        clean.command(["scontrol", "requeue", str(job)])
        clean.until(lambda: clean.state(job) == "RUNNING" and clean.facts(job)["restart_cnt"] >= 1, "the start", 300)
        # between the two starts there is no record at all
        clean.until(lambda: record(job) not in (None, first), "its record", 60)
        clean.until(lambda: clean.leftovers(job)["task"], "its scratch", 60)
    (line,) = healed(clean, job)
    assert line["reason"] == "left by an earlier start of the job"
    assert line["incarnation"] == first["incarnation"]
    assert gone_told(clean, job)
    assert reap_kind(job) == "alive"


@pytest.mark.parametrize("step", ["planned", "loop", "filesystem", "ready"])
def test_a_prolog_that_was_killed(clean: Cluster, step: str) -> None:
    with replaced(clean, "epilog", NO_EPILOG):
        with paused_at(step):
            job = clean.submit("alice", *TAG, "-w", "n1", "--wrap=true")
            journal = Path(f"{settings.RUN}/node-n1/journal/{job}.json")
            clean.until(
                lambda: journal.exists() and json.loads(journal.read_text())["state"] == step, f"the step {step}", 60
            )
            assert reap_kind(job, "--once") == "busy"
            before = on_node_left(job, clean.leftovers(job))
            time.sleep(1)
            os.kill(prolog_pid(), signal.SIGKILL)
            clean.until(lambda: clean.state(job) in ("PENDING", "FAILED", "CANCELLED"), "the job to be back", 60)
        with changed(clean, "node", "prolog_deadline", 600):
            assert reap_kind(job, "--once") == "young"
        assert set(on_node_left(job, clean.leftovers(job))) >= set(before) - {"loops"}
        clean.until(lambda: reap_kind(job) == "healed", "the reaper", 60)
        assert not on_node_left(job, clean.leftovers(job))
        assert not Path(f"{STATE}/{job}.json").exists()
        assert healed(clean, job)
    clean.command(["scancel", str(job)], check=False)
    idle_again(clean)
    clean.wait_gone(job, 30)


class TestWithoutAJournal:
    def test_a_mapping_of_ours_that_no_job_has(self, clean: Cluster) -> None:
        name = mapping_of_ours(NOBODY)
        assert reap_kind(NOBODY, "--once") == "suspect"
        assert name in clean.mappings()
        assert reap_kind(NOBODY) == "healed"
        assert not any(clean.leftovers(NOBODY).values())
        (line,) = healed(clean, NOBODY)
        assert "no such job" in line["reason"]

    def test_a_mapping_of_others_is_never_touched(self, clean: Cluster) -> None:
        names = (f"secure-n1-{NOBODY + 1}", "secure-backup", f"secure-n2-{NOBODY + 2}")
        for name in names:
            clean.command(["dmsetup", "create", name, "--table", "0 8192 zero"])
        try:
            before = clean.command(["dmsetup", "ls"]).stdout
            assert reap_kind(NOBODY + 1) == "foreign"
            assert set(reap()) == {NOBODY + 1}
            assert clean.command(["dmsetup", "ls"]).stdout == before
        finally:
            for name in names:
                clean.command(["dmsetup", "remove", name], check=False)


EMPTY = """#!/bin/sh
# a controller that is up, knows the node, and has no answer about any job
case "$*" in
  *ping*) echo 'Slurmctld(primary) at head is UP' ;;
  *node*) exec /usr/bin/scontrol "$@" ;;
  *json*) echo '{"jobs": []}' ;;
  *) %s ;;
esac
"""


class TestWhatIsAlive:
    @pytest.mark.parametrize(
        "script",
        [
            "#!/bin/sh\nexit 0\n",
            "#!/bin/sh\nexit 1\n",
            "#!/bin/sh\nkill -9 $$\n",
            EMPTY % "exit 0",
            EMPTY % "exit 1",
            EMPTY % "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
            EMPTY % "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        ],
        ids=[
            "empty",
            "failing",
            "killed",
            "empty about jobs",
            "failing about jobs",
            "away about jobs",
            "forgot all jobs",
        ],
    )
    def test_a_job_that_runs_whatever_scontrol_says(self, clean: Cluster, script: str) -> None:
        job = start(clean, "--wrap=sleep 600")
        clean.until(lambda: job in running_steps().values(), "its first process")
        before = on_node_left(job, clean.leftovers(job))
        with lying(clean, script):
            assert reap_kind(job) == "alive"
        assert on_node_left(job, clean.leftovers(job)) == before
        assert not healed(clean, job)

    @pytest.mark.parametrize(
        "script", ["#!/bin/sh\nexit 0\n", EMPTY % "exit 0", EMPTY % "exit 1"], ids=["empty", "no jobs", "failing"]
    )
    def test_an_allocation_without_a_process_and_a_slurm_without_an_answer(self, clean: Cluster, script: str) -> None:
        """Nothing of it lives on the node that the kernel could show: Slurm's word alone protects it."""
        done = clean.as_user(
            "alice", ["secure-salloc", *TAG, "-w", "n1", "--no-shell"], env={}, timeout=90
        )  # fmt: skip
        job = int(done.stderr.split("job allocation ")[1].split()[0])
        clean.until(lambda: clean.leftovers(job)["task"], "its scratch", 60)
        before = on_node_left(job, clean.leftovers(job))
        assert reap_kind(job) == "alive"
        with lying(clean, script):
            for _ in range(2):
                assert reap_kind(job) == "silent"
        assert on_node_left(job, clean.leftovers(job)) == before
        assert not healed(clean, job)

    def test_while_slurmctld_is_down_nothing_is_destroyed(self, clean: Cluster) -> None:
        job = clean.as_user("alice", ["secure-salloc", *TAG, "-w", "n1", "--no-shell"], timeout=90)
        number = int(job.stderr.split("job allocation ")[1].split()[0])
        clean.until(lambda: clean.leftovers(number)["task"], "its scratch", 60)
        mapping_of_ours(NOBODY + 4)
        with no_slurmctld(clean):
            for _ in range(2):
                kinds = {job: each["kind"] for job, each in reap().items()}
                assert kinds == {number: "silent", NOBODY + 4: "silent"}
                time.sleep(21)
            assert f"secure-n1-{NOBODY + 4}" in clean.mappings()
            assert f"secure-n1-{number}" in clean.mappings()
        clean.until(lambda: reap_kind(NOBODY + 4) == "healed", "the reaper", 60)
        assert reap_kind(number) == "alive"


class TestReboot:
    """As after one: no mapping, no mount, nothing on tmpfs; the disks as they were, the record with another boot id."""

    @staticmethod
    def reboot(cluster: Cluster, job: int) -> None:
        on_node("n1", ["umount", f"/secure-scratch/{job}"])
        on_node("n1", ["dmsetup", "remove", f"secure-n1-{job}"])
        for folder, name in (("journal", f"{job}.json"), ("journal", f"{job}.claim"), ("task", str(job))):
            Path(f"{settings.RUN}/node-n1/{folder}/{name}").unlink()
        record = Path(f"{STATE}/{job}.json")
        text = json.loads(record.read_text())
        assert "vault" not in record.read_text()
        text["boot"] = "00000000-0000-4000-8000-000000000000"
        cluster.write(record, json.dumps(text), mode=0o600)

    def rebooted(self, cluster: Cluster) -> int:
        job = start(cluster, "--wrap=sleep 600")
        with replaced(cluster, "epilog", NO_EPILOG):
            cluster.command(["scancel", str(job)])
            cluster.wait_end(job)
        self.reboot(cluster, job)
        left = on_node_left(job, cluster.leftovers(job))
        assert set(left) == {"backing"}
        return job

    def test_the_reaper_takes_it_at_once_and_without_slurm(self, clean: Cluster) -> None:
        job = self.rebooted(clean)
        with no_slurmctld(clean):
            on_node("n1", [REAPER, "n1", "--once"])
        assert not on_node_left(job, clean.leftovers(job))
        assert str(job) not in on_node("n1", ["ls", "/secure-scratch"])
        assert not Path(f"{STATE}/{job}.json").exists()
        (line,) = healed(clean, job)
        assert line["reason"] == "left by an earlier boot of this node"
        assert line["key"].startswith(f"n1_test-{job}-")
        assert gone_told(clean, job)
        clean.wait_gone(job, 30)

    def test_the_next_prolog_takes_it(self, clean: Cluster) -> None:
        job = self.rebooted(clean)
        other = start(clean, "--wrap=sleep 600")
        assert not on_node_left(job, clean.leftovers(job))
        assert healed(clean, job)
        assert gone_told(clean, job)
        clean.command(["scancel", str(other)])
        clean.wait_end(other)
        clean.wait_gone(other, 30)
        clean.wait_gone(job, 30)

    def test_a_mapping_of_this_boot_is_not_what_an_earlier_one_left(self, clean: Cluster) -> None:
        job = start(clean, "--wrap=sleep 600")
        record = Path(f"{STATE}/{job}.json")
        text = json.loads(record.read_text())
        text["boot"] = "00000000-0000-4000-8000-000000000000"
        clean.write(record, json.dumps(text), mode=0o600)
        assert reap_kind(job) == "alive"
        assert f"secure-n1-{job}" in clean.mappings()
        clean.command(["scancel", str(job)])
        clean.wait_end(job)
        clean.wait_gone(job, 30)
        assert not record.exists()


def test_it_costs_little_where_nothing_is(clean: Cluster) -> None:
    """No controller is asked, and no line is written."""
    trail = Path(f"{settings.LOG}/node-n1")
    before = {path: path.stat().st_size for path in trail.iterdir()}
    with lying(clean, "#!/bin/sh\ntouch /run/asked\n"):
        on_node("n1", [REAPER, "n1"])
    assert not Path("/run/asked").exists()
    assert {path: path.stat().st_size for path in trail.iterdir()} == before
