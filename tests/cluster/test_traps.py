"""Slurm's own fail-open traps, each on the real slurmctld: what Slurm would let pass is refused or harmless."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_hooks import wire
from tests.testbed import settings
from tests.testbed.cluster import Cluster

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
EXTRA = "--extra=secure-slurm:class=phi;residency=eu;scratch=33554432"
SOCKET = f"{settings.RUN}/decision/decide.sock"


@contextlib.contextmanager
def replaced(cluster: Cluster, hook: str, text: str | None) -> Iterator[None]:
    """Another text in the place of a hook's stub; None: the stub is not executable."""
    path = Path(f"{settings.PREFIX}/hooks/{hook}")
    before = path.read_text()
    if text is None:
        path.chmod(0o644)
    else:
        cluster.write(path, text, mode=0o755)
    try:
        yield
    finally:
        cluster.write(path, before, mode=0o755)


def held(cluster: Cluster, job: int, rule: str, *, ran_before: bool = False) -> None:
    """The job is held or cancelled with this rule as the reason; it never ran, and no node noticed."""
    cluster.until(lambda: rule in cluster.facts(job)["admin_comment"], f"job {job} to be refused by {rule}", 60)
    cluster.until(lambda: cluster.state(job) == "PENDING" and cluster.job(job)["Priority"] == "0", "the hold", 30)
    assert cluster.facts(job)["admin_comment"].startswith("secure-slurm/1 ")
    assert ran_before or not Path(f"/home/alice/slurm-{job}.out").exists()
    assert cluster.drained() == ""
    why = cluster.tool("why", str(job)).stdout
    assert rule in why
    cluster.command(["scancel", str(job)])
    cluster.wait_gone(job, 30)


# -- the daemon behind job_submit ------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_daemon(cluster: Cluster) -> Iterator[None]:
    cluster.stop_daemon("decisiond")
    try:
        yield
    finally:
        Path(SOCKET).unlink(missing_ok=True)
        cluster.daemon("decisiond", "secure-decide")
        cluster.until(lambda: Path(SOCKET).exists(), "the decision daemon")
        # after three timeouts the filter refuses for five seconds without asking
        cluster.until(
            lambda: cluster.as_user("bob", ["sbatch", "--test-only", "--wrap=true"]).returncode == 0, "answers", 20
        )


def bad_answer(behaviour: str, request: dict[str, bytes]) -> bytes | None:
    """What a broken or hostile daemon could send; None: nothing at all."""
    nonce = request["nonce"].decode()
    answers: dict[str, bytes | None] = {
        "silence": None,
        "closed": b"",
        "wrong nonce": wire.encode({"nonce": "f" * 32, "verdict": "allow", "rule": "x"}),
        "no nonce": wire.encode({"verdict": "allow", "rule": "x"}),
        "no verdict": wire.encode({"nonce": nonce, "rule": "x"}),
        "unknown verdict": wire.encode({"nonce": nonce, "verdict": "ALLOW", "rule": "x"}),
        "cut off": wire.encode({"nonce": nonce, "verdict": "allow", "rule": "x"})[:-4],
        "garbage": b"HTTP/1.1 200 OK\r\n\r\nallow",
        "huge": b"SS1 99999999\n",
        "odd value": wire.encode({"nonce": nonce, "verdict": "allow", "rule": "x", "set.shared": "many"}),
        "unknown field": wire.encode({"nonce": nonce, "verdict": "allow", "rule": "x", "set.user_id": "0"}),
    }
    return answers[behaviour]


