"""The decision record: what was decided about a job at submission, in Slurm's ``admin_comment``, under a MAC.

Text: ``secure-slurm/1 cluster=.. uid=.. user=.. class=.. residency=.. scratch=.. datasets=.. policy=.. nonce=.. time=..
mac=..``, one order, single spaces, ``residency``, ``scratch`` (bytes) and ``datasets`` absent when the tag has none;
the MAC is HMAC-SHA256 over the text before `` mac=``. An admin may add `` | free text`` behind it. Users cannot write
admin_comment (slurmctld, job_mgr.c), every user may read it: it holds no secret. It says what a modify may not change;
the job as it then is gets judged again at its start.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time

import attrs

from conf.errors import ConfigError, Refused
from conf.safefile import read_safely
from conf.tag import Tag
from keys.secret import Secret

PREFIX = "secure-slurm/1 "
SEPARATOR = " | "
MIN_KEY = 32
MAX_KEY = 4096

_NAME = r"[a-z0-9][a-z0-9-]{0,31}"
_NUMBER = r"0|[1-9][0-9]{0,18}"
_RECORD = re.compile(
    r"secure-slurm/1"
    r" cluster=(?P<cluster>[A-Za-z0-9][A-Za-z0-9_.-]{0,62})"
    rf" uid=(?P<uid>{_NUMBER})"
    r" user=(?P<user>[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})"
    rf" class=(?P<klass>{_NAME})"
    rf"(?: residency=(?P<residency>{_NAME}))?"
    rf"(?: scratch=(?P<scratch>{_NUMBER}))?"
    rf"(?: datasets=(?P<datasets>{_NAME}(?:,{_NAME}){{0,15}}))?"
    r" policy=(?P<policy>[0-9a-f]{16})"
    r" nonce=(?P<nonce>[0-9a-f]{32})"
    rf" time=(?P<time>{_NUMBER})"
)
_SIGNED = re.compile(r"(?P<text>[\x21-\x7e ]{1,1500}) mac=(?P<mac>[0-9a-f]{64})")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")


@attrs.frozen
class Record:
    """One decision. ``scratch`` in bytes, ``time`` in Unix seconds, ``policy`` the first 16 digits of its SHA-256."""

    cluster: str
    uid: int
    user: str
    klass: str
    residency: str | None
    scratch: int | None
    policy: str
    nonce: str
    time: int
    datasets: tuple[str, ...] = ()

    @property
    def tag(self) -> Tag:
        """The tag that was decided on."""
        return Tag(self.klass, self.residency, self.scratch, self.datasets)


def new_nonce() -> str:
    """32 hex digits from the kernel, which tell two decisions about the same tags apart."""
    return os.urandom(16).hex()


def now() -> int:
    """Unix seconds, for :attr:`Record.time`."""
    return int(time.time())


def safe_user(name: str | None) -> bool:
    """Whether a user name can stand in a record (no space, no control character, no separator)."""
    return name is not None and _USER.fullmatch(name) is not None


def sign(record: Record, key: Secret) -> str:
    """The record's text with its MAC. Refuses (Refused ``record.field``) a value that the text could not carry."""
    text = _text(record)
    if not _RECORD.fullmatch(text):
        raise Refused("record.field", "a value of the decision record has characters that it may not have")
    return f"{text} mac={_mac(text, key)}"


def verify(text: str, key: Secret) -> Record:
    """The record of an ``admin_comment`` (free text behind it is ignored), its MAC checked in constant time.

    Refuses ``record.missing`` (no record there), ``record.mac`` (not ours, or changed) and ``record.syntax``.
    """
    if not text.startswith(PREFIX):
        raise Refused("record.missing", "the job has no decision record")
    signed = _SIGNED.fullmatch(split(text)[0])
    if signed is None:
        raise Refused("record.syntax", "the job's decision record is malformed")
    if not hmac.compare_digest(_mac(signed["text"], key), signed["mac"]):
        raise Refused("record.mac", "the job's decision record was not made here, or was changed")
    found = _RECORD.fullmatch(signed["text"])
    if found is None:
        raise Refused("record.syntax", "the job's decision record is malformed")
    return Record(
        cluster=found["cluster"],
        uid=int(found["uid"]),
        user=found["user"],
        klass=found["klass"],
        residency=found["residency"],
        scratch=None if found["scratch"] is None else int(found["scratch"]),
        policy=found["policy"],
        nonce=found["nonce"],
        time=int(found["time"]),
        datasets=tuple(found["datasets"].split(",")) if found["datasets"] else (),
    )


def split(text: str) -> tuple[str, str]:
    """An ``admin_comment`` as (record text, free text behind `` | ``); the second is empty when there is none."""
    record, _, suffix = text.partition(SEPARATOR)
    return record, suffix


def looks_like(text: str | None) -> bool:
    """Whether a text could be taken for a record by a person or a lax reader. Errs towards yes."""
    return text is not None and "secure-slurm/" in text.lower()


def load_key(path: str) -> Secret:
    """The MAC key from a file that root trusts and others cannot read (ConfigError; see conf.safefile).

    Fewer than 32 bytes are refused as well.
    """
    data = read_safely(path, secret=True, limit=MAX_KEY)
    if len(data) < MIN_KEY:
        raise ConfigError(
            f"{path}: the record key has {len(data)} bytes, {MIN_KEY} are needed",
            advice=f"make one with: head -c {MIN_KEY} /dev/urandom",
        )
    return Secret(data)


def _text(record: Record) -> str:
    parts = [
        f"{PREFIX}cluster={record.cluster}",
        f"uid={record.uid}",
        f"user={record.user}",
        f"class={record.klass}",
    ]
    if record.residency is not None:
        parts.append(f"residency={record.residency}")
    if record.scratch is not None:
        parts.append(f"scratch={record.scratch}")
    if record.datasets:
        parts.append(f"datasets={','.join(record.datasets)}")
    parts += [f"policy={record.policy}", f"nonce={record.nonce}", f"time={record.time}"]
    return " ".join(parts)


def _mac(text: str, key: Secret) -> str:
    if len(key) < MIN_KEY:
        raise ConfigError("the record key is too short or was wiped")
    return hmac.new(bytes(key.reveal()), text.encode("utf-8"), hashlib.sha256).hexdigest()
