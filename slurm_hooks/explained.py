"""An explanation as data, with the lines of the policy: what the admin's command prints, and what the daemon answers.

The daemon is asked by a word in the tag (:data:`conf.tag.EXPLAIN`). Such a job is refused whatever the verdict is, so
that nothing is ever submitted by asking; the verdict travels in the refusal's message, as one line of ASCII JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import attrs

from conf.errors import SecureSlurmError
from conf.policy import Policy
from conf.safefile import MAX_CONFIG, read_safely
from conf.tag import without_explain
from conf.yamlmarks import Document, parse
from slurm_hooks.engine import Decision, Signer, decide_submit
from slurm_hooks.explain import Explanation, Section, Step, explain
from slurm_hooks.filters.verdict import Context
from slurm_hooks.fixes import Change, Fields
from slurm_hooks.nearest import nearest

LOG = logging.getLogger(__name__)

RULE = "explain.answer"
VERB = "explain"
FORMAT = 1
MAX_MESSAGE = 64 * 1024
"""Bytes. slurmctld and sbatch pass on far longer ones (half a megabyte was tried); nobody reads them."""
Told = dict[str, Any]


def tell(
    found: Explanation, policy: tuple[str, Policy], document: Document | None, changes: tuple[Change, ...] | None
) -> Told:
    """All that is told. ``policy``: the file's name and what is in it; ``changes``: to the nearest accepted request."""
    path, content = policy
    return {
        "explanation": FORMAT,
        "allowed": found.allowed,
        "rule": found.rule,
        "message": found.message,
        "advice": found.advice,
        "policy": {"file": path, "hash": content.hash},
        "tag": _tag(found),
        "steps": [_step(step, document) for step in found.steps],
        "set": dict(found.changes),
        "nearest": None if changes is None or found.allowed else {"changes": [each._asdict() for each in changes]},
    }


def _tag(found: Explanation) -> dict[str, object] | None:
    tag = found.tag
    if tag is None:
        return None
    return {"class": tag.klass, "residency": tag.residency, "scratch": tag.scratch, "datasets": list(tag.datasets)}


def _step(step: Step, document: Document | None) -> dict[str, object]:
    return {
        "step": step.name,
        "part": step.part,
        "verdict": step.verdict,
        "rule": step.rule,
        "message": step.message,
        "advice": step.advice,
        "policy": [{"section": dotted(section), "line": _line(section, document)} for section in step.sections],
        "set": dict(step.changes),
        "shadowed": [{"rule": each.rule, "message": each.message} for each in step.shadowed],
        "exemptions": list(step.exemptions),
    }


def dotted(section: Section) -> str:
    """A section as the policy writes it: ``classes[1].max_scratch``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in section).lstrip(".")


def _line(section: Section, document: Document | None) -> int | None:
    return None if document is None else document.key_mark(section).line


class Explainer:
    """Answers the questions that come with a job, and keeps the lines of the policy in use for it."""

    def __init__(self, path: str, signer: Signer) -> None:
        self._path = path
        self._signer = signer
        self._lines: tuple[str, Document] | None = None

    def look(self, policy: Policy) -> None:
        """Read the lines of a policy that was taken over. Does file I/O: never call it while a request waits."""
        if self._lines is not None and self._lines[0] == policy.hash:
            return
        try:
            data = read_safely(self._path, limit=MAX_CONFIG)
        except SecureSlurmError as error:
            LOG.warning("explanations have no lines: %s", error)
            return
        # a file that has changed since is looked at when its policy is taken over
        if hashlib.sha256(data).hexdigest() == policy.hash:
            self._lines = policy.hash, parse(data)

    def decide(self, fields: Fields, context: Context) -> Decision | None:
        """The refusal that explains; None when nobody asked. Never raises.

        The verdict is the engine's own. What it would have allowed is refused like everything else, without a record.
        """
        plain = without_explain(fields.get("extra", b"").decode("utf-8", "surrogateescape"))
        if plain is None:
            return None
        asked = {**fields, "extra": plain.encode("utf-8", "surrogateescape")}
        decision = decide_submit(asked, context, self._signer)
        verdict = f"{'allow' if decision.allowed else 'refuse'} {decision.rule}"
        return attrs.evolve(
            decision,
            allowed=False,
            rule=RULE,
            verb=VERB,
            message=self._message(asked, context, decision),
            advice="",
            changes={},
            nonce="",
            reason=verdict,
        )

    def _message(self, asked: Fields, context: Context, decision: Decision) -> str:
        try:
            found = explain(asked, context)
            if (found.allowed, found.rule) != (decision.allowed, decision.rule):
                raise LookupError("the explanation is not the engine's")
            changes = None if found.allowed else nearest(asked, context)
            lines = self._lines
            document = lines[1] if lines is not None and lines[0] == context.policy.hash else None
            told = tell(found, (self._path, context.policy), document, changes)
        except Exception:
            LOG.exception("explaining a submission of uid %d failed", decision.uid)
            told = {"explanation": FORMAT, "allowed": decision.allowed, "rule": decision.rule}
            told |= {"message": decision.message, "advice": decision.advice, "steps": [], "nearest": None}
        return shortened(told)


def shortened(told: Told) -> str:
    """As one line of ASCII JSON of at most :data:`MAX_MESSAGE`; what is too long loses its passed steps, then all."""
    all_steps: list[object] = told["steps"]
    for steps in (all_steps, all_steps[-1:], []):
        text = json.dumps({**told, "steps": steps, "cut": steps != all_steps}, separators=(",", ":"))
        if len(text) <= MAX_MESSAGE:
            return text
    short = {name: told[name] for name in ("explanation", "allowed", "rule")}
    return json.dumps({**short, "message": "", "advice": "", "steps": [], "nearest": None, "cut": True})
