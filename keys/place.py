"""What a node found out about its own place: the verdict, as it travels to the Prolog, the journal and the audit trail.

Standard library only: the Prolog imports this. How a verdict comes about is in keys/place_proof.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Self

from conf.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

METHODS = ("file", "manifest", "ec2")
PROOFS = frozenset({"manifest", "ec2"})
"""Methods that prove something; ``file`` is root's own word."""
_PREFIX = "proof."
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)
_REASON_LIMIT = 256


class NotProved(Refused):
    """The proof of place failed: this node must run no tagged job."""

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__("node.place-proof", message, advice=advice)


class Verdict(NamedTuple):
    """``method``: of :data:`METHODS`, or ``none``. ``region``: what the place file says. ``verified``: is it proved.

    ``identity``: the instance's or the manifest's id. ``digest``: SHA-256, hex, of what was signed. ``binding``: by
    what it was tied to this machine. ``machine``: a fingerprint that root has to compare (keys/machine.py), else
    empty. ``reason``: why not, or what to keep in mind.
    """

    method: str
    region: str = ""
    verified: bool = False
    identity: str = ""
    digest: str = ""
    binding: str = ""
    machine: str = ""
    reason: str = ""

    def to_answer(self) -> dict[str, bytes | str]:
        """The fields of the node daemon's answer (``proof.*``)."""
        values = self._replace(reason=self.reason[:_REASON_LIMIT])._asdict()
        return {_PREFIX + name: "yes" if value is True else value or "" for name, value in values.items()}

    @classmethod
    def from_answer(cls, answer: Mapping[str, bytes]) -> Self | None:
        """The verdict in the node daemon's answer; None when there is none.

        :raises NotProved: it is there and malformed. The daemon is not root: what it sends is looked at before use.
        """
        if f"{_PREFIX}method" not in answer:
            return None
        values = {name: answer.get(_PREFIX + name, b"").decode("utf-8", "replace") for name in cls._fields}
        verified = values.pop("verified")
        words = (value for name, value in values.items() if name != "reason" and value)
        if verified not in ("yes", "") or not values["method"] or not all(map(_WORD.fullmatch, words)):
            raise NotProved("the node daemon's verdict on the node's place is malformed")
        values["reason"] = "".join(c if c.isprintable() else "?" for c in values["reason"][:_REASON_LIMIT])
        return cls(verified=verified == "yes", **values)

    def audit_fields(self) -> dict[str, object]:
        """The fields of the audit event ``place.verdict``; what is not known is None, which leaves it out."""
        return {
            "method": self.method,
            "verified": self.verified,
            "region": self.region or None,
            "identity": self.identity or None,
            "digest": self.digest or None,
            "binding": self.binding or None,
            "reason": self.reason or None,
        }

    def summary(self) -> str:
        """One line for the journal and for people: ``ec2 eu-central-1 i-0abc verified (instance-file) sha256:…``."""
        words = [self.method, self.region or "nowhere", self.identity, "verified" if self.verified else "not verified"]
        words += [f"({self.binding})" if self.binding else "", f"sha256:{self.digest}" if self.digest else ""]
        return " ".join(filter(None, words)) + (f": {self.reason}" if self.reason else "")
