"""Policy and group members as a daemon holds them: in memory, swapped in whole when their files change.

A broken new policy leaves the last good one in use, with an error in the log; members have an age limit of their own.
The break-glass grants that are in force are looked at with them, and judged by the policy and members of that look.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import threading
import time
from collections.abc import Callable

from conf.errors import ConfigError, Refused, SecureSlurmError
from conf.policy import Policy, load_policy
from slurm_hooks.breakglass_live import BreakGlass
from slurm_hooks.filters.verdict import Context
from slurm_hooks.revoked import Revoked
from slurm_hooks.running import Running
from slurm_hooks.snapshot import SnapshotCache

LOG = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks at the files, and at whatever else a daemon does in the background."""
LOOK_AGAIN = 5.0
"""Seconds that a refusal waits at most for a look, on a disk that may not answer."""


class Live:
    """What is in use now. Raises ConfigError at the start when there is no good policy: then nothing is decided."""

    def __init__(
        self,
        policy_path: str,
        members: SnapshotCache,
        glass: BreakGlass | None = None,
        running: Running | None = None,
        revoked: Revoked | None = None,
    ) -> None:
        self.path = policy_path
        self._members = members
        self._glass = glass
        self._running = running
        self._revoked = revoked
        self._looking = threading.Lock()
        self._again: asyncio.Task[None] | None = None
        self._seen: tuple[int, int, int] | None = None
        self.policy: Policy = self._load()
        self._members.poll(time.time())
        self._look_at_grants()
        self.look_at_jobs()
        if self._revoked is not None:
            # at the start it must be known what is revoked: later, what was known stays in force
            self._revoked.look()

    def context(self) -> Context:
        """Policy and members for one request, taken together. Memory only."""
        now = time.time()
        exemptions = () if self._glass is None else self._glass.current()
        try:
            known = Context(self.policy, self._members.current(now), now=now, exemptions=exemptions)
        except Refused as error:
            known = Context(self.policy, None, str(error), error.advice, now)
        if self._revoked is not None:
            known = known._replace(revoked=self._revoked.all)
        if self._running is None:
            return known
        return known._replace(running=self._running.places, hosts=self._running.hosts)

    def members_age(self) -> str:
        """In words, for an admin."""
        now = time.time()
        try:
            return f"{self._members.current(now).age(now):.0f} s old"
        except Refused as error:
            return str(error)

    def look(self) -> None:
        """Take over what has changed. Does file I/O: never call it in the thread that answers."""
        with self._looking:
            try:
                self._take_over()
            finally:
                # whatever failed: a grant that has ended must not outlive it
                self._look_at_grants()
            self.look_at_jobs()
            self._look_at_revocations()

    async def look_again(self) -> None:
        """Before something is refused: one look for all who wait for one. One that fails or hangs changes nothing."""
        if self._again is None or self._again.done():
            self._again = asyncio.create_task(asyncio.to_thread(self.look))
        try:
            async with asyncio.timeout(LOOK_AGAIN):
                await asyncio.shield(self._again)
        except Exception:
            LOG.exception("the files could not be read again")

    def _take_over(self) -> None:
        self._members.poll(time.time())
        try:
            if self._stamp() != self._seen:
                self.policy = self._load()
                LOG.info("the policy %s is in use", self.policy.hash)
        except SecureSlurmError as error:
            LOG.error("the policy in use stays %s: %s", self.policy.hash, error)

    def look_at_jobs(self) -> None:
        """Where tagged jobs run now; asked more often than the rest, for a job may submit another as its first act."""
        if self._running is None:
            return
        try:
            self._running.look()
        except SecureSlurmError as error:
            LOG.error("where tagged jobs run stays as it was read last: %s", error)

    def _look_at_revocations(self) -> None:
        if self._revoked is None:
            return
        try:
            self._revoked.look()
        except SecureSlurmError as error:
            LOG.error("what is revoked stays as it was read last: %s", error)

    def _look_at_grants(self) -> None:
        if self._glass is None:
            return
        now = time.time()
        try:
            members = self._members.current(now)
        except Refused:
            members = None
        self._glass.look(self.policy, members, now)

    def _load(self) -> Policy:
        # looked at before it is read: a change in between is then seen the next time
        self._seen = self._stamp()
        return load_policy(self.path)

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = os.lstat(self.path)
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from None
        return found.st_mtime_ns, found.st_size, found.st_ino


async def every(seconds: float, work: Callable[[], None]) -> None:
    """Do ``work`` in a thread again and again; a failure is logged, and is no reason to stop looking."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(work)
        except Exception:
            LOG.exception("a background task failed")


def account(name: str, what: str) -> pwd.struct_passwd:
    """A system account that must exist; ConfigError says what it is needed for."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(
            f"there is no user {name!r}, who is {what}", advice="create it, or mend the site file"
        ) from None
