"""The key that signs certificates of destruction, on a real server: who can do what with it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from audit import certificate as form
from conf.errors import Refused
from keys.certificate import pem, verify
from keys.names import CERTIFICATE_KEY, new_key_name
from keys.vault_errors import VaultDenied, VaultNotFound
from keys.vault_head import VaultHead
from keys.vault_node import VaultNode
from slurm_hooks.certifying import Certifier
from tests.testbed.vault_world import World

TRANSIT = "secure-slurm-transit"
KEY = f"{TRANSIT}/keys/{CERTIFICATE_KEY}"


@pytest.fixture
def raw(head: VaultHead) -> Callable[..., dict[str, Any]]:
    def request(method: str, path: str, **body: object) -> dict[str, Any]:
        json = {"json": body} if body else {}
        return head._session.call(path, lambda client: getattr(client.adapter, method)(f"/v1/{path}", **json))

    return request


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("post", KEY, {"type": "ed25519"}),
        ("post", KEY, {"type": "aes256-gcm96"}),
        ("delete", KEY, {}),
        ("post", f"{KEY}/config", {"deletion_allowed": True}),
        ("post", f"{KEY}/config", {"exportable": True}),
        ("post", f"{KEY}/rotate", {"a": "b"}),
        ("post", f"{KEY}/trim", {"min_available_version": 1}),
        ("get", f"{TRANSIT}/export/signing-key/{CERTIFICATE_KEY}", {}),
        ("get", f"{TRANSIT}/backup/{CERTIFICATE_KEY}", {}),
        ("post", f"{TRANSIT}/sign/{CERTIFICATE_KEY}", {"input": "YQ==", "prehashed": True}),
        ("post", f"{TRANSIT}/sign/{CERTIFICATE_KEY}", {"batch_input": [{"input": "YQ=="}]}),
        ("post", f"{TRANSIT}/sign/{CERTIFICATE_KEY}/sha2-512", {"input": "YQ=="}),
        ("post", f"{TRANSIT}/sign/n1_test-1-0123456789abcdef", {"input": "YQ=="}),
        ("list", f"{TRANSIT}/keys", {}),
    ],
)
def test_the_head_node_may_sign_and_nothing_else(
    raw: Callable[..., dict[str, Any]], method: str, path: str, body: dict[str, Any]
) -> None:
    with pytest.raises(VaultDenied):
        raw(method, path, **body)


def test_the_key_is_as_it_should_be(world: World, head: VaultHead) -> None:
    key = world.bao.request("GET", KEY)["data"]
    assert key["type"] == "ed25519"
    assert (key["exportable"], key["allow_plaintext_backup"], key["deletion_allowed"]) == (False, False, False)
    assert head.public_keys() == {1: base64.b64decode(key["keys"]["1"]["public_key"])}


def test_a_node_may_not_sign(n1: VaultNode) -> None:
    for method, path in (("post", f"{TRANSIT}/sign/{CERTIFICATE_KEY}"), ("get", KEY)):
        with pytest.raises(VaultDenied):
            body = {"json": {"input": "YQ=="}} if method == "post" else {}
            n1._session.call(path, lambda client: getattr(client.adapter, method)(f"/v1/{path}", **body))  # noqa: B023


@pytest.fixture
def certifier(head: VaultHead, tmp_path: Any) -> Certifier:
    return Certifier(head, "test", "head", str(tmp_path / "certificates"), lambda *_, **__: None)


def line(node: str, job: int, key: str) -> dict[str, object]:
    return {
        "incarnation": "ab" * 16,
        "node": node,
        "key": key,
        "made": "2026-11-21T20:41:02.526463Z",
        "deleted": "",
        "mapping": form.unconfirmed(),
    }


def test_what_vault_signed_is_verified_without_it(head: VaultHead, certifier: Certifier, world: World) -> None:
    job = 700
    document = certifier.of_draft(job, [line("n1", job, new_key_name("n1", "test", str(job)))])
    public = pem(head.public_keys()[1]).encode()
    assert verify(document, public)["job"] == job
    changed = json.loads(document)
    changed["certificate"]["keys"][0]["node"] = "n2"
    with pytest.raises(Refused) as refused:
        verify(json.dumps(changed).encode(), public)
    assert refused.value.rule == "certificate.signature"
    # a key that was rotated by an admin: what the earlier one signed is still told apart
    world.bao.request("POST", f"{KEY}/rotate", {})
    assert sorted(head.public_keys()) == [1, 2]
    later = certifier.of_draft(job, [line("n1", job, new_key_name("n1", "test", str(job)))])
    assert json.loads(later)["signature"]["version"] == 2
    assert verify(document, public)
    with pytest.raises(Refused):
        verify(later, public)
    assert verify(later, public + pem(head.public_keys()[2]).encode())


def test_a_key_that_is_there_is_not_certified(head: VaultHead, certifier: Certifier) -> None:
    name = new_key_name("n1", "test", "701")
    head.create_key(name)
    with pytest.raises(Refused) as refused:
        certifier.of_draft(701, [line("n1", 701, name)])
    assert refused.value.rule == "certificate.key"
    head.delete_key(name)
    assert certifier.of_draft(701, [line("n1", 701, name)])


def test_a_vault_that_was_set_up_before_there_were_certificates(own_world: World) -> None:
    own_world.bao.request("POST", f"{KEY}/config", {"deletion_allowed": True})
    own_world.bao.request("DELETE", KEY)
    with own_world.head() as head, pytest.raises(VaultNotFound):
        head.public_keys()
    assert own_world.init("--check") == 1
    assert own_world.init() == 0
    assert own_world.init("--check") == 0
    with own_world.head() as head:
        assert len(head.sign(b"x")[0]) == 64


@pytest.mark.parametrize(
    "body",
    [
        {"type": "ed25519", "exportable": True},
        {"type": "rsa-2048"},
        {"type": "ed25519", "allow_plaintext_backup": True},
    ],
)
def test_somebody_elses_key_of_that_name_is_refused(own_world: World, body: dict[str, object]) -> None:
    own_world.bao.request("POST", f"{KEY}/config", {"deletion_allowed": True})
    own_world.bao.request("DELETE", KEY)
    own_world.bao.request("POST", KEY, body)
    for options in (["--check"], []):
        with pytest.raises(Refused) as refused:
            own_world.init(*options)
        assert refused.value.rule == "vault.key"
