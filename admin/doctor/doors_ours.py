"""Doors to what is ours: the configuration, the daemons on this machine, and what is left of jobs."""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from admin.doctor.children import probe
from admin.doctor.facts import (
    Daemon,
    Decision,
    Enrolled,
    Head,
    Members,
    NodeDaemon,
    NodeJobs,
    Rendered,
    Revocations,
    Settings,
)
from admin.doctor.scene import PREFIX
from admin.node_look import Node, look
from admin.status_cmd import lifecycle_parts
from conf.errors import BackendUnavailable, ConfigError, Refused
from conf.hookconf import HOOKS_JSON, read_hook_config
from conf.policy import load_policy
from conf.site import load_site
from conf.slurmnames import for_node
from keys.process import program, run
from slurm_hooks import wire
from slurm_hooks.prolog import SOCKET
from slurm_hooks.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from admin.doctor.scene import Scene

DAEMON_WAIT = 32.0
"""Seconds for the lifecycle daemon, which asks Vault and Slurm (20 s) before it answers."""
SHORT_WAIT = 25.0
"""Seconds for what answers at once: an instance that boots is busy, and is given up when it is called ill."""
ENROL = "enrold"
HEAD = ("ldapd", "decisiond", "lifecycled", "requeued", "glassd")
COMPUTE = ("noded", "handd", "hookd")
TIMERS = ("reaper",)
"""They have no process: only systemd can say."""
_USER = re.compile(r"^User=(\S+)$", re.MULTILINE)
SHOWN = 20


def settings(scene: Scene) -> Settings:
    """Every mistake in both files."""
    mistakes: list[str] = []
    reading: tuple[tuple[Callable[[str], object], str], ...]
    reading = ((load_site, scene.config), (load_policy, scene.policy_file))
    for load, path in reading:
        try:
            load(path)
        except ConfigError as error:
            mistakes += str(error).split("\n")
    return Settings(tuple(mistakes), scene.site.node.proof if scene.site else "")


def rendered(_: Scene) -> Rendered:
    """hooks.json against the files that it was made from."""
    try:
        read_hook_config(HOOKS_JSON)
    except ConfigError as error:
        return Rendered(str(error), error.advice)
    return Rendered("", "")


def daemons(scene: Scene) -> tuple[Daemon, ...]:
    """Of this machine's roles, by systemd where there is one, and by their processes."""
    names = [*(HEAD if "head" in scene.roles else ()), *(COMPUTE if "compute" in scene.roles else ())]
    names += [ENROL] if "head" in scene.roles and scene.need_site().enrol.listen else []
    systemd = Path("/run/systemd/system").is_dir()
    running = list(_processes())
    found = [
        Daemon(name, _unit(f"{name}.service") if systemd else "", _count(name, running, scene.node)) for name in names
    ]
    timers = TIMERS if systemd and "compute" in scene.roles else ()
    return (*found, *(Daemon(f"{name}.timer", _unit(f"{name}.timer"), 0) for name in timers))


def _unit(name: str) -> str:
    argv = [program("systemctl"), "show", "--value", "--property=ActiveState", f"secure-slurm-{name}"]
    return run(argv, timeout=SHORT_WAIT).stdout.decode("ascii", "replace").strip() or "unknown to systemd"


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Uid and words of every process; one that ends meanwhile is left out."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            yield folder.stat().st_uid, [os.fsdecode(word) for word in words]
        except OSError:
            continue


def _count(name: str, running: list[tuple[int, list[str]]], node: str) -> int:
    """How many processes are that daemon: its program, as its account; anybody may call a process so."""
    account = _account(name)
    path = f"{PREFIX}/bin/secure-slurm-{name}"
    mine = [words for uid, words in running if uid == account and path in words[:4]]
    return sum("--node" not in words or node in words for words in mine)


def _account(name: str) -> int:
    text = resources.files("conf").joinpath("systemd", f"secure-slurm-{name}.service").read_text(encoding="utf-8")
    user = _USER.search(text)
    try:
        return pwd.getpwnam(user[1]).pw_uid if user else 0
    except KeyError:
        return -1


def head(scene: Scene) -> Head:
    """``secure-slurm status``, of the lifecycle daemon."""
    return head_of(_report(scene.need_site().lifecycle.socket))


# what has a line of its own
_TOLD_ELSEWHERE = frozenset({"revocations", "reaper"})


