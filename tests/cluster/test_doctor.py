"""secure-slurm doctor on a real cluster: green as it is, and whatever is broken is seen, and nothing else."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.fuse import mounted
from tests.testbed.nodes import on_node, run_on_node
from tests.testbed.people import BIN, TRIES, ClusterError
from tests.testbed.slapd import group, group_dn, person

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M", "-w", "n1", "--output=/dev/null")
ETC = Path(settings.ETC)
POLICY, CONF = ETC / "policy.yaml", Path("/etc/slurm/slurm.conf")
PATIENCE = 180
LATE = ("no answer within", "gave no answer")
Found = dict[str, dict[str, str]]


def well(conf: str) -> str:
    """The test cluster keeps Slurm's short limits, for tests of what they do; here they are as in the snippet."""
    assert conf.count("cred_expire=12\n") == 1
    return conf.replace("cred_expire=12\n", "cred_expire=120\n").replace(
        "KillWait=2", "KillWait=2\nBatchStartTimeout=90"
    )


@pytest.fixture(scope="module")
def clinic(cluster: Cluster) -> Iterator[Cluster]:
    with reconfigured(cluster, well, "cred_expire=120"):
        yield cluster


@pytest.fixture
def patient(clinic: Cluster, clean: Cluster) -> Cluster:
    return clean


def head(cluster: Cluster, *words: str, matter: tuple[str, ...] = ()) -> Found:
    """The head node's table; its exit code is by what is red. Named, for install.sh makes the guest a node as well."""
    argv = ("doctor", "--role", "head", "--role", "vault", "--json", *words)
    return answered(lambda: cluster.tool(*argv, check=False), matter)


def node(name: str = "n1", *words: str) -> Found:
    """A node's, run in its namespaces, as the last step of its start-up does."""
    argv = [f"{BIN}/secure-slurm", "doctor", "--role", "compute", "--node", name, "--json", *words]
    return answered(lambda: run_on_node(name, argv))


def answered(look: Callable[[], subprocess.CompletedProcess[str]], matter: tuple[str, ...] = ()) -> Found:
    """A table in which everybody (or those that ``matter``) had the time to answer: asked again while it is not so."""
    for _ in range(TRIES):
        found = parsed(look())
        late = {name for name, row in red(found).items() if any(word in row["seen"] for word in LATE)}
        if not (late & set(matter) if matter else late):
            break
    return found


def parsed(done: subprocess.CompletedProcess[str]) -> Found:
    assert done.stdout.startswith("{"), done.stderr
    rows = json.loads(done.stdout)["checks"]
    found = {row.pop("check"): row for row in rows}
    assert done.returncode == bool(red(found)), found
    return found


def red(found: Found) -> Found:
    return {name: row for name, row in found.items() if row["state"] == "fail"}


def seen(found: Found, name: str, *words: str) -> None:
    """Red, with these words, and with something to do."""
    assert found[name]["state"] == "fail", found[name]
    assert all(word in found[name]["seen"] for word in words), found[name]
    assert found[name]["fix"]


@contextlib.contextmanager
def changed(cluster: Cluster, path: Path, change: Callable[[str], str]) -> Iterator[None]:
    before = path.read_text()
    assert change(before) != before
    put(cluster, path, change(before))
    try:
        yield
    finally:
        put(cluster, path, before)


def put(cluster: Cluster, path: Path, text: str) -> None:
    new = path.with_name("doctor.new")
    cluster.write(new, text)
    new.replace(path)


@contextlib.contextmanager
def reconfigured(cluster: Cluster, change: Callable[[str], str], word: str) -> Iterator[None]:
    """slurm.conf changed, and taken; ``word`` is then in what slurmctld says of itself."""

    def says() -> bool:
        return word in cluster.command(["scontrol", "show", "config"], check=False).stdout

    try:
        with changed(cluster, CONF, change):
            cluster.command(["scontrol", "reconfigure"])
            cluster.until(says, "slurmctld to take its configuration")
            cluster.wait_idle()
            yield
    finally:
        cluster.command(["scontrol", "reconfigure"])
        cluster.until(lambda: not says(), "slurmctld to take its configuration back")
        cluster.wait_idle()


@contextlib.contextmanager
def answering(address: str, *ports: int) -> Iterator[None]:
    """Somebody at an address that nobody should reach; on this machine alone."""
    subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        with contextlib.ExitStack() as stack:
            for port in ports:
                stack.enter_context(socket.create_server((address, port)))
            yield
    finally:
        subprocess.run(["ip", "addr", "del", f"{address}/32", "dev", "lo"], check=True)


