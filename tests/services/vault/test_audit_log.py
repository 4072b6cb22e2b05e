"""The trails of a key's life against the log that a real OpenBao wrote of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin import audit_vault
from audit.chain import Chain
from audit.facts import gather
from audit.gaps import Gap, find
from audit.story import read_events
from keys.names import KeyName
from keys.vault_head import VaultHead
from keys.vault_node import VaultNode
from tests.testbed.vault_world import World

START = "ab" * 16


class Life:
    """One job's key: what is done is done in Vault, and told in the trails as the daemons tell it."""

    def __init__(self, world: World, folder: Path, job: int) -> None:
        self.world, self.folder, self.job = world, folder, job
        self.key = str(KeyName("n1", "test", str(job), f"{job:016x}"))
        folder.chmod(0o755)
        self.lifecycle, self.node = Chain(folder, "lifecycle", "head"), Chain(folder, "node", "n1")
        self.head: VaultHead
        self.n1: VaultNode

    def tell(self, event: str, *, node: bool = False, **fields: object) -> None:
        (self.node if node else self.lifecycle).append(event, durable=True, job=self.job, node="n1", **fields)

    def make(self) -> None:
        self.tell("key.create", incarnation=START, key=self.key)
        self.head.create_key(self.key)
        self.head.allow_deletion(self.key)

    def use(self, *, told: bool = True) -> None:
        self.n1.data_key(self.key)
        if told:
            self.tell("node.datakey", node=True, incarnation=START, key=self.key)

    def end(self, *, told: bool = True) -> None:
        self.head.delete_key(self.key)
        assert not self.head.key_exists(self.key)
        if told:
            self.tell("key.delete", key=self.key, evidence="reading it was answered with 404")

    def compared(self) -> list[Gap]:
        # the last lines of a log may still be on their way, and are not judged
        facts = gather(read_events([self.folder]))
        facts.last += 1000
        log = audit_vault.read_log([self.world.bao.audit_log], "secure-slurm-transit", "test")
        log.last += 1000
        return [gap for gap in audit_vault.compare(facts, log) if gap.job == self.job]


@pytest.fixture
def life(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Life]:
    job = 4000 + hash(request.node.name) % 10**6
    one = Life(world, tmp_path, job)
    with world.head() as one.head, world.node("n1") as one.n1:
        # so that the log begins before the key does, by more than clocks may differ
        time.sleep(0.01)
        yield one


def kinds(gaps: list[Gap]) -> list[str]:
    return sorted(gap.kind for gap in gaps)


@pytest.fixture(autouse=True)
def no_skew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_vault, "SKEW", 0.0)


def test_the_same_story(life: Life) -> None:
    life.make()
    life.use()
    life.end()
    assert life.compared() == []
    assert [gap for gap in find(gather(read_events([life.folder]))) if gap.kind.startswith("key")] == []


def test_what_vault_refuses_is_no_use(life: Life) -> None:
    life.make()
    life.use()
    life.end()
    with pytest.raises(Exception, match="does not exist"):
        life.use(told=False)
    assert life.compared() == []


def test_a_data_key_that_is_not_told(life: Life) -> None:
    life.make()
    life.use()
    life.use(told=False)
    life.end()
    (gap,) = life.compared()
    assert gap.kind == "vault-use-untold"
    assert "2 times, the node's trail tells of 1" in gap.what
    # the node is named by its certificate
    assert "(n1)" in gap.where


def test_an_admin_who_uses_a_nodes_key(life: Life) -> None:
    life.make()
    life.use()
    life.world.bao.request("PUT", f"secure-slurm-transit/datakey/plaintext/{life.key}", {})
    life.end()
    found = life.compared()
    assert kinds(found) == ["vault-use-by-another", "vault-use-untold"]
    assert "(root)" in found[0].where


def test_an_admin_who_makes_a_key_exportable(life: Life) -> None:
    life.make()
    life.use()
    life.world.bao.request("PUT", f"secure-slurm-transit/keys/{life.key}/config", {"exportable": True})
    life.world.bao.request("GET", f"secure-slurm-transit/export/encryption-key/{life.key}")
    life.end()
    assert "vault-exportable" in kinds(life.compared())


def test_a_deletion_that_is_not_told(life: Life) -> None:
    life.make()
    life.use()
    life.end(told=False)
    assert kinds(life.compared()) == ["vault-deletion-untold"]


def test_a_deletion_that_is_told_and_did_not_happen(life: Life) -> None:
    life.make()
    life.use()
    life.tell("key.delete", key=life.key, evidence="it is gone, believe me")
    assert life.head.key_exists(life.key)
    assert set(kinds(life.compared())) == {"vault-no-deletion", "vault-not-gone"}
    life.end(told=False)


def test_a_key_that_no_trail_knows(life: Life) -> None:
    life.tell("vault.login", result="ok")
    life.head.create_key(life.key)
    life.head.allow_deletion(life.key)
    life.end(told=False)
    (gap,) = life.compared()
    assert gap.kind == "vault-key-untold"
