"""``secure-slurm node store``: what scratch lies on here, instance store taken over for it, and given back.

Root's, on the compute node, before slurmd starts; needs neither Slurm nor Vault.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from admin import store_look, store_ready, store_take, store_unit
from admin.output import printable, say, say_json, say_table
from audit.chain import Chain
from conf import render, store
from conf.errors import EXIT_OK, EXIT_REFUSED, BackendUnavailable, ConfigError, Refused, UsageError
from conf.hookconf import HOOKS_JSON, for_node, is_node_name, read_hook_config
from conf.policy import DEFAULT_PATH as POLICY
from conf.site import Site, load_site
from conf.units import format_size
from keys.journal import Journal
from keys.scratch.plan import UNCHOSEN, is_volume_group

DEFAULT_GROUP = "vg.01"
"""ParallelCluster's."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``node store``."""
    parser = commands.add_parser(
        "store",
        help="show and prepare what scratch lies on; take instance store over, and give it back",
        description="Show what scratch lies on here, and what instance store there is. Exit 0: a job could have "
        "scratch here, or what was asked for is done; 1: not so.",
        allow_abbrev=False,
    )
    act = parser.add_mutually_exclusive_group()
    act.add_argument("--show", action="store_true", help="change nothing (as without an option)")
    act.add_argument(
        "--prepare",
        action="store_true",
        help="do what the scratch section of secure-slurm.yaml says: take the volume group over, make the folder, "
        "choose; for the node's set-up",
    )
    act.add_argument(
        "--take-over",
        action="store_true",
        help="make the volume group of instance store the jobs', and keep setup-ephemeral.service from running",
    )
    act.add_argument("--release", action="store_true", help="give the empty volume group back to ParallelCluster")
    parser.add_argument(
        "--remove",
        choices=[store_look.VENDORS_VOLUME],
        default="",
        help="with --take-over: destroy this volume, with all that is in it",
    )
    parser.add_argument("--group", metavar="NAME", default="", help=f"the volume group (scratch's, or {DEFAULT_GROUP})")
    parser.add_argument("--node", metavar="NAME", default="", help="this node's name in Slurm (the host name)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_store)


def run_store(args: argparse.Namespace) -> int:
    """Do it. Raises Refused, with nothing changed, for a rule ``store.*``; InternalError when a step failed."""
    if os.geteuid() != 0:
        raise Refused("node.not-root", "only root may look after a node's drives", advice="run it as root on the node")
    if args.remove and not args.take_over:
        raise UsageError("--remove is for --take-over", advice=f"--take-over --remove {args.remove}")
    site = load_site(args.config)
    name = args.node or socket.gethostname().partition(".")[0]
    if not is_node_name(name):
        raise UsageError(f"{name[:80]!r} is not the name of a node", advice="give the node's Slurm name with --node")
    group = args.group or site.scratch.volume_group or DEFAULT_GROUP
    if not is_volume_group(group):
        raise UsageError(f"{group[:80]!r} is not the name of a volume group", advice="see: vgs")
    note = _noting(site, name)
    if args.take_over:
        return _say_done(args, store_take.take_over(group, args.remove, note), f"{group} is the jobs'")
    if args.release:
        return _say_done(args, store_take.release(group, note), f"{group} is not ours")
    if args.prepare:
        return _prepare(args, site, name, note)
    return _show(args, site, group)


def _noting(site: Site, name: str) -> Callable[..., object]:
    """Writes ``node.store``, on the disk when it returns. AuditError: then nothing is changed."""
    chain = Chain(f"{site.audit.directory}/node-{name}", "node", name)

    def note(**fields: object) -> object:
        return chain.append("node.store", durable=True, node=name, **fields)

    return note


def _say_done(args: argparse.Namespace, done: list[str], already: str) -> int:
    if args.json:
        say_json({"done": done})
        return EXIT_OK
    for line in done or [f"nothing to do: {already}"]:
        say(printable(line))
    return EXIT_OK


def _prepare(args: argparse.Namespace, site: Site, name: str, note: Callable[..., object]) -> int:
    directory = str(Path(HOOKS_JSON).parent)
    before = store.read(directory)
    if site.scratch.backing == UNCHOSEN:
        _refuse_under_jobs(site, name, before[0], store_ready.choose(site.scratch).backing)
    ready = store_ready.prepare(site.scratch, note)
    chosen = (ready.backing, ready.why)
    if site.scratch.backing == UNCHOSEN and chosen != before:
        note(result="chosen", backing=ready.backing, reason=ready.why[:200], bytes=max(0, ready.bytes))
        render.replace(Path(directory) / store.NAME, store.text(*chosen))
    if site.scratch.backing == UNCHOSEN and (chosen != before or _rendered() != ready.backing):
        # also when an earlier call was cut short between the two
        render.render(args.config, POLICY, directory)
    if args.json:
        say_json(ready._asdict())
        return EXIT_OK
    room = f", {format_size(ready.bytes)} free" if ready.bytes >= 0 else ""
    say(printable(f"scratch lies on: {ready.backing} ({ready.why}){room}"))
    return EXIT_OK


def _rendered() -> str:
    """What the hooks take scratch to lie on; "" when they can read nothing."""
    try:
        return str(read_hook_config(HOOKS_JSON)["scratch"]["backing"])
    except (ConfigError, OSError, KeyError):
        return ""


def _refuse_under_jobs(site: Site, name: str, before: str, now: str) -> None:
    """Tear-downs find scratch by what is configured: what lies elsewhere must be gone before that changes."""
    if not before or before == now:
        return
    journal = Journal(for_node(site.node.run_dir, name), name, for_node(site.node.state_dir, name))
    jobs = set(journal.durable.jobs() if journal.durable is not None else [])
    for job in journal.jobs():
        record = journal.read(job)
        if record is not None and record.state != "destroyed":
            jobs.add(job)
    if jobs:
        raise Refused(
            "store.in-use",
            f"scratch lies on {before}, would lie on {now}, and jobs have some: {', '.join(map(str, sorted(jobs)))}",
            advice="drain the node and end them, or secure-slurm node reap",
        )


def _show(args: argparse.Namespace, site: Site, group: str) -> int:
    chosen = store.read(str(Path(HOOKS_JSON).parent))[0] if site.scratch.backing == UNCHOSEN else site.scratch.backing
    drives = store_look.drives()
    trouble = store_ready.problem(site.scratch, chosen)
    found: store_look.Group | None = None
    try:
        found = store_look.group(group)
    except (BackendUnavailable, Refused) as error:
        trouble = trouble or str(error)
    said: dict[str, Any] = {
        "backing": site.scratch.backing,
        "chosen": chosen or None,
        "drives": sorted(drives.values()),
        "group": None if found is None else {**found._asdict(), "volumes": [_volume(each) for each in found.volumes]},
        "unit": _unit(),
        "problem": trouble or None,
    }
    if args.json:
        say_json(said)
    else:
        _say(said, found)
    return EXIT_REFUSED if trouble else EXIT_OK


def _volume(each: store_look.Volume) -> dict[str, Any]:
    where = [mount.point for mount in each.mounts]
    return {"name": each.name, "size": each.size, "ours": each.ours, "mounts": where}


def _unit() -> str:
    if not store_unit.exists():
        return "absent"
    return "stopped" if store_unit.stopped() else "runs at boot"


def _say(said: dict[str, Any], found: store_look.Group | None) -> None:
    chosen = f" (here: {said['chosen'] or 'nothing'})" if said["backing"] == UNCHOSEN else ""
    say(printable(f"scratch.backing: {said['backing']}{chosen}"))
    say(printable(f"drives of instance store: {', '.join(said['drives']) or 'none'}"))
    say(f"{store_unit.NAME}: {said['unit']}")
    if found is None:
        say("volume group: none")
    else:
        strange = f"; not instance store: {', '.join(found.strange)}" if found.strange else ""
        say(printable(f"volume group {found.name}: {format_size(found.size)}, {format_size(found.free)} free{strange}"))
        if found.volumes:
            rows = [
                (each.name, format_size(each.size), "a job's" if each.ours else "not ours", _points(each))
                for each in found.volumes
            ]
            say_table(("VOLUME", "SIZE", "WHOSE", "MOUNTED AT"), rows)
    if said["problem"]:
        say(printable(f"problem: {said['problem']}"))


def _points(each: store_look.Volume) -> str:
    return ", ".join(mount.point for mount in each.mounts)