def head_of(report: dict[str, Any]) -> Head:
    """The lifecycle daemon's report as facts. BackendUnavailable: it is not what it should be."""
    try:
        parts = lifecycle_parts(report, "")
        reaper = report["reaper"]
        bad = [f"{each.name}: {each.text}" for each in parts if not each.good and each.name not in _TOLD_ELSEWHERE]
        # what the reaper keeps is told there; that it cannot look is not
        bad += [f"reaper: {reaper['error']}"] if reaper["error"] else []
        waiting = [f"job {one['job']} for {one['age']:.0f} s ({one['reason']})" for one in report["pending"][:SHOWN]]
        kept = [f"job {one['job']}: {one['why']}" for one in reaper["kept"][:SHOWN]]
        return Head(
            tuple(bad),
            tuple(waiting),
            int(report["pending_count"]),
            tuple(kept),
            int(reaper["kept_count"]),
            int(reaper["damaged"]),
        )
    except (KeyError, TypeError, ValueError):
        raise BackendUnavailable("the lifecycle daemon's report cannot be read: another version?") from None


def _report(path: str) -> dict[str, Any]:
    answer = _ask(path, "status", DAEMON_WAIT)
    try:
        found = json.loads(answer.get("report", ""))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BackendUnavailable("the lifecycle daemon gives no report: another version?")
    return found


def decision(scene: Scene) -> Decision:
    """``secure-slurm status``, of the decision daemon."""
    answer = _ask(scene.need_site().controller.socket, "status", SHORT_WAIT)
    return Decision(answer.get("members", ""), answer.get("audit", ""))


def revocations(scene: Scene) -> Revocations:
    """``secure-slurm revoke --list``."""
    site = scene.need_site()
    if not site.link.listen:
        return Revocations(0, ())
    answer = _ask(site.lifecycle.socket, "revocations", SHORT_WAIT)
    try:
        orders = [
            (str(each["kind"]), str(each["value"]), bool(each["confirmed"])) for each in json.loads(answer["report"])
        ]
    except (KeyError, TypeError, ValueError):
        raise BackendUnavailable("the lifecycle daemon's list of revocations cannot be read") from None
    return Revocations(len(orders), tuple(f"{kind} {value}" for kind, value, confirmed in orders if not confirmed))


def _ask(path: str, verb: str, wait: float) -> dict[str, str]:
    answer = wire.exchange(path, {"verb": verb}, timeout=wait)
    told = {name: wire.text(answer, name) for name in answer}
    if told.get("verdict") != "allow":
        raise BackendUnavailable(told.get("message", "it gave no verdict"), advice=told.get("advice", ""))
    return told


def members(scene: Scene) -> Members:
    """The file that jobs are judged by."""
    ldap = scene.need_site().ldap
    now = time.time()
    try:
        owner = pwd.getpwnam("secure-ldap").pw_uid
        found = Snapshot.load(ldap.snapshot, owner, max_age=ldap.max_age, now=now)
    except KeyError:
        return Members(0.0, (), (), "there is no account secure-ldap", "run install.sh --role head")
    except Refused as error:
        return Members(0.0, (), (), str(error), error.advice)
    missing = tuple(name for name, group in found.groups.items() if group.missing)
    empty = tuple(name for name, group in found.groups.items() if not group.members and not group.missing)
    return Members(found.age(now), missing, empty)


def node_daemon(scene: Scene) -> NodeDaemon:
    """Its ping, by which it looks at its place anew."""
    path = f"{for_node(scene.need_site().node.run_dir, scene.node)}/{SOCKET}"
    told = _ask(path, "ping", SHORT_WAIT)
    return NodeDaemon(told.get("region", ""), told.get("jurisdiction", ""), told.get("proof", ""))


def enrolled(scene: Scene) -> Enrolled:
    """``secure-slurm node enrol --show``."""
    if not scene.need_site().enrol.listen:
        return Enrolled(asked=False)
    told = probe("secure-node", ["enrolled", scene.config, scene.node], SHORT_WAIT)
    return Enrolled(True, str(told["instance"]), float(told["begins"]), float(told["ends"]))


def node_jobs(scene: Scene) -> NodeJobs:
    """``secure-slurm node status``."""
    config = read_hook_config(HOOKS_JSON, check_sources=False)
    node = Node(scene.node, for_node(config["node"]["run_dir"], scene.node), config)
    problems: list[str] = []
    found = look(node, problems)
    lost = [each for each in found if each.journal in ("none", "destroyed", "damaged") and each.there and not each.step]
    orphans = tuple(f"job {each.job}: {', '.join(each.there)} (journal: {each.journal})" for each in lost)
    return NodeJobs(len(found) - len(lost), orphans, tuple(problems))
