"""From nothing to a secured job, on a cluster laid out like ParallelCluster, without a route to anywhere.

The machines are bare (tests/testbed/vpc.py); all that comes to them is what `make bundle` made, signed, by the custom
action of the project; between its stages an admin does what docs/parallelcluster.md says (steps 8 and 9). The node is
an instance that ResumeProgram asks for, which enrols by its identity document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.testbed.vpc import HEALTHY, METADATA, NODES, SHARED, SICK, VENDOR, Vpc, mappings

NODE = NODES[0]
TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M", "-p", "phi")
JOB = f"""\
#!/bin/sh
df --output=source "$SECURE_SCRATCH" | tail -n 1
head -c 1000000 /dev/urandom > "$SECURE_SCRATCH/data" && wc -c < "$SECURE_SCRATCH/data"
python3 -c "import socket; socket.create_connection(('{METADATA}', 80), 5)" 2>&1 | tail -n 1
"""
OUTSIDE = """\
import socket
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    try:
        socket.socket(family).connect((address, 443))
    except OSError as error:
        print(error.strerror)
"""
SECRETS = {
    "ldap-password": "secure-ldap",
    "link.crt": "root",
    "link.key": "secure-life",
    "enrol.crt": "root",
    "enrol.key": "secure-enrol",
}


@pytest.fixture(scope="module")
def vpc(guest: None) -> Iterator[Vpc]:
    with Vpc() as made:
        yield made


def test_what_is_there_before_and_no_way_out(vpc: Vpc) -> None:
    assert vpc.head.untouched()
    assert vpc.head.sh("ip route; ip -6 route show table main").strip() == ""
    assert vpc.head.run("python3", "-c", OUTSIDE).out.split("\n")[0] == "Network is unreachable"


@pytest.fixture(scope="module")
def made(vpc: Vpc) -> Vpc:
    """OnNodeStart without any route, slurmctld with the filter, OnNodeConfigured, and then the admin's part."""
    head = vpc.head
    done = head.action("head", "start")
    assert done.code == 0, done
    head.connect()
    assert head.sh("ip route").split()[0] == "10.98.0.0/24"
    head.sh("slurmctld")
    vpc.until(lambda: "UP" in head.run("scontrol", "ping").out, "slurmctld")
    done = head.action("head", "configured")
    assert done.code == 0, done
    # nobody has set Vault up: the cluster is there, and takes no tagged job
    refused = ("secure-sbatch", *TAG, "--wrap=true")
    vpc.until(lambda: "(rule rbac.snapshot)" in head.as_alice(*refused).err, "the daemon's no")
    assert head.sh("squeue -h") == ""
    set_up(vpc)
    doctor = ("secure-slurm", "doctor", "--role", "head", "--quiet")
    vpc.until(lambda: head.run(*doctor).code == 0, "the head node to be green")
    return vpc


def told(vpc: Vpc, job: int, *events: str) -> None:
    """Wait until the node's audit trail has these of a job."""

    def missing() -> set[str]:
        show = ("secure-slurm", "audit", "show", "--json", "--job", str(job), "/var/log/secure-slurm")
        done = vpc.instances[NODE].run(*show)
        return set(events) - ({line["event"] for line in json.loads(done.out)} if done.code == 0 else set())

    vpc.until(lambda: not missing(), f"{events} of job {job}")


def set_up(vpc: Vpc) -> None:
    """Steps 8 and 9: the head node's secrets, Vault, and the site's archive with the CA of the nodes."""
    head = vpc.head
    for name in ("link", "enrol"):
        pair = vpc.ca.server(name, ["head", "head.cluster.internal"], SHARED)
        assert pair.private_key.exists()
    (SHARED / "ldap-password").write_text(vpc.slapd.reader_password)
    for name, owner in SECRETS.items():
        mode = "644" if owner == "root" else "400"
        head.sh(f"install -m {mode} -o {owner} /out/{name} /etc/secure-slurm/{name}")
        (SHARED / name).unlink()
    (SHARED / "token").touch(mode=0o600)
    (SHARED / "token").write_text(vpc.bao.root_token)
    head.sh(
        "secure-slurm vault init --token-file /out/token --node-name 'phi-*' --node-ca-out /out/nodes-ca.crt "
        "--secret-id-out /etc/secure-slurm/vault-secret-id --enrol-secret-id-out /etc/secure-slurm/enrol-secret-id"
    )
    (SHARED / "token").unlink()
    site = SHARED / "site"
    (site / "link-ca.crt").write_bytes(vpc.ca.certificate.read_bytes() + (SHARED / "nodes-ca.crt").read_bytes())
    vpc.bucket.site(site, 2)
    # OnNodeUpdated: takes the newer archive and starts the daemons anew
    done = head.action("head", "configured")
    assert done.code == 0, done