@contextlib.contextmanager
def bad_daemon(behaviour: str) -> Iterator[None]:
    """A daemon that misbehaves, on the real socket, as the right user."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(SOCKET)
        os.chown(SOCKET, pwd.getpwnam("secure-decide").pw_uid, pwd.getpwnam("slurm").pw_gid)
        Path(SOCKET).chmod(0o660)
        listening.listen(8)
        stop = threading.Event()
        listening.settimeout(0.2)

        def serve() -> None:
            kept = []
            while not stop.is_set():
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    continue
                connection.settimeout(2)
                kept.append(connection)
                with contextlib.suppress(OSError):
                    header = b""
                    while not header.endswith(b"\n"):
                        header += connection.recv(1)
                    size, body = wire.decode_header(header), b""
                    while len(body) < size:
                        body += connection.recv(size - len(body))
                    answer = bad_answer(behaviour, wire.decode_body(body))
                    if answer is not None:
                        connection.sendall(answer)
                        if not answer:
                            connection.close()
            for connection in kept:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


BEHAVIOURS = [
    "silence", "closed", "wrong nonce", "no nonce", "no verdict", "unknown verdict", "cut off", "garbage", "huge",
    "odd value", "unknown field",
]  # fmt: skip


def test_whatever_the_daemon_answers_only_a_proper_yes_accepts(clean: Cluster) -> None:
    with without_daemon(clean):
        for behaviour in BEHAVIOURS:
            with bad_daemon(behaviour):
                time.sleep(5.5 if behaviour == "closed" else 0)
                done = clean.as_user("alice", ["secure-sbatch", *TAG, "--wrap=true"])
                assert done.returncode != 0, behaviour
                assert "secure-slurm" in done.stderr, behaviour
                assert "Submitted" not in done.stdout, behaviour
            Path(SOCKET).unlink()
    assert not clean.command(["squeue", "-h", "-u", "alice"]).stdout


def test_daemon_down_and_the_choice_about_untagged_jobs(clean: Cluster) -> None:
    site = Path(f"{settings.ETC}/secure-slurm.yaml")
    before = site.read_text()
    with without_daemon(clean):
        for words in (["secure-sbatch", *TAG], ["sbatch"]):
            done = clean.as_user("alice", [*words, "--wrap=true"])
            assert done.returncode != 0
            assert "secure-slurm" in done.stderr
        clean.write(site, before.replace("untagged_when_down: refuse", "untagged_when_down: allow"))
        clean.tool("conf", "render")
        try:
            clean.until(
                lambda: clean.as_user("bob", ["sbatch", "--wrap=true"]).returncode == 0, "untagged jobs to pass", 30
            )
            refused = [
                ["secure-sbatch", *TAG, "--wrap=true"],
                ["sbatch", EXTRA, "--wrap=true"],
                ["sbatch", "-p", "phi", "--wrap=true"],
                ["sbatch", "-p", "main,phi", "--wrap=true"],
            ]
            for words in refused:
                assert clean.as_user("alice", words).returncode != 0, words
            tagged = clean.script("alice", "t.sh", "#!/bin/sh\n#SECURE --class=phi\n")
            assert clean.as_user("alice", ["sbatch", tagged]).returncode != 0
            assert clean.as_user("alice", ["sbatch", "--wrap=true"], env={"SECURE_CLASS": "phi"}).returncode != 0
        finally:
            clean.write(site, before)
            clean.tool("conf", "render")


def test_het_jobs_and_scrontab_cannot_carry_a_tag(clean: Cluster) -> None:
    for words in (
        ["sbatch", EXTRA, "-n1", ":", "-n1", "--wrap=true"],
        ["sbatch", "-n1", ":", EXTRA, "-n1", "--wrap=true"],
    ):
        done = clean.as_user("alice", words)
        assert done.returncode != 0
        assert "route.het" in done.stderr
    table = clean.script("alice", "cron", f"#SCRON {EXTRA}\n0 0 * * * true\n")

    def told() -> bool:
        done = clean.as_user("alice", ["scrontab", table])
        assert done.returncode != 0
        # scrontab does not show the filter's words; the trail has them
        events = json.loads(clean.tool("audit", "show", "--json", f"{settings.LOG}/decision").stdout)
        return "route.cron" in [event.get("rule") for event in events]

    # a decision that came too late is another reason
    clean.until(told, "the reason")


def test_the_last_extra_wins_in_slurm_and_is_refused_here(clean: Cluster) -> None:
    done = clean.as_user("alice", ["secure-sbatch", *TAG, "--extra=mine", "--wrap=true"])
    assert done.returncode != 0
    # by hand, with the environment that the wrapper sets: the filter misses the tag that the environment asks for
    environment = {"SECURE_CLASS": "phi", "SECURE_RESIDENCY": "eu"}
    done = clean.as_user("alice", ["sbatch", EXTRA, "--extra=mine", "--wrap=true"], env=environment)
    assert done.returncode != 0
    assert "tag.missing" in done.stderr


def test_submission_from_a_node_that_demands_a_tag(clean: Cluster) -> None:
    # slurmctld takes the submitting host from the credential's address; the nodes share one, so its name changes here
    hosts = Path("/etc/hosts")
    before = hosts.read_text()
    hosts.write_text(before.replace("10.99.0.1 head", "10.99.0.1 n1 head"))
    try:
        clean.command(["scontrol", "reconfigure"])
        clean.until(lambda: "UP" in clean.command(["scontrol", "ping"], check=False).stdout, "slurmctld")
        done = clean.as_user("alice", ["sbatch", "--wrap=true"])
        assert done.returncode != 0
        assert "tag.inherit" in done.stderr
        clean.wait_end(clean.submit("alice", *TAG, "--wrap=true"))
    finally:
        hosts.write_text(before)
        clean.command(["scontrol", "reconfigure"])
        clean.until(lambda: "UP" in clean.command(["scontrol", "ping"], check=False).stdout, "slurmctld")


def test_submission_from_inside_a_tagged_job(clean: Cluster) -> None:
    """On a node of partitions that demand nothing: what runs there decides."""
    hosts = Path("/etc/hosts")
    before = hosts.read_text()
    running = clean.submit(
        "carol", "--secure-class=internal", "--secure-residency=us", "-p", "us", "-w", "n4", "--wrap=sleep 300"
    )
    clean.wait_state(running, "RUNNING")
    try:
        hosts.write_text(before.replace("10.99.0.1 head", "10.99.0.1 n4 head"))
        clean.command(["scontrol", "reconfigure"])
        clean.until(lambda: "UP" in clean.command(["scontrol", "ping"], check=False).stdout, "slurmctld")
        done = clean.as_user("carol", ["sbatch", "-p", "us", "--wrap=true"])
        assert done.returncode != 0
        assert "tag.inherit" in done.stderr
        assert f"job {running}" in done.stderr
        # another user's job may be beside it
        clean.as_user("bob", ["sbatch", "-p", "us", "--wrap=true"], check=True)
        clean.submit("carol", "--secure-class=internal", "--secure-residency=us", "-p", "us", "--wrap=true")
        clean.command(["scancel", str(running)])
        clean.wait_end(running)
        clean.until(
            lambda: clean.as_user("carol", ["sbatch", "-p", "us", "--wrap=true"]).returncode == 0, "carol to be free"
        )
    finally:
        hosts.write_text(before)
        clean.command(["scontrol", "reconfigure"])
        clean.until(lambda: "UP" in clean.command(["scontrol", "ping"], check=False).stdout, "slurmctld")


# -- PrologSlurmctld ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [None, "#!/bin/sh\nkill -9 $$\n", "#!/bin/sh\nexit 0\n"], ids=["not executable", "killed", "empty"]
)
def test_without_prolog_slurmctld_no_node_starts_a_tagged_job(clean: Cluster, text: str | None) -> None:
    with replaced(clean, "prolog_slurmctld", text):
        job = clean.submit("alice", *TAG, "--wrap=true")
        held(clean, job, "grant.missing")


def test_a_stale_grant_starts_nothing(clean: Cluster) -> None:
    job = clean.submit("alice", *TAG, "--wrap=sleep 600")
    clean.until(lambda: clean.leftovers(job)["task"], "the first start", 60)
    # its reaper would take the stale grant away before the job starts again
    clean.stop_daemon("lifecycled")
    try:
        with replaced(clean, "epilog_slurmctld", "#!/bin/sh\nexit 0\n"):
            clean.command(["scontrol", "requeuehold", str(job)])
            clean.wait_state(job, "PENDING")
            assert clean.vault_grants(job)
        with replaced(clean, "prolog_slurmctld", "#!/bin/sh\nkill -9 $$\n"):
            clean.command(["scontrol", "release", str(job)])
            refused = "the stale grant to be refused"
            clean.until(lambda: "grant.restarts" in clean.facts(job)["admin_comment"], refused, 120)
    finally:
        clean.daemon("lifecycled", "secure-life")
    held(clean, job, "grant.restarts", ran_before=True)


@pytest.mark.parametrize("how", ["cancel", "requeue"])
def test_epilog_slurmctld_overtakes_prolog_slurmctld(clean: Cluster, how: str) -> None:
    # OpenBao stands still, so PrologSlurmctld hangs in the middle of making keys; then the job ends
    process = clean.bao._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        job = clean.submit("alice", *TAG, "-N2", "--wrap=true")
        clean.until(lambda: clean.state(job) in ("CONFIGURING", "RUNNING"), "PrologSlurmctld to run", 60)
        time.sleep(1)
        clean.command(["scancel", str(job)] if how == "cancel" else ["scontrol", "requeuehold", str(job)])
        time.sleep(1)
    finally:
        process.send_signal(signal.SIGCONT)
    # it is completing for as long as EpilogSlurmctld runs
    clean.until(lambda: not clean.command(["squeue", "-h", "-t", "R,CF,CG"]).stdout.strip(), "EpilogSlurmctld")
    clean.wait_gone(job, 60)
    clean.command(["scancel", str(job)], check=False)
    clean.until(lambda: not list(Path("/var/lib/secure-slurm/lifecycle/ended").iterdir()), "no note to be left", 60)
    assert not any(clean.leftovers(job).values())


def test_the_role_was_lost_between_submission_and_start(clean: Cluster) -> None:
    job = clean.submit("alice", *TAG, "--hold", "--wrap=true")
    clean.slapd.set_members("heart-study", ["uid=oper,ou=people,dc=example,dc=org"])
    try:
        clean.until(
            lambda: "rbac.role" in clean.as_user("alice", ["secure-sbatch", *TAG, "--test-only", "--wrap=true"]).stderr,
            "the new members to count", 60,
        )  # fmt: skip
        # the lifecycle daemon looks at the members every second, as the decision daemon just did
        time.sleep(2)
        clean.command(["scontrol", "release", str(job)])
        held(clean, job, "rbac.role")
    finally:
        clean.slapd.set_members("heart-study", ["uid=alice,ou=people,dc=example,dc=org"])
        clean.until(
            lambda: clean.as_user("alice", ["secure-sbatch", *TAG, "--test-only", "--wrap=true"]).returncode == 0,
            "the old members to count", 60,
        )  # fmt: skip


# -- nodes -------------------------------------------------------------------------------------------------------------


def test_a_node_that_is_elsewhere_refuses(clean: Cluster) -> None:
    place = Path(f"{settings.ETC}/places/n1")
    place.write_text("us-east-1\n")
    try:
        job = clean.submit("alice", *TAG, "-w", "n1", "--wrap=true")
        # the node is at fault, for every job: it leaves service, and the job is held by Slurm without having run
        clean.until(lambda: "n1" in clean.drained(), "the node to drain", 60)
        clean.until(lambda: clean.state(job) == "PENDING", "the job to be held", 60)
        assert not Path(f"/home/alice/slurm-{job}.out").exists()
        events = json.loads(clean.tool("audit", "show", "--json", f"{settings.LOG}/node-n1").stdout)
        assert "residency.node" in [event.get("rule") for event in events if event.get("job") == job]
        clean.command(["scancel", str(job)])
        clean.wait_gone(job, 60)
    finally:
        place.write_text("eu-central-1\n")
        clean.command(["scontrol", "update", "NodeName=n1", "State=RESUME"], check=False)
        clean.wait_idle("n1")


def test_more_scratch_than_the_node_has(clean: Cluster) -> None:
    job = clean.submit("alice", "--secure-class=phi", "--secure-residency=eu", "--secure-scratch=100G", "--wrap=true")
    held(clean, job, "scratch.no-space")


def test_vault_sealed_at_the_start(clean: Cluster) -> None:
    clean.bao.seal()
    try:
        job = clean.submit("alice", *TAG, "--wrap=true")
        clean.until(lambda: "backend.unavailable" in clean.facts(job)["admin_comment"], "the job to wait", 90)
    finally:
        clean.bao.unseal()
    # tests/cluster/test_blame.py has what comes when it stays away
    clean.until(lambda: clean.state(job) == "COMPLETED", "the job to run", 120)
    clean.wait_gone(job)
    assert clean.drained() == ""


def test_a_stale_snapshot_refuses(clean: Cluster) -> None:
    members = Path(f"{settings.RUN}/snapshot/members.json")
    clean.stop_daemon("ldapd")
    try:
        content = json.loads(members.read_text())
        content["loaded_at"] -= 3600
        rewrite(clean, members, json.dumps(content))
        # a running daemon keeps the newer members in memory until their own age ends
        clean.stop_daemon("decisiond")
        clean.daemon("decisiond", "secure-decide")
        clean.until(lambda: Path(SOCKET).exists(), "the decision daemon")
        submit = ["secure-sbatch", *TAG, "--wrap=true"]
        clean.until(lambda: "rbac.snapshot" in clean.as_user("alice", submit).stderr, "old members to be refused", 30)
        assert clean.as_user("bob", ["sbatch", "--test-only", "--wrap=true"]).returncode == 0
    finally:
        clean.cancel_all()
        clean.daemon("ldapd", "secure-ldap", group="secure-record")
        test = ["secure-sbatch", *TAG, "--test-only", "--wrap=true"]
        clean.until(lambda: clean.as_user("alice", test).returncode == 0, "fresh members", 30)


def rewrite(cluster: Cluster, path: Path, text: str) -> None:
    """Replace a file of the LDAP reader's as it does itself: whole, by rename."""
    temporary = path.with_name("new")
    cluster.write(temporary, text, mode=0o640, owner="secure-ldap", group="secure-record")
    temporary.rename(path)


