"""Of two machines that show a good certificate with one node's name, the one that got its own later is the node.

A certificate is good until it ends, and an instance that was replaced may live on with it. Vault refuses it (its serial
number is on a list); at the link, which must work while Vault is away, this does. A certificate is never renewed once
another instance has enrolled under the name, so the instance whose latest one began later is the later instance. What
is known is lost with the process; the node itself, which connects within seconds, brings it back.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from conf.errors import Refused


class Succession:
    """Remembers, for each node, which machine it is and since when that is known."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, str]] = {}

    def check(self, node: str, certificate: Mapping[str, Any] | None) -> None:
        """Whether this certificate (``getpeercert``, verified) is the node's; Refused ``link.superseded``."""
        began, machine = _began(certificate), machine_of(certificate)
        before, known = self._latest.get(node, (began, machine))
        if machine != known and began <= before:
            raise Refused(
                "link.superseded",
                f"node {node} is {known or 'another machine'} by now, not {machine or 'the one before'}",
                advice="a machine that was replaced is still running: terminate it",
            )
        self._latest[node] = (max(began, before), machine)


def machine_of(certificate: Mapping[str, Any] | None) -> str:
    """The instance that a certificate names (keys/nodecert.py); "" for one that was made without enrolment."""
    names = (certificate or {}).get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI" and value.startswith("secure-slurm://")]
    return str(uris[0]).rpartition("/")[2] if len(uris) == 1 else ""


def check_enrolled(node: str, cluster: str, certificate: Mapping[str, Any] | None) -> None:
    """That an enrolment in this cluster has made it for this node; Refused ``link.name``: somebody has by hand.

    Where nodes enrol, what was made before is still on disks and in images, and does not end for a year.
    """
    names = (certificate or {}).get("subjectAltName", ())
    if len(names) != 1 or names[0] != ("URI", f"secure-slurm://{cluster}/{node}/{machine_of(certificate)}"):
        raise Refused("link.name", f"the certificate of node {node} was not made by an enrolment in {cluster}")


def _began(certificate: Mapping[str, Any] | None) -> float:
    try:
        return float(ssl.cert_time_to_seconds((certificate or {})["notBefore"]))
    except (KeyError, ValueError, TypeError):
        return 0.0