def test_the_head_node(made: Vpc) -> None:
    links = made.head.sh("readlink /opt/slurm/etc/scripts/prolog.d/99* /opt/slurm/etc/scripts/epilog.d/99*").split()
    assert links == ["/opt/secure-slurm/hooks/prolog", "/opt/secure-slurm/hooks/epilog"]
    assert made.head.sh("ip route").count("\n") == 1


def test_an_instance_that_cannot_verify_the_bundle_does_not_join(made: Vpc) -> None:
    vpc = made
    bundle = vpc.bucket.bundle
    good = bundle.read_bytes()
    bundle.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        assert not vpc.boot(NODE)
    finally:
        bundle.write_bytes(good)
    node, stage, done = vpc.said[-1]
    assert (node, stage, done.code) == (NODE, "start", 1)
    assert "not by the key of the cluster's configuration. Nothing was run." in done.err
    assert vpc.head.sh(f"scontrol show node {NODE}").count("POWERED_DOWN") == 1


def test_a_secured_job(made: Vpc) -> None:
    vpc = made
    script = SHARED / "home/alice/job"
    script.write_text(JOB)
    number = vpc.submit(*TAG, "-w", NODE, "--output=/home/alice/said", "/home/alice/job")
    vpc.until(lambda: vpc.keys(number), "the key of a node that does not exist")
    (key,) = vpc.keys(number)
    assert key.startswith(f"{NODE}_test-{number}-")
    vpc.until(lambda: vpc.job(number).get("JobState") == "COMPLETED", "the first job")
    said = (SHARED / "home/alice/said").read_text().splitlines()
    assert re.fullmatch(rf"/dev/mapper/secure-{NODE}-{number}|/dev/dm-\d+", said[0]), said
    assert said[1] == "1000000"
    # what a user could steal is closed
    assert "Permission denied" in said[2], said
    vpc.until(lambda: not vpc.keys(number) and not mappings(NODE), "the key and the mapping to go")
    told(vpc, number, "scratch.ready", "scratch.gone")
    node = vpc.instances[NODE]
    assert node.sh("ls -A /scratch/secure-slurm").strip() == ""
    certificate = node.sh(f"openssl x509 -noout -ext subjectAltName -in /var/lib/secure-slurm/identity-{NODE}/node.crt")
    assert re.search(rf"URI:secure-slurm://test/{NODE}/i-[0-9a-f]{{17}}", certificate)
    for machine in (vpc.head, node):
        machine.sh("secure-slurm audit verify /var/log/secure-slurm")
    assert node.sh("ip route").split("\n")[0].startswith("10.98.0.0/24")


def test_then_the_vendors_script_fails(made: Vpc) -> None:
    """Ours ran first: what it made goes again. The node drains, and the job is put back and not held."""
    vpc = made
    vendor = SHARED / "slurm/etc/scripts/prolog.d" / VENDOR["prolog"]
    vendor.write_text(SICK)
    number = vpc.submit(*TAG, "-w", NODE, "--output=/dev/null", "--wrap=touch $HOME/it-ran")
    vpc.until(lambda: "DRAIN" in vpc.head.sh(f"scontrol show node {NODE}"), "the node to be drained")
    vpc.until(lambda: int(vpc.job(number).get("Restarts", 0)) > 0, "the job to be requeued")
    assert vpc.job(number)["Reason"] != "launch_failed_requeued_held"
    told(vpc, number, "scratch.ready", "scratch.gone")
    vpc.head.sh(f"scancel {number}")
    vpc.until(lambda: not vpc.keys(number) and not mappings(NODE), "what was made to go")
    vendor.write_text(HEALTHY)
    assert not (SHARED / "home/alice/it-ran").exists()
    assert vpc.instances[NODE].sh("ls -A /scratch/secure-slurm").strip() == ""
