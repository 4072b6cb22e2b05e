"""The main job, end to end: accepted, in the right place, on encrypted scratch, and nothing left afterwards."""

from __future__ import annotations

import json
from pathlib import Path

from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.nodes import on_node

TRAIN = """\
#!/bin/bash
#SBATCH --nodes=2
echo "arguments: $*"
srun bash -c 'echo "$SLURMD_NODENAME scratch=$SECURE_SCRATCH tmp=$TMPDIR owner=$(stat -c "%U:%a" $SECURE_SCRATCH) \
tmpowner=$(stat -c "%U:%a" $TMPDIR) dev=$(findmnt -n -o SOURCE $SECURE_SCRATCH)"; \
echo weights > $TMPDIR/model && echo $SLURMD_NODENAME wrote'
touch started
until [ -e finish ]; do sleep 0.2; done
"""


def test_the_main_job(clean: Cluster) -> None:
    cluster = clean
    for name in ("started", "finish"):
        Path(f"/home/alice/{name}").unlink(missing_ok=True)
    cluster.script("alice", "train.sh", TRAIN)
    done = cluster.as_user(
        "alice",
        [
            "secure-sbatch",
            "--secure-class=phi",
            "--secure-residency=eu",
            "--secure-scratch=200M",
            "train.sh",
            "--",
            "epochs=3",
        ],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Submitted batch job ")
    job = int(done.stdout.split()[-1])

    facts = cluster.facts(job)
    assert facts["features"] == "eu"
    assert facts["extra"] == "secure-slurm:class=phi;residency=eu;scratch=209715200"
    assert facts["admin_comment"].startswith("secure-slurm/1 cluster=test uid=")
    cluster.until(lambda: Path("/home/alice/started").exists(), "the job to run", 90)

    assert cluster.command(["squeue", "-h", "-j", str(job), "-o", "%N"]).stdout.strip() == "n[1-2]"
    # another job of the same user could read the scratch: the class demands nodes of its own (26.05 names it otherwise)
    shown = cluster.job(job)
    assert shown.get("Exclusive", shown.get("OverSubscribe")) in ("NODE", "NO")
    output = Path(f"/home/alice/slurm-{job}.out").read_text()
    assert "arguments: -- epochs=3" in output or "arguments: epochs=3" in output
    for node in ("n1", "n2"):
        assert f"{node} wrote" in output
        assert (
            f"{node} scratch=/secure-scratch/{job} tmp=/secure-scratch/{job}/tmp owner=alice:700 tmpowner=alice:700"
            in output
        )
        mapper = f"secure-{node}-{job}"
        assert f"dev=/dev/mapper/{mapper}" in output
        assert int(on_node(node, ["blockdev", "--getsize64", f"/dev/mapper/{mapper}"])) == 200 * 2**20
        options = on_node(node, ["findmnt", "-n", "-o", "OPTIONS", f"/secure-scratch/{job}"])
        assert "nosuid" in options
        assert "nodev" in options
        status = cluster.command(["cryptsetup", "status", mapper]).stdout
        assert "aes-xts-plain64" in status
        assert "keysize: 512" in status.replace("keysize:  ", "keysize: ")
    keys = cluster.vault_keys(job)
    assert sorted(key.split("_")[0] for key in keys) == ["n1", "n2"]
    for key in keys:
        data = cluster.bao.request("GET", f"secure-slurm-transit/keys/{key}")["data"]
        assert (data["exportable"], data["allow_plaintext_backup"]) == (False, False)
    wrapped = {
        node: json.loads(Path(f"{settings.RUN}/node-{node}/journal/{job}.json").read_text())["wrapped_key"]
        for node in ("n1", "n2")
    }
    assert wrapped["n1"] != wrapped["n2"]

    Path("/home/alice/finish").touch()
    assert cluster.wait_end(job)["JobState"] == "COMPLETED"
    cluster.wait_gone(job, 30)
    for key in keys:
        assert cluster.bao.status("GET", f"secure-slurm-transit/keys/{key}")[0] == 404
        node = key.split("_")[0]
        status, answer = cluster.bao.status(
            "POST", f"secure-slurm-transit/decrypt/{key}", {"ciphertext": wrapped[node]}
        )
        assert status == 400
        assert "encryption key not found" in str(answer)
    for node in ("n1", "n2"):
        assert on_node(node, ["ls", "/secure-scratch"]) == ""

    story = json.loads(cluster.tool("audit", "show", "--json", "--job", str(job), settings.LOG).stdout)
    events = [event["event"] for event in story]
    for expected in (
        "decision",
        "start.judged",
        "grant.write",
        "key.create",
        "node.grant-read",
        "node.datakey",
        "scratch.open",
        "scratch.ready",
        "scratch.close",
        "scratch.gone",
        "key.delete",
        "revocation.done",
    ):
        assert expected in events, events
    assert (
        events.index("decision")
        < events.index("start.judged")
        < events.index("key.create")
        < events.index("scratch.ready")
    )
    assert cluster.tool("audit", "verify", settings.LOG).returncode == 0


def test_an_untagged_job_is_left_alone(clean: Cluster) -> None:
    done = clean.as_user("bob", ["srun", "-N1", "sh", "-c", "echo scratch=$SECURE_SCRATCH; id -un"])
    assert done.stdout.split() == ["scratch=", "bob"]
    assert done.returncode == 0


def test_exit_code_and_output_are_the_real_commands(clean: Cluster) -> None:
    tag = ["--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M"]
    done = clean.as_user("alice", ["secure-sbatch", *tag, "--parsable", "--wait", "--wrap=exit 7"], timeout=180)
    assert done.stdout.strip().isdigit()
    assert done.returncode == 7
    script = "#!/bin/bash\n#SECURE --class=phi --residency=eu --scratch=32M\necho from-stdin $SECURE_CLASS\n"
    path = clean.script("alice", "stdin.sh", script)
    with Path(path).open() as stdin:
        done = clean.as_user("alice", ["secure-sbatch", "-o", "stdin.out"], stdin=stdin)
    assert done.returncode == 0, done.stderr
    clean.wait_end(int(done.stdout.split()[-1]))
    assert Path("/home/alice/stdin.out").read_text() == "from-stdin phi\n"


def test_srun_and_salloc(clean: Cluster) -> None:
    tag = ["--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M"]
    done = clean.as_user(
        "alice", ["secure-srun", *tag, "-N2", "sh", "-c", "stat -c %U:%a $SECURE_SCRATCH"], timeout=120
    )
    assert done.stdout.split() == ["alice:700", "alice:700"], done.stderr
    done = clean.as_user(
        "alice",
        ["secure-salloc", *tag, "-N1", "srun", "sh", "-c", "echo $SLURMD_NODENAME $SECURE_SCRATCH"],
        timeout=120,
    )
    node, scratch = done.stdout.split()
    assert node in ("n1", "n2")
    assert scratch.startswith("/secure-scratch/")
