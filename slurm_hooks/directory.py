"""The one door to LDAP: LDAPS with a verified certificate, a deadline on every wait, whole answers or an error.

python-ldap is imported at the first connection, so that a test or a tool without it can import this module. OpenLDAP's
own files and environment (ldap.conf(5)) are switched off: LDAPTLS_REQCERT=never in a unit file must not undo
what is demanded here.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from conf.errors import BackendUnavailable, ConfigError, SecureSlurmError
from conf.safefile import read_safely
from keys.secret import Secret
from slurm_hooks.accounts import Entry, Notes, short

NETWORK_TIMEOUT = 5.0  # seconds for connecting and the TLS handshake
OPERATION_TIMEOUT = 15.0  # seconds for one answer (one page)
READING_TIMEOUT = 120.0  # seconds for everything asked over one connection
PAGE_SIZE = 500  # Active Directory's default limit is 1000 (MaxPageSize)
MAX_ENTRIES = 500_000  # of one search
MAX_PASSWORD = 1024
LDAPS_PORT = 636

_URI = re.compile(r"ldaps://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?/?\Z")
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9;-]*(?:;range=[0-9]+-[0-9]+)?\Z|1\.1\Z")
_TLS_1_2 = 0x0303
_GNUTLS_PRIORITY = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"

# What an administrator has to change, by the name of python-ldap's exception; asking another server would not help.
_OURS_TO_MEND = {
    "INVALID_CREDENTIALS": "check ldap.bind_dn and the file ldap.bind_password_file",
    "INAPPROPRIATE_AUTH": "check ldap.bind_dn and the file ldap.bind_password_file",
    "UNWILLING_TO_PERFORM": "check that the account ldap.bind_dn may log in with a password",
    "STRONG_AUTH_REQUIRED": "check that the server accepts simple bind over TLS",
    "INSUFFICIENT_ACCESS": "give the account ldap.bind_dn the right to read users and groups",
    "INVALID_DN_SYNTAX": "check ldap.base and ldap.bind_dn",
    "NO_SUCH_OBJECT": "check ldap.base: the directory has no such entry, or ldap.bind_dn may not see it",
    "SIZELIMIT_EXCEEDED": "raise the size limit (also of paged results) for the account ldap.bind_dn on the server",
    "ADMINLIMIT_EXCEEDED": "raise the limits for the account ldap.bind_dn on the server",
    "UNAVAILABLE_CRITICAL_EXTENSION": "the server must offer paged results (RFC 2696)",
    "FILTER_ERROR": "check ldap.user_attribute",
    "INAPPROPRIATE_MATCHING": "check ldap.flavour",
}


_Untyped = Any  # python-ldap has no types


class CredentialsRefused(ConfigError):
    """The directory does not accept our account: trying again soon may lock it."""


def read_password(path: str) -> Secret:
    """The bind password: the first line of a file that only root or we may write and that is not open to all.

    Raises :class:`ConfigError`. An empty password is refused: LDAP takes it for an anonymous login that succeeds
    (RFC 4513, 5.1.2).
    """
    line, _, rest = read_safely(path, secret=True, limit=MAX_PASSWORD).partition(b"\n")
    if not line or rest or b"\0" in line or b"\r" in line:
        raise ConfigError(f"{path} must hold the bind password, on one line and nothing else")
    return Secret(line)


def _library() -> _Untyped:
    # Before the first use: libldap reads its files and environment once, and this switches both off (ldap.conf(5)).
    os.environ["LDAPNOINIT"] = "1"
    try:
        import ldap  # noqa: PLC0415
        import ldap.controls.libldap  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "python-ldap is not installed", advice="install the distribution's package python3-ldap"
        ) from None
    return ldap


class Directory:
    """One connection to one server, bound and ready. Implements :class:`slurm_hooks.membership.Source`.

    libldap keeps to its timeouts once it is connected, but not always while it connects: with GnuTLS, 2.5 on Debian 12
    turns in circles for ever when a server accepts and then says nothing (measured). :mod:`slurm_hooks.reading` puts a
    deadline around the whole; who opens a connection elsewhere has to do the same.
    """

    def __init__(self, uri: str, ca_file: str, connection: _Untyped, library: _Untyped) -> None:
        self.uri = uri
        self.elsewhere = 0  # how often the server said that another one has a part of the answer
        self.remarks = Notes()
        self._ca_file = ca_file
        self._connection = connection
        self._ldap = library
        self._deadline = time.monotonic() + READING_TIMEOUT

    @classmethod
    def open(cls, uri: str, *, ca_file: str, bind_dn: str, password: Secret) -> Directory:
        """Connect, verify the server's certificate against ``ca_file`` alone, and log in.

        Raises :class:`ConfigError` for anything but ``ldaps://``, :class:`CredentialsRefused` for a wrong name or
        password, :class:`BackendUnavailable` when there is no trusted server at the other end.
        """
        if not _URI.match(uri):
            raise ConfigError(f"{uri[:200]!a} is not ldaps://host[:port]", advice="plain LDAP is never used")
        if not bind_dn or not len(password):
            raise ConfigError("an anonymous login to the directory is not accepted", advice="set ldap.bind_dn")
        library = _library()
        try:
            connection = library.initialize(uri, trace_level=0, bytes_mode=False)
            _secure(connection, library, ca_file)
        except (library.LDAPError, ValueError) as error:
            raise ConfigError(
                f"LDAP over TLS cannot be set up for {uri} ({type(error).__name__})",
                advice=f"check that {ca_file} holds CA certificates in PEM",
            ) from None
        directory = cls(uri, ca_file, connection, library)
        try:
            directory._bind(bind_dn, password)
        except BaseException:
            directory.close()
            raise
        return directory

    def _bind(self, bind_dn: str, password: Secret) -> None:
        # What the server says about a refused login is not repeated: it could repeat the password.
        try:
            message = self._connection.simple_bind(bind_dn, bytes(password.reveal()))
            self._connection.result3(message, all=1, timeout=self._wait())
        except self._ldap.LDAPError as error:
            raise self._explain(error, "the login") from None

    def read(self, dn: str, attributes: Sequence[str]) -> Entry | None:
        """The entry of this name; None when the server has none that we may see, or says that another one has it."""
        try:
            entries, _ = self._ask(dn, self._ldap.SCOPE_BASE, "(objectClass=*)", attributes, ())
        except (self._ldap.NO_SUCH_OBJECT, self._ldap.INVALID_DN_SYNTAX):
            return None
        except self._ldap.REFERRAL:
            self.remarks.add(f"{short(dn)}: {self.uri} says that another server has it, which is not asked")
            return None
        except self._ldap.LDAPError as error:
            raise self._explain(error, f"reading {short(dn)}") from None
        return entries[0] if len(entries) == 1 else None

    def search(self, base: str, query: str, attributes: Sequence[str]) -> Iterator[Entry]:
        """Every entry below ``base`` that matches, page by page.

        Raises when the server stops early for whatever reason: the caller must then throw away what it has.
        """
        seen, cookie = 0, ""
        while True:
            control = self._ldap.controls.libldap.SimplePagedResultsControl(True, size=PAGE_SIZE, cookie=cookie)
            try:
                entries, answered = self._ask(base, self._ldap.SCOPE_SUBTREE, query, attributes, (control,))
            except self._ldap.LDAPError as error:
                raise self._explain(error, f"the search below {short(base)}") from None
            yield from entries
            seen += len(entries)
            if seen > MAX_ENTRIES:
                raise ConfigError(
                    f"the search below {short(base)} found more than {MAX_ENTRIES} entries", advice="narrow ldap.base"
                )
            pages = [each for each in answered if each.controlType == control.controlType]
            if len(pages) != 1:
                raise BackendUnavailable(f"{self.uri} ended a paged search without saying whether it is complete")
            cookie = pages[0].cookie
            if not cookie:
                return

    def _ask(
        self, base: str, scope: int, query: str, attributes: Sequence[str], controls: tuple[Any, ...]
    ) -> tuple[list[Entry], list[Any]]:
        for name in attributes:
            if not _ATTRIBUTE.match(name):
                raise ConfigError(f"{name[:80]!a} is not an attribute name", advice="check ldap.user_attribute")
        message = self._connection.search_ext(base, scope, query, list(attributes), serverctrls=list(controls))
        try:
            _, rows, _, answered = self._connection.result3(message, all=1, timeout=self._wait())
        except self._ldap.TIMEOUT:
            self._connection.abandon_ext(message)
            raise
        except (UnicodeDecodeError, MemoryError) as error:
            # python-ldap takes names for UTF-8; a server that sends others, or without end, is none
            raise BackendUnavailable(
                f"{self.uri} answered what cannot be read ({type(error).__name__})",
                advice="ask the directory's administrator what this server is",
            ) from None
        # A search continuation ("ask another server for this part") has no name of its own. Following it would take
        # our password to whoever it names; what lies there is not seen, which refuses. Active Directory sends one for
        # each of its other naming contexts every time, so it is no failure.
        entries = [Entry(dn, {key.lower(): value for key, value in got.items()}) for dn, got in rows if dn]
        self.elsewhere += sum(dn is None for dn, _ in rows)
        return entries, answered or []

    def _wait(self) -> float:
        """Seconds that the next answer may take."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise BackendUnavailable(f"the reading of {self.uri} did not end within {READING_TIMEOUT:.0f} s")
        return min(left, OPERATION_TIMEOUT)

    def _explain(self, error: Exception, what: str) -> SecureSlurmError:
        """Our error for one of python-ldap's; what the server wrote in its answer never passes."""
        kind = type(error).__name__
        details = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        described = str(details.get("desc", kind))[:100]
        if kind in ("SERVER_DOWN", "CONNECT_ERROR") and (why := why_untrusted(self.uri, self._ca_file)):
            described = f"{described}: {why}"
        text = f"{what} at {self.uri} failed: {ascii(described)[1:-1]} ({kind})"
        advice = _OURS_TO_MEND.get(kind)
        if kind in ("INVALID_CREDENTIALS", "INAPPROPRIATE_AUTH"):
            return CredentialsRefused(text, advice=advice or "")
        if advice is not None:
            return ConfigError(text, advice=advice)
        return BackendUnavailable(text, advice="check the network, the server and its certificate (ldap.ca_file)")

    def close(self) -> None:
        """End the connection; may be called again. Never fails."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.unbind_ext()
            except (self._ldap.LDAPError, AttributeError):  # already gone: that is what was wanted
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _secure(connection: _Untyped, library: _Untyped, ca_file: str) -> None:
    """Options of ldap_set_option(3), set on this connection alone; NEWCTX last, it makes the TLS ones take effect."""
    connection.set_option(library.OPT_PROTOCOL_VERSION, library.VERSION3)
    connection.set_option(library.OPT_REFERRALS, library.OPT_OFF)
    connection.set_option(library.OPT_DEREF, library.DEREF_NEVER)
    connection.set_option(library.OPT_NETWORK_TIMEOUT, NETWORK_TIMEOUT)
    connection.set_option(library.OPT_TIMEOUT, OPERATION_TIMEOUT)
    connection.set_option(library.OPT_X_TLS_REQUIRE_CERT, library.OPT_X_TLS_DEMAND)
    connection.set_option(library.OPT_X_TLS_CACERTFILE, ca_file)
    connection.set_option(library.OPT_X_TLS_PROTOCOL_MIN, _TLS_1_2)
    if library.get_option(library.OPT_X_TLS_PACKAGE) == "GnuTLS":
        # libldap 2.5 with GnuTLS (Debian 12) takes the option above and lets TLS 1.1 pass all the same (measured)
        connection.set_option(library.OPT_X_TLS_CIPHER_SUITE, _GNUTLS_PRIORITY)
    connection.set_option(library.OPT_X_TLS_NEWCTX, 0)


def why_untrusted(uri: str, ca_file: str) -> str:
    """What Python's own TLS library says about the server, for the admin; empty when it finds nothing wrong.

    GnuTLS behind libldap says "(unknown error code)" for every certificate that it refuses (measured). Nothing is
    decided here and nothing is sent: this connection is closed after the handshake.
    """
    host, port = _host_and_port(uri)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the name by default
        context.load_verify_locations(cafile=ca_file)
        with (
            socket.create_connection((host, port), timeout=NETWORK_TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return error.verify_message[:200]
    except ssl.SSLError as error:
        return f"TLS: {error.reason or type(error).__name__}"
    except OSError as error:
        return (error.strerror or type(error).__name__)[:200]


def _host_and_port(uri: str) -> tuple[str, int]:
    parts = urlsplit(uri)
    return parts.hostname or "", parts.port or LDAPS_PORT
