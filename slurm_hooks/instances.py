"""What says, beside the node itself, which instance a node is: slurmctld, a file of the site's, or a command of its.

The document proves that the instance is AWS's and where it runs; that it is *this node* it cannot say. Whoever made the
instance for the node knows: ParallelCluster's ResumeProgram tells slurmctld the address (``scontrol update nodeaddr``),
a site's own can write a file or answer a command. In every case the peer must have the address that the document names.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Protocol

from conf.errors import BackendUnavailable, ConfigError, Refused
from conf.safefile import check_file_safety, read_safely
from conf.site import Site
from keys.process import ProcessError, run
from slurm_hooks.live import account

RULE = "enrol.instance"
TIMEOUT = 10.0
"""Seconds for scontrol or the site's command."""
FILE_LIMIT = 4 * 1024 * 1024
"""Bytes of the file: some 50 for each node."""

_NODE_ADDR = re.compile(r"(?:^|\s)NodeAddr=(\S+)(?=\s|$)", re.ASCII)
_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}", re.ASCII)


class Source(Protocol):
    """Says whether a node is an instance."""

    def check(self, node: str, instance: str, address: str) -> None:
        """Return when the node is that instance, at that address (normal form).

        :raises Refused: ``enrol.instance``: it is not. :raises BackendUnavailable: nobody can tell just now.
        """


def source_of(site: Site) -> Source:
    """The one that ``enrol.source`` names."""
    if site.enrol.source == "file":
        return FromFile(site.enrol.instances, account(site.cluster.slurm_user, "SlurmUser").pw_uid)
    if site.enrol.source == "command":
        return FromCommand(site.enrol.command)
    return FromSlurm(site.cluster.slurm_bin)


def normal_address(text: str) -> str:
    """An IP address in its one form; an IPv4 address that came in as IPv6 is IPv4. ValueError: it is none."""
    found = ipaddress.ip_address(text.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


class FromSlurm:
    """slurmctld's NodeAddr, which must be an address and the peer's; who may change it, is for Slurm to say."""

    def __init__(self, slurm_bin: str) -> None:
        self._scontrol = f"{slurm_bin}/scontrol"

    def check(self, node: str, instance: str, address: str) -> None:
        """As :class:`Source` says; the instance is the one at the address."""
        conf = os.environ.get("SLURM_CONF", "")
        try:
            done = run(
                [self._scontrol, "--all", "--oneliner", "show", "node", node],
                timeout=TIMEOUT,
                allowed=(0, 1),
                env_extra={"SLURM_CONF": conf} if conf else None,
            )
        except ProcessError as error:
            raise BackendUnavailable(f"slurmctld cannot be asked for the address of {node}: {error}") from None
        words = done.stdout.decode("ascii", "replace")
        if done.returncode == 1 and b"not found" in done.stdout + done.stderr:
            raise Refused(RULE, f"slurmctld knows no node {node}", advice="is the node's name in Slurm another?")
        found = _NODE_ADDR.findall(words)
        if done.returncode != 0 or not words.startswith(f"NodeName={node} ") or len(found) != 1:
            raise BackendUnavailable(f"slurmctld's answer about the node {node} cannot be read", advice="is it up?")
        try:
            known = normal_address(found[0])
        except ValueError:
            known = ""
        if known != address:
            raise Refused(
                RULE,
                f"{instance} asks from {address}, and slurmctld has the node {node} at {found[0][:80]}",
                advice="ResumeProgram must tell slurmctld so: scontrol update nodename=NAME nodeaddr=ADDRESS",
            )


class FromFile:
    """Lines of ``NODE INSTANCE``; the last line for a node counts. Root's or SlurmUser's, who runs ResumeProgram."""

    def __init__(self, path: str, owner: int) -> None:
        self._path = path
        self._owner = owner

    def check(self, node: str, instance: str, address: str) -> None:
        """As :class:`Source` says."""
        try:
            text = read_safely(self._path, owner=self._owner, limit=FILE_LIMIT).decode("ascii", "replace")
        except ConfigError as error:
            raise BackendUnavailable(f"which instance {node} is cannot be told: {error}") from None
        lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        told = [words for words in lines if words[0] == node]
        _compare(node, instance, told[-1][1] if told and len(told[-1]) == 2 else "", self._path)


class FromCommand:
    """A root-owned program that is given the node's name and prints the instance's id; it has :data:`TIMEOUT`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def check(self, node: str, instance: str, address: str) -> None:
        """As :class:`Source` says; the program's failure is no answer."""
        try:
            check_file_safety(self._path, owner=0)
            done = run([self._path, node], timeout=TIMEOUT)
        except (ConfigError, ProcessError) as error:
            raise BackendUnavailable(f"which instance {node} is cannot be told: {error}") from None
        _compare(node, instance, done.stdout.decode("ascii", "replace").strip(), self._path)


def _compare(node: str, instance: str, told: str, where: str) -> None:
    if not _INSTANCE.fullmatch(told):
        raise Refused(RULE, f"{where} names no instance for the node {node}", advice="did its ResumeProgram run?")
    if told != instance:
        raise Refused(RULE, f"{where} says that the node {node} is {told}, not {instance}")
