"""Ways on which a job's data could leave the cluster, and what a class says of each. Pure."""

from __future__ import annotations

from conf.quote import quote
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.judge_class import class_of
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict


def expansion(dependency: str | None) -> Verdict:
    """``route.dependency-expand``: no job, tagged or not, hands its nodes to another.

    The other one may carry a tag, and would go on on nodes without a key, perhaps in another jurisdiction (with
    SchedulerParameters=permit_job_expansion; measured). What the other job is, nobody can tell at this moment.
    """
    if "expand" in (dependency or "").lower():
        return Deny(
            "route.dependency-expand",
            "a job cannot expand another one on this cluster: that one could get nodes without keys",
            "submit it as a job of its own, without --dependency=expand",
        )
    return ALLOW


def routes(job: SubmitJob, _context: Context) -> Verdict:
    """``route.*``: ways by which a job would escape what was decided about it, whatever its class."""
    expands = expansion(job.string("dependency"))
    if job.tag is None or expands is not ALLOW:
        return expands
    if job.string("clusters"):
        return Deny(
            "route.clusters",
            "a job that carries a tag is not sent to other clusters",
            "submit it on the cluster where it is to run, without --clusters",
        )
    if job.cron:
        return Deny("route.cron", "a scrontab job cannot carry a tag", "submit it with secure-sbatch --begin=...")
    if job.het_offset is not None:
        return Deny(
            "route.het",
            "a heterogeneous job cannot carry a tag",
            "submit its components as jobs of their own",
        )
    return ALLOW


def others(job: SubmitJob, _context: Context) -> Verdict:
    """``route.dependency-other``: when a tagged job starts would tell the owner of another job how that one ended."""
    if job.tag is None or all(uid == str(job.user_id) for uid in job.dependency_uids):
        return ALLOW
    return Deny(
        "route.dependency-other",
        "a job that carries a tag depends only on jobs of the same user, and one in --dependency is another's",
        "leave that job out of --dependency",
    )


def mail(job: SubmitJob, context: Context) -> Verdict:
    """``route.mail``: a mail tells name, state and times of the job to wherever it is sent."""
    data_class = class_of(job, context)
    if data_class is None or data_class.mail == "allow":
        return ALLOW
    user = job.string("mail_user")
    if data_class.mail == "owner":
        if not user or user == job.user_name:
            return ALLOW
        return Deny(
            "route.mail",
            f"a job of class {quote(data_class.name)} sends mail to its owner only",
            "leave --mail-user out",
        )
    if not job.number("mail_type") and not user:
        return ALLOW
    return Deny(
        "route.mail",
        f"a job of class {quote(data_class.name)} sends no mail",
        "leave --mail-type and --mail-user out",
    )


def container(job: SubmitJob, context: Context) -> Verdict:
    """``route.container``: an OCI bundle brings mounts and hooks of its own."""
    data_class = class_of(job, context)
    if data_class is None or data_class.containers == "allow" or not job.string("container"):
        return ALLOW
    return Deny(
        "route.container",
        f"a job of class {quote(data_class.name)} runs in no OCI container of Slurm's",
        "leave --container out",
    )


def burst_buffer(job: SubmitJob, context: Context) -> Verdict:
    """``route.burst-buffer``: data would be staged outside of the encrypted scratch."""
    data_class = class_of(job, context)
    if data_class is None or data_class.burst_buffers == "allow":
        return ALLOW
    if not job.string("burst_buffer") and not job.script_burst_buffer:
        return ALLOW
    return Deny(
        "route.burst-buffer",
        f"a job of class {quote(data_class.name)} has no burst buffer",
        "leave --bb, --bbf and the script's #BB and #DW lines out",
    )


def environment(job: SubmitJob, context: Context) -> Verdict:
    """``route.environment``: slurmctld keeps the submitter's variables in its state files."""
    data_class = class_of(job, context)
    if data_class is None or data_class.environment == "any" or not job.user_environment:
        return ALLOW
    word = "NIL" if data_class.environment == "nil" else "NONE"
    return Deny(
        "route.environment",
        f"a job of class {quote(data_class.name)} takes no variables of the session that it is submitted from",
        f"add --export={word}, and set what the job needs in its script",
    )


def user_environment(job: SubmitJob, context: Context) -> Verdict:
    """``route.user-env``: slurmd would run the user's login files before the job; ``--export=NONE`` asks for that."""
    data_class = class_of(job, context)
    if data_class is None or data_class.environment != "nil" or not job.environment.get("env.slurm_get_user_env"):
        return ALLOW
    return Deny(
        "route.user-env",
        f"a job of class {quote(data_class.name)} starts without the login files of its user",
        "add --export=NIL, and leave --get-user-env out",
    )