def test_what_is_broken_on_the_head_node(patient: Cluster) -> None:
    def bad_conf(text: str) -> str:
        text = text.replace("PrologFlags=Alloc,DeferBatch\n", "AccountingStoreFlags=job_script,job_env\n")
        return text.replace("MessageTimeout=60", "MessageTimeout=30")

    policy = "sys/policies/acl/secure-slurm-test-node"
    before = patient.bao.request("GET", policy)["data"]["policy"]
    with contextlib.ExitStack() as broken:
        broken.enter_context(reconfigured(patient, bad_conf, "job_script"))
        broken.enter_context(changed(patient, POLICY, lambda text: text + "# edited\n"))
        broken.callback(patient.bao.request, "POST", policy, {"policy": before})
        patient.bao.request("POST", policy, {"policy": before.replace('["read"]', '["read", "list"]')})
        broken.callback(patient.slapd.add, group("phi-us", [person("carol")]))
        patient.slapd.delete(group_dn("phi-us"))
        broken.callback(patient.daemon, "glassd", "secure-glass")
        patient.stop_daemon("glassd")
        broken.callback((ETC / "record.key").chmod, 0o640)
        (ETC / "record.key").chmod(0o644)
        filter_ = CONF.with_name("job_submit.lua")
        broken.enter_context(changed(patient, filter_, lambda text: text + "-- of an older version\n"))

        members = Path(f"{settings.RUN}/snapshot/members.json")
        patient.until(lambda: '"missing":true' in members.read_text(), "ldapd to have read")
        found = head(patient)
        seen(found, "slurm-prolog-flags", "Alloc")
        seen(found, "slurm-accounting", "scripts", "environments")
        seen(found, "slurm-timeouts", "MessageTimeout is 30 s")
        seen(found, "slurm-filter", "not the one of this installation")
        seen(found, "rendered", "policy.yaml", "has changed")
        seen(found, "vault-policies", "secure-slurm-test-node is not the shipped one")
        seen(found, "ldap-groups", "cn=phi-us")
        seen(found, "members", "cn=phi-us")
        seen(found, "daemons", "secure-slurm-glassd does not run")
        seen(found, "secret-files", "record key", "0644")
        # and nothing that is well is taken for ill
        assert len(red(found)) == 10, red(found)


