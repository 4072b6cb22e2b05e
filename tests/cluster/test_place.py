"""A node's proof of place on a real cluster: EC2's document from a metadata service on loopback, and a manifest."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.imds import Imds, Region, document, pin
from tests.testbed.nodes import slurmd_pid

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M", "-w", "n1")
SITE = Path(settings.ETC) / "secure-slurm.yaml"
FOLDER = Path("/etc/secure-slurm/proofs")
NODE_SOCKET = Path(f"{settings.RUN}/node-n1/daemon/node.sock")


@contextlib.contextmanager
def proof(cluster: Cluster, text: str) -> Iterator[None]:
    """Another method on all nodes; the daemon of n1 is started anew and afterwards put back."""
    before = SITE.read_text()
    line = "  proof: file"
    assert before.count(line) == 1
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    # the rest of that line is a comment
    cluster.write(SITE, before.replace(line, text + " #"))
    try:
        again(cluster)
        yield
    finally:
        cluster.cancel_all()
        cluster.write(SITE, before)
        again(cluster)
        cluster.command(["scontrol", "update", "NodeName=n1", "State=RESUME"], check=False)
        cluster.wait_idle("n1")


def again(cluster: Cluster) -> None:
    """Render, and start the node daemon of n1 in its node's namespaces."""
    cluster.tool("conf", "render")
    subprocess.run(["pkill", "-f", "secure-slurm-noded --node n1"], check=False)
    gone = ["pgrep", "-f", "secure-slurm-noded --node n1"]
    cluster.until(lambda: cluster.command(gone, check=False).returncode != 0, "the node daemon to end")
    NODE_SOCKET.unlink(missing_ok=True)
    (NODE_SOCKET.parent / "instance.json").unlink(missing_ok=True)
    space = f"/proc/{slurmd_pid('n1')}/ns"
    with Path("/var/log/noded-n1.log").open("ab") as log:
        subprocess.Popen(
            [
                *("nsenter", f"--mount={space}/mnt", f"--uts={space}/uts"),
                *("setpriv", "--reuid", "secure-node", "--regid", "secure-node", "--clear-groups"),
                *(f"{settings.PREFIX}/bin/secure-slurm-noded", "--node", "n1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
    cluster.until(NODE_SOCKET.exists, "the node daemon of n1")


def places(cluster: Cluster, job: int) -> list[dict[str, Any]]:
    events = json.loads(cluster.tool("audit", "show", "--json", f"{settings.LOG}/node-n1").stdout)
    return [event for event in events if event["event"] == "place.verdict" and event["job"] == job]


def runs(cluster: Cluster) -> tuple[dict[str, Any], str]:
    """A job with scratch runs on n1: the verdict in the audit trail, and the one in the journal."""
    started = Path("/home/alice/started")
    started.unlink(missing_ok=True)
    job = cluster.submit("alice", *TAG, "--wrap=touch started; sleep 600")
    cluster.until(started.exists, "the job to run", 90)
    journal = json.loads(Path(f"{settings.RUN}/node-n1/journal/{job}.json").read_text())
    cluster.command(["scancel", str(job)])
    cluster.wait_gone(job, 60)
    (event,) = places(cluster, job)
    return event, journal["place"]


def refused(cluster: Cluster, words: str) -> dict[str, Any]:
    """A job does not start on n1, which leaves service; the verdict in the audit trail."""
    job = cluster.submit("alice", *TAG, "--wrap=true")
    cluster.until(lambda: "n1" in cluster.drained(), "the node to drain", 90)
    cluster.until(lambda: cluster.state(job) == "PENDING", "the job to be held", 60)
    assert not Path(f"/home/alice/slurm-{job}.out").exists()
    assert not cluster.mappings()
    story = json.loads(cluster.tool("audit", "show", "--json", f"{settings.LOG}/node-n1").stdout)
    assert "node.place-proof" in [event.get("rule") for event in story if event.get("job") == job]
    assert "node.datakey" not in [event["event"] for event in story if event.get("job") == job]
    cluster.command(["scancel", str(job)])
    cluster.wait_gone(job, 60)
    cluster.command(["scontrol", "update", "NodeName=n1", "State=RESUME"])
    cluster.wait_idle("n1")
    event = places(cluster, job)[0]
    assert event["verified"] is False
    assert words in event["reason"]
    return event


def status(cluster: Cluster) -> tuple[int, dict[str, Any]]:
    done = cluster.tool("node", "status", "--node", "n1", "--json", check=False)
    return done.returncode, json.loads(done.stdout)


def test_declared_places_say_so(clean: Cluster) -> None:
    event, journal = runs(clean)
    assert (event["method"], event["verified"], event["region"]) == ("file", False, "eu-central-1")
    assert "self-declared" in event["reason"]
    assert journal.startswith("file eu-central-1 not verified")


def test_ec2(clean: Cluster) -> None:
    frankfurt, virginia, stranger = Region("eu-central-1"), Region("us-east-1"), Region("stranger")
    with Imds() as service:
        for name, region in (("eu-central-1", frankfurt), ("us-east-1", virginia)):
            pin(FOLDER, name, region)
        files = f"certificates: {FOLDER}, instance_file: {FOLDER}/instance-%n"
        text = f'  proof: ec2\n  ec2: {{endpoint: "{service.endpoint}", {files}, account: "123456789012"}}\n'
        clean.write(FOLDER / "instance-n1", "i-0123456789abcdef0\n")
        service.answer = frankfurt.sign(document())
        with proof(clean, text + "  proof_lifetime: 1ms"):
            event, journal = runs(clean)
            assert (event["method"], event["verified"]) == ("ec2", True)
            assert (event["identity"], event["binding"]) == ("i-0123456789abcdef0", "instance-file")
            assert len(event["digest"]) == 64
            assert journal == f"ec2 eu-central-1 i-0123456789abcdef0 verified (instance-file) sha256:{event['digest']}"
            # asked anew each time, and the metadata service has 3 s for each answer
            clean.until(lambda: status(clean)[1].get("proof") == journal, "the same from the daemon")
            assert status(clean)[0] == 0

            service.answer = stranger.sign(document(), embed=True)
            refused(clean, "not signed with the certificate that is pinned")
            clean.until(lambda: "not signed" in str(status(clean)[1].get("problems")), "the problem")
            assert status(clean)[0] == 1

            # genuine, and of another machine; genuine, and of another region
            service.answer = frankfurt.sign(document(instanceId="i-0fedcba9876543210"))
            refused(clean, "of i-0fedcba9876543210")
            service.answer = virginia.sign(document(region="us-east-1"))
            refused(clean, "not signed")

            service.status = 503
            job = clean.submit("alice", *TAG, "--wrap=true")
            # it is waited for, and tried once more
            clean.until(lambda: clean.job(job)["Priority"] == "0", "the hold", 240)
            assert "backend.unavailable" in clean.tool("why", str(job)).stdout
            # who floods the service must not be able to drain nodes
            assert clean.drained() == ""
            clean.command(["scancel", str(job)])
            clean.wait_gone(job, 60)

            service.status, service.answer = 200, frankfurt.sign(document())
            assert runs(clean)[0]["verified"] is True
    assert clean.tool("audit", "verify", settings.LOG).returncode == 0


def test_manifest(clean: Cluster) -> None:
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    key, public = FOLDER / "manifest.key", FOLDER / "manifest.pub"
    clean.command(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)])
    key.chmod(0o600)
    clean.command(["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(public)])
    public.chmod(0o644)
    machine = Path("/etc/machine-id")
    before = machine.read_bytes() if machine.exists() else None
    clean.write(machine, "0123456789abcdef0123456789abcdef\n")
    try:
        text = f'  proof: manifest\n  manifest: {{file: "{FOLDER}/%n.manifest", public_key: {public}}}'
        with proof(clean, text):
            refused(clean, "n1.manifest does not exist")
            shown = json.loads(clean.tool("node", "manifest", "--node", "n1", "--json", check=False).stdout)
            print_ = shown["fingerprints"]["machine-id"]
            sign = ["node", "sign-manifest", "--key", str(key), "--node", "n1", "--machine", print_, "--region"]
            clean.tool(*sign, "eu-west-1", "--out", f"{FOLDER}/n1.manifest")
            refused(clean, "for the region eu-west-1")
            (FOLDER / "n1.manifest").unlink()
            clean.tool(*sign, "eu-central-1", "--out", f"{FOLDER}/n1.manifest")
            event, journal = runs(clean)
            assert (event["method"], event["verified"], event["binding"]) == ("manifest", True, "machine-id")
            assert event["identity"] in journal

            clean.write(machine, "ffffffffffffffffffffffffffffffff\n")
            refused(clean, "another machine")
    finally:
        machine.unlink() if before is None else machine.write_bytes(before)


@pytest.mark.parametrize("text", ["  proof: none", "  proof: manifest"])
def test_no_proof_no_job(clean: Cluster, text: str) -> None:
    with proof(clean, text):
        event = refused(clean, "")
    assert event["method"] == text.rpartition(" ")[2]
