"""What a tear-down found, did and left."""

from __future__ import annotations

from typing import Any


class Report:
    """The story of one tear-down, for the audit trail.

    ``found`` and ``removed`` name things as ``kind: name``; ``left`` is what is still there (empty: all is gone);
    ``problems`` is what went wrong on the way. ``wiped`` says that the key was wiped from the kernel while the device
    was still held; ``killed`` and ``holders`` are processes of the job that were killed, and others that were not.
    ``key_name`` and ``incarnation`` come from the journal and are empty without one.
    """

    def __init__(self, node: str, job: int) -> None:
        self.node = node
        self.job = job
        self.key_name = ""
        self.incarnation = ""
        self.wiped = False
        self.found: list[str] = []
        self.removed: list[str] = []
        self.killed: list[str] = []
        self.holders: list[str] = []
        self.left: list[str] = []
        self.problems: list[str] = []

    @property
    def gone(self) -> bool:
        """Whether nothing of the scratch is left on this node."""
        return not self.left

    def healed(self, reason: str, *before: str) -> dict[str, object]:
        """The fields of the audit event ``reaper.healed``; ``before``: what else was removed, first."""
        return {
            "job": self.job,
            "node": self.node,
            "incarnation": self.incarnation or None,
            "key": self.key_name or None,
            "reason": reason,
            "result": "gone",
            "evidence": self._evidence(before),
        }

    def absent(self, *before: str) -> dict[str, object]:
        """The fields of the audit event ``scratch.gone``; ``before`` as in :meth:`healed`."""
        return {
            "job": self.job,
            "node": self.node,
            "incarnation": self.incarnation or None,
            "evidence": self._evidence(before),
            "wiped": self.wiped,
        }

    def _evidence(self, before: tuple[str, ...]) -> str:
        return "; ".join([*before, *self.removed]) or "nothing was there"

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return dict(vars(self))
