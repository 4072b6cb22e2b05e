"""Nothing of a tagged job lies on disks in clear: /tmp, core dumps, swap; and a node that would leak refuses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster, with_own_tmp
from tests.testbed.nodes import on_node

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=48M", "-w", "n1", "--chdir=/home/alice")
PLACES = ("/var", "/tmp", "/dev/shm", "/home", "/run", "/secure-scratch", "/root", "/etc/secure-slurm")
SKIPPED = ("/run/ov", "/run/testbed")
BASE = Path("/var/lib/job-tmp/n1")
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
# what it writes is in no script, argument or environment: only its hash's first half is known outside
WRITE = """\
secret=$(printf %s {seed} | sha256sum); secret=${{secret%% *}}
for place in /tmp /var/tmp /dev/shm; do
  mkdir $place/folder; for i in $(seq 500); do echo "$secret"; done > $place/folder/file
done
unset secret; sync; touch started; until [ -e finish ]; do sleep 0.2; done
"""


@pytest.fixture(scope="module", autouse=True)
def own_tmp(cluster: Cluster) -> Iterator[None]:
    """Slurm's plugin with our InitScript, and the policy's default: /tmp of class phi has to be on the scratch."""
    policy = Path(settings.ETC) / "policy.yaml"
    assert settings.POLICY.count("private_tmp: none,") == 1
    with cluster.other_slurm(with_own_tmp, job_container=settings.JOB_CONTAINER):
        put(cluster, policy, settings.POLICY.replace("private_tmp: none,", ""))
        yield
        put(cluster, policy, settings.POLICY)


def put(cluster: Cluster, path: Path, text: str) -> None:
    new = path.with_name("policy.new")
    cluster.write(new, text)
    new.replace(path)
    cluster.tool("conf", "render")


def writing(cluster: Cluster, *words: str) -> tuple[int, bytes]:
    """A job of alice's that has written what is to be looked for, and waits."""
    for name in ("started", "finish"):
        Path(f"/home/alice/{name}").unlink(missing_ok=True)
    seed = secrets.token_hex(8)
    cluster.script("alice", "write.sh", "#!/bin/bash\n" + WRITE.format(seed=seed))
    job = cluster.submit("alice", *words, "write.sh")
    cluster.until(Path("/home/alice/started").exists, f"job {job} to have written", 90)
    return job, hashlib.sha256(seed.encode()).hexdigest().encode()


def search(canary: bytes) -> list[str]:
    """The files of the machine, backing stores among them, and of node n1 as it sees them, that have it in them."""
    hits = []
    for place in PLACES:
        for path in Path(place).rglob("*"):
            if path.is_file() and not path.is_symlink() and not str(path).startswith(SKIPPED):
                with contextlib.suppress(OSError):
                    if canary in path.read_bytes():
                        hits.append(str(path))
    # without what is mounted there: the scratch is, at the place of the job's /tmp
    disks = ["/var/lib", "/var/tmp", "/tmp", "/dev/shm"]
    words = ["find", *disks, "-xdev", "-type", "f", "-exec", "grep", "-lsF", canary.decode(), "{}", "+"]
    seen = on_node("n1", words, check=False)
    return [*hits, *(f"n1:{line}" for line in seen.splitlines())]


