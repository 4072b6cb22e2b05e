"""Whether an instance may have a certificate for a node's name: the rule, and what is remembered for it. Pure.

An identity document has no nonce, no audience and no end: whoever has read it once can show it anywhere. So its first
use binds the instance's launch to one node name and to one key, which never leaves the node; a second use counts only
with that key. Of two launches under one name the later one is the node: a document of the earlier one is refused, and
its certificates are revoked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Self

from conf.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST, AGAIN, RELAUNCHED, REPLACED = "first", "again", "relaunched", "replaced"
"""Nothing is known of the name; the same launch with the same key; the same instance, or another, launched later."""

MOST_ISSUED = 200
"""Certificates of one node that have not ended; it needs two a day. A longer list could not be read again."""

_FORMS = {
    "v": re.compile(r"1", re.ASCII),
    "node": re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", re.ASCII),
    "instance": re.compile(r"i-[0-9a-f]{8,17}", re.ASCII),
    "launched": re.compile(r"[0-9]{1,12}", re.ASCII),
    "key": re.compile(r"[0-9a-f]{64}", re.ASCII),
    "address": re.compile(r"[0-9a-f.:]{2,45}", re.ASCII),
    "principal": re.compile(r"(?:arn:[a-z-]{3,16}:sts::[0-9]{12}:assumed-role/[A-Za-z0-9_+=,.@/-]{3,128})?", re.ASCII),
    "issued": re.compile(rf"(?:[0-9a-f]{{1,40}}:[0-9]{{1,12}}(?: |\Z)){{0,{MOST_ISSUED}}}", re.ASCII),
}


class Issued(NamedTuple):
    """A certificate that was given out: its serial number, hex, and its end, Unix seconds."""

    serial: str
    ends: int


class Binding(NamedTuple):
    """Which instance a node is. ``launched``: Unix seconds; ``key``: its public key's digest; ``issued``: not ended.

    ``principal``: who it is to STS, where it logs in to Vault with its role (keys/vault_aws.py).
    """

    node: str
    instance: str
    launched: int
    key: str
    address: str
    issued: tuple[Issued, ...] = ()
    principal: str = ""

    def to_dict(self) -> dict[str, str]:
        """As it is kept in Vault: texts alone."""
        issued = " ".join(f"{each.serial}:{each.ends}" for each in self.issued)
        values = {**self._asdict(), "launched": str(self.launched), "issued": issued}
        return {"v": "1", **values}

    @classmethod
    def from_dict(cls, found: Mapping[str, object]) -> Self:
        """What :meth:`to_dict` made. Refused ``enrol.binding``: anything else."""
        texts = {name: value for name, value in found.items() if isinstance(value, str)}
        if texts.keys() != _FORMS.keys() or not all(form.fullmatch(texts[name]) for name, form in _FORMS.items()):
            raise Refused(
                "enrol.binding",
                "what Vault remembers of this node cannot be read",
                advice="look who wrote it (Vault's audit log), and delete it: docs/admin.md, Node identity",
            )
        pairs = (each.partition(":") for each in texts["issued"].split())
        return cls(
            node=texts["node"],
            instance=texts["instance"],
            launched=int(texts["launched"]),
            key=texts["key"],
            address=texts["address"],
            principal=texts["principal"],
            issued=tuple(Issued(serial, int(ends)) for serial, _, ends in pairs),
        )

    def check_room(self, now: float) -> None:
        """Before one more certificate is made. Refused ``enrol.often``: :data:`MOST_ISSUED` have not ended."""
        if sum(each.ends > now for each in self.issued) >= MOST_ISSUED:
            raise Refused(
                "enrol.often",
                f"node {self.node} has {MOST_ISSUED} certificates that have not ended",
                advice="look what asks for them there; who replaces the instance is not kept from it",
            )

    def with_issued(self, new: Issued, now: float) -> Self:
        """With one more certificate; those that have ended are forgotten."""
        return self._replace(issued=(*(each for each in self.issued if each.ends > now), new))


class Known(NamedTuple):
    """What is remembered: of the name, and of the instance (under whatever name)."""

    of_node: Binding | None
    of_instance: Binding | None


def judge(asked: Binding, known: Known, *, oldest: float, now: float) -> str:
    """What this enrolment is: :data:`FIRST`, :data:`AGAIN`, :data:`RELAUNCHED` or :data:`REPLACED`.

    ``asked`` is what a genuine document and a signed request say. ``oldest``: seconds since the launch, for the first
    use of a launch. Refused: ``enrol.replayed``, ``enrol.superseded``, ``enrol.old``.
    """
    node, instance = known.of_node, known.of_instance
    for before in (node, instance):
        if before is not None and before.instance == asked.instance:
            _same_launch(asked, before)
    if node is not None and node.instance != asked.instance and node.launched >= asked.launched:
        raise Refused(
            "enrol.superseded",
            f"node {asked.node} is {node.instance}, which was launched later than {asked.instance} or with it",
            advice="this instance was replaced; terminate it",
        )
    if node is not None and (node.instance, node.launched) == (asked.instance, asked.launched):
        return AGAIN
    if asked.launched < now - oldest and not (instance is not None and instance.launched == asked.launched):
        raise Refused(
            "enrol.old",
            f"{asked.instance} was launched {(now - asked.launched) / 3600:.1f} hours ago and has not enrolled yet",
            advice="raise enrol.oldest for a while on the head node, if this node has been here before the suite",
        )
    if node is None:
        return FIRST
    return RELAUNCHED if node.instance == asked.instance else REPLACED


def _same_launch(asked: Binding, before: Binding) -> None:
    if before.launched > asked.launched:
        raise Refused(
            "enrol.superseded",
            f"{asked.instance} has been launched again since this document was made",
            advice="an old document is shown here",
        )
    if before.launched == asked.launched and (before.node, before.key) != (asked.node, asked.key):
        what = "another key" if before.node == asked.node else f"the node name {before.node}"
        raise Refused(
            "enrol.replayed",
            f"the document of {asked.instance} has been used already, with {what}",
            advice="if the node has lost its key: look who has enrolled in its place, and unbind it (docs/admin.md)",
        )
