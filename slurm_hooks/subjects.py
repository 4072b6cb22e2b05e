"""The jobs of this cluster as a revocation sees them: what runs, whose it is, where, and by which roles."""

from __future__ import annotations

from collections.abc import Callable

from slurm_hooks import running
from slurm_hooks.filters.judge_revoked import roles_behind
from slurm_hooks.filters.verdict import Context
from slurm_hooks.links import Links
from slurm_hooks.revoke_names import name_of
from slurm_hooks.revoked import Subject

Job = tuple[running.Inside, str, tuple[str, ...]]
"""A job, its user's name ("" when that is not known), and its nodes."""


class Subjects:
    """``folder``: the files that say where tagged jobs run; ``links``: what the nodes say of their place."""

    def __init__(self, folder: str, links: Callable[[], Links]) -> None:
        self._folder = folder
        self._links = links

    def of(self, one: running.Inside, user: str, nodes: tuple[str, ...], context: Context) -> Subject:
        """A job that runs, waits or starts, as far as it is known."""
        policy, tag, known = context.policy, one.tag, self._links().nodes
        told = {known[node].jurisdiction for node in nodes if node in known} - {""}
        places = frozenset({tag.residency} if tag.residency else told or policy.jurisdictions)
        groups = context.members.groups_of(user) if context.members and user else frozenset[str]()
        roles = roles_behind(policy, tag, places, groups, context.now)
        return Subject(job=one.job, uid=one.uid, tag=tag, nodes=nodes, roles=roles, places=places)

    def running(self) -> list[Job]:
        """The tagged jobs that run, by the files that say so. Blocks: users' names are looked up."""
        return [(inside, name_of(inside.uid), nodes) for inside, nodes in running.all_jobs(self._folder)]

    def newer(self, known: list[Job]) -> list[Job]:
        """Those that have come since that list was made, while users' names were looked up."""
        seen = {inside.job for inside, _, _ in known}
        names = {inside.uid: name for inside, name, _ in known}
        found = running.all_jobs(self._folder)
        return [(one, names.get(one.uid, ""), nodes) for one, nodes in found if one.job not in seen]