class TestTmp:
    def test_what_a_job_writes_there_is_found_nowhere_but_in_its_scratch(self, clean: Cluster) -> None:
        job, canary = writing(clean, *TAG)
        store = Path(f"/var/lib/secure-slurm/scratch-n1/n1-{job}.img")
        assert store.is_file()
        assert search(canary) == []
        # it is there, in clear, for whoever has the key
        inside = on_node("n1", ["grep", "-rlF", canary.decode(), f"/secure-scratch/{job}"]).split()
        assert sorted(path.split("/", 4)[4] for path in inside) == ["_tmp/folder/file", "_var_tmp/folder/file"]
        place = BASE / str(job)
        assert on_node("n1", ["findmnt", "-n", "-o", "SOURCE", f"{place}/.{job}"]).startswith("/dev/mapper/secure-n1-")

        Path("/home/alice/finish").touch()
        assert clean.wait_end(job)["JobState"] == "COMPLETED"
        clean.wait_gone(job, 60)
        assert search(canary) == []
        assert not place.exists()
        assert not Path(f"{settings.RUN}/node-n1/private/{job}").exists()

    def test_the_search_finds_what_a_job_without_scratch_leaves_there(self, clean: Cluster) -> None:
        """Slurm's plugin alone: the job's own, and in clear on the node's disk."""
        job, canary = writing(clean, "--secure-class=internal", "--secure-residency=eu", "-w", "n1")
        assert [hit for hit in search(canary) if hit.endswith(f"{BASE}/{job}/.{job}/_tmp/folder/file")]
        Path("/home/alice/finish").touch()
        clean.wait_end(job)

    def test_a_requeued_job_gets_it_anew(self, clean: Cluster) -> None:
        job, _ = writing(clean, *TAG)
        Path("/home/alice/started").unlink()
        clean.command(["scontrol", "requeue", str(job)])
        clean.until(Path("/home/alice/started").exists, "the job to run again", 300)
        Path("/home/alice/finish").touch()
        assert clean.wait_end(job)["JobState"] == "COMPLETED"
        clean.wait_gone(job, 60)
        assert not (BASE / str(job)).exists()

    def test_a_scratch_that_slurm_never_let_go_of_is_closed_all_the_same(self, clean: Cluster) -> None:
        """The slurmstepd that keeps the namespace is killed: a bound file holds it, with the scratch as its /tmp."""
        job, _ = writing(clean, *TAG)
        clean.command(["pkill", "-KILL", "-f", rf"slurmstepd: \[{job}\.extern\]"])
        clean.command(["scancel", str(job)])
        clean.wait_state(job, "CANCELLED")
        clean.wait_gone(job, 90)
        assert not (BASE / str(job)).exists()

    def test_an_init_script_that_fails_holds_the_job_and_costs_no_node(self, clean: Cluster) -> None:
        script = Path(f"{settings.PREFIX}/hooks/private_tmp")
        before = script.read_text()
        clean.write(script, "#!/bin/sh\nexit 1\n", mode=0o755)
        try:
            job = held(clean)
        finally:
            clean.write(script, before, mode=0o755)
        assert clean.drained() == ""
        clean.command(["scancel", str(job)])
        clean.wait_gone(job, 60)

    def test_a_place_that_is_there_before_slurm_starts_nothing(self, clean: Cluster) -> None:
        """Why no Prolog can do what the InitScript does; and nobody else can either."""
        last = clean.submit("alice", *TAG, "--wrap=true")
        clean.wait_end(last)
        clean.wait_gone(last, 60)
        (BASE / str(last + 1)).mkdir()
        job = clean.submit("alice", *TAG, "--wrap=touch started")
        Path("/home/alice/started").unlink(missing_ok=True)
        assert job == last + 1
        clean.until(lambda: clean.state(job) == "FAILED" or taken_back(clean, job), "the job not to run", 90)
        clean.command(["scancel", str(job)], check=False)
        clean.wait_gone(job, 60)
        assert not Path("/home/alice/started").exists()
        with contextlib.suppress(FileNotFoundError):  # Slurm has taken it away
            (BASE / str(job)).rmdir()

    def test_without_the_plugin_the_node_refuses(self, clean: Cluster) -> None:
        with clean.other_slurm(lambda conf: re.sub(r"(?m)^(JobContainer|Namespace)Type=.*\n", "", conf)):
            refused(clean, "node.private-tmp", "no plugin")

    def test_a_slurmd_that_does_not_do_what_its_files_say_runs_no_task(self, clean: Cluster) -> None:
        """It was started before the InitScript was configured; the Prolog reads the new file, TaskProlog looks."""
        path = Path("/etc/slurm/job_container.conf")
        with clean.other_slurm(lambda conf: conf, job_container="AutoBasePath=true\nBasePath=/var/lib/job-tmp\n"):
            clean.write(path, settings.JOB_CONTAINER)
            Path("/home/alice/started").unlink(missing_ok=True)
            job = clean.submit("alice", *TAG, "--output=tmp.out", "--wrap=touch started")
            assert clean.wait_end(job)["JobState"] == "FAILED"
            assert not Path("/home/alice/started").exists()
            assert "not on the job's encrypted scratch" in Path("/home/alice/tmp.out").read_text()


def held(cluster: Cluster) -> int:
    """A job that Slurm takes back."""
    job = cluster.submit("alice", *TAG, "--wrap=touch started")
    cluster.until(lambda: taken_back(cluster, job), "it to be held", 90)
    return job


def taken_back(cluster: Cluster, job: int) -> bool:
    return cluster.job(job).get("Restarts") == "1" and cluster.state(job) == "PENDING"


