"""Where a path leads, links followed, for whoever walks it; with Slurm's patterns for names still in it.

Standard library only (root hooks import it under ``python3 -IS``). It touches the file system and may hang with it.
"""

# pathlib is left out on purpose: root hooks import this module at every start of a job
# ruff: noqa: PTH112, PTH114, PTH115, PTH116, PTH118, PTH208

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from conf.errors import InternalError
from conf.quote import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_hooks.hookenv import HookJob

MAX_LOOKED_AT = 20_000
"""Names in the directories of a path with patterns; what has more cannot be looked through in time."""

_PATTERN = re.compile(r"%[0-9]*(.?)", re.DOTALL)
# sbatch(1), filename pattern. Not here: %x, the job's name, which hooks on a node do not know
_STANDS_FOR = {
    **dict.fromkeys("Aabnst", "[0-9]+"),
    "J": r"[0-9]+(?:\.[0-9A-Za-z+_]+)?",
    "N": r"[A-Za-z0-9][A-Za-z0-9.-]*",
}
_MAX_LINKS = 40  # as the kernel, path_resolution(7)


class Unresolved(InternalError):
    """Where a path leads cannot be told for certain."""


def walk(path: str, job: HookJob, *, folder: bool = False) -> list[str]:
    """Every file that ``path`` may lead to, links followed, as whoever calls.

    A file that does not exist yet is in the place where its directory really is. A pattern of Slurm's, which is still
    in it here (measured), stands for every name that it can: where such names lead is looked at, and where a new one
    would be. ``folder``: a directory, which must exist and be enterable, and in which a ``%`` means nothing.

    Raises Unresolved for ``..``, relative paths, too many names, and a backslash, which switches patterns off and
    which Slurm takes out (sbatch(1)); OSError for what the user cannot look at.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or ".." in parts:
        raise Unresolved("it is not a plain absolute path")
    if folder:
        real = _real(path)
        os.stat(f"{real}/.")
        return [real]
    if "\\" in path:
        raise Unresolved("it has a backslash, by which Slurm reads it in another way")
    places, left = ["/"], [MAX_LOOKED_AT]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        places = list(dict.fromkeys(found for place in places for found in _step(place, part, job, left, last=last)))
        if not places:
            raise Unresolved(f"no directory fits {quote(part)}")
    return places


def _step(place: str, part: str, job: HookJob, left: list[int], *, last: bool) -> Iterator[str]:
    plain, fits = _pattern(part, job)
    if fits is None:
        try:
            yield _final(place, plain) if last else _real(os.path.join(place, plain))
        except FileNotFoundError:
            # one of the places that a pattern may mean need not have it; when none has, nothing is left to go on with
            if left[0] == MAX_LOOKED_AT:
                raise
        return
    for name in os.listdir(place):
        left[0] -= 1
        if left[0] < 0:
            raise Unresolved("there are too many files beside it to tell")
        whole = os.path.join(place, name)
        if fits(name) and (os.path.islink(whole) if last else os.path.isdir(whole)):
            with suppress(FileNotFoundError):
                yield _final(place, name) if last else _real(whole)
    if last:
        # a new file of that name; the place itself stands for it
        yield os.path.join(place, "%")


def _pattern(part: str, job: HookJob) -> tuple[str, Callable[[str], object] | None]:
    """The name that a component stands for, and None; or, where that depends, what tells whether a name fits."""
    known = {"u": job.user, "j": str(job.job), "%": "%"}
    found = list(_PATTERN.finditer(part))
    if all(each[0][1:] in known for each in found):
        return _PATTERN.sub(lambda each: known[each[1]], part), None
    text, end = "", 0
    for each in found:
        text += re.escape(part[end : each.start()]) + _stands_for(each[1], known)
        end = each.end()
    return part, re.compile(text + re.escape(part[end:]), re.DOTALL).fullmatch


def _stands_for(letter: str, known: dict[str, str]) -> str:
    if letter in known:
        return f"0*{re.escape(known[letter])}"
    # whatever is not known may be anything
    return _STANDS_FOR.get(letter, ".*")


def _final(place: str, name: str, links: int = _MAX_LINKS) -> str:
    """Where the file of that name in a resolved directory is, or would be made."""
    whole = os.path.join(place, name)
    try:
        return _real(whole)
    except FileNotFoundError:
        if not os.path.islink(whole):
            return whole
        if links == 0:
            raise Unresolved("too many links") from None
        # a link to nothing: what is opened for writing is made where it points
        folder, _, target = os.path.join(place, os.readlink(whole)).rstrip("/").rpartition("/")
        return _final(_real(folder or "/"), target, links - 1)


def _real(path: str) -> str:
    """The path without links. Raises Unresolved where the kernel goes another way than the texts of the links say.

    It does at the links of /proc (proc(5), ``/proc/pid/root``), which lead into other mount namespaces.
    """
    real = os.path.realpath(path, strict=True)
    if not os.path.samestat(os.stat(path), os.stat(real)):
        raise Unresolved("it leads out of this node's own file systems")
    return real
