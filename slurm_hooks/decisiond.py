"""The decision daemon: answers job_submit.lua while slurmctld waits.

Everything that a decision needs lies in memory. Policy and group members are looked at in the background, and swapped
in whole when they change; a broken new policy leaves the last good one in use and an error in the log. A request
touches no network, no name service and no LDAP. One line of audit is written before each answer and reaches the disk
within a second.

Untagged jobs may be let pass by job_submit.lua itself and told here as notes (decision 0018). It does so only while
this daemon confirms, second by second, that it decides by the policy which job_submit.lua was rendered from.
"""

from __future__ import annotations

import argparse
import logging
import os
import pwd
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from audit.chain import Chain
from conf.errors import SecureSlurmError
from conf.policy import DEFAULT_PATH as POLICY_PATH
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import Site, load_site
from slurm_hooks import background, pulse, record
from slurm_hooks.breakglass_live import WRITER as GLASS_WRITER
from slurm_hooks.breakglass_live import BreakGlass, Trail
from slurm_hooks.decider import Decider
from slurm_hooks.desk import Desk
from slurm_hooks.engine import Signer
from slurm_hooks.live import LOOK_EVERY, Live, account
from slurm_hooks.notify import Systemd
from slurm_hooks.revoked import Revoked
from slurm_hooks.running import LOOK_EVERY as LOOK_INSIDE
from slurm_hooks.running import Running
from slurm_hooks.snapshot import SnapshotCache

LOG = logging.getLogger(__name__)

WRITER = "decision"
SNAPSHOT_USER = "secure-ldap"
LIFECYCLE_USER = "secure-life"
SOCKET_MODE = 0o660
DEADLINE_SHARE = 0.75
"""Of the time that slurmctld waits: an answer that would come too late is better given up here."""


def run(decider: Decider, site: Site, slurm: pwd.struct_passwd, stop: threading.Event) -> None:
    """Serve until ``stop``. Only SlurmUser and root may ask, by the kernel's word."""
    controllers = frozenset({0, slurm.pw_uid})
    handlers = {
        "submit": (controllers, decider.submit),
        "modify": (controllers, decider.modify),
        "ping": (pulse.allowed(*controllers), decider.ping),
        "status": (frozenset({0}), decider.status),
    }
    notes = {"note": (controllers, decider.note)}
    desk = Desk(site.controller.socket, handlers, notes, deadline=site.controller.deadline * DEADLINE_SHARE)
    desk.open(mode=SOCKET_MODE, group=_group_for(slurm))
    rounds, systemd = pulse.Rounds(), Systemd()
    threads = background.start(
        stop,
        (LOOK_EVERY, rounds.counted("policy and members", decider.look)),
        (LOOK_EVERY, rounds.counted("the audit trail", decider.flush)),
        (LOOK_INSIDE, rounds.counted("running jobs", decider.look_inside)),
    )
    try:
        systemd.ready(decider.words())
        LOG.info("deciding at %s", site.controller.socket)
        pulse.beat(systemd, stop, site.controller.socket, rounds, decider.words)
    finally:
        stop.set()
        systemd.stopping()
        desk.close()
        for thread in threads:
            thread.join()
        decider.fold(everything=True)
        decider.flush()


def _group_for(slurm: pwd.struct_passwd) -> int | None:
    """The socket's group: SlurmUser's, if this process may give it away."""
    return slurm.pw_gid if os.geteuid() == 0 or slurm.pw_gid in os.getgroups() else None


def build(config: str, policy: str, snapshot_user: str, lifecycle_user: str) -> tuple[Decider, Site, pwd.struct_passwd]:
    """Everything that is read once, at the start. ConfigError names what is missing: then nothing is decided at all."""
    site = load_site(config)
    slurm = account(site.cluster.slurm_user, "SlurmUser")
    reader = account(snapshot_user, "the LDAP reader").pw_uid
    host = socket.gethostname().partition(".")[0]
    directory = f"{site.audit.directory}/{WRITER}"
    trail = Trail(Chain(directory, GLASS_WRITER, host))
    glass = BreakGlass(site.controller.break_glass_dir, trail)
    lifecycle = account(lifecycle_user, "the lifecycle daemon").pw_uid
    running = Running(site.lifecycle.running_dir, lifecycle)
    revoked = Revoked(site.lifecycle.revoked_dir, lifecycle)
    live = Live(policy, SnapshotCache(site.ldap.snapshot, reader, site.ldap.max_age), glass, running, revoked)
    signer = Signer(
        cluster=site.cluster.name,
        key=record.load_key(site.controller.record_key),
        privileged=frozenset({0, slurm.pw_uid}),
    )
    chain = Chain(directory, WRITER, host)
    return Decider(live, signer, chain, site.controller.deadline * DEADLINE_SHARE), site, slurm


def _serve_until_signal(options: argparse.Namespace) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    decider, site, slurm = build(options.config, options.policy, options.snapshot_user, options.lifecycle_user)
    decider.look()  # what is read at the first look takes long, and nobody waits yet
    background.give_way()
    run(decider, site, slurm, stop)


def main(argv: Sequence[str] | None = None) -> int:
    """``secure-slurm`` starts it; exit codes as in conf.errors."""
    parser = argparse.ArgumentParser(prog="secure-slurm-decisiond", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default=SITE_PATH, help="the site file (default: %(default)s)")
    parser.add_argument("--policy", default=POLICY_PATH, help="the policy file (default: %(default)s)")
    parser.add_argument("--snapshot-user", default=SNAPSHOT_USER, help="who writes the members file")
    parser.add_argument("--lifecycle-user", default=LIFECYCLE_USER, help="who writes where tagged jobs run")
    parser.add_argument("--verbose", action="store_true", help="log every step")
    options = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        _serve_until_signal(options)
    except SecureSlurmError as error:
        LOG.error("%s%s", error, f" ({error.advice})" if error.advice else "")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
