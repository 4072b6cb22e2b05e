"""What a script's ``#SECURE`` lines and the batch environment ask for, to be held against the job's tag.

A plain ``sbatch`` of a script with such lines must not run untagged, and a tag on the command line may be stronger
than the script says, never weaker.
"""

from __future__ import annotations

from typing import NamedTuple

from conf.errors import UsageError
from conf.policy import Policy
from conf.quote import quote
from conf.tag import ENVIRONMENT, OPTIONS, Tag, is_name, parse_datasets, parse_scratch

DIRECTIVE = "#SECURE"
_OPTIONS = {f"--{prefix}{word}": key for word, key in OPTIONS.items() for prefix in ("", "secure-")}
_ADVICE = "write it as in: #SECURE --class=phi --residency=eu --scratch=200M"


class Asked(NamedTuple):
    """A part of a tag, and where it was found (for the message)."""

    source: str
    klass: str | None = None
    residency: str | None = None
    scratch: int | None = None
    datasets: tuple[str, ...] = ()

    def weaker(self, tag: Tag, policy: Policy) -> str | None:
        """What of this the tag falls short of, in words; None when the tag is at least as strong."""
        if self.klass is not None and not policy.at_least(tag.klass, self.klass):
            return f"class {quote(self.klass)}, the job is tagged {quote(tag.klass)}"
        if self.residency is not None and tag.residency != self.residency:
            stated = "no residency" if tag.residency is None else f"residency {quote(tag.residency)}"
            return f"residency {quote(self.residency)}, the job is tagged with {stated}"
        if self.scratch is not None and tag.scratch is None:
            return "encrypted scratch, the job's tag has none"
        missing = [name for name in self.datasets if name not in tag.datasets]
        if missing:
            return f"dataset {quote(missing[0])}, which the job's tag does not name"
        return None


def from_script(script_lines: tuple[str, ...]) -> list[Asked]:
    """What each ``#SECURE`` line asks. UsageError for one that cannot be understood: it may have meant a tag."""
    return [_from_line(line) for line in script_lines if not _other_word(line)]


def from_environment(environment: dict[str, str]) -> list[Asked]:
    """What the ``SECURE_*`` variables ask, keyed as ``env.secure_class``; an empty one asks nothing. UsageError."""
    found: list[Asked] = []
    for variable, key in ENVIRONMENT.items():
        value = environment.get(f"env.{variable.lower()}", "")
        if value:
            found.append(_asked(variable, {key: value}))
    return found


def _other_word(line: str) -> bool:
    """``#SECURELY`` is a comment; ``#SECURE--class=phi`` or ``#SECURE_CLASS`` is somebody's attempt at a tag."""
    return line[len(DIRECTIVE) : len(DIRECTIVE) + 1].isalpha()


def _from_line(line: str) -> Asked:
    words = line.split()
    if words[0] != DIRECTIVE:
        raise UsageError(f"the line {quote(line)} of the script is not understood", advice=_ADVICE)
    pairs: dict[str, str] = {}
    for word in words[1:]:
        if word.startswith("#"):
            break
        option, _, value = word.partition("=")
        key = _OPTIONS.get(option)
        if key is None or not value:
            raise UsageError(f"{quote(word)} in {quote(line)} of the script is not understood", advice=_ADVICE)
        if pairs.setdefault(key, value) != value:
            raise UsageError(f"the line {quote(line)} of the script says {key} twice", advice=_ADVICE)
    if not pairs:
        raise UsageError(f"the line {quote(line)} of the script says nothing", advice=_ADVICE)
    return _asked(f"the script's line {quote(line)}", pairs)


def _asked(source: str, pairs: dict[str, str]) -> Asked:
    for key in ("class", "residency"):
        if key in pairs and not is_name(pairs[key]):
            raise UsageError(f"{source} asks for {key} {quote(pairs[key])}, which is not a name", advice=_ADVICE)
    scratch = pairs.get("scratch")
    return Asked(
        source,
        pairs.get("class"),
        pairs.get("residency"),
        None if scratch is None else parse_scratch(scratch),
        parse_datasets(pairs["datasets"]) if "datasets" in pairs else (),
    )
