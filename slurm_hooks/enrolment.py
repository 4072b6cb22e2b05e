"""A node's side of enrolment: its key, its certificate, and the exchange with the head node. Blocks; one at a time.

The key is made here, once for each file, and leaves the node in no form. With a certificate that is still good a
renewal is asked for, over TLS with it; without one, an enrolment with the identity document. The certificate is
replaced whole, and only by one that is for this key and this node.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conf.errors import BackendUnavailable, ConfigError, Refused, SecureSlurmError
from conf.safefile import read_safely
from conf.site import Site
from conf.slurmnames import for_node
from keys import imds, nodecert, vault_aws, vault_jwt
from keys.nodecert import NodeCertificate
from keys.place_proof import Prover
from slurm_hooks import link, wire
from slurm_hooks.enrolserver import DEADLINE

LOG = logging.getLogger(__name__)
CONNECT = 5.0
"""Seconds to reach one head node."""
HALF = 0.5
"""The share of a certificate's life after which it is renewed: the head node may be away for the other half."""
WAIT_FIRST, WAIT_MOST = 2.0, 300.0
"""Seconds between two attempts, doubled each time; each is shorter by a random part, for nodes start together."""
LOOK_EVERY = 600.0
"""Seconds after which a certificate that is good is looked at again."""
AGAIN = {"enrol.unavailable", "enrol.failed"}
"""Answers of a head node that cannot, as opposed to one that will not."""


