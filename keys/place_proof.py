"""How a node comes to the verdict on its own place: reads what root pinned, asks, verifies, remembers.

The region in question is always the one of the root-owned place file; a proof confirms it or fails, and never replaces
it. A verdict on an EC2 document is used again for ``node.proof_lifetime``; a failure is never remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import ConfigError, Refused, SecureSlurmError
from conf.safefile import read_safely
from conf.slurmnames import for_node
from keys import imds, machine, place_ec2, place_manifest
from keys.place import NotProved, Verdict

if TYPE_CHECKING:
    from conf.site import Site

MEMORY = "daemon/instance.json"
"""Below the run directory, in the node daemon's own folder: tmpfs, so a reboot is a first contact again."""
DECLARED = "self-declared: nothing but root's place file says so"
FIRST_CONTACT = "bound at first contact: no instance file and no firmware say which instance this is"
LONGEST = 3600.0
"""Seconds that a verdict is used again at most, whatever the site file says."""
_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}", re.ASCII)


class _Remembered(NamedTuple):
    instance: str
    launched: float


class Prover:
    """Makes the verdicts of one node. May be asked from several threads."""

    def __init__(self, site: Site, node: str) -> None:
        self.method: str = site.node.proof
        self._site = site
        self._node = node
        self._lock = threading.Lock()
        self._kept: tuple[float, Verdict] | None = None

    def read_place(self) -> str:
        """The region of the place file, read anew. Refused ``node.place``: missing, unsafe or not text."""
        path = self._site.node.place_file
        try:
            return read_safely(path, limit=256).decode("ascii").strip()
        except (UnicodeDecodeError, SecureSlurmError) as error:
            raise Refused(
                "node.place",
                f"{path}: this node does not say where it is: {error}",
                advice="write the region id of this machine into it, as root",
            ) from None

    def prove(self, region: str) -> Verdict:
        """The verdict on a region that belongs to a jurisdiction.

        :raises NotProved: it failed. :raises BackendUnavailable: the metadata service did not answer.
        """
        if self.method == "file":
            return Verdict("file", region, reason=DECLARED)
        if self.method == "manifest":
            return self._by_manifest(region)
        if self.method == "ec2":
            with self._lock:
                return self._by_ec2(region)
        raise NotProved(
            "the site file names no proof of place, and without one no node is trusted with tagged jobs",
            advice="set node.proof to ec2, manifest or file in secure-slurm.yaml (docs/admin.md), and render it",
        )

    def _by_manifest(self, region: str) -> Verdict:
        settings, now = self._site.node.manifest, time.time()
        data = _pinned(for_node(settings.file, self._node), place_manifest.MAX_BYTES)
        found = place_manifest.verify(
            data,
            _pinned(settings.public_key, place_manifest.MAX_BYTES),
            cluster=self._site.cluster.name,
            node=self._node,
            region=region,
            now=now,
        )
        matching = machine.matches(found.machine)
        kind = found.machine.partition(":")[0]
        # what this unprivileged daemon may not read, the Prolog, which is root, compares
        if matching is False or (matching is None and kind != "product-uuid"):
            raise NotProved(
                f"the manifest is for another machine: the {kind} differs",
                advice="was it copied, or the image of this machine? Have one signed for this machine",
            )
        digest = hashlib.sha256(data).hexdigest()
        return Verdict("manifest", region, True, found.id, digest, binding=kind, machine=found.machine)

    def _by_ec2(self, region: str) -> Verdict:
        kept = self._kept
        if kept is not None and kept[1].region == region and time.monotonic() < kept[0]:
            return kept[1]
        settings = self._site.node.ec2
        certificates = _pinned(f"{settings.certificates}/{region}.pem", 64 * 1024)
        instance, binding = self._expected_instance()
        remembered = self._remembered()
        if not instance and remembered is not None:
            instance, binding = remembered.instance, "first-contact"
        again = remembered is not None and remembered.instance == instance
        expected = place_ec2.Expected(
            region,
            instance,
            settings.account,
            not_before=remembered.launched if again and remembered is not None else 0.0,
            oldest=settings.oldest,
        )
        found = place_ec2.verify(imds.identity_document(settings.endpoint), certificates, expected, time.time())
        now_known = _Remembered(found.instance, found.launched)
        if now_known != remembered:
            self._remember(now_known)
        binding = binding or "first-contact"
        reason = FIRST_CONTACT if binding == "first-contact" else ""
        verdict = Verdict("ec2", region, True, found.instance, found.digest, binding, reason=reason)
        self._kept = (time.monotonic() + min(self._site.node.proof_lifetime, LONGEST), verdict)
        return verdict

    def _expected_instance(self) -> tuple[str, str]:
        path = for_node(self._site.node.ec2.instance_file, self._node)
        if os.path.lexists(path):
            instance = _pinned(path, 256).decode("ascii", "replace").strip()
            if not _INSTANCE.fullmatch(instance):
                raise NotProved(f"{path} names no instance", advice="write the instance id into it, or remove it")
            return instance, "instance-file"
        instance = machine.firmware_instance()
        return instance, "firmware" if instance else ""

    def _memory(self) -> Path:
        return Path(for_node(self._site.node.run_dir, self._node)) / MEMORY

    def _remembered(self) -> _Remembered | None:
        try:
            found = json.loads(read_safely(self._memory(), limit=1024))
            return _Remembered(str(found["instance"]), float(found["launched"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise NotProved(f"{self._memory()} is damaged", advice="remove it: this node is then bound anew") from None
        except ConfigError:
            if os.path.lexists(self._memory()):
                raise NotProved(f"{self._memory()} cannot be trusted", advice="look at who made it") from None
            return None

    def _remember(self, known: _Remembered) -> None:
        path = self._memory()
        new = path.with_name(f".{path.name}.new")
        try:
            new.write_text(json.dumps(known._asdict()) + "\n", encoding="ascii")
            new.chmod(0o644)
            new.replace(path)
        except OSError as error:
            # without it another document could be shown at the next start
            raise NotProved(f"{path} cannot be written: {error.strerror}") from None


def _pinned(path: str, limit: int) -> bytes:
    """A file that root put there. NotProved: missing or unsafe."""
    try:
        return read_safely(path, limit=limit)
    except ConfigError as error:
        raise NotProved(str(error), advice=error.advice) from None
