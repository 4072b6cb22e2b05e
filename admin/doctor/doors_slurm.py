"""Doors to Slurm: its own commands, and the files that its settings name. Nothing is changed."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from admin.doctor.facts import Commands, Filter, HookFile, Slurm, SlurmNode, Wanted
from admin.doctor.judge_slurm import HOOKS, TASK, parse
from admin.doctor.scene import HOOKS_DIR, PREFIX
from conf.errors import BackendUnavailable
from keys.process import ProcessError, run

if TYPE_CHECKING:
    from admin.doctor.scene import Scene

WAIT = 25.0
"""Seconds for one of Slurm's commands. One that finds no slurmctld goes on for MessageTimeout and longer."""
MAX_CONFIG = 4 * 1024**2
_LIBRARY = re.compile(rb"liblua(?:-)?([0-9]\.[0-9])")
_PLUGIN = "job_submit_lua.so"
# where Lua's distributions look for compiled modules (LUA_CPATH, package.cpath), and where job_submit.lua looks besides
_MODULES = (
    f"{PREFIX}/lua/{{0}}/socket/unix.so",
    "/usr/local/lib/lua/{0}/socket/unix.so",
    "/usr/lib64/lua/{0}/socket/unix.so",
    "/usr/lib/lua/{0}/socket/unix.so",
    "/usr/lib/*/lua/{0}/socket/unix.so",
)
COMMANDS = ("secure-sbatch", "secure-srun", "secure-salloc", "sbatch", "squeue")


def slurm(scene: Scene) -> Slurm:
    """The settings in force, and where the hooks lead."""
    site = scene.need_site()
    settings = parse(_ask(site.cluster.slurm_bin, "scontrol", "show", "config"))
    names = {**HOOKS, TASK: "task_prolog"}
    folder = os.path.dirname(settings.get("SLURM_CONF", ""))  # noqa: PTH120 - a text, which may be empty
    return Slurm(settings, {name: hook_files(settings.get(name, ""), own, folder) for name, own in names.items()})


def wanted(scene: Scene) -> Wanted:
    """What the site file asks of it."""
    site = scene.need_site()
    return Wanted(site.cluster.name, site.node.prolog_deadline, site.lifecycle.start_deadline)


def hook_files(value: str, own: str, folder: str) -> tuple[HookFile, ...]:
    """The programs behind a setting, in the order in which Slurm runs them.

    A pattern's are run in reverse order of their names (Slurm, prep_script_slurmd.c: sorted by glob(3), each put in
    front of the last). ``own``: the name of ours; ``folder``: where a relative name is (slurm.conf(5)).
    """
    found: list[HookFile] = []
    for pattern in (each.strip() for each in value.split(",")):
        if pattern in ("", "(null)"):
            continue
        absolute = pattern if pattern.startswith("/") else f"{folder}/{pattern}"
        found += [_hook_file(path, own) for path in sorted(_glob(absolute), reverse=True) or [absolute]]
    return tuple(found)


def _hook_file(path: str, own: str) -> HookFile:
    ours = os.path.realpath(path) == os.path.realpath(f"{HOOKS_DIR}/{own}") or _same(path, f"{HOOKS_DIR}/{own}")
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError:
        return HookFile(path, ours=False, runnable=False)
    return HookFile(path, ours, stat.S_ISREG(mode) and bool(mode & stat.S_IXUSR))


def _same(one: str, other: str) -> bool:
    try:
        return Path(one).read_bytes() == Path(other).read_bytes()
    except OSError:
        return False


def slurm_conf(slurm_bin: str) -> str:
    """Where slurm.conf is, as Slurm finds it; empty: nowhere that is known, so the usual place.

    SLURM_CONF, else ``etc`` beside Slurm's own ``bin`` (as /opt/slurm/etc), else the usual place, else where
    slurmd keeps what a configless controller gave it (slurm.conf(5), enable_configless).
    """
    told = os.environ.get("SLURM_CONF", "")
    folders = (f"{Path(slurm_bin).parent}/etc", "/etc/slurm", "/run/slurm/conf")
    places = (Path(f"{folder}/slurm.conf") for folder in folders)
    return told or next((str(place) for place in places if place.is_file()), "")


