"""What slurmctld says of all jobs, for the one who compares it with Vault: an answer that is whole, or none.

Asked as an ordinary account, so nothing that a user wrote is read (job names have spaces and equals signs in them), and
what slurmctld hides from ordinary accounts is found out: under PrivateData=jobs it calls a running job of somebody
else's "Invalid job id specified", as it does a number that it never gave (measured on 24.11 and 26.05).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from conf.errors import BackendUnavailable
from keys.process import ProcessError, run
from slurm_hooks.hostnames import read_sinfo

TIMEOUT = 20.0
"""Seconds for one of Slurm's commands."""
LIST_LIMIT = 256 * 1024 * 1024
"""Bytes of a list of jobs; one takes 150."""

_FIELDS = ("JobID", "State", "RestartCnt", "EndTime")
_FORMAT = ",".join(f"{field}:32 " for field in _FIELDS)
_LINE = re.compile(r"([1-9][0-9]{0,9}) +([A-Z_]+) +([0-9]{1,9}) +(\S+)", re.ASCII)
_TIME = re.compile(r"[0-9]{1,12}", re.ASCII)
_SETTING = re.compile(r"([A-Za-z_]+) += ?(.*)")
_USER = re.compile(r"[^\s()]+\(([0-9]{1,10})\)", re.ASCII)
_AS_OF = re.compile(r"Configuration data as of ([0-9]{1,12})")
_PING = re.compile(r"Slurmctld\([a-z0-9]+\) at \S+ is (UP|DOWN)")
# Slurm's text of ESLURM_INVALID_JOB_ID behind the name of the call
_NOT_FOUND = re.compile(r"slurm_load_jobs error: ?Invalid job id specified")


class Controller(NamedTuple):
    """The slurmctld that answers. ``boot``: its BOOT_TIME, new after a restart, a take-over or a reconfiguration.

    ``up_for``: seconds since then by its own clock. ``next_job``: the number that it would give next. ``keeps``:
    MinJobAge, seconds for which it remembers a job that has ended; 0: for ever. ``hides``: it shows other people's jobs
    to nobody but operators. ``sees_all``: the uid of SlurmUser, who is shown all of them; -1: he is not, or it is not
    known who that is.
    """

    cluster: str
    boot: str
    up_for: int
    next_job: int
    keeps: int
    hides: bool
    sees_all: int = -1


class Seen(NamedTuple):
    """One job. ``ended`` in Unix seconds by slurmctld's clock: when it ended or will; 0: not known."""

    state: str
    restarts: int
    ended: int


class View(NamedTuple):
    """Every job that slurmctld knows."""

    controller: Controller
    jobs: dict[int, Seen]


class SlurmView:
    """Asks by Slurm's own commands; every call blocks. BackendUnavailable for whatever is not a whole answer."""

    def __init__(self, slurm_bin: str, cluster: str) -> None:
        self._bin = slurm_bin
        self._cluster = cluster

    def look(self) -> View:
        """All jobs, each task of an array by itself, from one slurmctld of this cluster."""
        controller = self.controller()
        jobs = read_jobs(self.listing())
        self.check_same(controller)
        return View(controller, jobs)

    def listing(self) -> str:
        """All jobs, ended ones among them (:func:`read_jobs`)."""
        options = ("--noheader", "--all", "--array", "--states=all")
        return self._run("squeue", *options, f"--Format={_FORMAT}")

    def controller(self) -> Controller:
        """Who answers now."""
        if "UP" not in _PING.findall(self._run("scontrol", "ping", allowed=(0, 1))):
            raise BackendUnavailable("no slurmctld is up", advice="see: scontrol ping")
        controller = read_config(self.config())
        if controller.cluster != self._cluster:
            raise BackendUnavailable(
                f"the slurmctld that answers is of the cluster {controller.cluster!r}, not of {self._cluster!r}",
                advice="compare cluster.name in secure-slurm.yaml with ClusterName in slurm.conf",
            )
        return controller

    def config(self, conf: str = "") -> str:
        """What a slurmctld says of itself, by the daemon's slurm.conf or the one given. NoAnswer with its complaint."""
        return self._run("scontrol", "show", "config", conf=conf)

    def check_same(self, before: Controller) -> None:
        """BackendUnavailable when another slurmctld answers by now, or the same has started anew."""
        if self.controller().boot != before.boot:
            raise BackendUnavailable("slurmctld was started anew while it was asked")

    def hosts(self) -> dict[str, list[str]]:
        """Host names and addresses of the nodes (:mod:`slurm_hooks.hostnames`)."""
        return read_sinfo(self._run("sinfo", "--noheader", "--all", "--Node", "--format=%N|%n|%o"))

    def places(self) -> str:
        """The nodes that each job has that is not over (:func:`slurm_hooks.lostnodes.read_places`)."""
        return self._run("squeue", "--noheader", "--all", "--array", "--format=%A|%N")

    def unknown(self, jobs: Iterable[int], before: Controller) -> frozenset[int]:
        """Those of which slurmctld, the same as ``before``, says that there is no such job; each is asked about."""
        found = frozenset(job for job in jobs if self.is_unknown(job))
        self.check_same(before)
        return found

    def is_unknown(self, job: int) -> bool:
        """Whether slurmctld says that there is no such job; False: there is one. Anything else is no answer."""
        try:
            self._run("scontrol", "--all", "--oneliner", "show", "job", str(job), limit=LIST_LIMIT)
        except BackendUnavailable as error:
            if isinstance(error, NoAnswer) and _NOT_FOUND.fullmatch(error.complaint):
                return True
            raise
        return False

    def _run(
        self, name: str, *words: str, allowed: tuple[int, ...] = (0,), limit: int = LIST_LIMIT, conf: str = ""
    ) -> str:
        try:
            done = run(
                (f"{self._bin}/{name}", *words),
                timeout=TIMEOUT,
                allowed=allowed,
                env_extra=_environment(conf),
                max_output=limit,
            )
            return done.stdout.decode("ascii")
        except ProcessError as error:
            raise NoAnswer(name, error) from None
        except UnicodeDecodeError:
            raise BackendUnavailable(f"the answer of {name} cannot be read") from None