def test_a_task_that_asks_for_a_tag_on_a_node_without_a_grant(clean: Cluster) -> None:
    done = clean.as_user("alice", ["srun", "-N1", "sh", "-c", "echo ran"], env={"SECURE_CLASS": "phi"}, timeout=90)
    assert done.returncode != 0
    assert "ran" not in done.stdout


def test_an_error_inside_the_filter_refuses(clean: Cluster) -> None:
    # up to 25.11 slurmctld accepts the job when job_submit.lua raises
    path = Path("/etc/slurm/job_submit.lua")
    before = path.read_text()
    broken = before.replace(
        "local function collect_job(fields, job)\n", "local function collect_job(fields, job)\n  (nil)()\n"
    )
    assert broken != before
    replace_filter(clean, path, broken)
    try:
        done = clean.as_user("alice", ["sbatch", "--wrap=true"])
        assert done.returncode != 0
        assert "engine.error" in done.stderr
    finally:
        replace_filter(clean, path, before)
    assert clean.as_user("bob", ["sbatch", "--test-only", "--wrap=true"]).returncode == 0


def replace_filter(cluster: Cluster, path: Path, text: str) -> None:
    """slurmctld reads the file again when its time is later than before, to the second."""
    newer = path.stat().st_mtime + 2
    cluster.write(path, text)
    os.utime(path, (newer, newer))


