"""Slurm's settings: everything that the hooks and the filter need, and what would store in clear what is protected."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from admin.doctor.finding import Finding, fail, ok, some, warn
from conf import budget

if TYPE_CHECKING:
    from admin.doctor.facts import Daemon, Filter, HookFile, Slurm, SlurmNode, Wanted

SNIPPET = "see conf/slurm/slurm.conf.snippet, then restart slurmctld and slurmd"
_VERSION = re.compile(r"([0-9]+)\.([0-9]+)")
OLDEST, TESTED = (24, 5), ((24, 11), (26, 5))
_SETTING = re.compile(r"([A-Za-z_]+)((?:\[[0-9]+\])?) += ?(.*)")
HOOKS = {
    "Prolog": "prolog",
    "Epilog": "epilog",
    "PrologSlurmctld": "prolog_slurmctld",
    "EpilogSlurmctld": "epilog_slurmctld",
}
TASK = "TaskProlog"
SEES = "requeued"
IDENTITY = {
    "AuthType": (("auth/munge", "auth/slurm"), "whoever reaches slurmctld is whoever they say"),
    "CredType": (("cred/munge", "cred/slurm"), "whoever reaches a slurmd runs anything there"),
    "SlurmdUser": (("root",), "the Prolog can make no encrypted scratch"),
}
IN_CLEAR = {"job_env": "environments", "job_script": "scripts"}


def parse(printed: str) -> dict[str, str]:
    """What ``scontrol show config`` prints; of a setting with several values (``Prolog[0]``) all, by commas."""
    found: dict[str, str] = {}
    for line in printed.splitlines():
        if (match := _SETTING.match(line)) is None:
            continue
        name, value = match[1], match[3].strip()
        found[name] = f"{found[name]},{value}" if match[2] and name in found else value
    return found


def answers(seen: Slurm, wanted: Wanted) -> Finding:
    """The slurmctld that answers is this cluster's."""
    name = seen.settings.get("ClusterName", "")
    if name != wanted.cluster:
        return fail(
            f"the slurmctld that answers is of the cluster {name!r}, not of {wanted.cluster!r}",
            "compare cluster.name in secure-slurm.yaml with ClusterName in slurm.conf",
        )
    return ok(f"slurmctld of {name} answers")


def version(seen: Slurm) -> Finding:
    """One that this was tested with, or between two."""
    told = seen.settings.get("SLURM_VERSION", "")
    match = _VERSION.match(told)
    number = (int(match[1]), int(match[2])) if match else (0, 0)
    if number < OLDEST:
        return fail(f"Slurm {told or 'of unknown version'}", "use 24.05 or later: job_submit cannot do without")
    if not TESTED[0] <= number <= TESTED[1]:
        return warn(f"Slurm {told} has not been tested", "run the test suite beside it (docs/development.md)")
    return ok(f"Slurm {told}")


def prolog_flags(seen: Slurm) -> Finding:
    """slurm.conf(5): the Prolog at allocation (Contain implies Alloc), and not beside the scratch's set-up."""
    flags = seen.words("PrologFlags")
    if not {"alloc", "contain"} & set(flags):
        return fail(
            "PrologFlags lacks Alloc: the Prolog would run at the first step only, and not on every node",
            f"PrologFlags=Contain,DeferBatch; {SNIPPET}",
        )
    if "runinjob" in flags:
        return fail("PrologFlags has RunInJob: a job's own processes could stop its Prolog", "use Contain instead")
    if "deferbatch" not in flags:
        return warn(
            "PrologFlags lacks DeferBatch: a batch script waits for its own node's Prolog only",
            f"PrologFlags=Contain,DeferBatch; {SNIPPET}",
        )
    return ok(f"PrologFlags={','.join(flags)}")


def job_submit(seen: Slurm, filter_: Filter) -> Finding:
    """The filter is asked, last of all, and is this installation's."""
    plugins = seen.words("JobSubmitPlugins")
    if "lua" not in plugins:
        return fail(
            f"JobSubmitPlugins is {','.join(plugins) or 'not set'}: no job is judged",
            f"JobSubmitPlugins=lua; {SNIPPET}",
        )
    if plugins[-1] != "lua":
        return fail(f"JobSubmitPlugins={','.join(plugins)}: what comes after lua is not judged", "put lua last")
    if not filter_.there:
        return fail(
            f"there is no {filter_.path}: slurmctld will not start again",
            "copy /opt/secure-slurm/hooks/job_submit.lua there",
        )
    if not filter_.same:
        return fail(
            f"{filter_.path} is not the one of this installation",
            "copy /opt/secure-slurm/hooks/job_submit.lua there; scontrol reconfigure",
        )
    return ok(f"lua is asked, with {filter_.path}")


