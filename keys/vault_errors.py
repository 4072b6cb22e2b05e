"""What Vault's HTTP answers mean, in one table. Standard library only.

The server's own words never reach a message: an answer may hold plaintext (a batch decrypt does) or echo what was sent.
Only the phrases in :data:`_KNOWN`, compared with the answer, are repeated, in our words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from conf.errors import BackendUnavailable, InternalError, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

RULE_DENIED = "vault.denied"
RULE_LOGIN = "vault.login"
RULE_TLS = "vault.tls"

OK = range(200, 300)
REDIRECT = range(300, 400)
BAD_REQUEST = 400
FORBIDDEN = 403
NOT_FOUND = 404
INTERNAL = 500


class VaultDenied(Refused):
    """Vault knows who asks and says no (403), or does not accept the login (rule ``vault.login``, ``vault.tls``)."""

    def __init__(self, message: str, *, rule: str = RULE_DENIED, advice: str = "") -> None:
        super().__init__(rule, message, advice=advice)


class VaultError(InternalError):
    """An answer that our requests should never get: a wrong mount, another version, a defect of ours."""


class VaultNotFound(VaultError):
    """There is no such key or grant. On a standby that answers reads itself: or not there yet."""


class VaultConflict(VaultError):
    """Check-and-set failed: somebody else has written there first."""


class DeletionNotAllowed(VaultError):
    """The key exists and its ``deletion_allowed`` is false."""


# phrase in an error of the server (OpenBao 2.6; Vault has the same texts) -> what to raise, in our words
_KNOWN: tuple[tuple[str, type[VaultError], str], ...] = (
    ("check-and-set parameter did not match", VaultConflict, "something is already written there"),
    ("encryption key not found", VaultNotFound, "the key does not exist"),
    ("no existing key named", VaultNotFound, "the key does not exist"),
    ("could not delete key; not found", VaultNotFound, "the key does not exist"),
    ("deletion is not allowed for this key", DeletionNotAllowed, "deletion is not allowed for this key"),
    ("message authentication failed", VaultError, "the wrapped data key was not made by this key"),
    ("disallowed by policy (too old)", VaultError, "the key is locked: its job is frozen"),
    ("invalid ciphertext", VaultError, "the wrapped data key is damaged"),
    # not VaultNotFound: that a mount is missing must never pass for the proof that a key is gone
    ("no handler for route", VaultError, "nothing is mounted there"),
    ("unsupported path", VaultError, "another kind of engine is mounted there"),
)
# 500 covers both a broken server and one that has just lost its leader: only the second gets better by itself
_NOT_ACTIVE = ("local node not active", "active cluster node not found", "context deadline exceeded")

# sealed or starting 503, gateways 502 and 504, quota 429, not the replica asked for 412, 472, 473
_RETRY = {
    412: "the server has not caught up yet",
    429: "too many requests (429), or a standby",
    472: "the server is a disaster recovery secondary (472)",
    473: "the server is a performance standby (473)",
    502: "the way to it is broken (502)",
    503: "it is sealed or starting (503)",
    504: "the way to it is broken (504)",
}
_RETRY_ADVICE = "look at the server's state (bao status); nothing was lost, the request can be repeated"


def raise_for_answer(action: str, status: int, errors: Sequence[str] | None, *, login: bool = False) -> NoReturn:
    """Raise what an answer that is not 2xx means. ``action`` completes "Vault could not ...".

    ``errors``: the list of that name in the answer; None when it has none, as an answer that is not Vault's own.
    ``login``: the request was a login, which Vault refuses with 400.
    BackendUnavailable when repeating may help; VaultDenied, VaultNotFound, VaultConflict, DeletionNotAllowed; else
    VaultError.
    """
    text = " ".join(errors or ()).lower()
    if status in _RETRY:
        raise BackendUnavailable(f"Vault could not {action}: {_RETRY[status]}", advice=_RETRY_ADVICE)
    if status in REDIRECT:
        raise BackendUnavailable(
            f"Vault could not {action}: it redirects ({status}) to another server, which is never followed",
            advice="set vault.address to the active server, or to a load balancer that finds it",
        )
    if status == INTERNAL and any(phrase in text for phrase in _NOT_ACTIVE):
        raise BackendUnavailable(f"Vault could not {action}: no server is active", advice=_RETRY_ADVICE)
    # a login that is refused is 400 in Vault: wrong secret id, certificate, common name or address
    if login and status in {BAD_REQUEST, FORBIDDEN}:
        raise VaultDenied(f"Vault refused to {action}", rule=RULE_LOGIN, advice=_LOGIN_ADVICE)
    if status == FORBIDDEN:
        raise VaultDenied(
            f"Vault refused to {action}: permission denied",
            advice="compare the policies with the shipped ones: secure-slurm vault init --check",
        )
    for phrase, error, words in _KNOWN:
        if phrase in text:
            raise error(f"Vault could not {action}: {words}")
    # a 404 of a proxy, or of a deleted version of a secret, says nothing about a key
    if status == NOT_FOUND and errors is not None:
        raise VaultNotFound(f"Vault could not {action}: there is nothing at that path")
    raise VaultError(
        f"Vault could not {action}: unexpected answer {status}",
        advice="the reason is in Vault's audit log; the answer is withheld here, as it may hold key material",
    )


_LOGIN_ADVICE = (
    "does the request come from an address that the role allows? "
    "head node: make a new secret id (secure-slurm vault init --secret-id-out FILE); "
    "compute node: is its certificate current, signed by the nodes' CA, and its CN the Slurm node name?"
)
