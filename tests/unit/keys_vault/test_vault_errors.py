import pytest

from conf.errors import BackendUnavailable, SecureSlurmError
from keys.vault_errors import (
    DeletionNotAllowed,
    VaultConflict,
    VaultDenied,
    VaultError,
    VaultNotFound,
    raise_for_answer,
)


@pytest.mark.parametrize("status", [301, 307, 412, 429, 472, 473, 502, 503, 504])
def test_what_may_get_better_is_unavailable(status: int) -> None:
    with pytest.raises(BackendUnavailable):
        raise_for_answer("do it", status, ["whatever"])


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (500, "local node not active but active cluster node not found", BackendUnavailable),
        (500, "1 error occurred: disk", VaultError),
        (403, "permission denied", VaultDenied),
        (400, "encryption key not found", VaultNotFound),
        (400, "check-and-set parameter did not match the current version", VaultConflict),
        (400, "error deleting policy x: deletion is not allowed for this key", DeletionNotAllowed),
        (404, "", VaultNotFound),
        (404, "no handler for route 'x/keys/y'", VaultError),
        (404, None, VaultError),
        (405, "unsupported operation", VaultError),
        (100, "", VaultError),
    ],
)
def test_each_answer_has_one_meaning(status: int, text: str | None, error: type[SecureSlurmError]) -> None:
    with pytest.raises(SecureSlurmError) as raised:
        raise_for_answer("do it", status, None if text is None else [text])
    assert type(raised.value) is error
    assert "do it" in str(raised.value)


@pytest.mark.parametrize("status", [400, 403])
def test_a_refused_login_has_a_rule_of_its_own(status: int) -> None:
    with pytest.raises(VaultDenied) as denied:
        raise_for_answer("accept the login", status, ["encryption key not found"], login=True)
    assert denied.value.rule == "vault.login"
    assert denied.value.advice


def test_a_login_at_a_sealed_server_is_not_a_wrong_password() -> None:
    with pytest.raises(BackendUnavailable):
        raise_for_answer("accept the login", 503, ["Vault is sealed"], login=True)


@pytest.mark.parametrize("status", [400, 403, 404, 418, 429, 500, 503])
def test_the_words_of_the_server_are_never_repeated(status: int) -> None:
    with pytest.raises(SecureSlurmError) as raised:
        raise_for_answer("do it", status, ["batch_results: c2VjcmV0LXBsYWludGV4dA=="])
    assert "c2VjcmV0" not in repr(raised.value) + str(raised.value) + raised.value.advice