def lua_socket(seen: Filter) -> Finding:
    """LuaSocket for the Lua that job_submit_lua.so is linked with: without it every tagged job is refused."""
    if seen.problem:
        return fail(seen.problem, "install the package of Slurm that has job_submit_lua.so")
    if not seen.socket:
        return fail(
            f"there is no LuaSocket for Lua {seen.lua}, which Slurm uses",
            f"install it for Lua {seen.lua} (Debian: lua-socket; the offline bundle brings it)",
        )
    return ok(f"Lua {seen.lua}: {seen.socket}")


def hooks(seen: Slurm) -> Finding:
    """Each of Slurm's hooks leads to ours, and root can run all that it leads to."""
    wrong = []
    for setting in HOOKS:
        files = seen.hooks.get(setting, ())
        if not any(each.ours for each in files):
            value = seen.settings.get(setting, "")
            wrong.append(f"{setting}={value if value not in ('', '(null)') else '(not set)'} does not lead to ours")
        wrong += [f"{setting}: {each.path} cannot be run" for each in files if not each.runnable]
    if wrong:
        return fail(some(wrong), f"{SNIPPET}; or link ours into its folder")
    if not any(each.ours for each in seen.hooks.get(TASK, ())):
        return warn("TaskProlog does not lead to ours: jobs are not told where their scratch is", SNIPPET)
    return ok("Prolog, Epilog, PrologSlurmctld, EpilogSlurmctld and TaskProlog lead to ours")


def order(seen: Slurm) -> Finding:
    """Slurm stops at the first that fails: ours must not be skipped because of somebody else's."""
    wrong = [
        f"{setting}: {files[0].path} runs before ours, which is skipped when it fails"
        for setting in HOOKS
        if (files := seen.hooks.get(setting, ())) and not files[0].ours and _has_ours(files)
    ]
    if wrong:
        advice = "Slurm runs a folder in reverse order of names: name ours 99_secure_slurm there"
        return fail(some(wrong), advice)
    return ok("ours come first")


def _has_ours(files: tuple[HookFile, ...]) -> bool:
    return any(each.ours for each in files)


def timeouts(seen: Slurm, wanted: Wanted) -> Finding:
    """:mod:`conf.budget`."""
    printed = "".join(f"{name} = {value}\n" for name, value in seen.settings.items())
    short = budget.complaints(printed, wanted.prolog_deadline, wanted.start_deadline)
    return fail(some(short), SNIPPET) if short else ok("Slurm's limits leave the hooks their time")


def private_data(seen: Slurm, running: tuple[Daemon, ...]) -> Finding:
    """Hidden jobs cannot be told from jobs that never were, unless the requeue daemon, who is SlurmUser, sees them."""
    costs = "keys of a job that Slurm has forgotten stay until its number comes again"
    if "privatedata" in re.split(r"[,:]", seen.settings.get("MCSParameters", "").lower()):
        return warn(
            f"MCSParameters=privatedata: {costs}",
            "see docs/admin.md, 'What is pending, and what the reaper does'; or do without",
        )
    if "jobs" not in seen.words("PrivateData"):
        return ok("slurmctld hides no job from the reaper")
    if not any(each.name == SEES and each.runs for each in running):
        return warn(
            f"PrivateData=jobs, and secure-slurm-{SEES} does not run: {costs}",
            f"start secure-slurm-{SEES}, as SlurmUser",
        )
    return ok("slurmctld hides jobs from the reaper, and SlurmUser's requeue daemon sees them for it")


def accounting(seen: Slurm) -> Finding:
    """slurm.conf(5), AccountingStoreFlags: what would be in the accounting's database in clear."""
    stored = [words for flag, words in IN_CLEAR.items() if flag in seen.words("AccountingStoreFlags")]
    if stored:
        return fail(
            f"the accounting keeps jobs' {' and '.join(stored)}, in clear",
            "take job_env and job_script out of AccountingStoreFlags, and delete what is there",
        )
    return ok("the accounting keeps neither scripts nor environments")


def identity(seen: Slurm) -> Finding:
    """slurm.conf(5), AuthType, CredType, SlurmdUser: who somebody is, and who runs the hooks on a node."""
    wrong = [
        f"{setting}={seen.settings.get(setting, '(not said)')}: {lost}"
        for setting, (values, lost) in IDENTITY.items()
        if seen.settings.get(setting, "").partition("(")[0] not in values
    ]
    if wrong:
        return fail(some(wrong), "auth/munge, cred/munge and root; restart slurmctld and every slurmd")
    return ok("users, nodes and jobs are who they say, and slurmd is root")


def node(seen: SlurmNode) -> Finding:
    """Whether Slurm would send jobs here. Before slurmd has started it does not know the node."""
    bad = [word for word in ("DOWN", "DRAIN", "FAIL", "NOT_RESPONDING", "UNKNOWN") if word in seen.state.upper()]
    if bad:
        return warn(
            f"slurmctld says {seen.state}" + (f": {seen.reason}" if seen.reason else ""),
            "mend what the reason says, then: scontrol update NodeName=... State=RESUME",
        )
    return ok(f"slurmctld says {seen.state}")
