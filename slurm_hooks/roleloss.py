"""A role that is lost while a job runs on it: frozen or revoked, or only written down (``revocation.role_loss``).

What counts is what the directory has said twice. A members file that is too old or refused, one in which no group has a
member, and a group that the directory does not know any more say nothing: an outage, or a server that answers with an
empty tree, must stop nobody. Each job is acted on once; that is on the disk, so no restart does it again after an admin
has had the job go on.

A job that no role let in (by break-glass, say) cannot lose one. A role that the policy does not have any more is not
looked at, one whose ``until`` is over counts as lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from conf.errors import BackendUnavailable, SecureSlurmError
from conf.site import Site
from conf.tag import Tag
from slurm_hooks import running
from slurm_hooks.filters.verdict import Context
from slurm_hooks.revoked import FREEZE, STOP
from slurm_hooks.snapshot import Snapshot

LOG = logging.getLogger(__name__)

LOOK_EVERY = 2.0
"""Seconds between two looks; the directory is read every ``ldap.refresh`` seconds."""
_MODES = {"freeze": FREEZE, "revoke": STOP}


def roles_of(context: Context, user: str, tag: Tag) -> tuple[str, ...]:
    """The roles of a user that let a job in, each of which is enough; () when none does, or nobody knows."""
    if context.members is None or not user:
        return ()
    held = frozenset(context.policy.held_by(context.members.groups_of(user), context.now))
    giving = {
        name
        for name, role in context.policy.roles_for(tag.klass)
        if tag.residency is None or tag.residency in role.jurisdictions
    }
    return tuple(sorted(held & giving))


class RoleLoss:
    """Looks at each new reading of the directory. ``revoke`` as :meth:`slurm_hooks.revoker.Revoker.revoke`."""

    def __init__(
        self,
        site: Site,
        context: Callable[[], Context],
        revoke: Callable[[str, str, str, float, str], Awaitable[object]],
        say: Callable[..., None],
        acts: Callable[[], bool],
    ) -> None:
        self._then = site.revocation.role_loss
        self._folder = site.lifecycle.running_dir
        self._context = context
        self._revoke = revoke
        self._say = say
        self._acts = acts
        self._seen = 0.0
        self._once: set[tuple[int, int]] = set()

    async def forever(self) -> None:
        """Look again and again; whatever goes wrong with one look must not keep the next from being taken."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
            except Exception:
                LOG.exception("roles that were lost could not be looked for")

    async def look(self) -> None:
        """Compare the jobs that run with the directory's last word, once for each word."""
        context = self._context()
        members = context.members
        if not self._acts() or members is None or not any(group.members for group in members.groups.values()):
            # nothing that is not said twice in a row, to the head node that acts, counts
            self._once = set()
            return
        if members.loaded_at == self._seen:
            return
        self._seen = members.loaded_at
        try:
            jobs = await asyncio.to_thread(running.by_roles, self._folder)
        except BackendUnavailable as error:
            LOG.error("%s", error)
            return
        before, self._once = self._once, set()
        for which, (inside, (user, roles)) in jobs.items():
            if roles_of(context, user, inside.tag) or not _is_told(context, members, roles):
                continue
            self._once.add(which)
            if which in before:
                await self._lost(inside, roles)

    async def _lost(self, inside: running.Inside, roles: tuple[str, ...]) -> None:
        reason = f"its user holds no role any more that gives it (had {', '.join(roles)})"
        LOG.warning("job %d: %s: %s", inside.job, reason, self._then)
        mode = _MODES.get(self._then)
        if mode is not None:
            try:
                await self._revoke("job", str(inside.job), "role lost", 0.0, mode)
            except SecureSlurmError as error:
                LOG.error("job %d: a role was lost, and nothing could be done: %s", inside.job, error)
                return
        self._say("role.lost", job=inside.job, uid=inside.uid, result=self._then, reason=reason)
        await asyncio.to_thread(running.settle, self._folder, inside.job)


def _is_told(context: Context, members: Snapshot, roles: tuple[str, ...]) -> bool:
    """Whether the policy still has one of the roles, and the directory knows every group that gives it."""
    groups = {group for role in roles for each in context.policy.holdings(role) for group in each.groups}
    found = [members.groups.get(group) for group in groups]
    return bool(found) and all(group is not None and not group.missing for group in found)
