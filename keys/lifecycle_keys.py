"""The life of one start's keys: a grant and a transit key for every node, and their end. Pure orchestration.

Order is what makes a crash at any point harmless. A grant is written before its key and deleted after it, so listing
the grants finds every key there is. Nothing here keeps state: :func:`destroy` may be repeated until all is gone.
The caller serialises the calls for one job (Slurm runs EpilogSlurmctld beside a PrologSlurmctld that is still running).
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from conf.errors import BackendUnavailable, InternalError, Refused, SecureSlurmError
from conf.slurmnames import is_node_name
from keys.names import check_incarnation, check_job, check_nodes, parse_key_name
from keys.vault_errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from keys.grant import Grant

WORKERS = 8
ABSENT = 404


class Head(Protocol):
    """What is needed of :class:`keys.vault_head.VaultHead`."""

    def create_key(self, name: str) -> None: ...  # noqa: D102
    def allow_deletion(self, name: str) -> None: ...  # noqa: D102
    def delete_key(self, name: str) -> None: ...  # noqa: D102
    def key_exists(self, name: str) -> bool: ...  # noqa: D102
    def write_grant(self, node: str, job: str, data: Mapping[str, str], cas: int = 0) -> None: ...  # noqa: D102
    def read_grant(self, node: str, job: str) -> dict[str, Any] | None: ...  # noqa: D102
    def delete_grant(self, node: str, job: str) -> None: ...  # noqa: D102


class Evidence(NamedTuple):
    """What is known of one node's key after :func:`destroy`.

    ``read_answer`` 404: the active server answered that at ``at`` (UTC, ISO 8601) to the reading of ``key``. 0: not
    proved; ``error`` says why, or is "" when there was no grant and the caller knew no key either (``key`` is "").
    An ``error`` beside a 404: the key is gone, the grant is not.
    ``made`` (Unix seconds) and ``incarnation`` as the grant said; "" when it did not.
    """

    node: str
    key: str
    read_answer: int
    at: str
    error: str
    made: str = ""
    incarnation: str = ""

    @property
    def done(self) -> bool:
        """Nothing is left of this start on this node; else call :func:`destroy` again."""
        return not self.error


def create(
    head: Head,
    grants: Sequence[Grant],
    still_wanted: Callable[[], bool],
    taken_back: Callable[[Evidence], None] = lambda _: None,
    *,
    workers: int = WORKERS,
) -> None:
    """Grant, key and permission to delete it, for every node of one start, ``workers`` nodes at a time.

    ``still_wanted`` is asked, by several threads, before the first write and after each one; once it says no (or fails)
    for one node all stop, and what this start has written is taken back. The same happens when a write fails. Raises
    Refused ``keys.not_wanted``, or the first failure (VaultConflict: another start's grant is there; it is left alone).
    When Vault did not answer the creation of a key, that may yet happen: this grant stays, so that the reaper looks.
    ``taken_back`` is told of every other key, by several threads, before that raises: that it is proved to be gone, or
    (``read_answer`` 0) that Vault was never asked to make it.
    """
    if not grants:
        raise Refused("keys.nodes", "there is no node to make a key for", advice="this is a defect: report it")
    if len({(grant.incarnation, grant.job) for grant in grants}) != 1:
        raise InternalError("the grants are not of one start")
    check_nodes(grant.node for grant in grants)
    work = _Creation(head, still_wanted, taken_back)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="keys") as pool:
        list(pool.map(work.one, grants))
        if work.failure is None:
            return
        list(pool.map(work.undo, grants))
    raise work.failure


def destroy(
    head: Head,
    job: str,
    nodes: Iterable[str],
    *,
    incarnation: str | None = None,
    keys: Mapping[str, str] | None = None,
    alone: bool = False,
    workers: int = WORKERS,
) -> list[Evidence]:
    """End the keys of a job on ``nodes``: delete the key, have its absence confirmed, delete the grant last.

    So are, before them, the keys of the other nodes that a grant found there names: a job that lost a node on its way
    (it was made smaller, or a node failed under ``--no-kill``) ends without a word of that node. Until those are gone,
    the grants that name them stay. ``alone``: these nodes and no others, for the job goes on there.
    ``incarnation``: only of this start; a later start's grant and key are left alone. ``keys``: node -> key, as the
    caller remembers them, so that absence can be proved even when the grant is gone. Never raises for one node what
    would keep it from the others: see :attr:`Evidence.error`. Refused ``names.*`` for a bad job, node or incarnation.
    """
    check_job(job)
    wanted = check_nodes(nodes)
    if incarnation is not None:
        check_incarnation(incarnation)
    known = keys or {}
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="keys") as pool:
        readings = list(pool.map(lambda node: _read(head, job, node), wanted))
        lost = {} if alone else _lost_nodes(readings, wanted, incarnation)
        others = list(pool.map(lambda node: _destroy(head, job, node, lost[node], ""), lost))
        keep = not all(one.done for one in others)

        def end(node: str, reading: _Reading) -> Evidence:
            return _destroy(head, job, node, incarnation, known.get(node, ""), keep_grant=keep, reading=reading)

        return [*pool.map(end, wanted, readings), *(one for one in others if one.key or one.error)]


class _Reading(NamedTuple):
    """A grant as it was read: what was there, or why that is not known."""

    grant: dict[str, Any] | None
    failure: Exception | None = None

    def result(self) -> dict[str, Any] | None:
        """The grant, or None; raises what its reading raised."""
        if self.failure is not None:
            raise self.failure
        return self.grant


def _read(head: Head, job: str, node: str) -> _Reading:
    try:
        return _Reading(head.read_grant(node, job))
    except Exception as failure:  # noqa: BLE001 - raised again where one node's failure is told
        return _Reading(None, failure)


def _lost_nodes(readings: Sequence[_Reading], wanted: Sequence[str], incarnation: str | None) -> dict[str, str]:
    """Nodes that the grants name beside ``wanted``, and of which start. Another start's grant there is left alone."""
    found: dict[str, str] = {}
    for grant in (reading.grant for reading in readings if reading.grant):
        start, nodes = grant.get("incarnation"), grant.get("nodes")
        if isinstance(start, str) and isinstance(nodes, str) and incarnation in (None, start):
            found |= {node: start for node in nodes.split(",") if node not in wanted and is_node_name(node)}
    return found


class _Creation:
    """One call of :func:`create`: its first failure, and the grants that must stay."""

    def __init__(self, head: Head, still_wanted: Callable[[], bool], taken_back: Callable[[Evidence], None]) -> None:
        self._head = head
        self._still_wanted = still_wanted
        self._taken_back = taken_back
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._unanswered: set[str] = set()
        self.failure: Exception | None = None

    def one(self, grant: Grant) -> None:
        try:
            self._check_wanted(grant)
            self._head.write_grant(grant.node, grant.job, grant.to_dict(), cas=0)
            self._check_wanted(grant)
            self._create_key(grant)
            self._check_wanted(grant)
            self._head.allow_deletion(grant.key)
            self._check_wanted(grant)
        except Exception as failure:  # noqa: BLE001 - whatever it was, it is taken back and raised by create()
            with self._lock:
                self.failure = self.failure or failure

    def undo(self, grant: Grant) -> None:
        """As destroy() does, and with the same safety: a grant that is not of this start is not touched."""
        keep = grant.key in self._unanswered
        evidence = _destroy(self._head, grant.job, grant.node, grant.incarnation, grant.key, keep_grant=keep)
        if evidence.error and self.failure is not None:
            self.failure.add_note(f"{grant.node}: not taken back: {evidence.error}")
        if grant.key not in self._asked or (evidence.done and not keep):
            self._taken_back(evidence)

    def _create_key(self, grant: Grant) -> None:
        with self._lock:
            self._asked.add(grant.key)
        try:
            self._head.create_key(grant.key)
        except BackendUnavailable:
            with self._lock:
                self._unanswered.add(grant.key)
            raise

    def _check_wanted(self, grant: Grant) -> None:
        with self._lock:
            stopped = self.failure is not None
        if stopped or self._still_wanted() is not True:
            raise Refused("keys.not_wanted", f"job {grant.job} ended while its keys were being made")


def _destroy(
    head: Head,
    job: str,
    node: str,
    incarnation: str | None,
    key: str,
    *,
    keep_grant: bool = False,
    reading: _Reading | None = None,
) -> Evidence:
    answer, at = 0, ""
    try:
        # the key that the caller knows goes first: a grant that is damaged or cannot be read must not save it
        if key:
            answer, at = _end_key(head, _check_key(key, node, job))
        grant = head.read_grant(node, job) if reading is None else reading.result()
        if grant is None or (incarnation is not None and grant.get("incarnation") != incarnation):
            return Evidence(node, key, answer, at or _now(), "")
        # no other field matters here: a damaged grant must not save its key
        named = _check_key(grant.get("key"), node, job)
        if named != key:
            answer, at = _end_key(head, named)
        if not keep_grant:
            head.delete_grant(node, job)
        return Evidence(node, named, answer, at, "", _word(grant, "created"), _word(grant, "incarnation"))
    except SecureSlurmError as error:
        return Evidence(node, key, answer, at or _now(), str(error))
    except Exception as error:  # noqa: BLE001 - a defect on one node must not keep the others' keys alive
        return Evidence(node, key, answer, at or _now(), f"defect: {type(error).__name__}")


def _word(grant: Mapping[str, Any], name: str) -> str:
    value = grant.get(name)
    return value if isinstance(value, str) else ""


def _end_key(head: Head, key: str) -> tuple[int, str]:
    """Delete the key and have its absence confirmed: 404 and when."""
    head.delete_key(key)
    if head.key_exists(key):
        raise VaultError(f"the key {key} can still be read after it was deleted", advice="repeat it; look at Vault")
    return ABSENT, _now()


def _check_key(key: object, node: str, job: str) -> str:
    """Refused ``keys.foreign``: a grant or a caller that names another node's or job's key would have that deleted."""
    if not isinstance(key, str):
        raise Refused("keys.foreign", f"the grant of job {job} for {node} names no key")
    name = parse_key_name(key)
    if (name.node, name.job) != (node, job):
        raise Refused("keys.foreign", f"the grant of job {job} for {node} names the key {key}")
    return key


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
