"""File systems and paths on real nodes: what is mounted there, where links lead, and that no node is lost to a user."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.fuse import mounted
from tests.testbed.nfs import SOURCE, Nfs, nfs_mounted
from tests.testbed.nodes import on_node

DATA = Path("/data/phi/alice")
POLICY = (
    settings.POLICY.replace(
        "[eu-central-1, eu-west-1]", '[eu-central-1, eu-west-1], file_systems: [/mnt/listed, "srv:/listed", /data/phi]'
    )
    .replace("exclusive_nodes: true}", "exclusive_nodes: true, work_dirs: [/data/phi], output_dirs: [/data/phi]}")
    .replace(
        "partitions:\n  phi:",
        "datasets:\n  heart: {class: phi, residency: [eu], roles: [phi-eu], paths: [/data/heart]}\npartitions:\n  phi:",
    )
)
TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M", f"--chdir={DATA}")
TRUE = ("--output=/dev/null", "--wrap=true")


@pytest.fixture(scope="module")
def own_policy(cluster: Cluster) -> Iterator[None]:
    """A policy with file systems, directories and a dataset, in force for the tests of this file."""
    assert POLICY.count("file_systems") == POLICY.count("work_dirs") == POLICY.count("datasets") == 1
    path = Path(settings.ETC) / "policy.yaml"
    put(cluster, path, POLICY)
    DATA.mkdir(parents=True, exist_ok=True)
    cluster.command(["chown", "alice:alice", str(DATA)])
    # until then the old policy, which knows no directories, lets it pass
    words = ["secure-sbatch", *TAG[:3], "--test-only", "--chdir=/", *TRUE]
    cluster.until(lambda: "path.work-dir" in cluster.as_user("alice", words).stderr, "the policy to be in force")
    yield
    put(cluster, path, settings.POLICY)
    cluster.until(lambda: "path.work-dir" not in cluster.as_user("alice", words).stderr, "the old policy again")


def put(cluster: Cluster, path: Path, text: str) -> None:
    new = path.with_name("policy.new")
    cluster.write(new, text)
    new.replace(path)
    cluster.tool("conf", "render")


@pytest.fixture
def nodes(clean: Cluster, own_policy: None) -> Cluster:
    return clean


def held(cluster: Cluster, job: int, rule: str, *parts: str) -> None:
    """Held with this reason, without having run; every node stays in service."""
    cluster.until(lambda: rule in cluster.facts(job)["admin_comment"], f"job {job} to be refused by {rule}")
    cluster.until(lambda: cluster.state(job) == "PENDING", f"job {job} to be held")
    comment = cluster.facts(job)["admin_comment"]
    assert all(part in comment for part in parts), comment
    assert cluster.job(job)["Priority"] == "0"
    assert cluster.drained() == ""


def released(cluster: Cluster, job: int) -> None:
    """Once the reason is gone, the same job runs."""
    cluster.command(["scontrol", "release", str(job)])
    assert cluster.wait_end(job)["JobState"] == "COMPLETED"


def test_a_writable_network_file_system_that_is_not_listed(nodes: Cluster) -> None:
    with mounted("n1", "/mnt/out", "elsewhere:/export"):
        assert "fuse.sshfs" in on_node("n1", ["findmnt", "-n", "-o", "FSTYPE", "/mnt/out"])
        job = nodes.submit("alice", *TAG, "-w", "n1", *TRUE)
        held(nodes, job, "node.file-system", "/mnt/out", "elsewhere:/export", "fuse.sshfs", "node n1")
    released(nodes, job)


@pytest.mark.parametrize(
    ("point", "source", "options"),
    [
        ("/mnt/listed", "elsewhere:/export", "rw"),
        ("/mnt/listed/below", "elsewhere:/export", "rw"),
        ("/mnt/out", "srv:/listed", "rw"),
        ("/mnt/out", "elsewhere:/export", "ro"),
    ],
)
def test_a_file_system_that_is_listed_or_read_only(nodes: Cluster, point: str, source: str, options: str) -> None:
    with mounted("n1", point, source, options=options):
        job = nodes.submit("alice", *TAG, "-w", "n1", *TRUE)
        assert nodes.wait_end(job)["JobState"] == "COMPLETED"


def test_what_a_user_mounts_is_not_listed_by_calling_itself_so(nodes: Cluster) -> None:
    with mounted("n1", "/mnt/listed", "srv:/listed", options="rw:1001"):
        job = nodes.submit("alice", *TAG, "-w", "n1", *TRUE)
        held(nodes, job, "node.file-system", "/mnt/listed")
    nodes.command(["scancel", str(job)])


@pytest.fixture(scope="module")
def nfs() -> Iterator[Nfs]:
    """An NFS server, which squashes root, with a folder of alice's that nobody else may enter."""
    server = Nfs(Path("/srv/export"))
    server.start()
    yield server
    server.close()