def test_what_is_broken_on_a_node(patient: Cluster, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    year, day = datetime.timedelta(days=365), datetime.timedelta(days=1)
    pair = patient.ca.client("n1", tmp_path, valid=(now - year, now + day))
    certificate, private = ETC / "node/n1.crt", ETC / "node/n1.key"
    core_pattern = Path("/proc/sys/kernel/core_pattern")
    earlier = (certificate.read_bytes(), private.read_bytes(), core_pattern.read_text())
    devices = [loop(patient, name) for name in ("swap", "orphan")]
    daemon = Path(__file__).parents[1] / "testbed/guest/node_daemon.sh"
    with contextlib.ExitStack() as broken:
        for device in devices:
            broken.callback(patient.command, ["losetup", "-d", device])
        broken.callback(patient.write, certificate, earlier[0])
        broken.callback(patient.write, private, earlier[1], mode=0o400, owner="secure-node")
        patient.write(certificate, pair.certificate.read_bytes())
        patient.write(private, pair.private_key.read_bytes(), mode=0o400, owner="secure-node")
        broken.callback(core_pattern.write_text, earlier[2])
        core_pattern.write_text("core")
        patient.command(["mkswap", devices[0]])
        broken.callback(patient.command, ["swapoff", devices[0]])
        patient.command(["swapon", devices[0]])
        table = f"0 2048 crypt aes-xts-plain64 {secrets.token_hex(64)} 0 {devices[1]} 0"
        broken.callback(patient.command, ["dmsetup", "remove", "secure-n1-999999"])
        patient.command(["dmsetup", "create", "secure-n1-999999", "--table", table])
        broken.callback(on_node, "n1", ["chmod", "0700", "/var/lib/secure-slurm/scratch"])
        on_node("n1", ["chmod", "0755", "/var/lib/secure-slurm/scratch"])
        broken.callback(patient.wait_idle, "n1")
        broken.callback(on_node, "n1", ["sh", str(daemon), "n1", "daemon"])
        noded = "secure-slurm-noded.*--node n1"
        patient.command(["pkill", "-f", noded])
        patient.until(lambda: patient.command(["pgrep", "-f", noded], check=False).returncode, "noded to end")
        broken.enter_context(mounted("n1", "/mnt/out", "elsewhere:/export"))
        broken.enter_context(answering("169.254.169.254", 80))
        broken.enter_context(answering("1.1.1.1", 53))
        broken.callback(patient.tool, "conf", "render")
        broken.enter_context(changed(patient, POLICY, lambda text: text.replace("private_tmp: none,", "")))
        patient.tool("conf", "render")

        found = node()
        seen(found, "certificates", "the node's", "ends in 24 h")
        seen(found, "core-dumps", "working directory")
        seen(found, "swap", f"swap on {devices[0]}")
        seen(found, "node-scratch", "job 999999", "secure-n1-999999")
        seen(found, "scratch", "root's alone")
        seen(found, "daemons", "secure-slurm-noded does not run")
        seen(found, "node-daemon")
        seen(found, "file-systems", "/mnt/out (elsewhere:/export, fuse.sshfs)")
        seen(found, "metadata-service", "169.254.169.254")
        seen(found, "no-way-out", "1.1.1.1:53")
        seen(found, "private-tmp", "no plugin")
        assert len(red(found)) == 11, red(found)
        # another node is what it was, but for what they share here: one kernel, one network, one policy
        shared = {"core-dumps", "swap", "metadata-service", "no-way-out", "private-tmp"}
        assert red(node("n2")).keys() == shared


def loop(cluster: Cluster, name: str) -> str:
    file = Path(f"/run/testbed/doctor-{name}")
    with file.open("wb") as opened:
        opened.truncate(16 * 2**20)
    return cluster.command(["losetup", "--find", "--show", str(file)]).stdout.strip()


def test_vault_is_sealed_while_jobs_end_and_are_revoked(patient: Cluster) -> None:
    started = Path("/home/alice/doctor-started")
    ends = patient.submit("alice", *TAG, f"--wrap=touch {started}; sleep 600")
    patient.until(started.exists, "the job to run", PATIENCE)
    started.unlink()
    words = [f"{BIN}/secure-slurm", "revoke", "--json", "--job", str(ends), "--reason", "a test"]
    patient.bao.seal()
    # it waits for Vault, and nobody has to wait for it
    revoking = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        orders = Path("/var/lib/secure-slurm/lifecycle/revoked")
        patient.until(lambda: any(orders.iterdir()), "the order to be written", PATIENCE)
        patient.command(["scancel", str(ends)])
        notes = Path("/var/lib/secure-slurm/lifecycle/ended")
        patient.until(lambda: list(notes.glob(f"{ends}.*")), "the end to be noted", PATIENCE)
        found = head(patient)
        seen(found, "revocations", f"job {ends}")
        seen(found, "vault", "sealed")
        seen(found, "vault-login", "sealed")
        seen(found, "vault-policies")
        seen(found, "lifecycle", "Vault")
        seen(found, "pending", f"job {ends}")
        assert {"ldap", "slurm", "decision", "rendered"}.isdisjoint(red(found)), red(found)
    finally:
        patient.bao.unseal()
        said = revoking.communicate(timeout=PATIENCE)[0]
    patient.wait_gone(ends, PATIENCE)
    patient.tool("revoke", "--lift", json.loads(said)["id"])


def test_what_hangs_costs_its_own_deadline_and_hides_nothing_else(patient: Cluster) -> None:
    sound = ("slurm", "slurm-hooks", "decision", "rendered", "daemons", "secret-files", "certificates")
    pids = [
        int(patient.command(["pgrep", "-f", words]).stdout.split()[0])
        for words in ("server -config=", "^/usr/sbin/slapd")
    ]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        found = head(patient, matter=sound)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    for name in ("vault", "vault-login", "ldap", "ldap-groups"):
        seen(found, name)
    for name in sound:
        assert found[name]["state"] == "ok", found[name]


def test_a_cluster_that_is_well(patient: Cluster) -> None:
    """The last of this file: what the others broke is mended."""
    looks: list[Found] = []
    token = ETC / "admin-token"
    patient.write(token, patient.bao.root_token, mode=0o600)
    try:
        with contextlib.suppress(ClusterError):
            patient.until(lambda: looks.append(look(patient, token)) or not red(looks[-1]), "the head node", PATIENCE)
        assert red(looks[-1]) == {}
    finally:
        token.unlink()
    found = looks[-1]
    # what needs an outside, or a person, is no fault; everything else was found, and is good
    assert {name for name, row in found.items() if row["state"] == "warn"} <= {"clock"}, found
    assert {"vault", "vault-policies", "vault-setup", "ldap-groups", "lua-socket", "slurm-hooks"} <= found.keys()

    found = node()
    assert red(found) == {}
    warned = {name for name, row in found.items() if row["state"] == "warn"}
    assert warned <= {"clock", "encryption", "encryption-speed"}, found
    assert {"vault-login", "node-daemon", "swap", "metadata-service", "no-way-out", "scratch"} <= found.keys()

    done = patient.as_user("alice", [f"{BIN}/secure-slurm", "doctor", "--role", "login", "--quiet"])
    assert done.returncode == 0, done.stdout
    assert "fail" not in done.stdout
    assert patient.as_user("alice", [f"{BIN}/secure-slurm", "doctor", "--role", "head"]).returncode == 1


def look(cluster: Cluster, token: Path) -> Found:
    return head(cluster, "--token-file", str(token))