def filter_(scene: Scene) -> Filter:
    """job_submit.lua, and the Lua behind it. Only found out beside slurm.conf, so Slurm is asked where that is."""
    site = scene.need_site()
    settings = parse(_ask(site.cluster.slurm_bin, "scontrol", "show", "config"))
    path = str(Path(settings.get("SLURM_CONF", "/etc/slurm/slurm.conf")).with_name("job_submit.lua"))
    there, same = Path(path).is_file(), _same(path, f"{HOOKS_DIR}/job_submit.lua")
    for folder in settings.get("PluginDir", "").split(":"):
        plugin = Path(folder) / _PLUGIN
        if plugin.is_file():
            break
    else:
        why = f"there is no {_PLUGIN} in {settings.get('PluginDir', 'PluginDir')}"
        return Filter(path, there, same, lua="", socket="", problem=why)
    lua = linked_lua(plugin)
    if not lua:
        return Filter(
            path, there, same, lua="", socket="", problem=f"{plugin} does not say which Lua it is linked with"
        )
    modules = [found for pattern in _MODULES for found in sorted(_glob(pattern.format(lua)))]
    return Filter(path, there, same, lua, modules[0] if modules else "")


def linked_lua(plugin: Path) -> str:
    """The version of Lua that a plugin names among the libraries it needs: ``5.1``; empty: none."""
    found = _LIBRARY.search(plugin.read_bytes())
    return found[1].decode("ascii") if found else ""


def node(scene: Scene) -> SlurmNode:
    """This node as slurmctld has it."""
    text = _ask(scene.need_site().cluster.slurm_bin, "scontrol", "--oneliner", "show", "node", scene.node)
    state = re.search(r"(?:^| )State=(\S+)", text)
    reason = re.search(r"(?:^| )Reason=(.*?)(?: \[\S+@\S+\])?(?: [A-Z][A-Za-z]+=|$)", text.strip())
    partitions = re.search(r"(?:^| )Partitions=(\S+)", text)
    demanding = None if partitions is None else tuple(_demanding(scene, partitions[1].split(",")))
    return SlurmNode(state[1] if state else "UNKNOWN", reason[1] if reason else "", demanding)


def _demanding(scene: Scene, partitions: list[str]) -> list[str]:
    """Without a policy that can be used, all of them."""
    return [name for name in partitions if scene.policy is None or scene.policy.partition(name).demand_tag]


def commands(scene: Scene) -> Commands:
    """What a user has in PATH; root's may be shorter, so the usual folders are looked into as well."""
    slurm_bin = scene.site.cluster.slurm_bin if scene.site else "/opt/slurm/bin"
    path = f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin:/bin:{slurm_bin}"
    found = {name: shutil.which(name, path=path) for name in COMMANDS}
    missing = tuple(name for name, where in found.items() if where is None)
    sbatch = found["sbatch"]
    if sbatch is None:
        return Commands(missing, "")
    told = run([sbatch, "--version"], timeout=WAIT).stdout.decode("ascii", "replace").split()
    return Commands(missing, told[-1] if told else "")


def _ask(slurm_bin: str, name: str, *words: str) -> str:
    where = {each: os.environ[each] for each in ("SLURM_CONF",) if each in os.environ}
    try:
        argv = [f"{slurm_bin}/{name}", *words]
        return run(argv, timeout=WAIT, env_extra=where, max_output=MAX_CONFIG).stdout.decode("utf-8", "replace")
    except ProcessError as error:
        raise BackendUnavailable(
            f"{name} gave no answer: {error.stderr or error}", advice="scontrol ping; is it running?"
        ) from None


def _glob(pattern: str) -> list[str]:
    """Absolute paths that fit. Not ``**``, which glob(3), and so Slurm, does not know."""
    return [str(path) for path in Path("/").glob(pattern.lstrip("/").replace("**", "*"))]
