"""The forms that a value in a configuration file may have: each is a type for a field and the check that makes it.

A check takes what YAML read and returns the field's value, or raises ValueError with a message for the admin.
Text that ends up in a shell, Lua or Vault path has a charset so small that nothing in it ever needs quoting.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Annotated, NamedTuple

from conf import units
from conf.errors import UsageError
from conf.quote import quote
from conf.tag import is_name

if TYPE_CHECKING:
    from collections.abc import Callable


class Form(NamedTuple):
    """The marker in ``Annotated[...]`` by which the loader finds the check."""

    check: Callable[[object], object]


def text_of(value: object, what: str) -> str:
    """``value`` if YAML read a text; ValueError that says what it read instead."""
    if isinstance(value, str):
        return value
    raise ValueError(f"must be {what}, not {kind(value)}")


def kind(value: object) -> str:
    """What YAML read, in words: ``the number 5``, ``a list``."""
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int):
        return f"the number {value}"
    return {"str": f"the text {quote(value)}", "list": "a list", "dict": "a mapping"}.get(
        type(value).__name__, "nothing"
    )


def _matching(pattern: str, what: str) -> Form:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: object) -> str:
        text = text_of(value, what)
        if not compiled.fullmatch(text):
            raise ValueError(f"must be {what}, not {quote(text)}")
        return text

    return Form(check)


def _name(value: object) -> str:
    what = "a name (1 to 32 of a-z, 0-9 and '-', not '-' first)"
    text = text_of(value, what)
    if not is_name(text):
        raise ValueError(f"must be {what}, not {quote(text)}")
    return text


def _path(value: object) -> str:
    what = "an absolute path of letters, digits and ._/@+:=,-"
    text = text_of(value, what)
    if not re.fullmatch(r"/[A-Za-z0-9._/@+:=,-]*", text, re.ASCII) or "//" in text:
        raise ValueError(f"must be {what}, not {quote(text)}")
    if {".", ".."} & set(text.split("/")):
        raise ValueError(f"must be a path without '.' and '..', not {quote(text)}")
    return text if text == "/" else text.rstrip("/")


def _node_path(value: object) -> str:
    _path(value.replace("%n", "n") if isinstance(value, str) else value)
    return str(value).rstrip("/")


def _optional(form: Form) -> Form:
    return Form(lambda value: value if value == "" else form.check(value))


def _in_words(parse: Callable[[str], object], what: str) -> Form:
    def check(value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(f"{value} has no unit: write {what}")
        try:
            return parse(text_of(value, what))
        except UsageError as wrong:
            raise ValueError(f"{wrong}; {wrong.advice}") from None

    return Form(check)


def _positive_size(text: str) -> int:
    size = units.parse_size(text)
    if size == 0:
        raise UsageError("a size of zero says nothing", advice="leave the key out, or write 1M or more")
    return size


def _date(value: object) -> datetime.date:
    what = "a date such as 2027-03-31"
    text = text_of(value, what)
    try:
        return datetime.date.fromisoformat(text if len(text) == len("2027-03-31") else "")
    except ValueError:
        raise ValueError(f"must be {what}, not {quote(text)}") from None


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError(f"must be a whole number from 1, not {kind(value)}")
    return value


_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[1-9][0-9]{0,4})?/?"
_PATH = Form(_path)
_SIZE = _in_words(_positive_size, "a size such as 200M, 10G or 1T")

Size = Annotated[int, _SIZE]
OptionalSize = Annotated[int, Form(lambda value: 0 if value == "" else _SIZE.check(value))]
Duration = Annotated[float, _in_words(units.parse_duration, "a duration such as 200ms, 5s, 10m, 12h or 30d")]
Date = Annotated[datetime.date, Form(_date)]
Count = Annotated[int, Form(_count)]
Name = Annotated[str, Form(_name)]
Path = Annotated[str, _PATH]
OptionalPath = Annotated[str, _optional(_PATH)]
NodePath = Annotated[str, Form(_node_path)]
# slurm.conf(5), ClusterName: at most 40 characters, kept in lower case
ClusterName = Annotated[
    str, _matching(r"[a-z0-9][a-z0-9_-]{0,39}", "a ClusterName (a-z, 0-9, '_' and '-', at most 40)")
]
# '_' ends the node's name in the names of its transit keys, by which the Vault policy keeps nodes apart
NodeName = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", "a host name of letters, digits, '.' and '-'")]
PartitionName = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "a partition name (no spaces or quotes)")]
# Accounts, QOS, reservations, GRES and licences ('matlab@server'); ',' and ':' take Slurm's lists of them apart
SlurmWord = Annotated[str, _matching(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}", "a name of Slurm's (no spaces or commas)")]
# mount(8): a mount point, or a source such as fs-1.efs.example:/, 10.0.0.1@tcp:/fsx, //server/share
FileSystem = Annotated[
    str, _matching(r"[A-Za-z0-9._/@+:,=\[\]-]{2,255}", "a mount point, or a source such as server:/path")
]
Rule = Annotated[str, _matching(r"[a-z]+\.[a-z]+(?:-[a-z]+)*", "the id of a rule, as in docs/rules.md")]
# '&', '|', '*', ',' and brackets are operators of a constraint (sbatch(1), --constraint)
Feature = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", "a feature (letters, digits, '_', '.' and '-')")]
Region = Annotated[str, _matching(r"[a-z0-9][a-z0-9-]{0,63}", "a region id such as eu-central-1")]
UserName = Annotated[str, _matching(r"[a-z_][a-z0-9_-]{0,31}", "the name of a system account")]
_ENDPOINT = _matching(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]):[1-9][0-9]{0,4}",
    "a host and a port, such as head:6830 or 0.0.0.0:6830",
)
Endpoint = Annotated[str, _ENDPOINT]
OptionalEndpoint = Annotated[str, _optional(_ENDPOINT)]
HttpsUrl = Annotated[str, _matching(rf"https://{_HOST}", "an https:// address (host and port, no path or password)")]
# the metadata service is link-local and speaks plain HTTP only; loopback is for a stand-in
MetadataUrl = Annotated[
    str,
    _matching(
        r"http://(?:169\.254\.169\.254|127\.0\.0\.1)(?::[1-9][0-9]{0,4})?",
        "http://169.254.169.254 or an http:// address on 127.0.0.1",
    ),
]
AwsAccount = Annotated[str, _optional(_matching(r"[0-9]{12}", "an AWS account id (12 digits, in quotes)"))]
# IAM user guide, "Name requirements"
AwsRole = Annotated[str, _matching(r"[A-Za-z0-9_+=,.@-]{1,64}", "the name of an IAM role, without its path")]
LdapsUrl = Annotated[str, _matching(rf"ldaps://{_HOST}", "an ldaps:// address (ldap:// would send passwords in clear)")]
Mount = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(?:/[A-Za-z0-9_-]{1,64}){0,3}", "a Vault mount path")]
VaultRole = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", "the name of a Vault role")]
# RFC 4514 in outline: the directory itself judges the rest. Control characters were refused while reading.
_RDN = r"[A-Za-z][A-Za-z0-9.-]*=(?:[^,\\]|\\.)+"
DistinguishedName = Annotated[str, _matching(rf"{_RDN}(?:, *{_RDN})*", "a distinguished name such as cn=a,dc=b")]
LdapAttribute = Annotated[str, _matching(r"[A-Za-z][A-Za-z0-9-]{0,63}", "the name of an LDAP attribute")]
VolumeGroup = Annotated[
    str, _optional(_matching(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}", "the name of a volume group"))
]
