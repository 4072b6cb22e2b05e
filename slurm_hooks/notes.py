"""The verdict on what job_submit.lua has let pass by itself. Pure but for what it remembers.

The same few notes come again and again, thousands in a busy minute: they say no more of a job than the verdict on one
without a tag rests on, so neither its name nor its directory or its script.
"""

from __future__ import annotations

from collections.abc import Mapping

from slurm_hooks.engine import Decision, Signer, decide_submit
from slurm_hooks.filters.verdict import Context

MAX_KNOWN = 4096
AGAIN = 60.0
"""Seconds after which a note is judged again, though nothing has changed but the time: policies end with the day."""


class Judged:
    """Judges each note once, as long as nothing that a decision rests on is another."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._basis: tuple[object, ...] = ()
        self._minute = -1.0
        self._known: dict[frozenset[tuple[str, bytes]], Decision] = {}

    def decide(self, fields: Mapping[str, bytes], context: Context) -> Decision:
        """What :func:`~slurm_hooks.engine.decide_submit` says of it, nonce and all the rest of the second aside."""
        self._forget_if_changed(context)
        key = frozenset(item for item in fields.items() if item[0] != "nonce")
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            found = self._known[key] = decide_submit(fields, context, self._signer)
        return found

    def _forget_if_changed(self, context: Context) -> None:
        """Everything in the context counts, whatever it will have one day. The very objects: a change replaces them."""
        minute = context.now // AGAIN
        basis = tuple(context._replace(now=0.0))
        same = len(basis) == len(self._basis) and all(map(_is_same, basis, self._basis))
        if not same or minute != self._minute:
            self._basis, self._minute, self._known = basis, minute, {}


def _is_same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, str | float) and one == other)
