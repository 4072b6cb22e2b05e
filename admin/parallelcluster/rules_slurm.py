"""Our rules about Slurm's settings: what ParallelCluster's list of forbidden ones does not see, and what we need."""

from __future__ import annotations

import re

from admin.findings import Finding
from admin.parallelcluster import facts
from admin.parallelcluster.look import CUSTOM, SETTINGS, Findings, Look, Rule, Setting, below, error, warning
from admin.parallelcluster.queues import container_plugin, private_data, wants_private_tmp
from conf.budget import ROOM, complaints
from conf.quote import quote

_INSTEAD = {
    "prolog": "leave it out: ParallelCluster's prolog.d stays, and the action puts 99_secure_slurm into it",
    "epilog": "leave it out: ParallelCluster's epilog.d stays, and the action puts 99_secure_slurm into it",
}
_STORED = frozenset({"job_script", "job_env"})
# slurm.conf(5): what a value may be; a list or mapping would be written as Python writes it
_VALUE = (str, int, bool)


def entries(look: Look) -> Findings:
    """How settings are written: one key each, each once, none that is ParallelCluster's own."""
    first: dict[str, Setting] = {}
    for each in look.settings():
        name = each.key.lower()
        if name in facts.DENIED:
            why = "" if each.alone else "; ParallelCluster does not notice, for the entry has other keys as well"
            advice = _INSTEAD.get(name, "leave it out")
            yield error("setting-denied", each.where, f"{each.key} is set by ParallelCluster itself{why}", advice)
        elif not each.alone and not _defines(look, each):
            yield error(
                "setting-many-keys",
                each.where,
                f"{each.key} shares its entry with other keys: they would be one line of slurm.conf",
                "write an entry of its own for each key",
            )
        if not isinstance(each.value, _VALUE) or "\n" in str(each.value) or not str(each.value).strip():
            yield error(
                "setting-value",
                each.where,
                f"the value of {each.key} is no text or number: slurmctld would not start",
                "write it as slurm.conf has it, such as 'Contain,DeferBatch'",
            )
        if each.alone and name in first and name not in facts.DEFINITIONS:
            yield error(
                "setting-twice",
                each.where,
                f"{each.key} is set a second time, and replaces the first",
                "say it once, with all that is meant",
            )
        first.setdefault(name, each)


def _defines(look: Look, setting: Setting) -> bool:
    entry = look.raw["Scheduling"]["SlurmSettings"]["CustomSlurmSettings"][setting.where[len(CUSTOM)]]
    return any(key.lower() in facts.DEFINITIONS for key in entry)


def definitions(look: Look) -> Findings:
    """Nodes and partitions beside ParallelCluster's have none of our actions."""
    for each in look.settings():
        if each.key.lower() in {"nodename", "partitionname"}:
            yield error(
                "setting-own-nodes",
                each.where,
                f"{each.key} {quote(each.value)} is none of ParallelCluster's: no custom action sets it up",
                "make it a queue below SlurmQueues",
            )


def include_file(look: Look) -> Findings:
    """A file of settings that nobody can look at here."""
    if "CustomSlurmSettingsIncludeFile" in below(look.raw, SETTINGS):
        yield error(
            "setting-file",
            (*SETTINGS, "CustomSlurmSettingsIncludeFile"),
            "what is in this file is checked by nobody, and may replace ParallelCluster's Prolog",
            "write the settings below CustomSlurmSettings",
        )


def filter_plugin(look: Look) -> Findings:
    """``JobSubmitPlugins``: lua, and last."""
    found = look.setting("JobSubmitPlugins")
    if found is None:
        yield _missing("setting-filter", "JobSubmitPlugins", "lua", "no submission would be judged")
        return
    plugins = [each.strip() for each in str(found.value).split(",")]
    if plugins[-1:] != ["lua"]:
        yield error(
            "setting-filter",
            found.where,
            f"JobSubmitPlugins is {quote(found.value)}: lua is not the last, so that it does not judge what the others "
            "made of the job",
            "end it with lua: 'JobSubmitPlugins: lua'",
        )


def hooks(look: Look) -> Findings:
    """The hooks that are named by path; Prolog and Epilog are links in ParallelCluster's own folders."""
    for name, file, lost in (
        ("PrologSlurmctld", "prolog_slurmctld", "no job would get a key, and none with a tag would start"),
        ("EpilogSlurmctld", "epilog_slurmctld", "keys would be deleted late, by the reaper only"),
        ("TaskProlog", "task_prolog", "jobs would not be told where their scratch is"),
    ):
        path = f"{facts.HOOKS}/{file}"
        found = look.setting(name)
        if found is None:
            yield _missing("setting-hook", name, path, lost)
        elif found.value != path:
            yield error(
                "setting-hook",
                found.where,
                f"{name} is {quote(found.value)}, not ours: {lost}",
                f"write {name}: {path}",
            )


def prolog_flags(look: Look) -> Findings:
    """``PrologFlags``: the Prolog at the allocation, on all nodes, before the batch script."""
    found = look.setting("PrologFlags")
    private = look.policy is not None and wants_private_tmp(look.policy)
    usual = "Contain,DeferBatch" if private else "Alloc,DeferBatch"
    if found is None:
        yield _missing("setting-prolog-flags", "PrologFlags", usual, "the Prolog would run at the first step only")
        return
    flags = _words(found)
    lacks = []
    if not flags & {"alloc", "contain", "x11"}:
        lacks.append("Alloc (the Prolog at the allocation, not at the first step)")
    if private and not flags & {"contain", "x11"}:
        lacks.append("Contain (a /tmp of its own for each job)")
    if "deferbatch" not in flags:
        lacks.append("DeferBatch (the batch script after the Prologs of all nodes)")
    if lacks:
        yield error(
            "setting-prolog-flags",
            found.where,
            f"PrologFlags lacks {', '.join(lacks)}",
            f"write PrologFlags: {usual}",
        )
    for flag, why in (
        ("nohold", "NoHold: a job starts before its Prologs are done"),
        ("runinjob", "RunInJob: Prolog and Epilog run among the job's own processes, and end with them"),
    ):
        if flag in flags:
            yield error("setting-prolog-flags", found.where, f"PrologFlags has {why}", f"write PrologFlags: {usual}")