def test_nfs_that_is_not_listed(nodes: Cluster, nfs: Nfs) -> None:
    assert nfs.folder.is_dir()
    with nfs_mounted("n1", "/mnt/nfs"):
        job = nodes.submit("alice", *TAG, "-w", "n1", *TRUE)
        held(nodes, job, "node.file-system", f"/mnt/nfs ({SOURCE}, nfs4)")
    with nfs_mounted("n1", "/mnt/nfs", "ro"):
        released(nodes, job)


def test_a_job_works_on_nfs_where_root_may_not(nodes: Cluster, nfs: Nfs) -> None:
    own = nfs.folder / "alice"
    own.mkdir()
    own.chmod(0o700)
    nodes.command(["chown", "alice:alice", str(own)])
    (own / "away").symlink_to("/tmp")
    with nfs_mounted("n1", "/data/phi"):
        job = nodes.submit("alice", *TAG, "-w", "n1", f"--output={DATA}/o-%j", "--wrap=pwd")
        assert nodes.wait_end(job)["JobState"] == "COMPLETED"
        assert (own / f"o-{job}").read_text() == f"{DATA}\n"
        job = nodes.submit("alice", *TAG, "-w", "n1", f"--output={DATA}/away/o", "--wrap=pwd")
        held(nodes, job, "path.output", "/tmp/o")
    nodes.command(["scancel", str(job)])


def test_a_server_that_is_away_costs_the_job_and_not_the_node(nodes: Cluster, nfs: Nfs) -> None:
    with nfs_mounted("n1", "/data/phi"):
        nfs.stop()
        try:
            job = nodes.submit("alice", *TAG, "-w", "n1", *TRUE)
            held(nodes, job, "path.work-dir", "could not be resolved within 10 s")
        finally:
            nfs.start()
    released(nodes, job)


def test_a_working_directory_that_is_a_link(nodes: Cluster) -> None:
    away = DATA / "away"
    nodes.as_user("alice", ["ln", "-sfn", "/home/alice", str(away)], check=True)
    job = nodes.submit("alice", *TAG[:3], f"--chdir={away}", *TRUE)
    held(nodes, job, "path.work-dir", str(away), "/home/alice")
    inside = DATA / "inside"
    inside.mkdir(exist_ok=True)
    nodes.command(["chown", "alice:alice", str(inside)])
    nodes.as_user("alice", ["ln", "-sfn", "inside", str(away)], check=True)
    released(nodes, job)


@pytest.mark.parametrize(
    ("option", "name", "link", "target"),
    [
        ("--output", "out.txt", "out.txt", "/home/alice/out.txt"),
        ("--error", "e-%j.txt", "e-{job}.txt", "/tmp/e.txt"),
        ("--output", "%x-%t.txt", "any-0.txt", "/tmp/x.txt"),
        ("--input", "in.txt", "in.txt", "/etc/hostname"),
        ("--output", "folder/o.txt", "folder", "/tmp"),
    ],
)
def test_an_output_that_leads_elsewhere(nodes: Cluster, option: str, name: str, link: str, target: str) -> None:
    output = () if option == "--output" else ("--output=/dev/null",)
    job = nodes.submit("alice", *TAG, "--hold", f"{option}={DATA}/{name}", *output, "--wrap=true")
    # after the submission was judged, and before the start is
    path = str(DATA / link.format(job=job))
    nodes.as_user("alice", ["ln", "-sfn", target, path], check=True)
    nodes.command(["scontrol", "release", str(job)])
    held(nodes, job, "path.output", option, target)
    nodes.command(["scancel", str(job)])
    nodes.as_user("alice", ["rm", path], check=True)


