"""Certificates of destruction, made by the lifecycle daemon: it asks Vault, has Vault sign, and keeps the document.

It signs nothing that Vault has not told it itself: that the key of each line is not there. Of what an earlier run left
to be certified, Vault is asked again: a file is nobody's word. What nodes said it takes from their lines that this head
node holds (:mod:`slurm_hooks.segments`), or from root, who can read other trails too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import attrs

from audit import certificate as form
from audit.bundle import digest_bytes
from audit.line import GENESIS, Link
from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from keys.certificate import block, pem, seal
from keys.names import parse_key_name
from slurm_hooks import wire
from slurm_hooks.lifecycle import Destroyed
from slurm_hooks.serve import Answer, Fields, Peer

LOG = logging.getLogger(__name__)

WAIT_AGAIN = 30.0
"""Seconds after which a certificate is tried again for which Vault was away."""
NODES_WAIT = 30.0
"""Seconds for which a certificate waits for the nodes' audit lines, and then says that they have not come."""
NODES_LOOK = 1.0
MOST_WAITING = 10_000
NOTE = ".due-"
"""How the name of a file begins that says what is still to be certified; what follows is the machine, and the job."""
WORKERS = 8
_TOO_MANY = "job %d: no certificate is made by itself, too many wait; later: secure-slurm audit certificate %d"


class Signer(Protocol):
    """What is needed of :class:`keys.vault_head.VaultHead`; every call blocks."""

    def sign(self, data: bytes) -> tuple[bytes, int]: ...  # noqa: D102
    def public_keys(self) -> dict[int, bytes]: ...  # noqa: D102
    def key_exists(self, name: str) -> bool: ...  # noqa: D102


class Say(Protocol):
    """Writes to the audit trail."""

    def __call__(self, event: str, **fields: object) -> None: ...  # noqa: D102


class Trails(Protocol):
    """What is needed of :class:`slurm_hooks.segments.Segments`: which audit lines of the nodes are held here."""

    def has_said_gone(self, node: str, job: int, incarnation: str) -> bool: ...  # noqa: D102
    def end(self, node: str) -> Link: ...  # noqa: D102
    def about(self, node: str, job: int) -> Iterable[dict[str, object]]: ...  # noqa: D102


