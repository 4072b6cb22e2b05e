"""What every server of ours does alike: its socket, who is at the other end of it, and the answers that say no.

Who asks is read from the kernel (SO_PEERCRED, unix(7)), never from the message.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from conf.errors import BackendUnavailable, ConfigError, Refused, SecureSlurmError
from slurm_hooks import wire

LOG = logging.getLogger(__name__)

_UCRED = struct.Struct("3i")

Fields = dict[str, bytes]
Answer = Mapping[str, bytes | str]


class Peer(NamedTuple):
    """The process at the other end, as the kernel recorded it when it connected."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """Who connected; OSError when the connection is gone."""
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def refusal(rule: str, message: str, advice: str = "") -> dict[str, bytes | str]:
    """An answer that says no."""
    return {"verdict": "refuse", "rule": rule, "message": message, "advice": advice}


def broken() -> dict[str, bytes | str]:
    """The answer of a daemon that failed; what failed is for its log alone."""
    return refusal("engine.error", "the daemon failed", "tell an admin: the daemon's log has the details")


def refused(path: str, verb: str, error: SecureSlurmError) -> Answer:
    """The answer that an error stands for; whatever is no plain refusal is logged."""
    if isinstance(error, Refused):
        return refusal(error.rule, str(error), error.advice)
    LOG.warning("%s: %s: %r", path, verb, str(error))
    if isinstance(error, wire.WireError):
        return refusal("wire.malformed", str(error))
    if isinstance(error, BackendUnavailable):
        return refusal("backend.unavailable", str(error), error.advice)
    return refusal("engine.error", str(error), error.advice)


def not_admitted(
    path: str, fields: Fields, peer: Peer, uids: frozenset[int] | None, known: frozenset[int]
) -> Answer | None:
    """Why a request is not even handled, None if it may be.

    ``uids``: who may use its verb, None for a verb that there is not; ``known``: who may use any. A user who may ask
    nothing does not learn which verbs there are.
    """
    if peer.uid not in known or (uids is not None and peer.uid not in uids):
        LOG.warning("%s: uid %d (pid %d) may not ask for %r", path, peer.uid, peer.pid, verb_of(fields)[:64])
        return refusal("peer.refused", "this user may not ask this of the daemon")
    if uids is None:
        return refusal("wire.verb", "the daemon does not know this request")
    if not wire.valid_nonce(fields.get("nonce")):
        return refusal("wire.nonce", "the request has no usable nonce")
    return None


def verb_of(fields: Fields) -> str:
    """What a request asks for; an empty text when it does not say."""
    return fields.get("verb", b"").decode("ascii", "replace")


def decided(path: str, verb: str, answer: object) -> Answer:
    """A handler's answer if it says yes or no; else a refusal, for a handler that falls off its end answers None."""
    if isinstance(answer, Mapping) and answer.get("verdict") in ("allow", b"allow", "refuse", b"refuse"):
        return answer
    LOG.error("%s: %s ended without a verdict", path, verb)
    return refusal("engine.no-verdict", "nothing decided this request, so it is refused")


def encoded(answer: Answer, nonce: str) -> bytes:
    """The message; one that says that the daemon failed when the answer cannot be sent."""
    try:
        return wire.encode({**answer, "nonce": nonce})
    except wire.WireError:
        LOG.exception("an answer could not be encoded")
        return wire.encode({**broken(), "nonce": nonce})


def bind(path: str, mode: int, group: int | None) -> socket.socket:
    """A bound, not yet listening socket: until listen() every connection is refused, so its mode is never too wide.

    Raises ConfigError when the path is taken by something that is not a dead socket of an earlier run.
    """
    _remove_dead(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        mask = os.umask(0o177)
        try:
            listening.bind(path)
        finally:
            os.umask(mask)
        if group is not None:
            os.chown(path, -1, group)
        Path(path).chmod(mode)
    except OSError as error:
        listening.close()
        raise ConfigError(f"{path}: cannot listen there: {error.strerror}") from None
    return listening


def unbind(path: str, inode: int) -> None:
    """Remove the socket, unless a successor has put its own there."""
    try:
        if os.lstat(path).st_ino == inode:
            Path(path).unlink()
    except FileNotFoundError:
        return


def _remove_dead(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path}: cannot listen there: {error.strerror}") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path}: is not a socket", advice="remove it, or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            Path(path).unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(f"{path}: cannot tell whether a daemon runs: {error.strerror}") from None
    raise ConfigError(f"{path}: another daemon answers there", advice="stop it first")
