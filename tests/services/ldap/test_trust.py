"""Whom the reader believes, and what it never tells: real TLS, real refusals."""

import datetime
import os
import signal
import socket
import ssl
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, ConfigError, SecureSlurmError
from slurm_hooks.directory import CredentialsRefused
from slurm_hooks.reading import Request, read_directory
from tests.testbed import pki
from tests.testbed.pki import CA
from tests.testbed.slapd import Slapd, group, group_dn, person, user

MakeRequest = Callable[..., Request]


def refusal(request: Request, kind: type[SecureSlurmError] | tuple[type[SecureSlurmError], ...]) -> str:
    with pytest.raises(kind) as caught:
        read_directory(request, time.time())
    assert caught.value.advice
    return str(caught.value)


def test_a_certificate_of_another_authority_is_refused(shared: Slapd, request_to: MakeRequest, tmp_path: Path) -> None:
    other = CA(tmp_path / "other", "somebody else")
    text = refusal(request_to(shared, "cn=x,dc=y", ca_file=str(other.certificate)), BackendUnavailable)
    assert "certificate" in text


def test_a_certificate_of_another_authority_with_our_name_is_refused(
    shared: Slapd, request_to: MakeRequest, tmp_path: Path
) -> None:
    impostor = CA(tmp_path / "impostor")
    refusal(request_to(shared, "cn=x,dc=y", ca_file=str(impostor.certificate)), BackendUnavailable)


def test_an_expired_certificate_is_refused(
    tmp_path: Path, ca: CA, request_to: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pki, "LIFE", datetime.timedelta(minutes=-1))
    pair = ca.server("expired", ["127.0.0.1"], tmp_path)
    with Slapd(tmp_path / "slapd", ca, pair=pair) as server:
        assert "expired" in refusal(request_to(server, "cn=x,dc=y"), BackendUnavailable)


def test_a_certificate_of_another_server_is_refused(tmp_path: Path, ca: CA, request_to: MakeRequest) -> None:
    pair = ca.server("other", ["ldap.elsewhere.example"], tmp_path)
    with Slapd(tmp_path / "slapd", ca, pair=pair) as server:
        assert "mismatch" in refusal(request_to(server, "cn=x,dc=y"), BackendUnavailable)


def test_a_ca_file_without_a_certificate_trusts_nobody(shared: Slapd, request_to: MakeRequest, tmp_path: Path) -> None:
    empty = tmp_path / "empty.crt"
    empty.write_text("no certificate\n")
    # libldap 2.6 says so when it is set up, 2.5 when it meets the server
    refusal(request_to(shared, "cn=x,dc=y", ca_file=str(empty)), (BackendUnavailable, ConfigError))


