"""The units under a real systemd: started, heard, killed, stopped and asked, with a secured job before and after."""

from __future__ import annotations

import os
import pwd
import re
import signal
import stat
from pathlib import Path

import pytest

from slurm_hooks import wire
from tests.cluster.test_freeze import resume, suspended
from tests.cluster.test_revoke import EU, connected, goes_on, revoke, stands_still, trail, writing
from tests.testbed import settings
from tests.testbed.supervised import CERTIFICATE, COMPUTE, HEAD, INSTANCE, NODE, SHORT, WATCHED, Supervised

DAEMONS = (*HEAD, *COMPUTE)
ACCOUNTS = {
    **{"ldapd": "secure-ldap", "decisiond": "secure-decide", "lifecycled": "secure-life", "requeued": "slurm"},
    **{"glassd": "secure-glass", "enrold": "secure-enrol", "noded": "secure-node", "handd": "root", "hookd": "root"},
}
# the page as it is in the checkout, and the units that are more than a daemon without privileges
PAGE = Path("/src/docs/units.md")
ROWS = (
    re.findall(r"^\| `(secure-slurm-[a-z-]+)` \| ([0-9.]+) \|", PAGE.read_text(), re.MULTILINE) if PAGE.exists() else []
)
STATED = {name: float(figure) for name, figure in ROWS}
PRIVILEGED = {f"secure-slurm-{name}" for name in ("handd", "hookd", "reaper", "reaper-boot", "imds")}
GLASS = "/run/secure-slurm/glass/glass.sock"
JOB = """\
#!/bin/bash
echo "on $(findmnt -n -o SOURCE $SECURE_SCRATCH)"
echo weights > $TMPDIR/model && echo "$SLURMD_NODENAME wrote"
"""


def serves(cluster: Supervised, name: str, *, other_than: int) -> bool:
    found = cluster.show(name)
    return found.active == "active" and found.pid not in (0, other_than)


def secured_job(cluster: Supervised) -> None:
    cluster.script("alice", "job.sh", JOB)
    job = cluster.submit(
        "alice", "--secure-class=phi", "--secure-residency=eu", "--secure-scratch=64M", "--nodelist", NODE, "job.sh"
    )
    ended = cluster.wait_end(job, 180)
    assert ended["JobState"] == "COMPLETED", (ended, cluster.logs())
    output = Path(f"/home/alice/slurm-{job}.out").read_text()
    assert f"on /dev/mapper/secure-{NODE}-{job}" in output
    assert f"{NODE} wrote" in output
    cluster.wait_gone(job)
    assert cluster.drained() == ""


def test_systemd_is_the_init(cluster: Supervised) -> None:
    """What the other tests rely on."""
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert cluster.show("decisiond").all["Type"] == "notify"


def test_folders_are_made_by_systemd_tmpfiles(cluster: Supervised) -> None:
    for path, mode, user in (
        ("/run/secure-slurm/decision", 0o2710, "secure-decide"),
        ("/run/secure-slurm/glass", 0o2750, "secure-glass"),
        (f"/run/secure-slurm/node-{NODE}/daemon", 0o755, "secure-node"),
        (f"/var/lib/secure-slurm/identity-{NODE}", 0o700, "secure-node"),
    ):
        info = cluster.folders[path]
        assert (stat.S_IMODE(info.st_mode), pwd.getpwuid(info.st_uid).pw_name) == (mode, user), path


@pytest.mark.parametrize("name", DAEMONS)
def test_each_is_ready_watched_and_says_how_it_is(cluster: Supervised, name: str) -> None:
    found = cluster.show(name)
    assert (found.active, found.restarts) == ("active", 0), cluster.journal(name)
    assert found.status != ""
    assert found.all["WatchdogUSec"] not in ("", "0", "infinity")
    # "enable --now" came back when all were ready, so each has said so; a beat has come with it
    assert int(found.all["WatchdogTimestampMonotonic"]) > 0
    assert f"secure-slurm-{name}" in cluster.command_line(found.pid)