class Certifier:
    """Makes, signs and stores. ``folder`` is made when it is first needed; ``say`` comes before the file."""

    def __init__(self, signer: Signer, cluster: str, issuer: str, folder: str, say: Say) -> None:
        self._signer = signer
        self._cluster = cluster
        self._issuer = issuer
        self._folder = Path(folder)
        self._say = say
        self._waiting: asyncio.Queue[tuple[int, list[Destroyed], float, str]] = asyncio.Queue(MOST_WAITING)
        self._later = 0
        self._mine: set[str] = set()  # notes of ends that this process was told of itself
        self.trails: Trails | None = None
        self.error = ""

    def ended(self, job: int, destroyed: Sequence[Destroyed]) -> None:
        """Have a certificate made of what was just destroyed and proved, when there is time, after a restart too."""
        self._wait_for(job, list(destroyed), self._note(job, destroyed))

    def _wait_for(self, job: int, destroyed: list[Destroyed], note: str) -> None:
        try:
            self._waiting.put_nowait((job, destroyed, time.monotonic(), note))
        except asyncio.QueueFull:
            LOG.error(_TOO_MANY, job, job)

    def _note(self, job: int, destroyed: Sequence[Destroyed]) -> str:
        """What a daemon that ends before the certificate is made leaves to its successor; "" when it cannot."""
        name = f"{NOTE}{self._issuer}-{job}-{os.urandom(4).hex()}.json"
        text = json.dumps({"job": job, "destroyed": [attrs.astuple(one) for one in destroyed]})
        try:
            self._store(name, text.encode("ascii"))
        except BackendUnavailable as error:
            LOG.warning("job %d: a restart would lose its certificate: %s", job, error)
            return ""
        self._mine.add(name)
        return name

    def _recall(self) -> None:
        """Take up what an earlier run of this machine's daemon has left."""
        # another machine's name may begin as this one's does
        ours = re.compile(rf"{re.escape(f'{NOTE}{self._issuer}')}-[1-9][0-9]{{0,9}}-[0-9a-f]{{8}}\.json", re.ASCII)
        for path in sorted(self._folder.glob(f"{NOTE}*")):
            if path.name in self._mine or not ours.fullmatch(path.name):
                continue
            try:
                said = json.loads(path.read_text(encoding="ascii"))
                self._wait_for(int(said["job"]), [Destroyed(*map(str, one)) for one in said["destroyed"]], path.name)
            except (OSError, ValueError, KeyError, TypeError) as error:
                LOG.error("%s cannot be read: %s; remove it", path, type(error).__name__)

    def _made(self, note: str) -> None:
        if note:
            self._mine.discard(note)
            with contextlib.suppress(OSError):
                (self._folder / note).unlink()

    @property
    def waiting(self) -> int:
        """Certificates that are not made yet."""
        return self._waiting.qsize() + self._later

    async def forever(self, pool: ThreadPoolExecutor) -> None:
        """Make what waits. What cannot be made is logged, and can be asked for later."""
        loop = asyncio.get_running_loop()
        self._recall()
        while True:
            job, destroyed, since, note = await self._waiting.get()
            if time.monotonic() - since < NODES_WAIT and not self._have_said(job, destroyed):
                self._later += 1
                loop.call_later(NODES_LOOK, self._again, (job, destroyed, since, note))
                continue
            try:
                await loop.run_in_executor(pool, self._of_ended, job, destroyed, note in self._mine or not note)
                self.error = ""
                self._made(note)
            except BackendUnavailable as error:
                self.error = str(error)
                self._wait_for(job, destroyed, note)
                await asyncio.sleep(WAIT_AGAIN)
            except Exception as error:
                self.error = str(error) if isinstance(error, SecureSlurmError) else type(error).__name__
                LOG.exception("no certificate was made of job %d: secure-slurm audit certificate %d", job, job)

    def _have_said(self, job: int, destroyed: Iterable[Destroyed]) -> bool:
        """Whether every node's word is held that nothing is left; without trails from nodes nobody waits for them."""
        trails = self.trails
        return trails is None or all(
            trails.has_said_gone(one.node, job, one.incarnation) or not trails.end(one.node).seq for one in destroyed
        )

    def _again(self, one: tuple[int, list[Destroyed], float, str]) -> None:
        self._later -= 1
        try:
            self._waiting.put_nowait(one)
        except asyncio.QueueFull:
            LOG.error(_TOO_MANY, one[0], one[0])

    def _heard(self, job: int, key: dict[str, Any]) -> dict[str, Any]:
        """The key with what its node's own trail says, as far as that is held here."""
        end = self.trails.end(key["node"]) if self.trails is not None else GENESIS
        if self.trails is None or not end.seq:
            return key
        said = {**key, "mapping": form.unconfirmed()}
        form.hear(self.trails.about(key["node"], job), said)
        arrived = said["mapping"]["state"] == form.ABSENT
        use = arrived and key["mapping"]["state"] in (form.UNCONFIRMED, form.LOST)
        trail = {"arrived": arrived, "seq": end.seq, "hash": end.hash}
        return {**(said if use else key), "trail": trail}

    def _of_ended(self, job: int, destroyed: Iterable[Destroyed], told: bool) -> None:
        """``told``: by Vault, to this process. Else it is asked, as for a draft."""
        keys = [
            {
                "incarnation": one.incarnation,
                "node": one.node,
                "key": one.key,
                "made": _iso(float(one.made)) if one.made.isdigit() and len(one.made) < 12 else "",
                "deleted": one.at,
                "vault": {"answer": 404, "at": one.at},
                "mapping": form.unconfirmed(),
                "trail": form.no_trail(),
            }
            for one in destroyed
        ]
        self._issue(job, keys) if told else self.of_draft(job, keys)

    def of_draft(self, job: int, keys: object) -> bytes:
        """Certify what root or a note says of a job's keys, each of which Vault is asked for now. Blocks.

        Refused ``certificate.key`` for a key that is not this job's, or that is still there; ``certificate.form``.
        """
        if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
            raise Refused("certificate.form", "the draft of a certificate is no list of keys")
        for key in keys:
            name = parse_key_name(str(key.get("key")))
            if (name.cluster, name.job, name.node) != (self._cluster, str(job), key.get("node")):
                raise Refused("certificate.key", f"{name} is no key of job {job} on {key.get('node')}")
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="absent") as pool:
            return self._issue(job, list(pool.map(self._absent, keys)))

    def _absent(self, key: dict[str, Any]) -> dict[str, Any]:
        if self._signer.key_exists(key["key"]):
            raise Refused(
                "certificate.key",
                f"Vault still has the key {key['key']}",
                advice="the job runs, or its end waits: secure-slurm status",
            )
        # root's word on what has arrived here is not taken
        return {**key, "trail": form.no_trail(), "vault": {"answer": 404, "at": _iso(time.time())}}

    def _issue(self, job: int, keys: list[dict[str, Any]]) -> bytes:
        certificate = form.check(
            {
                "v": form.VERSION,
                "kind": form.KIND,
                "cluster": self._cluster,
                "job": job,
                "issuer": self._issuer,
                "issued": _iso(time.time()),
                "keys": keys,
                "backups": form.BACKUPS,
            }
        )
        keys = [self._heard(job, key) for key in keys]
        certificate = form.check({**certificate, "keys": keys})
        signature, version = self._signer.sign(form.signed_bytes(certificate))
        document = json.dumps(seal(certificate, signature, version), indent=1).encode("ascii") + b"\n"
        open_ends = sum(key["mapping"]["state"] in (form.UNCONFIRMED, form.LOST) for key in keys)
        evidence = f"signature {signature.hex()}"
        self._say("destruction.certificate", job=job, evidence=evidence, count=len(keys), lost=open_ends)
        self._store(f"{job}-{keys[-1]['incarnation'] or 'unknown'}.json", document)
        return document

    def _store(self, name: str, document: bytes) -> None:
        temporary = self._folder / f".{name}.{os.urandom(4).hex()}"
        try:
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir(mode=0o700)
                # the daemon's umask is 077; the auditors' group must read them
                self._folder.chmod(0o750)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(document)
                os.fchmod(file.fileno(), 0o640)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise BackendUnavailable(
                f"{self._folder}: a certificate cannot be written: {error.strerror}",
                advice="it must belong to the lifecycle daemon's account, and have space",
            ) from None

    async def certify(self, fields: Fields, _peer: Peer) -> Answer:
        """Root's verb: a certificate of what root knows of a job's keys, once Vault has said that none is there."""
        job = wire.text(fields, "job")
        if not re.fullmatch(r"[1-9][0-9]{0,9}", job, re.ASCII):
            raise wire.WireError("the job of the request is not a job's number")
        keys = form.parse(b'{"keys":' + fields.get("keys", b"") + b"}")["keys"]
        return {"verdict": "allow", "document": await asyncio.to_thread(self.of_draft, int(job), keys)}

    async def sign_export(self, fields: Fields, _peer: Peer) -> Answer:
        """Root's verb: a signature over the digest of an export's manifest, which is root's word alone."""
        digest = wire.text(fields, "digest")
        if not re.fullmatch(r"[0-9a-f]{64}", digest, re.ASCII):
            raise wire.WireError("the digest of the request is no SHA-256")
        signature, version = await asyncio.to_thread(self._signer.sign, digest_bytes(digest))
        return {"verdict": "allow", "signature": json.dumps(block(signature, version))}

    async def public_key(self, _fields: Fields, _peer: Peer) -> Answer:
        """The verb for the public keys that certificates are checked with, the newest first, as PEM."""
        keys = await asyncio.to_thread(self._signer.public_keys)
        return {"verdict": "allow", "pem": "".join(pem(keys[version]) for version in sorted(keys, reverse=True))}


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