def test_the_environment_and_files_of_openldap_cannot_switch_the_check_off(
    shared: Slapd, request_to: MakeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = CA(tmp_path / "other", "somebody else")
    (tmp_path / ".ldaprc").write_text("TLS_REQCERT never\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LDAPTLS_REQCERT", "never")
    monkeypatch.setenv("LDAPTLS_CACERT", str(shared.ca.certificate))
    monkeypatch.setenv("LDAPCONF", str(tmp_path / ".ldaprc"))
    refusal(request_to(shared, "cn=x,dc=y", ca_file=str(other.certificate)), BackendUnavailable)


def test_plain_ldap_is_refused(shared: Slapd, request_to: MakeRequest) -> None:
    uri = shared.uri.replace("ldaps:", "ldap:")
    assert "is not ldaps" in refusal(request_to(shared, "cn=x,dc=y", uris=(uri,)), ConfigError)


class Listener:
    """A TLS server that speaks one version and keeps what it is told after the handshake: a login, if there is one.

    It is a process, for the reader forks and must not do that in a process with threads.
    """

    def __init__(self, pair: pki.Pair, version: ssl.TLSVersion) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL itself refuses what is to be tested
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        context.load_cert_chain(pair.certificate, pair.private_key)
        waiting = socket.create_server(("127.0.0.1", 0))
        waiting.settimeout(30.0)
        self.uri = f"ldaps://127.0.0.1:{waiting.getsockname()[1]}"
        self.pipe, sending = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.write(sending, self.listen(waiting, context))
            finally:
                os._exit(0)
        os.close(sending)
        waiting.close()

    def listen(self, waiting: socket.socket, context: ssl.SSLContext) -> bytes:
        try:
            connection, _ = waiting.accept()
            waiting.close()  # nobody is to wait here for an answer
            connection.settimeout(30.0)
            with context.wrap_socket(connection, server_side=True) as secured:
                return b"told " + secured.recv(4096)
        except OSError as error:
            return f"problem {error}".encode()

    def end(self) -> bytes:
        with os.fdopen(self.pipe, "rb") as pipe:
            said = pipe.read()
        os.waitpid(self.pid, 0)
        return said


@pytest.mark.parametrize("version", ["TLSv1_1", "TLSv1_2", "TLSv1_3"])
def test_the_password_goes_over_tls_1_2_or_newer_only(
    tmp_path: Path, ca: CA, shared: Slapd, request_to: MakeRequest, version: str
) -> None:
    request = request_to(shared, "cn=x,dc=y")
    listener = Listener(ca.server("listener", ["127.0.0.1"], tmp_path), ssl.TLSVersion[version])
    refusal(request._replace(uris=(listener.uri,)), BackendUnavailable)
    said = listener.end()
    if version == "TLSv1_1":
        assert said.startswith(b"problem "), "no handshake"
        assert b"protocol" in said.lower() or b"version" in said.lower()
    else:
        assert said.startswith(b"told "), said
    assert (shared.reader_password.encode() in said) == (version != "TLSv1_1")


def test_a_wrong_password_is_told_apart_and_never_shown(
    shared: Slapd, request_to: MakeRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    request = request_to(shared, "cn=x,dc=y")
    Path(request.bind_password_file).write_text("open-sesame")
    text = refusal(request, CredentialsRefused)
    assert "INVALID_CREDENTIALS" in text
    shown = capfd.readouterr()
    assert "open-sesame" not in text + shown.out + shown.err


def test_a_wrong_password_is_tried_at_one_server_only(own: Slapd, request_to: MakeRequest) -> None:
    request = request_to(own, "cn=x,dc=y", uris=(own.uri, "ldaps://127.0.0.1:1"))
    Path(request.bind_password_file).write_text("open-sesame")
    refusal(request, CredentialsRefused)


def test_an_unknown_account_is_refused(shared: Slapd, request_to: MakeRequest) -> None:
    refusal(request_to(shared, "cn=x,dc=y", bind_dn="cn=nobody,dc=example,dc=org"), CredentialsRefused)


def test_the_next_server_is_asked_when_the_first_is_away(shared: Slapd, request_to: MakeRequest) -> None:
    shared.add(user("second") + group("second", [person("second")]))
    got = read_directory(request_to(shared, group_dn("second"), uris=("ldaps://127.0.0.1:1", shared.uri)), time.time())
    assert got.uri == shared.uri
    assert got.members.groups[group_dn("second")].members == {"second"}
    assert "refused" in got.failures[0]


@pytest.mark.usefixtures("quick")
def test_a_server_that_accepts_and_says_nothing_does_not_hold_the_reader(
    shared: Slapd, request_to: MakeRequest
) -> None:
    shared.add(user("patient") + group("patient", [person("patient")]))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"ldaps://127.0.0.1:{silent.getsockname()[1]}"
        got = read_directory(request_to(shared, group_dn("patient"), uris=(uri, shared.uri)), time.time())
    assert got.uri == shared.uri
    assert len(got.failures) == 1


@pytest.mark.usefixtures("quick")
def test_a_server_that_freezes_does_not_hold_the_reader(own: Slapd, request_to: MakeRequest) -> None:
    request = request_to(own, "cn=x,dc=y")
    own.process.send_signal(signal.SIGSTOP)
    # what other tests' services have left
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    refusal(request, BackendUnavailable)
    assert os.waitpid(-1, os.WNOHANG) == (0, 0), "of our children only slapd is left, and it does not wait for us"
