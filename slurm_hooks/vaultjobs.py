"""The keys and grants of jobs in Vault, as :class:`slurm_hooks.lifecycle.Jobs` wants them, each act audited."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from conf.errors import BackendUnavailable
from keys import lifecycle_keys
from keys.grant import NO_SCRATCH, VERSION, Grant
from keys.names import new_key_name
from keys.vault_enrol import instance_of
from keys.vault_errors import VaultNotFound
from keys.vault_head import VaultHead
from slurm_hooks.lifecycle import Destroyed, StartJob

if TYPE_CHECKING:
    from conf.site import Vault


class WriteBefore(Protocol):
    """Puts an audit line on disk, or raises AuditError so that the act it announces does not happen."""

    def __call__(self, event: str, **fields: object) -> None: ...  # noqa: D102


class VaultJobs:
    """Creates and destroys what Vault holds for a job; blocks, and may be used from many threads."""

    def __init__(
        self,
        vault: Vault,
        write_before: WriteBefore,
        prove: Callable[[int, Destroyed], None],
        taken_back: Callable[[int, lifecycle_keys.Evidence], None],
    ) -> None:
        self._head = VaultHead.from_site(vault)
        self._grants = vault.grants_mount
        self._write_before = write_before
        self._prove = prove
        self._taken_back = taken_back

    @property
    def head(self) -> VaultHead:
        """The daemon's own session, for whatever else it asks of Vault."""
        return self._head

    def instance(self, node: str) -> str:
        """Which instance a node is by its last enrolment; "" when it has not enrolled."""
        return instance_of(self._head.session, self._grants, node)

    def close(self) -> None:
        """Revoke the daemon's own token."""
        self._head.close()

    def create(self, job: StartJob, incarnation: str, still_wanted: Callable[[], bool]) -> None:
        """Grants and keys for every node, or none; audited, on disk, before the first write."""
        grants = [self._grant(job, incarnation, node) for node in job.nodes]
        for grant in grants:
            facts = {"job": job.job, "node": grant.node, "incarnation": incarnation, "key": grant.key}
            self._write_before("grant.write", **facts)
            self._write_before("key.create", **facts)
        lifecycle_keys.create(self._head, grants, still_wanted, lambda one: self._taken_back(job.job, one))

    def holders(self, job: int) -> tuple[str, ...]:
        """The nodes that have a grant of the job, by Vault's own list."""
        return tuple(node for node, found in self._head.list_grants() if found == str(job))

    def grants(self) -> list[tuple[str, int]]:
        """Node and job of every grant there is, by Vault's own list."""
        return [(node, int(job)) for node, job in self._head.list_grants()]

    def held(self, node: str, job: int) -> Grant | None:
        """The grant of a job on a node; None when it has gone meanwhile. Refused ``grant.field`` when it is damaged."""
        found = self._head.read_grant(node, str(job))
        return None if found is None else Grant.from_dict(found)

    def check(self) -> None:
        """Whether Vault answers, and lets us in: raises what a start would run into."""
        self._head.check_access()

    def take(self, job: int, node: str, incarnation: str | None = None) -> list[Destroyed]:
        """As :meth:`destroy`, on one node and no other: the job goes on without it."""
        return self.destroy(job, (node,), incarnation, alone=True)

    def destroy(
        self, job: int, nodes: tuple[str, ...], incarnation: str | None = None, *, alone: bool = False
    ) -> list[Destroyed]:
        """Keys, then grants; returns only the keys that Vault says it does not have any more.

        ``incarnation``: of this start alone, whatever another has on these nodes.

        Each is proved at once: when another node's key has to wait, or nobody waits for the answer any more, the grant
        that named this one is gone, and no later call could tell of it.
        """
        evidence = lifecycle_keys.destroy(self._head, str(job), nodes, incarnation=incarnation, alone=alone)
        gone = [
            Destroyed(one.node, one.key, one.at, one.made, one.incarnation) for one in evidence if one.done and one.key
        ]
        for one in gone:
            self._prove(job, one)
        failed = [one for one in evidence if not one.done]
        if failed:
            raise BackendUnavailable(
                f"{len(failed)} of {len(evidence)} keys of job {job} are not confirmed as destroyed: {failed[0].error}"
            )
        return gone

    def lock(self, job: int, nodes: tuple[str, ...], *, locked: bool) -> int:
        """Have Vault refuse the data keys of a job that were wrapped before, or take them again; how many keys it has.

        A node without a grant of the job has no key either. Raises BackendUnavailable and others as Vault says; may be
        repeated.
        """
        count = 0
        for node in nodes:
            grant = self.held(node, job)
            if grant is None:
                continue
            facts = {"job": job, "node": node, "incarnation": grant.incarnation, "key": grant.key}
            try:
                if locked:
                    self._head.lock_key(grant.key)
                else:
                    self._write_before("key.unlock", **facts)
                    self._head.unlock_key(grant.key)
            except VaultNotFound:
                continue
            count += 1
        return count

    @staticmethod
    def _grant(job: StartJob, incarnation: str, node: str) -> Grant:
        return Grant(
            v=VERSION,
            incarnation=incarnation,
            key=new_key_name(node, job.cluster, str(job.job)),
            cluster=job.cluster,
            job=str(job.job),
            uid=str(job.uid),
            user=job.user,
            nodes=",".join(job.nodes),
            restarts=str(job.restarts),
            scratch=str(job.scratch) if job.scratch else NO_SCRATCH,
            klass=job.klass,
            residency=job.residency,
            datasets=",".join(job.datasets),
            created=str(int(time.time())),
        )
