"""What a standby says of a key; a second server that takes part in a cluster is not started for this."""

from collections.abc import Callable
from typing import Any

import pytest

from conf.errors import BackendUnavailable
from keys.vault_errors import VaultNotFound, raise_for_answer
from keys.vault_head import VaultHead

KEY = "n1_test-17-0123456789abcdef"


class Session:
    """Every key is unknown; the health is what the test says."""

    def __init__(self, status: int, health: dict[str, Any]) -> None:
        self.status = status
        self.health = health

    def call(self, action: str, request: Callable[[Any], Any]) -> dict[str, Any]:
        if action.startswith("read the key"):
            raise VaultNotFound("not found")
        if self.status != 200:
            raise_for_answer(action, self.status, [])
        return self.health


def head(status: int, health: dict[str, Any]) -> VaultHead:
    return VaultHead(Session(status, health), transit_mount="t", grants_mount="g")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "health"),
    [(429, {}), (473, {}), (503, {}), (200, {}), (200, {"standby": True}), (200, {"standby": "false"})],
)
def test_not_found_from_anything_but_the_active_server_proves_nothing(status: int, health: dict[str, Any]) -> None:
    with pytest.raises(BackendUnavailable):
        head(status, health).key_exists(KEY)


def test_not_found_from_the_active_server_is_a_proof() -> None:
    assert head(200, {"standby": False}).key_exists(KEY) is False
