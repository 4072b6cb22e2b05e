"""Where in the file something is that ParallelCluster says, and what to do about it; it says neither itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from admin.parallelcluster.child import UNKNOWN
from admin.parallelcluster.theirs import Said
from conf.quote import did_you_mean, one_of, quote
from conf.yamlmarks import Document, Where

_REQUIRED = "Missing data for required field."
# shorter words are in too many sentences
_LEAST_WORD = 3
_GUIDE = "correct it; the AWS ParallelCluster user guide has this key"
# what the messages do not say themselves
_ADVICE = {
    "ComputeResourceSizeValidator": "raise MaxCount, or lower MinCount",
    "DuplicateNameValidator": "give each a name of its own",
    "KeyPairValidator": "write HeadNode: Ssh: KeyName, for the day on which Session Manager does not answer",
    "MaxCountValidator": "take some out",
    "NumberOfStorageValidator": "take some out",
    "RootVolumeEncryptionConsistencyValidator": "write Encrypted: true for each of them",
    "MixedSecurityGroupOverwriteValidator": "name SecurityGroups for the head node and all queues, or for none",
    "ExternalSlurmdbdTrafficNotEncrypted": "use Database instead, or a slurmdbd in a network of its own",
}


def place(document: Document, said: Said) -> Where:
    """The path that the message is most likely about: what its words name, or a value that the validator was given.

    Validators are told values, and not where they stood.
    """
    where = _there(document, said.where)
    if said.validator == "schema":
        return where
    below = list(_below(document, where))
    named = {each: length for each in below if (length := _named(document, each, said.message))}
    given = [each for each in below if any(_is_given(document, each, *one) for one in said.about.items())]
    for found in ([each for each in given if each in named], list(named), given):
        if found:
            return max(found, key=lambda each: named.get(each, 0))
    return where


def words(said: Said) -> tuple[str, str]:
    """Its message, as a sentence about the key, and what to do."""
    key = str(said.where[-1]) if said.where else "the file"
    if said.validator != "schema":
        return said.message, _ADVICE.get(said.validator, _GUIDE)
    if said.message == UNKNOWN:
        hint = did_you_mean(key, said.about)
        known = f"known here: {one_of(sorted(said.about))}" if said.about else _GUIDE
        return f"unknown key {quote(key)}{hint}", f"correct or remove it; {known}"
    if said.message == _REQUIRED:
        return f"{quote(key)} is missing", "add it"
    return f"{key}: {said.message}", _GUIDE


def _there(document: Document, where: Where) -> Where:
    """The nearest part of a path that the file has; ParallelCluster also says what is wrong with its defaults."""
    while where and where not in document.keys and where not in document.values:
        where = where[:-1]
    return where


def _below(document: Document, where: Where) -> Iterator[Where]:
    return (
        each for each in {**document.keys, **document.values} if len(each) > len(where) and each[: len(where)] == where
    )


def _named(document: Document, where: Where, message: str) -> int:
    """The length of a key, or of a value, that stands in the message as a word; 0: neither does."""
    value = _value(document, where)
    words = [each for each in (where[-1], value) if isinstance(each, str) and len(each) > _LEAST_WORD]
    found = (each for each in words if re.search(rf"(?<![A-Za-z0-9_-]){re.escape(each)}(?![A-Za-z0-9_-])", message))
    return max(map(len, found), default=0)


def _is_given(document: Document, where: Where, name: str, value: object) -> bool:
    """Whether a key is called as an argument was, or as its end (``volume_iops``: ``Iops``), and has its value."""
    key = _plain(str(where[-1]))
    return len(key) > _LEAST_WORD and _plain(name).endswith(key) and _value(document, where) == value


def _value(document: Document, where: Where) -> object:
    value: object = document.data
    for step in where:
        value = value[step]  # type: ignore[index]
    return value


def _plain(word: str) -> str:
    return word.replace("_", "").lower()
