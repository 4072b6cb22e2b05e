"""One real Active Directory domain controller (Samba) for all tests here; each test makes its own people and groups."""

from collections.abc import Callable, Iterator

import pytest

from slurm_hooks.reading import Request
from tests.services.ldap.conftest import unhurried
from tests.testbed.need import need
from tests.testbed.pki import CA
from tests.testbed.samba_ad import BASE, BINARY, TOOL, SambaAD

__all__ = ["unhurried"]


@pytest.fixture(scope="session")
def ad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SambaAD]:
    need(BINARY, TOOL, "/usr/bin/ldapmodify", modules=("ldap",), root=True)
    with SambaAD(tmp_path_factory.mktemp("ad"), CA(tmp_path_factory.mktemp("ad-ca"))) as server:
        yield server


@pytest.fixture
def request_to(tmp_path_factory: pytest.TempPathFactory, ad: SambaAD) -> Callable[..., Request]:
    """``request_to(group, …, field=value)``: what the daemon would ask this domain controller."""

    def make(*groups: str, **changes: object) -> Request:
        password = tmp_path_factory.mktemp("secret") / "bind-password"
        password.touch(mode=0o600)
        password.write_text(ad.reader_password)
        request = Request(
            flavour="active-directory",
            uris=(ad.uri,),
            ca_file=str(ad.ca.certificate),
            bind_dn=ad.reader_dn,
            bind_password_file=str(password),
            base=BASE,
            user_attribute="sAMAccountName",
            groups=groups,
        )
        return request._replace(**changes)  # type: ignore[arg-type]

    return make