def _environment(conf: str) -> dict[str, str]:
    """All times in seconds, as slurmctld's time zone is not ours to know; and the daemon's SLURM_CONF, if any."""
    conf = conf or os.environ.get("SLURM_CONF", "")
    return {"SLURM_TIME_FORMAT": "%s", **({"SLURM_CONF": conf} if conf else {})}


class NoAnswer(BackendUnavailable):
    """A command of Slurm's failed. ``complaint``: what it wrote, when it ended with 1 by itself."""

    def __init__(self, name: str, error: ProcessError) -> None:
        super().__init__(f"{name} gave no answer: {error.stderr or error}", advice="is slurmctld running?")
        # a command that was killed has said nothing
        self.complaint = error.stderr.strip() if error.returncode == 1 else ""


def read_jobs(text: str) -> dict[int, Seen]:
    """The jobs of squeue's list. BackendUnavailable for a line that is none, or a job that is there twice."""
    jobs: dict[int, Seen] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None or not line.endswith(" ") or int(match[1]) in jobs:
            raise BackendUnavailable("squeue's list of jobs cannot be read: it has a line that is no job's")
        jobs[int(match[1])] = Seen(match[2], int(match[3]), int(match[4]) if _TIME.fullmatch(match[4]) else 0)
    if text and not text.endswith("\n"):
        raise BackendUnavailable("squeue's list of jobs is cut")
    return jobs


def read_config(text: str) -> Controller:
    """What ``scontrol show config`` says of the slurmctld. BackendUnavailable unless all of it is there."""
    found = {match[1]: match[2].strip() for line in text.splitlines() if (match := _SETTING.match(line))}
    as_of = _AS_OF.search(text)
    try:
        if as_of is None or "UP" not in _PING.findall(text):
            raise ValueError("not whole")
        return Controller(
            cluster=found["ClusterName"],
            boot=found["BOOT_TIME"],
            up_for=int(as_of[1]) - int(found["BOOT_TIME"]),
            next_job=int(found["NEXT_JOB_ID"]),
            keeps=int(found["MinJobAge"].removesuffix(" sec")),
            hides=_hides(found["PrivateData"], found["MCSParameters"]),
            sees_all=_sees_all(found.get("SlurmUser", ""), found["MCSParameters"]),
        )
    except (KeyError, ValueError):
        raise BackendUnavailable("slurmctld's configuration cannot be read, or is not whole") from None


def _hides(private: str, mcs: str) -> bool:
    """PrivateData=jobs; or MCSParameters=...,privatedata, which shows jobs only to who has their label."""
    return "jobs" in private.lower().split(",") or _by_label(mcs)


def _by_label(mcs: str) -> bool:
    return "privatedata" in re.split(r"[,:]", mcs.lower())


def _sees_all(user: str, mcs: str) -> int:
    """SlurmUser's uid; to whom MCS shows what is not decided here: then to nobody."""
    match = _USER.fullmatch(user)
    return -1 if match is None or _by_label(mcs) else int(match[1])