def test_a_refused_start_of_srun_ends_it(clean: Cluster) -> None:
    with replaced(clean, "prolog_slurmctld", "#!/bin/sh\nexit 0\n"):
        done = clean.as_user("alice", ["secure-srun", *TAG, "sh", "-c", "echo ran"], timeout=120)
    assert done.returncode != 0
    assert "ran" not in done.stdout


EXPRESSIONS = ["big", "big|eu", "us|big", "(big|small)", "big&eu", "small|big&eu", "[big|small]", "eu|small", "big,eu"]


def test_no_constraint_leads_elsewhere(clean: Cluster) -> None:
    """Features are read from left to right: the nodes of the EU are away, so whatever starts has been led astray."""

    def change(conf: str) -> str:
        for node, feature in (("n[1-2]", "eu"), ("n[3-4]", "us")):
            conf = conf.replace(f"Feature={feature}", f"Feature={feature},big,small")
            assert node in conf
        return conf

    with clean.other_slurm(change):
        clean.command(["scontrol", "update", "NodeName=n[1-2]", "State=DRAIN", "Reason=test"])
        jobs = []
        for option in ("-C", "--prefer"):
            for expression in EXPRESSIONS:
                done = clean.as_user("alice", ["secure-sbatch", *TAG, option, expression, "--parsable", "--wrap=true"])
                if done.returncode == 0:
                    jobs.append(int(done.stdout))
                else:
                    assert "residency.constraint" in done.stderr, (option, expression, done.stderr)
        assert len(jobs) > len(EXPRESSIONS)
        # bob's job shows that the scheduler has looked at the queue, past all of these
        bob = int(clean.as_user("bob", ["sbatch", "--nice=-0", "-p", "us", "--parsable", "--wrap=true"]).stdout)
        clean.wait_end(bob)
        time.sleep(6)
        assert {clean.state(job) for job in jobs} == {"PENDING"}
        clean.command(["scontrol", "update", "NodeName=n[1-2]", "State=RESUME"])
        clean.until(lambda: clean.state(jobs[0]) == "COMPLETED", "the first job to run at home", 60)
        clean.cancel_all()