def own_tmp(look: Look) -> Findings:
    """The plugin by which each job gets its own /tmp; its setting has another name from Slurm 25.11 on."""
    if look.policy is None or not wants_private_tmp(look.policy):
        return
    new, old = look.setting("NamespaceType"), look.setting("JobContainerType")
    key, plugin = container_plugin(look.slurm or "25.11")
    found = new if key == "NamespaceType" else old
    other = old if key == "NamespaceType" else new
    if look.slurm is None and found is None:
        found, other = other, None
    if found is None and other is None:
        yield _missing("setting-own-tmp", key, plugin, "what jobs write to /tmp would stay on the node, in clear")
    elif found is None and other is not None:
        yield error(
            "setting-own-tmp",
            other.where,
            f"{other.key} is not what Slurm {look.slurm} calls it: slurmctld would not start",
            f"write {key}: {plugin}",
        )
    elif found is not None and str(found.value).rpartition("/")[2] != "tmpfs":
        yield error(
            "setting-own-tmp",
            found.where,
            f"{found.key} is {quote(found.value)}: only tmpfs puts a job's /tmp on its scratch",
            f"write {found.key}: {plugin}",
        )


def timeouts(look: Look) -> Findings:
    """Whether Slurm leaves the hooks their time, by what ParallelCluster and the settings say together."""
    prolog = look.site.node.prolog_deadline if look.site else 45.0
    start = look.site.lifecycle.start_deadline if look.site else 60.0
    said = dict(facts.SLURM_CONF)
    for name in (*said, "PrologEpilogTimeout", "PrologTimeout"):
        each = look.setting(name)
        if each is not None:
            said[name] = str(each.value)
    printed = "\n".join(f"{key} = {value}" for key, value in said.items())
    for complaint in complaints(printed, prolog, start):
        name = re.split(r"[ :]+", complaint.removeprefix("slurm.conf: "))[0]
        found = look.setting("AuthInfo" if name == "cred_expire" else name)
        yield error(
            "setting-timeout",
            found.where if found else CUSTOM,
            complaint.removeprefix("slurm.conf: "),
            "raise it, or shorten node.prolog_deadline or lifecycle.start_deadline in secure-slurm.yaml",
        )
    for name in ("BatchStartTimeout", "MessageTimeout", "PrologEpilogTimeout", "PrologTimeout"):
        found = look.setting(name)
        if found is not None and not re.fullmatch("[0-9]{1,5}", str(found.value)):
            yield error(
                "setting-timeout",
                found.where,
                f"{name} is {quote(found.value)}, no number of seconds: slurmctld would not start",
                f"write a number, such as {name}: 120",
            )
    if not any(look.setting(each) for each in ("PrologEpilogTimeout", "PrologTimeout")):
        yield _missing(
            "setting-timeout", "PrologEpilogTimeout", f"{start + ROOM + 20:g}", "a hook that hangs would hang for ever"
        )


def kept(look: Look) -> Findings:
    """What a setting of the site's takes away from ParallelCluster's own of that name."""
    parameters = look.setting("SchedulerParameters")
    if parameters is not None and "nohold_on_prolog_fail" not in _words(parameters):
        yield error(
            "setting-nohold",
            parameters.where,
            "SchedulerParameters replaces ParallelCluster's nohold_on_prolog_fail: a job whose node broke is held",
            f"write SchedulerParameters: {parameters.value!s},nohold_on_prolog_fail",
        )
    private = look.setting("PrivateData")
    if private is None:
        yield warning(
            "setting-private-data",
            CUSTOM,
            "without PrivateData everybody sees everybody's jobs, their names and their decision records",
            f"add an entry PrivateData: {private_data(look.slurm or '')}",
        )
    elif "cloud" in private_data(look.slurm or "").split(",") and "cloud" not in _words(private):
        yield error(
            "setting-private-data",
            private.where,
            "PrivateData replaces ParallelCluster's 'cloud': nodes that are switched off would be hidden",
            f"write PrivateData: cloud,{private.value!s}",
        )


def stored(look: Look) -> Findings:
    """What of a job the accounting database would hold in clear."""
    found = look.setting("AccountingStoreFlags")
    flags = [] if found is None else sorted(_words(found) & _STORED)
    if found is not None and flags:
        yield error(
            "setting-stored",
            found.where,
            f"AccountingStoreFlags has {', '.join(flags)}: the accounting would hold them of every job, in clear",
            "leave them out; job_comment may stay",
        )


def _words(setting: Setting) -> set[str]:
    return {each.strip().lower() for each in str(setting.value).split(",")}


def _missing(check: str, name: str, value: str, lost: str) -> Finding:
    return error(check, CUSTOM, f"{name} is not set: {lost}", f"add an entry {name}: {value}")


RULES: tuple[Rule, ...] = (
    entries,
    definitions,
    include_file,
    filter_plugin,
    hooks,
    prolog_flags,
    own_tmp,
    timeouts,
    kept,
    stored,
)