def test_outputs_that_stay_inside(nodes: Cluster) -> None:
    words = (f"--output={DATA}/%x-%j.txt", f"--error={DATA}/e-%5j.txt", "--job-name=run", "--wrap=echo here")
    job = nodes.submit("alice", *TAG, *words)
    assert nodes.wait_end(job)["JobState"] == "COMPLETED"
    assert (DATA / f"run-{job}.txt").read_text() == "here\n"
    array = nodes.submit("alice", *TAG, "--array=1-2", "--wrap=echo $SLURM_ARRAY_TASK_ID")
    nodes.until(lambda: not nodes.command(["squeue", "-h", "-u", "alice"]).stdout.strip(), "the array to end", 120)
    assert [(DATA / f"slurm-{array}_{task}.out").read_text() for task in (1, 2)] == ["1\n", "2\n"]


def test_an_untagged_job_beside_protected_data_takes_the_node_out(nodes: Cluster) -> None:
    with out_of_service("n3", nodes), mounted("n3", "/data/heart", "fs-heart:/"):
        job = nodes.submit("alice", "-p", "us", "-w", "n3", "--wrap=true", command="sbatch")
        nodes.until(lambda: "node.protected-mount" in nodes.drained(), "the node to be drained")
        assert nodes.drained() == (
            "n3 [node.protected-mount] /data/heart (fs-heart:/, dataset heart) is mounted, and the node is in a "
            "partition without tags"
        )
        nodes.until(lambda: nodes.state(job) == "PENDING", "the job to be sent back")
        # not held: its user has done nothing
        assert nodes.job(job)["Priority"] != "0"
    assert nodes.wait_end(job)["JobState"] == "COMPLETED"


def test_an_interactive_job_beside_protected_data_ends(nodes: Cluster) -> None:
    with out_of_service("n3", nodes), mounted("n3", "/data", "srv:/data"):
        done = nodes.as_user("bob", ["srun", "-p", "us", "-w", "n3", "hostname"], timeout=90)
        assert done.returncode != 0
        assert done.stdout == ""
        nodes.until(lambda: "node.protected-mount" in nodes.drained(), "the node to be drained")


def test_an_untagged_job_beside_other_mounts_runs(nodes: Cluster) -> None:
    with mounted("n3", "/mnt/other", "srv:/other"), mounted("n3", "/mnt/mine", "/data/heart", options="rw:1001"):
        job = nodes.submit("bob", "-p", "us", "-w", "n3", "--wrap=true", command="sbatch")
        assert nodes.wait_end(job)["JobState"] == "COMPLETED"


def test_policy_check_asks_slurm(nodes: Cluster) -> None:
    done = nodes.tool("policy", "check", "--slurm", check=False)
    assert done.returncode == 1
    assert "error: the nodes n1, n2 of the partition 'phi' are in 'main' as well" in done.stdout
    checks = {"slurm-sharing-forced", "slurm-node-two-places", "slurm-feature-foreign", "slurm-feature-missing"}
    assert not any(check in done.stdout for check in checks)
    nodes.command(["scontrol", "update", "PartitionName=phi", "OverSubscribe=FORCE:2"])
    nodes.command(["scontrol", "update", "PartitionName=phi", "Nodes=n[1-3]"])
    nodes.command(["scontrol", "update", "NodeName=n4", "AvailableFeatures=us,eu", "ActiveFeatures=us"])
    try:
        done = nodes.tool("policy", "check", "--slurm", "--json", check=False)
        found = {each["check"]: each["message"] for each in json.loads(done.stdout)["findings"]}
        assert checks <= found.keys()
        assert "n4" in found["slurm-node-two-places"]
        assert "n3" in found["slurm-feature-missing"]
    finally:
        nodes.command(["scontrol", "update", "PartitionName=phi", "OverSubscribe=NO"])
        nodes.command(["scontrol", "update", "PartitionName=phi", "Nodes=n[1-2]"])
        nodes.command(["scontrol", "update", "NodeName=n4", "AvailableFeatures=us", "ActiveFeatures=us"])


@contextlib.contextmanager
def out_of_service(node: str, cluster: Cluster) -> Iterator[None]:
    """Afterwards the node is taken back into service."""
    try:
        yield
    finally:
        cluster.until(lambda: node in cluster.sinfo("drained") or not cluster.drained(), "the node to be empty")
        if cluster.drained():
            cluster.command(["scontrol", "update", f"NodeName={node}", "State=RESUME"])
            cluster.wait_idle(node)