def refused(cluster: Cluster, rule: str, words: str) -> None:
    """A job does not start on n1, no key was asked for, and the node leaves service; afterwards it is back."""
    Path("/home/alice/started").unlink(missing_ok=True)
    job = cluster.submit("alice", *TAG, "--wrap=touch started")
    cluster.until(lambda: "n1" in cluster.drained(), "the node to drain", 90)
    cluster.until(lambda: cluster.state(job) == "PENDING", "the job to be held", 60)
    story = json.loads(cluster.tool("audit", "show", "--json", f"{settings.LOG}/node-n1").stdout)
    mine = [event for event in story if event.get("job") == job]
    assert rule in [event.get("rule") for event in mine]
    assert "node.datakey" not in [event["event"] for event in mine]
    assert words in Path("/var/log/syslog.log").read_text()
    found = cluster.tool("node", "check", "--node", "n1", check=False)
    assert found.returncode == 1
    assert rule in found.stdout
    assert not Path("/home/alice/started").exists()
    cluster.command(["scancel", str(job)])
    cluster.wait_gone(job, 60)
    cluster.command(["scontrol", "update", "NodeName=n1", "State=RESUME"])
    cluster.wait_idle("n1")


def runs(cluster: Cluster, command: str) -> int:
    job = cluster.submit("alice", *TAG, f"--wrap={command}")
    assert cluster.wait_end(job)["JobState"] in ("COMPLETED", "FAILED")
    cluster.wait_gone(job, 60)
    return job


class TestCoreDumps:
    CRASH = "ulimit -c unlimited; cd $SECURE_SCRATCH; bash -c 'kill -SEGV $$'; ls -a; cd ~; bash -c 'kill -SEGV $$'"

    @pytest.fixture
    def pattern(self) -> Iterator[Path]:
        before = CORE_PATTERN.read_text()
        yield CORE_PATTERN
        CORE_PATTERN.write_text(before)

    @pytest.mark.parametrize("text", ["core", "/var/tmp/core-%e", "|/usr/share/apport/apport %p"])
    def test_a_node_that_writes_them_in_clear_refuses(self, clean: Cluster, pattern: Path, text: str) -> None:
        pattern.write_text(text)
        refused(clean, "node.core-dumps", "core dumps on node n1 are in clear")

    def test_a_crash_leaves_nothing_where_a_job_may_start(self, clean: Cluster, pattern: Path) -> None:
        for path in Path("/home/alice").glob("core*"):
            path.unlink()
        runs(clean, self.CRASH)
        assert list(Path("/home/alice").glob("core*")) == []
        # and it would have, with what is refused
        pattern.write_text("core-%e")
        clean.as_user("alice", ["bash", "-c", "ulimit -c unlimited; bash -c 'kill -SEGV $$'"])
        assert list(Path("/home/alice").glob("core*")) != []

    def test_into_memory_is_as_good(self, clean: Cluster, pattern: Path) -> None:
        pattern.write_text("/run/core-%e-%p")
        runs(clean, "true")


class TestSwap:
    @pytest.fixture
    def device(self, cluster: Cluster) -> Iterator[str]:
        file = Path("/run/testbed/swap")
        with file.open("wb") as opened:
            opened.truncate(16 * 2**20)
        device = cluster.command(["losetup", "--find", "--show", str(file)]).stdout.strip()
        yield device
        cluster.command(["losetup", "-d", device])
        file.unlink()

    def test_in_clear_the_node_refuses(self, clean: Cluster, device: str) -> None:
        clean.command(["mkswap", device])
        clean.command(["swapon", device])
        try:
            refused(clean, "node.swap", f"swap on {device}")
        finally:
            clean.command(["swapoff", device])

    def test_encrypted_it_does_not(self, clean: Cluster, device: str) -> None:
        words = ["--type=plain", "--cipher=aes-xts-plain64", "--key-size=512", "--key-file=/dev/urandom"]
        clean.command(["cryptsetup", "open", *words, device, "swap-of-n1"])
        try:
            clean.command(["mkswap", "/dev/mapper/swap-of-n1"])
            clean.command(["swapon", "/dev/mapper/swap-of-n1"])
            try:
                runs(clean, "true")
                assert clean.tool("node", "check", "--node", "n1", check=False).returncode == 0
            finally:
                clean.command(["swapoff", "/dev/mapper/swap-of-n1"])
        finally:
            clean.command(["cryptsetup", "close", "swap-of-n1"])

    def test_with_a_cipher_that_encrypts_nothing_the_node_refuses(self, clean: Cluster, device: str) -> None:
        table = f"0 32768 crypt cipher_null-ecb - 0 {device} 0"
        clean.command(["dmsetup", "create", "swap-of-n1", "--uuid", "CRYPT-PLAIN-swap-of-n1", "--table", table])
        clean.command(["dmsetup", "mknodes", "swap-of-n1"])  # there is no udevd in the guest
        try:
            clean.command(["mkswap", "/dev/mapper/swap-of-n1"])
            clean.command(["swapon", "/dev/mapper/swap-of-n1"])
            try:
                refused(clean, "node.swap", "cipher_null")
            finally:
                clean.command(["swapoff", "/dev/mapper/swap-of-n1"])
        finally:
            clean.command(["dmsetup", "remove", "swap-of-n1"])
