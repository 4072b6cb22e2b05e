"""What is ours: configuration, daemons, files, and what they still have to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from admin.doctor.finding import Finding, fail, ok, some, warn

if TYPE_CHECKING:
    from admin.doctor.facts import (
        Clock,
        Commands,
        Daemon,
        Decision,
        Enrolled,
        Head,
        NodeDaemon,
        NodeJobs,
        Rendered,
        Revocations,
        SecretFile,
        Settings,
    )

_STATUS = "secure-slurm status says more"
LATE = 0.75
"""Of a certificate's life: the node daemon renews it from half of it on, and tries again every few minutes."""
# without it hooks take longer, and are otherwise the same
_HARMLESS = frozenset({"hookd"})


def configuration(seen: Settings) -> Finding:
    """Both YAML files can be read and have no mistake."""
    if seen.mistakes:
        # a folder that is missing is said of each of the files in it
        return fail(some(dict.fromkeys(seen.mistakes)), "secure-slurm conf check shows all of them")
    if seen.proof == "none":
        return fail("node.proof is none: every tagged job is refused", "choose ec2, manifest or file (docs/admin.md)")
    return ok("no mistake")


def rendered(seen: Rendered) -> Finding:
    """The hooks use what the YAML files say now."""
    return fail(seen.problem, seen.advice or "secure-slurm conf render") if seen.problem else ok("up to date")


def daemons(seen: tuple[Daemon, ...]) -> Finding:
    """Each runs, and systemd, where there is one, knows it."""
    away = {each.name: _words(each) for each in seen if not each.runs}
    serious = [words for name, words in away.items() if name not in _HARMLESS]
    advice = "systemctl enable --now " + " ".join(f"secure-slurm-{name}" for name in away)
    if serious:
        return fail(some(away.values()), f"{advice}; journalctl -u secure-slurm-{next(iter(away))}")
    if away:
        return warn(some(away.values()), advice)
    return ok(f"{', '.join(each.name for each in seen)} run")


def _words(daemon: Daemon) -> str:
    return f"secure-slurm-{daemon.name} " + (f"is {daemon.unit}" if daemon.unit else "does not run")


def head(seen: Head) -> Finding:
    """The lifecycle daemon answers, and has nothing to complain of but what has a line of its own."""
    return fail(some(seen.bad), _STATUS) if seen.bad else ok("the lifecycle daemon answers")


def pending(seen: Head) -> Finding:
    """Keys of jobs that are over have been destroyed."""
    if seen.pending_count:
        more = f", {seen.pending_count} in all" if seen.pending_count > len(seen.pending) else ""
        return fail(f"keys of ended jobs are not destroyed yet: {some(seen.pending)}{more}", f"mend Vault; {_STATUS}")
    return ok("no key waits to be destroyed")


def orphans(seen: Head) -> Finding:
    """Vault holds no grant of which it is not clear whose it is."""
    if seen.kept_count or seen.damaged:
        damaged = [f"{seen.damaged} grants cannot be read"] if seen.damaged else []
        return fail(
            some([*damaged, *seen.kept]), f"see docs/admin.md, 'What is pending, and what the reaper does'; {_STATUS}"
        )
    return ok("every key in Vault is a job's that slurmctld knows")


def decision(seen: Decision) -> Finding:
    """The decision daemon answers and can write."""
    if seen.audit != "written":
        return fail(f"its audit trail is {seen.audit or 'not known'}: tagged jobs are refused", _STATUS)
    return ok(f"the decision daemon answers; group members: {seen.members or 'not known'}")


def revocations(seen: Revocations) -> Finding:
    """What was revoked has ended everywhere."""
    if seen.waiting:
        return fail(
            f"not confirmed by all: {some(seen.waiting)}",
            "secure-slurm revoke --list says by whom; mend that node, or Vault",
        )
    return ok(f"{seen.in_force} in force, all confirmed" if seen.in_force else "none")


def secrets(seen: tuple[SecretFile, ...]) -> Finding:
    """Each can be read by the one account that needs it, and by no other."""
    bad = [f"{each.what} ({each.path}): {each.problem}" for each in seen if each.problem]
    if bad:
        return fail(some(bad), "see the table of files in docs/install.md, step 3")
    return ok(f"{', '.join(each.what for each in seen)}: each its daemon's alone")


def node_daemon(seen: NodeDaemon) -> Finding:
    """It answers, and knows where it is."""
    if seen.problem:
        return fail(seen.problem, "journalctl -u secure-slurm-noded; secure-slurm node status")
    return ok(f"in {seen.region} ({seen.jurisdiction}): {seen.proof}")


def enrolment(seen: Enrolled, now: Clock) -> Finding:
    """Where nodes enrol, this one has, and renews in time."""
    if not seen.asked:
        return ok("nodes do not enrol here (enrol.listen)")
    if not seen.instance:
        return fail(
            "there is no certificate that is good for this node, its cluster and its key",
            "secure-slurm node enrol says why; on the head node: journalctl -u secure-slurm-enrold",
        )
    hours = f"{(seen.ends - now.now) / 3600:.1f} h"
    if now.now > seen.begins + LATE * (seen.ends - seen.begins):
        return warn(
            f"the certificate was to be renewed before now, and is good for {hours} yet",
            "journalctl -u secure-slurm-noded; on the head node: systemctl status secure-slurm-enrold",
        )
    return ok(f"{seen.instance}; certificate good for {hours}")


def node_jobs(seen: NodeJobs) -> Finding:
    """Nothing of a job that is over is left."""
    if seen.orphans:
        return fail(f"of no job: {some(seen.orphans)}", "secure-slurm node reap; or secure-slurm node clean JOB")
    if seen.problems:
        return fail(some(seen.problems), "secure-slurm node status says more")
    return ok(f"scratch of {seen.jobs} jobs, each with a journal" if seen.jobs else "no scratch of any job")


def commands(seen: Commands) -> Finding:
    """What users type is there, and Slurm's own answers."""
    if seen.missing:
        return fail(
            f"not found: {', '.join(seen.missing)}", "run install.sh --role login; Slurm's commands must be in PATH"
        )
    return ok(f"secure-sbatch, secure-srun and secure-salloc; Slurm {seen.slurm}")
