"""Which of several head nodes acts: the one whose own slurmctld does. Slurm has decided it; nothing here decides again.

A lock of ours (a file, a lease in Vault) could be held by one head node while the other's slurmctld runs the hooks, and
rests on a clock. So the slurmctld of this machine is asked, and no other: "in standby mode" and no answer at all say
no, as long as another slurmctld does answer. When nobody answers, nothing is known, and everything stays as it was.

BOOT_TIME is when a slurmctld's process began, to the second: two that were started together have the same, and one that
took over a moment ago may have one of last week. So it tells two slurmctlds apart only when it differs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from slurm_hooks.slurmview import NoAnswer, SlurmView, read_config

LOG = logging.getLogger(__name__)

LOOK_EVERY = 15.0
UNKNOWN_EVERY = 2.0
SPARED = 3
"""Looks of a standby at which its own slurmctld is not asked."""
SEEN_WITHIN = 4 * LOOK_EVERY
"""Seconds without a sign of the other head node's daemon, after which an admin is told."""

_HOST = re.compile(r"^SlurmctldHost\[[0-9]+\] += ([A-Za-z0-9.-]+)((?:\([^()\s]+\))?) *$", re.MULTILINE)
# what a command of Slurm's needs to find a slurmctld and to be believed by it
_NEEDED = re.compile(
    r"^(ClusterName|SlurmctldPort|AuthType|AuthInfo|HashPlugin|PluginDir|TLSType|TLSParameters) += (?!\(null\))(\S.*)$",
    re.MULTILINE,
)
# a message can only be read by the account that it is for
_USER = re.compile(r"^SlurmUser += ([^\s()]+)", re.MULTILINE)
# Slurm's texts of ESLURM_IN_STANDBY_MODE and SLURM_COMMUNICATIONS_CONNECTION_ERROR and its like
_STANDS_BY = re.compile(
    r"slurm_load_ctl_conf error: ?(Slurm backup controller in standby mode|Unable to contact slurm controller.*)"
)


