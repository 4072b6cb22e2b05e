"""The requeue daemon: releases, as SlurmUser, the jobs that an outage holds, when the lifecycle daemon says so.

It is a program of its own because Slurm lets only SlurmUser and root release what was held as an administrator, and
neither is to hold Vault's token. Which jobs those are, slurmctld says: the mark behind their decision record
(:mod:`slurm_hooks.tries`). A job that a user or an admin holds has no such mark, or has been held again since.

It also looks where the lifecycle daemon may not: :mod:`slurm_hooks.sight`.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from conf.errors import SecureSlurmError
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import Site, load_site
from keys.process import run
from slurm_hooks import blame, sight, tries, wire
from slurm_hooks.notify import Systemd
from slurm_hooks.slurmview import SlurmView

LOG = logging.getLogger(__name__)

POLL = 2.0
"""Seconds between two questions to the lifecycle daemon."""
ASK = 60.0
LIST_TIMEOUT = 20.0
LIST_LIMIT = 256 * 1024 * 1024
PORTION = 20
"""Jobs that are released at a time: a thousand that start in one second would be the next outage."""

_LINE = re.compile(r" *([1-9][0-9]{0,9}) +([0-9]{1,9}) +([0-9]{1,10}) *", re.ASCII)


class Held(NamedTuple):
    """A job that an outage seems to hold."""

    job: int
    tries: int


def held(slurm_bin: str, alive: Callable[[], None] = lambda: None) -> list[Held]:
    """The jobs that an outage seems to hold, those first that were tried least. Raises SecureSlurmError.

    squeue does not show admin comments. So it is asked for what waits at priority 0 and was requeued before, which are
    few, and slurmctld for each of those. ``alive`` is called between two of them.
    """
    options = ("--noheader", "--all", "--array", "--states=PENDING")
    conf = os.environ.get("SLURM_CONF", "")
    answer = run(
        (f"{slurm_bin}/squeue", *options, "--Format=JobID:16 ,RestartCnt:16 ,PriorityLong:16 "),
        timeout=LIST_TIMEOUT,
        max_output=LIST_LIMIT,
        env_extra={"SLURM_CONF": conf} if conf else None,
    )
    found = []
    for line in answer.stdout.decode("ascii", "replace").splitlines():
        alive()
        match = _LINE.fullmatch(line)
        if match is None or int(match[2]) == 0 or int(match[3]) != 0:
            continue
        try:
            mark = tries.of_comment(blame.job_facts(slurm_bin, int(match[1])).get("admin_comment"))
        except SecureSlurmError:
            # it has gone since
            continue
        if mark is not None and mark.word == tries.WAITS:
            found.append(Held(int(match[1]), mark.tries))
    return sorted(found, key=lambda each: (each.tries, each.job))


class Requeuer:
    """What it does, again and again."""

    def __init__(self, site: Site, alive: Callable[[], None] = lambda: None) -> None:
        self._alive = alive
        self._socket = site.lifecycle.socket
        self._bin = site.cluster.slurm_bin
        self._slurm = SlurmView(site.cluster.slurm_bin, site.cluster.name)

    def look(self) -> list[int]:
        """Ask, and release what may be released; the jobs. Raises SecureSlurmError when somebody does not answer."""
        answer = self._ask({"verb": "may-release"})
        if "see" in answer:
            self._see(wire.text(answer, "see"), wire.text(answer, "what"))
        how = wire.text(answer, "may", "none")
        if how not in ("one", "all"):
            return []
        waiting = held(self._bin, self._alive)
        released: list[int] = []
        left = 0
        for each in waiting:
            if len(released) >= (1 if how == "one" else PORTION):
                left += 1
            elif self._release(each.job):
                released.append(each.job)
        self._ask({"verb": "released", "jobs": ",".join(map(str, released)), "left": str(left)})
        return released

    def _see(self, question: str, what: str) -> None:
        """Answer a question about jobs; also that there is no answer."""
        answer: dict[str, bytes | str]
        try:
            answer = sight.see(self._slurm, what, self._alive)
        except SecureSlurmError as error:
            answer = {"problem": str(error)}
        self._ask({"verb": "seen", "see": question, **answer})

    def _release(self, job: int) -> bool:
        self._alive()
        try:
            return blame.release(self._bin, job)
        except SecureSlurmError as error:
            LOG.warning("job %d could not be released: %s", job, error)
            return False

    def _ask(self, request: dict[str, bytes | str]) -> dict[str, bytes]:
        self._alive()
        answer = wire.exchange(self._socket, request, timeout=ASK)
        if answer.get("verdict") != b"allow":
            raise SecureSlurmError(wire.text(answer, "message", "the lifecycle daemon gave no verdict"))
        return answer


def main(argv: list[str] | None = None) -> int:
    """``secure-slurm-requeued``: run for ever. Exit codes as everywhere (docs/exit-codes.md)."""
    parser = argparse.ArgumentParser(prog="secure-slurm-requeued", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default=SITE_PATH, help="the site file (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    systemd = Systemd()
    try:
        requeuer = Requeuer(load_site(arguments.config), systemd.alive)
    except SecureSlurmError as error:
        LOG.error("%s %s", error, error.advice)
        return error.exit_code

    def end(_number: int, _frame: object) -> NoReturn:
        systemd.stopping()
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    return _forever(requeuer, systemd)


def _forever(requeuer: Requeuer, systemd: Systemd) -> int:
    """Ready after the first round, whatever it found: an outage is what this is there for."""
    released, told, first = 0, "", True
    while True:
        try:
            for job in requeuer.look():
                LOG.info("job %d was released", job)
                released += 1
            told = ""
        except SecureSlurmError as error:
            # once, not every two seconds for as long as it lasts
            if str(error) != told:
                LOG.warning("%s", error)
                told = str(error)
        status = f"{released} jobs released since the start" + ("; who must be asked does not answer" if told else "")
        if first:
            systemd.ready(status)
            first = False
        systemd.alive(status)
        time.sleep(POLL)
