"""The door to Vault: the one module that imports hvac, and the one way to make a session.

What hvac does by default and must not happen here: it picks up VAULT_TOKEN, ~/.vault-token, VAULT_ADDR and
VAULT_CLIENT_CERT; requests adds proxies, .netrc and REQUESTS_CA_BUNDLE; redirects carry the token to another host; and
the text of hvac's exceptions holds the whole answer. So every client is given all of these explicitly, hvac raises
nothing (the answer's status is judged in :mod:`keys.vault_errors`), and what requests raises is dropped before
anything else is raised, for it drags the request, and so the token, along.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from conf.errors import BackendUnavailable, ConfigError, SecureSlurmError
from keys.vault_errors import FORBIDDEN, OK, RULE_TLS, VaultDenied, VaultError, raise_for_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from keys.secret import Secret

# a token is renewed by a new login when less than this share of its life is left
RENEW_SHARE = 1 / 3


class VaultSession:
    """Requests under one identity, from any number of threads.

    ``login`` makes the login request with the hvac client that it is given; ``token`` is used instead by an admin who
    has one. A token is got when first needed and renewed by a new login; after a 403 one new login is tried, since an
    expired token and a denied path cannot be told apart. ``timeout``: seconds for connecting and for each wait for data
    of one request. ``certificate``: files of the client's certificate and key, read at every connection.
    """

    def __init__(
        self,
        address: str,
        ca_file: str,
        timeout: float,
        *,
        login: Callable[[Any], Any] | None = None,
        token: Secret | None = None,
        certificate: tuple[str, str] | None = None,
    ) -> None:
        if not address.startswith("https://"):
            raise ConfigError("vault.address is not an https:// address", advice="Vault is only spoken to over TLS")
        if not ca_file or timeout <= 0:
            raise ConfigError("vault.ca_file and vault.timeout must both be given", advice="see secure-slurm.yaml")
        self._address = address
        self._ca_file = ca_file
        self._timeout = timeout
        self._login = login
        self._certificate = certificate
        self._lock = threading.Lock()
        self._token = bytes(token.reveal()).decode("ascii") if token else ""
        self._renew_at = float("inf") if token else 0.0
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<VaultSession {self._address}>"

    def call(self, action: str, request: Callable[[Any], Any]) -> dict[str, Any]:
        """The JSON of the answer to ``request(client)``; ``{}`` when it has no body.

        ``action`` completes "Vault could not ..." in the errors of :func:`keys.vault_errors.raise_for_answer`; a server
        that does not answer is BackendUnavailable, one whose certificate the CA did not sign VaultDenied.
        """
        token, fresh = self._current_token()
        status, answer = self._send(action, request, token)
        if status == FORBIDDEN and self._login is not None and not fresh:
            token, _ = self._current_token(rejected=token)
            status, answer = self._send(action, request, token)
        return _judged(action, status, answer)

    @property
    def has_token(self) -> bool:
        """Whether a request can be made without a login before it."""
        with self._lock:
            return bool(self._token) and time.monotonic() < self._renew_at

    def log_in(self) -> None:
        """Get a token now, if there is none yet. Errors as :meth:`call`."""
        self._current_token()

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and answer of ``sys/health``, which needs no token and says by its status how the server is."""
        return self._send("say how it is", lambda client: client.adapter.get("/v1/sys/health"), "")

    def read_policy(self, name: str) -> str:
        """The text of a policy. VaultDenied when this identity may not read it."""
        path = f"/v1/sys/policies/acl/{name}"
        answer = self.call(f"show the policy {name}", lambda client: client.adapter.get(path))
        text = (answer.get("data") or {}).get("policy")
        if not isinstance(text, str):
            raise VaultError(f"Vault showed the policy {name} without its text")
        return text

    def close(self) -> None:
        """Revoke the token that a login gave, as well as that is possible, and close every connection."""
        with self._lock:
            token, self._token = self._token, ""
            self._renew_at = 0.0
        if token and self._login is not None:
            with contextlib.suppress(SecureSlurmError):
                self._send("revoke its token", lambda client: client.auth.token.revoke_self(), token)
        self._close_idle()

    def _current_token(self, rejected: str = "") -> tuple[str, bool]:
        """The token to use, and whether it was made just now."""
        with self._lock:
            if self._token and self._token != rejected and time.monotonic() < self._renew_at:
                return self._token, False
            if self._login is None:
                raise VaultDenied("there is no Vault token to work with", advice="log in first")
            # a renewed certificate on disk is only seen by a new connection
            self._close_idle()
            action = "accept the login"
            answer = _judged(action, *self._send(action, self._login, ""), login=True)
            self._token, life = _login_result(answer)
            self._renew_at = time.monotonic() + life * (1 - RENEW_SHARE)
            return self._token, True

    def _send(self, action: str, request: Callable[[Any], Any], token: str) -> tuple[int, dict[str, Any]]:
        client = self._client()
        client.token = token
        try:
            response = request(client)
            status, answer = response.status_code, _json(response)
        except OSError as error:
            # what requests raises is an OSError too
            failure = self._failure(action, error)
        else:
            client.token = ""
            self._idle.put(client)
            return status, answer
        # outside of the except block: the exception of requests holds the request, and with it the token
        client.adapter.close()
        raise failure

    def _client(self) -> Any:  # noqa: ANN401 - hvac has no types
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        import hvac  # noqa: PLC0415 - 0.3 s and 30 MB: only who talks to Vault pays
        import requests  # noqa: PLC0415
        import urllib3  # noqa: PLC0415

        session = requests.Session()
        session.trust_env = False
        session.verify = self._ca_file
        session.cert = self._certificate
        return hvac.Client(
            url=self._address,
            token="",
            cert=self._certificate or (),
            verify=self._ca_file,
            timeout=urllib3.Timeout(total=self._timeout),
            allow_redirects=False,
            session=session,
            adapter=hvac.adapters.RawAdapter,
            ignore_exceptions=True,
        )

    def _failure(self, action: str, error: OSError) -> SecureSlurmError:
        import requests  # noqa: PLC0415

        if not isinstance(error, requests.RequestException):
            # requests looks for the files itself
            return ConfigError(
                f"Vault could not {action}: the file of the CA, the certificate or the key cannot be read",
                advice="check vault.ca_file, vault.node.certificate and vault.node.private_key in secure-slurm.yaml",
            )
        if isinstance(error, requests.Timeout):
            return BackendUnavailable(
                f"Vault could not {action}: no answer within {self._timeout:g} s",
                advice="look at the server's state (bao status) and at the network between",
            )
        if _certificate_refused(error):
            return VaultDenied(
                f"{self._address} shows a certificate that vault.ca_file does not vouch for: nothing was sent",
                rule=RULE_TLS,
                advice="give vault.ca_file the CA of the server's certificate, and vault.address a name that is in it",
            )
        return BackendUnavailable(
            f"Vault could not {action}: {self._address} cannot be reached ({type(error).__name__})",
            advice="is the server running, and does it accept this machine's certificate?",
        )

    def _close_idle(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().adapter.close()


def _certificate_refused(error: BaseException) -> bool:
    """Whether the server's certificate was the reason, however deep requests and urllib3 have wrapped it."""
    import ssl  # noqa: PLC0415

    seen: list[BaseException] = [error]
    for cause in seen:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        inner = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        seen.extend(deeper for deeper in inner if isinstance(deeper, BaseException) and deeper not in seen)
    return False


def _json(response: Any) -> dict[str, Any]:  # noqa: ANN401 - requests.Response
    if not response.content or response.status_code == 204:
        return {}
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _judged(action: str, status: int, answer: dict[str, Any], *, login: bool = False) -> dict[str, Any]:
    if status not in OK:
        errors = answer.get("errors")
        texts = [str(text) for text in errors] if isinstance(errors, list) else None
        raise_for_answer(action, status, texts, login=login)
    return answer


def _login_result(answer: dict[str, Any]) -> tuple[str, float]:
    """Token and its life in seconds; no token, or one that never ends, is an error of the server's set-up."""
    auth = answer.get("auth")
    token = auth.get("client_token") if isinstance(auth, dict) else None
    life = auth.get("lease_duration") if isinstance(auth, dict) else None
    if not isinstance(token, str) or not token or not isinstance(life, int) or life <= 0:
        raise VaultError(
            "Vault accepted the login without a token that ends",
            advice="compare the roles with the shipped ones: secure-slurm vault init --check",
        )
    return token, float(life)
