"""One real slapd for the tests that only add to it, and one of its own for a test that stops it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_hooks import directory, reading
from slurm_hooks.membership import Members
from slurm_hooks.reading import Request
from tests.testbed.need import need
from tests.testbed.pki import CA
from tests.testbed.slapd import BINARY, SUFFIX, Slapd

MakeRequest = Callable[..., Request]


@pytest.fixture(scope="session", autouse=True)
def _needed() -> None:
    need(BINARY, "/usr/bin/ldapadd", modules=("ldap",))


@pytest.fixture(autouse=True)
def unhurried() -> Iterator[None]:
    """A good server is waited for, as long as the machine stands still."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (reading, "CONNECT_TIMEOUT"),
            (directory, "NETWORK_TIMEOUT"),
            (directory, "OPERATION_TIMEOUT"),
        ):
            patch.setattr(module, name, 120)
        yield


@pytest.fixture
def quick(shared: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of seconds, and little memory, for every server but the good one."""
    real = reading._in_child

    def in_child(uri: str, *more: Any) -> Members:
        with pytest.MonkeyPatch.context() as patch:
            if uri != shared.uri:
                patch.setattr(reading, "CONNECT_TIMEOUT", 2)
                patch.setattr(reading, "READING_TIMEOUT", 3.0)
                patch.setattr(reading, "MAX_MEMORY", 1 << 30)
                patch.setattr(directory, "READING_TIMEOUT", 2.0)
                patch.setattr(directory, "NETWORK_TIMEOUT", 1.0)
                patch.setattr(directory, "OPERATION_TIMEOUT", 1.0)
            return real(uri, *more)

    monkeypatch.setattr(reading, "_in_child", in_child)


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CA:
    return CA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, ca: CA) -> Iterator[Slapd]:
    """A server whose entries every test may add to and none may break."""
    with Slapd(tmp_path_factory.mktemp("slapd"), ca) as server:
        yield server


@pytest.fixture
def own(tmp_path: Path, ca: CA) -> Iterator[Slapd]:
    """A server of this test alone."""
    with Slapd(tmp_path / "slapd", ca) as server:
        yield server


@pytest.fixture
def request_to(tmp_path: Path, ca: CA) -> Callable[..., Request]:
    """``request_to(server, group, …, field=value)``: what the daemon would ask this server."""

    def make(server: Slapd, *groups: str, **changes: object) -> Request:
        password = tmp_path / "bind-password"
        password.touch(mode=0o600)
        password.write_text(server.reader_password + "\n")
        request = Request(
            flavour="openldap",
            uris=(server.uri,),
            ca_file=str(ca.certificate),
            bind_dn=server.reader_dn,
            bind_password_file=str(password),
            base=SUFFIX,
            user_attribute="uid",
            groups=groups,
        )
        return request._replace(**changes)  # type: ignore[arg-type]

    return make
