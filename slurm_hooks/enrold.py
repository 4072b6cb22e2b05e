"""The enrolment daemon: gives nodes their certificates. On every head node, with its own account and Vault role.

It may sign, remember and revoke, and nothing else: whoever takes it over can be any node to Vault, and neither make
nor delete a key nor judge a job. Strangers speak to it, so the lifecycle daemon, which can, listens to none.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys

from audit.chain import Chain
from conf.errors import ConfigError, SecureSlurmError
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import Site, load_site
from keys.vault_enrol import VaultEnrol
from slurm_hooks import pulse
from slurm_hooks.enrolling import Desk
from slurm_hooks.enrolserver import EnrolServer
from slurm_hooks.instances import source_of
from slurm_hooks.notify import Systemd

LOG = logging.getLogger(__name__)


async def run(site: Site, vault: VaultEnrol, chain: Chain) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def say(event: str, **fields: object) -> None:
        chain.append(event, durable=True, **fields)

    desk = Desk(site, vault, source_of(site), say)
    systemd = Systemd()
    async with EnrolServer(site.enrol, desk.answer) as server:
        LOG.info("serving %s", site.enrol.listen)
        systemd.ready(server.words())
        beating = asyncio.create_task(pulse.keep(systemd, server.works, server.words))
        await stop.wait()
        systemd.stopping()
        beating.cancel()


def main(argv: list[str] | None = None) -> int:
    """``secure-slurm-enrold``: start the daemon. Exit codes as everywhere (docs/exit-codes.md)."""
    parser = argparse.ArgumentParser(prog="secure-slurm-enrold", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default=SITE_PATH, help="the site file (default: %(default)s)")
    arguments = parser.parse_args(argv)
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        site = load_site(arguments.config)
        if not site.enrol.listen:
            raise ConfigError("enrol.listen is empty", advice="nothing is served: disable this unit, or set it")
        chain = Chain(f"{site.audit.directory}/enrol", "enrol", socket.gethostname().split(".")[0])
        chain.append("daemon.start", durable=True)
        with VaultEnrol.from_site(site) as vault:
            asyncio.run(run(site, vault, chain))
        chain.append("daemon.stop", durable=True)
    except SecureSlurmError as error:
        LOG.error("%s %s", error, error.advice)
        return error.exit_code
    return 0