class Enrolment:
    """One node's. Runs as the node daemon's account, whose the files are."""

    def __init__(self, site: Site, node: str) -> None:
        self._site = site
        self._node = node
        self._certificate = Path(for_node(site.vault.node.certificate, node))
        self._key = Path(for_node(site.vault.node.private_key, node))
        self._heads = link.addresses(site.enrol.head, site.enrol.listen, site.cluster.head_nodes)
        self._prover = Prover(site, node)

    def held(self) -> NodeCertificate | None:
        """The certificate that is here, if it is for this node and its key and has not ended."""
        try:
            found = nodecert.read_certificate(read_safely(self._certificate, limit=nodecert.MAX_BYTES))
            mine = nodecert.key_digest(read_safely(self._key, secret=True, limit=nodecert.MAX_BYTES))
        except (Refused, ConfigError):
            return None
        if (found.cluster, found.node, found.key) != (self._site.cluster.name, self._node, mine):
            return None
        return found if found.ends > time.time() else None

    def due(self) -> float:
        """Seconds until it is time: 0 without a certificate, or when half of its life is over."""
        held = self.held()
        return 0.0 if held is None else max(0.0, held.begins + HALF * (held.ends - held.begins) - time.time())

    def once(self, *, anew: bool = False) -> NodeCertificate:
        """Enrol or renew now; what is here afterwards. ``anew``: by the document, whatever is here.

        :raises Refused: the head node says no, or this machine's document or files are not what they should be.
        :raises BackendUnavailable: no head node answers, or none can.
        """
        with self._alone():
            key = self._private_key()
            held = None if anew else self.held()
            fields: dict[str, bytes | str] = {
                "verb": "enrol" if held is None else "renew",
                "node": self._node,
                "cluster": self._site.cluster.name,
                "request": nodecert.new_request(key, self._node),
            }
            if self._site.vault.node.method == "aws":
                fields["role"] = vault_aws.role_credentials(self._site.node.ec2.endpoint)[0]
            if held is None:
                document = imds.identity_document(self._site.node.ec2.endpoint)
                fields |= {"region": self._prover.read_place(), "document": b"".join(document.split())}
            answer = self._ask(fields, self._context(with_certificate=held is not None))
            return self._take(answer.get("certificate", b""), key)

    def login(self) -> Callable[[Any], Any] | None:
        """The request by which this node logs in to Vault; None: by its certificate alone."""
        login = self._site.vault.node
        if login.method == "jwt":
            return vault_jwt.login(login.jwt_mount, login.jwt_role, self.token)
        if login.method == "aws":
            name, endpoint = self._site.cluster.name, self._site.node.ec2.endpoint
            return vault_aws.login(login.aws_mount, login.aws_role, name, self._prover.read_place, endpoint)
        return None

    def token(self) -> str:
        """A token for one login to Vault (``vault.node.method: jwt``). Raises as :meth:`once`."""
        if self.held() is None:
            raise BackendUnavailable("this node has no certificate yet", advice="secure-slurm node enrol")
        fields: dict[str, bytes | str] = {"verb": "token", "node": self._node, "cluster": self._site.cluster.name}
        return wire.text(self._ask(fields, self._context(with_certificate=True)), "token")

    def _ask(self, fields: dict[str, bytes | str], context: ssl.SSLContext) -> dict[str, bytes]:
        """The first head node that can answer; ConfigError when there is none to ask."""
        failed: SecureSlurmError = ConfigError("there is no head node to enrol at", advice="set enrol.listen")
        for address in self._heads:
            try:
                answer = exchange(address, context, fields)
                rule = wire.text(answer, "rule", "")
                if wire.text(answer, "verdict", "") == "allow":
                    return answer
                said = Refused(rule, wire.text(answer, "message", ""), advice=wire.text(answer, "advice", ""))
                if rule not in AGAIN:
                    raise said
                failed = BackendUnavailable(f"{address}: {said}", advice=said.advice)
            except BackendUnavailable as error:
                failed = error
        raise failed

    def _take(self, pem: bytes, key: bytes) -> NodeCertificate:
        found = nodecert.read_certificate(pem)
        wanted = (self._site.cluster.name, self._node, nodecert.key_digest(key))
        if (found.cluster, found.node, found.key) != wanted:
            raise Refused("enrol.certificate", "the head node gave a certificate for another node, cluster or key")
        _write(self._certificate, pem, 0o644)
        return found

    def _private_key(self) -> bytes:
        if not os.path.lexists(self._key):
            _write(self._key, nodecert.new_key(), 0o600)
        return read_safely(self._key, secret=True, limit=nodecert.MAX_BYTES)

    def _context(self, *, with_certificate: bool) -> ssl.SSLContext:
        if with_certificate:
            return link.client_context(str(self._certificate), str(self._key), self._site.enrol.ca_file)
        return link.trusting_context(self._site.enrol.ca_file)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The command and the daemon take turns, or each would make a key."""
        path = self._key.with_name(f".{self._key.name}.lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{path.parent} cannot be written: {error.strerror}",
                advice="give vault.node.certificate and private_key a folder that is secure-node's own, 0700",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def exchange(address: str, context: ssl.SSLContext, fields: dict[str, bytes | str]) -> dict[str, bytes]:
    """One request to ``host:port`` and its answer. BackendUnavailable for whatever is no whole, matching answer."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    nonce = wire.new_nonce()
    try:
        with (
            socket.create_connection((host, int(port)), timeout=CONNECT) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            connection.settimeout(DEADLINE)
            connection.sendall(wire.encode({**fields, "nonce": nonce}))
            answer = wire.receive(connection, DEADLINE)
    except ssl.SSLCertVerificationError as error:
        raise BackendUnavailable(f"{address}: its certificate is refused: {error.verify_message}") from None
    except (OSError, wire.WireError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer in time"
        raise BackendUnavailable(f"{address}: {reason}", advice="does secure-slurm-enrold run there?") from None
    if answer.get("nonce") != nonce.encode("ascii"):
        raise BackendUnavailable(f"{address}: the answer belongs to another request")
    return answer


async def keep(enrolment: Enrolment) -> None:
    """Have a certificate that is good, for ever. What is wrong is logged once, until it changes."""
    wait, told = WAIT_FIRST, ""
    while True:
        due = await asyncio.to_thread(enrolment.due)
        if due > 0:
            # looked at again now and then: the command may have changed it, or the clock was set
            await asyncio.sleep(min(due, LOOK_EVERY) * (0.9 + random.random() / 10))  # noqa: S311 - no secret
            continue
        try:
            found = await asyncio.to_thread(enrolment.once)
            LOG.info("node %s is %s, certificate %s", found.node, found.instance, found.serial)
            wait, told = WAIT_FIRST, ""
        except SecureSlurmError as error:
            message = f"no certificate for this node: {error} {error.advice}"
            if message != told:
                LOG.error("%s", message)
            told = message
        except Exception:
            LOG.exception("the enrolment failed")
        # after a success as well: a certificate that is due at once would ask without end
        await asyncio.sleep(wait * (0.5 + random.random() / 2))  # noqa: S311 - no secret
        wait = min(2 * wait, WAIT_MOST)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file whole; it is on disk when this returns."""
    new = path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