class OwnSlurmctld:
    """Asks the slurmctld of this machine alone. ``folder``: for a slurm.conf that names no other; every call blocks."""

    def __init__(self, slurm: SlurmView, cluster: str, host: str, folder: str) -> None:
        self._slurm = slurm
        self._cluster = cluster
        self._host = host
        self._file = Path(folder, "own-slurmctld.conf")
        self._known: tuple[str, bool] | None = None
        self._spared = 0

    def look(self) -> tuple[str, bool]:
        """The BOOT_TIME of the slurmctld that acts, and whether it is this machine's. BackendUnavailable: unknown.

        A standby logs every question as an error: as long as BOOT_TIME is the same, most looks spare it that.
        """
        said = self._slurm.config()
        acts = read_config(said)
        if acts.cluster != self._cluster:
            raise BackendUnavailable(
                f"the slurmctld that answers is of the cluster {acts.cluster!r}, not {self._cluster!r}",
                advice="compare cluster.name in secure-slurm.yaml with ClusterName in slurm.conf",
            )
        self._spared += 1
        if self._known != (acts.boot, False) or self._spared > SPARED:
            self._known, self._spared = None, 0
            self._known = (acts.boot, self._is_here(said, acts.boot))
        return self._known

    def _is_here(self, said: str, boot: str) -> bool:
        self._write(only(said, self._host))
        try:
            own = read_config(self._slurm.config(str(self._file)))
        except NoAnswer as error:
            if _STANDS_BY.fullmatch(error.complaint):
                return False
            raise
        if own.boot != boot:
            raise BackendUnavailable("another slurmctld took over while it was asked")
        return True

    def _write(self, text: str) -> None:
        temporary = self._file.with_suffix(".new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            temporary.replace(self._file)
        except OSError as error:
            raise BackendUnavailable(f"{self._file} cannot be written: {error.strerror}") from None


def only(said: str, host: str) -> str:
    """A slurm.conf for a client, naming of all controllers that of ``host`` alone; BackendUnavailable: there is none.

    ``said``: ``scontrol show config``. Host names are compared as Slurm does: the whole, or up to the first dot.
    """
    mine = [name + address for name, address in _HOST.findall(said) if _same(name, host)]
    if len(mine) != 1:
        raise BackendUnavailable(
            f"this machine, {host}, is none of slurm.conf's SlurmctldHosts",
            advice="compare them, and cluster.head_nodes, with the machine's host name",
        )
    lines = [f"SlurmctldHost={mine[0]}", *(f"SlurmUser={user}" for user in _USER.findall(said))]
    lines += [f"{name}={value.strip()}" for name, value in _NEEDED.findall(said)]
    return "\n".join(lines) + "\n"


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower() or short(one) == short(other)


def short(host: str) -> str:
    """A host name up to its first dot, in lower case."""
    return host.partition(".")[0].lower()


class Acting:
    """Whether this daemon acts. ``acts`` None: it is not known yet; then it waits, and refuses nobody.

    With one head node it always does, and nobody is asked. ``took_over`` is called whenever another slurmctld than
    before acts here, ``stands_by`` when it does not any more; ``folder``: shared by the head nodes, each leaves a sign.
    """

    def __init__(
        self,
        heads: Sequence[str],
        host: str,
        folder: str,
        look: Callable[[], tuple[str, bool]],
        *,
        took_over: Callable[[], None],
        stands_by: Callable[[], None],
    ) -> None:
        self.several = len(heads) > 1
        self.acts: bool | None = None if self.several else True
        self.problem = ""
        self._heads = heads
        self._host = host
        self._folder = Path(folder)
        self._look = look
        self._took_over = took_over
        self._stands_by = stands_by
        self._boot = ""
        self._since = 0.0
        self._turn = asyncio.Lock()

    def may_end(self, boot: str) -> bool:
        """Whether what the slurmctld with that BOOT_TIME calls over is to be destroyed from here."""
        return not self.several or (self.acts is True and boot == self._boot)

    def acted_for(self) -> float:
        """Seconds since it was found that the slurmctld here acts: it may know little of its nodes yet."""
        return time.monotonic() - self._since if self.several else math.inf

    def check(self) -> None:
        """Refused ``lifecycle.standby``: an admin's order belongs to the head node that acts."""
        if self.acts is False:
            others = ", ".join(head for head in self._heads if not _same(head, self._host))
            raise Refused(
                "lifecycle.standby",
                "this head node stands by: the slurmctld of another acts",
                advice=f"repeat it there: {others}",
            )

    async def forever(self) -> None:
        """Look again and again. What is wrong is logged once, until it changes."""
        while self.several:
            try:
                await self.look()
            except Exception:
                LOG.exception("whether this head node acts could not be found out")
            await asyncio.sleep(LOOK_EVERY if self.acts is not None else UNKNOWN_EVERY)

    async def look(self) -> None:
        """Once. Never raises for what others say: :attr:`problem`."""
        if not self.several:
            return
        async with self._turn:
            try:
                await asyncio.to_thread(self._sign)
                boot, here = await asyncio.to_thread(self._look)
            except SecureSlurmError as error:
                if str(error) != self.problem:
                    LOG.warning("which head node acts is not known, it stays as it was: %s", error)
                self.problem = str(error)
                return
            self.problem = ""
            if (boot, here) == (self._boot, self.acts):
                return
            self._boot, self.acts, self._since = boot, here, time.monotonic()
            LOG.info("this head node %s", "acts: the slurmctld here does" if here else "stands by")
            try:
                (self._took_over if here else self._stands_by)()
            except Exception as error:
                # tried again at the next look: what the other head node revoked must be known here
                self.acts, self.problem = None, str(error) or type(error).__name__
                LOG.exception("this head node cannot take over")

    def report(self) -> dict[str, object]:
        """For an admin. ``heads``: seconds since a sign of each head node's daemon was seen; None: never. Blocks."""
        heads = {head: self._age(head) for head in self._heads} if self.several else {}
        return {"acts": self.acts, "several": self.several, "problem": self.problem, "heads": heads}

    def _sign(self) -> None:
        try:
            self._folder.mkdir(mode=0o750, exist_ok=True)
            (self._folder / short(self._host)).touch(mode=0o640)
        except OSError as error:
            raise BackendUnavailable(f"{self._folder}: {error.strerror}") from None

    def _age(self, head: str) -> float | None:
        try:
            return round(max(time.time() - (self._folder / short(head)).stat().st_mtime, 0.0), 1)
        except OSError:
            return None