def test_a_node_that_boots_for_the_job(clean: Cluster) -> None:
    """PrologSlurmctld runs beside ResumeProgram: grant and key are made for a node that does not exist yet."""
    marker = Path("/run/slurm/resumed")
    clean.write(Path("/run/slurm/resume"), f"#!/bin/sh\necho $1 > {marker}\n", mode=0o755)

    def change(conf: str) -> str:
        conf = conf.replace("NodeName=n[3-4]", "NodeName=n3").replace("Port=[17003-17004]", "Port=17003")
        return conf + (
            "ResumeProgram=/run/slurm/resume\nSuspendProgram=/bin/true\nSuspendTime=600\nResumeTimeout=600\n"
            "NodeName=n4 NodeHostname=head NodeAddr=10.99.0.1 Port=17004 CPUs=1 RealMemory=500 Feature=us State=CLOUD\n"
        )

    nodes = dict(settings.NODES)
    del settings.NODES["n4"]
    try:
        with clean.other_slurm(change):
            job = clean.submit(
                "carol",
                "--secure-class=phi",
                "--secure-residency=us",
                "--secure-scratch=32M",
                "-w",
                "n4",
                "--wrap=true",
            )
            clean.until(marker.exists, "ResumeProgram to be called", 60)
            clean.until(
                lambda: (
                    clean.vault_grants(job) == []
                    and clean.bao.status("LIST", "secure-slurm-grants/metadata/n4")[0] == 200
                ),
                "the grant of a node that is not there",
                60,
            )
            # -b: it says that it has booted just now, which this machine has not
            clean.start_node("n4", "-b")
            clean.wait_end(job, timeout=120)
            clean.wait_gone(job)
            # what is started again afterwards has it as before
            settings.NODES.update(nodes)
    finally:
        settings.NODES.update(nodes)
