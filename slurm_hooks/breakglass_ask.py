"""What ``secure-slurm break-glass`` and secure-slurm-glassd say to each other: the person's side, and a list's form."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from conf.errors import BackendUnavailable, ConfigError, Refused
from slurm_hooks import wire
from slurm_hooks.breakglass_dir import Odd, Papers
from slurm_hooks.breakglass_papers import Paper

TIMEOUT = 15.0
"""Seconds for one exchange: a paper is on the disk before the answer."""
PAGE = 60
"""Papers in one answer: of the largest and least readable that there can be, a message holds about 80."""
_OURS = ("backend.", "engine.", "wire.")


class Shown(NamedTuple):
    """What is in the folder, as the daemon reads it."""

    papers: Papers
    odd: tuple[Odd, ...]


def ask(path: str, verb: str, **fields: str) -> dict[str, bytes]:
    """One exchange, as whoever runs this.

    Refused with the daemon's rule; ConfigError when the socket may not be reached, BackendUnavailable when nobody or
    nothing usable answers.
    """
    try:
        os.stat(path)  # noqa: PTH116  for its errors alone
    except PermissionError:
        raise ConfigError(
            f"{path} may not be reached", advice="ask an admin to take you into the group secure-break-glass"
        ) from None
    except OSError as error:
        raise BackendUnavailable(
            f"{path} cannot be reached: {error.strerror}", advice="does secure-slurm-glassd run on this machine?"
        ) from None
    try:
        answer = wire.exchange(path, {"verb": verb, **fields}, timeout=TIMEOUT)
        if answer.get("verdict") == b"allow":
            return answer
        rule, message, advice = (wire.text(answer, name, "") for name in ("rule", "message", "advice"))
    except wire.WireError as error:
        raise BackendUnavailable(str(error), advice="does secure-slurm-glassd run? see its log") from None
    if not rule or rule.startswith(_OURS):
        raise BackendUnavailable(message or "it was refused without a reason", advice=advice)
    raise Refused(rule, message, advice=advice)


def listing(path: str, name: str = "") -> Shown:
    """Everything that there is, or of the grant ``name`` alone."""
    papers: Papers = {}
    odd: list[Odd] = []
    start = "0"
    while start:
        answer = ask(path, "list", id=name, start=start)
        try:
            for each in json.loads(answer["page"]):
                if "problem" in each:
                    odd.append(Odd(str(each["file"]), int(each["uid"]), str(each["problem"])))
                else:
                    by = None if each["by"] is None else int(each["by"])
                    paper = Paper(by, str(each["data"]).encode("latin-1"), float(each["changed"]))
                    papers.setdefault(str(each["id"]), {})[str(each["kind"])] = paper
            start = answer["next"].decode("ascii")
        except (KeyError, TypeError, ValueError):
            raise BackendUnavailable(
                f"{path}: the list cannot be understood", advice="is it another version?"
            ) from None
    return Shown(papers, tuple(odd))


def page(shown: Shown, name: str, start: int) -> dict[str, bytes | str]:
    """The daemon's answer to ``list``: papers from number ``start`` on, and where the next page starts ("": none)."""
    found: list[dict[str, object]] = [
        {"id": grant, "kind": kind, "by": paper.by, "data": paper.data.decode("latin-1"), "changed": paper.changed}
        for grant, papers in sorted(shown.papers.items())
        for kind, paper in sorted(papers.items())
        if name in ("", grant)
    ]
    found += [
        {"file": each.name, "uid": each.owner, "problem": each.what}
        for each in shown.odd
        if not name or each.name.startswith(f"{name}.")
    ]
    more = str(start + PAGE) if len(found) > start + PAGE else ""
    return {"verdict": "allow", "page": json.dumps(found[start : start + PAGE]), "next": more}