@pytest.mark.parametrize("name", DAEMONS)
def test_each_has_its_account_and_what_its_unit_leaves_it(cluster: Supervised, name: str) -> None:
    status = Path(f"/proc/{cluster.show(name).pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    uid = pwd.getpwnam(ACCOUNTS[name]).pw_uid
    assert fields["Uid"].split()[0] == str(uid)
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert (int(fields["CapEff"], 16) == 0) == (ACCOUNTS[name] != "root")


def test_the_node_has_enrolled(cluster: Supervised) -> None:
    """Metadata service, enrolment daemon, Vault and the node's own folder: each from within the units."""
    found = Path(CERTIFICATE).stat()
    assert (pwd.getpwuid(found.st_uid).pw_name, stat.S_IMODE(found.st_mode)) == ("secure-node", 0o644)
    assert stat.S_IMODE(Path(CERTIFICATE).with_name("node.key").stat().st_mode) == 0o600
    text = cluster.command(["openssl", "x509", "-in", CERTIFICATE, "-noout", "-ext", "subjectAltName"]).stdout
    assert f"URI:secure-slurm://test/{NODE}/{INSTANCE}" in text
    trail = (Path("/var/log/secure-slurm/enrol") / "head-enrol.jsonl").read_text()
    assert '"event":"node.enrolled"' in trail
    assert f'"identity":"{INSTANCE}"' in trail


def exposure(cluster: Supervised, unit: str) -> float:
    """What the systemd that runs says of a unit that it has loaded."""
    text = cluster.command(["systemd-analyze", "--no-pager", "security", f"{unit}.service"], check=False).stdout
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    assert match is not None, text
    return float(match[1])


def test_no_more_is_open_than_stated(cluster: Supervised) -> None:
    found = {name: exposure(cluster, name) for name in STATED}
    assert {name: figure for name, figure in found.items() if figure > STATED[name]} == {}
    assert {name for name, figure in found.items() if figure >= 2.5} == PRIVILEGED


def test_systemd_has_nothing_to_complain_of(cluster: Supervised) -> None:
    units = [f"{name}.service" for name in STATED]
    done = cluster.command(["systemd-analyze", "verify", "--man=no", *units, "secure-slurm-glassd.socket"])
    assert done.stdout + done.stderr == ""


def test_the_closing_of_the_metadata_service(cluster: Supervised) -> None:
    """Its unit leaves it the firewall and the trial as nobody. This kernel has the firewall, and no tables for it."""
    text = Path("/etc/systemd/system/secure-slurm-imds.service").read_text()
    start = f"ExecStart={settings.PREFIX}/bin/secure-slurm node imds --close\n"
    assert text.count(start) == 1
    steps = f"ExecStart=/usr/sbin/nft list ruleset\n{start.replace(' --close', '')}"
    text = text.replace(start, steps)
    for name, given, result in (
        ("trial", text, "success"),
        ("trial-without", text.replace("=CAP_NET_ADMIN ", "="), "exit-code"),
    ):
        unit = Path(f"/run/systemd/system/{name}.service")
        unit.write_text(given)
        cluster.command(["systemctl", "daemon-reload"])
        cluster.command(["systemctl", "start", unit.name], check=False)
        said = cluster.command(["systemctl", "show", "--property=Result", unit.name]).stdout
        assert said == f"Result={result}\n", cluster.command(["journalctl", "-o", "cat", "-u", unit.name]).stdout


def test_a_secured_job(cluster: Supervised) -> None:
    secured_job(cluster)


def test_those_that_stand_still_and_those_that_are_killed_come_back(cluster: Supervised) -> None:
    """SIGSTOP: nothing has failed and every socket still takes connections; only the beat is missing."""
    before = {name: cluster.show(name) for name in DAEMONS}
    for name, found in before.items():
        assert (found.all["WatchdogUSec"] == SHORT) == (name in WATCHED)
        os.kill(found.pid, signal.SIGSTOP if name in WATCHED else signal.SIGKILL)
    cluster.until_all(DAEMONS, lambda name: serves(cluster, name, other_than=before[name].pid), "a new one", 300)
    for name in DAEMONS:
        assert ("Watchdog timeout" in cluster.journal(name)) == (name in WATCHED)
        assert cluster.show(name).restarts > before[name].restarts


def test_who_asks_for_break_glass_while_its_daemon_is_away_waits(cluster: Supervised) -> None:
    cluster.command(["systemctl", "stop", "secure-slurm-glassd.service"])
    assert cluster.show("glassd").pid == 0
    info = Path(GLASS).stat()
    assert (stat.S_ISSOCK(info.st_mode), stat.S_IMODE(info.st_mode)) == (True, 0o660)
    assert pwd.getpwuid(info.st_uid).pw_name == "secure-glass"
    assert wire.exchange(GLASS, {"verb": "ping"}, timeout=120)["verdict"] == b"allow"
    assert cluster.show("glassd").active == "active"


def test_after_all_that_a_job_is_frozen_goes_on_and_is_revoked(cluster: Supervised) -> None:
    """The hand's work: it freezes, suspends, resumes and wipes, from within its unit."""
    cluster.wait_idle(NODE)
    cluster.until(lambda: NODE in connected(cluster), "the node to be connected")
    job = writing(cluster, "alice", *EU, "--nodelist", NODE)
    report = revoke(cluster, "--job", str(job), "--freeze")
    assert report["jobs"] == {str(job): {"keys": "locked", "nodes": {NODE: "frozen"}}}
    assert (suspended(job, NODE), stands_still(job)) == (True, True)
    assert list(resume(cluster, "--job", str(job))["jobs"]) == [str(job)]
    goes_on(cluster, job)
    report = revoke(cluster, "--job", str(job), "--kill")
    assert report["jobs"] == {str(job): {"keys": "deleted", "nodes": {NODE: "stopped"}}}
    (stopped,) = [event for event in trail(cluster, job) if event["event"] == "job.stopped"]
    assert (stopped["result"], stopped["wiped"], "cgroups frozen" in stopped["evidence"]) == ("stopped", True, True)
    assert cluster.wait_end(job)["JobState"] == "CANCELLED"
    cluster.wait_gone(job)
    assert cluster.drained() == ""


def test_the_reaper_runs_with_what_its_unit_leaves_it(cluster: Supervised) -> None:
    cluster.command(["systemctl", "start", "secure-slurm-reaper.service"], timeout=240)
    assert cluster.show("reaper").all["Result"] == "success", cluster.journal("reaper")
    assert cluster.command(["systemctl", "is-active", "secure-slurm-reaper.timer"]).stdout == "active\n"


def test_each_ends_when_it_is_told_to(cluster: Supervised) -> None:
    cluster.command(["systemctl", "stop", "secure-slurm-glassd.socket"])
    cluster.command(["systemctl", "stop", *(f"secure-slurm-{name}.service" for name in DAEMONS)], timeout=300)
    for name in DAEMONS:
        found = cluster.show(name)
        assert (found.active, found.all["Result"], found.all["ExecMainStatus"]) == ("inactive", "success", "0"), name
