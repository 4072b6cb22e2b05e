"""The child process around a reading. What a directory does to it is tested against real ones."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, ConfigError, InternalError, SecureSlurmError
from slurm_hooks import directory, reading
from slurm_hooks.directory import CredentialsRefused, Directory, read_password
from slurm_hooks.membership import Group, Members
from slurm_hooks.reading import Request, read_directory

SECRET = "correct-horse"
MEMBERS = Members(
    {"cn=phi,dc=test": Group("phi", frozenset({"alice", "bob"})), "x": Group("x", frozenset(), True)}, ("n",)
)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    for name in ("ca.crt", "password"):
        (tmp_path / name).touch(mode=0o600)
    (tmp_path / "password").write_text(SECRET)
    return Request(
        flavour="openldap",
        uris=("ldaps://a", "ldaps://b"),
        ca_file=str(tmp_path / "ca.crt"),
        bind_dn="cn=reader,dc=test",
        bind_password_file=str(tmp_path / "password"),
        base="dc=test",
        user_attribute="uid",
        groups=("cn=phi,dc=test",),
    )


def answer(monkeypatch: pytest.MonkeyPatch, **by_uri: object) -> None:
    """What the child does at ``ldaps://a`` and so on: return, return an error, or run."""

    def read(uri: str, request: Request, now: float) -> object:
        what = by_uri[uri[-1]]
        return what() if callable(what) else what

    monkeypatch.setattr(reading, "_read", read)


def test_without_servers_there_is_no_answer(request_: Request) -> None:
    with pytest.raises(BackendUnavailable, match="no LDAP server"):
        read_directory(request_._replace(uris=()), 0.0)


@pytest.mark.parametrize("kind", [ConfigError, CredentialsRefused, InternalError])
def test_what_another_server_would_not_mend_ends_the_reading(
    request_: Request, monkeypatch: pytest.MonkeyPatch, kind: type[SecureSlurmError]
) -> None:
    answer(monkeypatch, a=kind("wrong", advice="mend it"), b=MEMBERS)
    with pytest.raises(kind) as caught:
        read_directory(request_, 0.0)
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.advice) == ("wrong", "mend it")


def test_the_next_server_is_asked(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, a=BackendUnavailable("away"), b=MEMBERS)
    got = read_directory(request_, 0.0)
    assert got == reading.Reading("ldaps://b", MEMBERS, ("away",))


def test_every_server_is_named_when_all_are_away(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, a=BackendUnavailable("a away"), b=BackendUnavailable("b away"))
    with pytest.raises(BackendUnavailable, match="a away; b away"):
        read_directory(request_, 0.0)


@pytest.mark.parametrize(
    "end", [lambda: os._exit(0), lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL)]
)
def test_a_child_that_dies_is_no_answer(request_: Request, monkeypatch: pytest.MonkeyPatch, end: object) -> None:
    answer(monkeypatch, a=end, b=end)
    with pytest.raises(BackendUnavailable, match="broke off"):
        read_directory(request_, 0.0)


def test_a_child_that_raises_is_no_answer_and_tells_nothing(
    request_: Request, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object, **named: object) -> Directory:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(Directory, "open", broken)
    with pytest.raises(InternalError, match="RuntimeError") as caught:
        read_directory(request_, 0.0)
    assert SECRET not in str(caught.value) + capfd.readouterr().err


def test_a_child_that_hangs_is_killed(request_: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def hang() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(600)

    monkeypatch.setattr(reading, "CONNECT_TIMEOUT", 0)
    monkeypatch.setattr(reading, "READING_TIMEOUT", 0.5)
    answer(monkeypatch, a=hang, b=MEMBERS)
    with pytest.raises(BackendUnavailable, match="took too long"):
        read_directory(request_._replace(uris=("ldaps://a",)), 0.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_connection_that_hangs_is_killed_even_when_signals_are_held_back(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CONNECT_TIMEOUT", 1)
    monkeypatch.setattr(Directory, "open", lambda *_, **__: threading.Event().wait())
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
    try:
        with pytest.raises(BackendUnavailable, match="did not let us in within 1 s"):
            read_directory(request_._replace(uris=("ldaps://a",)), 0.0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def test_being_told_to_stop_ends_the_reading(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, a=lambda: time.sleep(600), b=MEMBERS)
    with pytest.raises(BackendUnavailable, match="told to stop"):
        read_directory(request_, 0.0, stopping=lambda: True)


@pytest.mark.parametrize(
    "uri",
    [
        "ldap://dc1.ad.test",
        "ldapi:///",
        "LDAP://x",
        "ldaps://",
        "ldaps://a b",
        "ldaps://user@host",
        "ldaps://host/dc=test??sub",
        "ldaps://host\n",
        "ldaps://host ldap://other",
        "",
    ],
)
def test_anything_but_ldaps_is_refused_before_a_connection(request_: Request, uri: str) -> None:
    with pytest.raises(ConfigError, match="is not ldaps"):
        read_directory(request_._replace(uris=(uri,)), 0.0)


def test_no_name_or_no_password_is_refused_before_a_connection(request_: Request, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="anonymous"):
        read_directory(request_._replace(bind_dn=""), 0.0)
    (tmp_path / "password").write_text("")
    with pytest.raises(ConfigError, match="on one line"):
        read_directory(request_, 0.0)


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb", b"a\n\n", b"a\0b", b"a\r\n", b"a" * 2000])
def test_a_password_file_that_is_not_one_line_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_password(str(file))
    assert "aaa" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602])
def test_a_password_file_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET)
    file.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        read_password(str(file))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", [SECRET, SECRET + "\n"])
def test_a_password_is_read_without_its_line_end(tmp_path: Path, content: str) -> None:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text(content)
    with read_password(str(file)) as password:
        assert bytes(password.reveal()) == SECRET.encode()
        assert SECRET not in repr(password)


def test_a_ca_file_that_others_may_change_is_refused(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").chmod(0o666)
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        read_directory(request_, 0.0)


def test_the_reason_why_a_server_is_not_trusted_never_waits_for_ever(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "NETWORK_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert directory.why_untrusted(f"ldaps://127.0.0.1:{silent.getsockname()[1]}", request_.ca_file)
