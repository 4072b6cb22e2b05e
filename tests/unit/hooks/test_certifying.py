"""Certificates as the lifecycle daemon makes them; Vault is a key in memory that can be away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from audit import certificate as form
from audit.bundle import digest_bytes
from audit.line import GENESIS, Link
from conf.errors import BackendUnavailable, Refused, SecureSlurmError, UsageError
from keys.certificate import pem, verify, verify_block
from slurm_hooks import certifying, wire
from slurm_hooks.certifying import Certifier
from slurm_hooks.lifecycle import Destroyed
from slurm_hooks.serve import Peer

ROOT = Peer(1, 0, 0)
KEY = f"n1_test-17-{'ab' * 8}"
ENTRY = {
    "incarnation": "a" * 32,
    "node": "n1",
    "key": KEY,
    "made": "2026-11-21T20:41:02.000000Z",
    "deleted": "",
    "mapping": form.unconfirmed(),
}


class Vault:
    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.there: set[str] = set()
        self.away = False

    def sign(self, data: bytes) -> tuple[bytes, int]:
        if self.away:
            raise BackendUnavailable("Vault is sealed")
        return self._key.sign(data), 3

    def public_keys(self) -> dict[int, bytes]:
        return {3: self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)}

    def key_exists(self, name: str) -> bool:
        return name in self.there


class World:
    def __init__(self, folder: Path) -> None:
        self.vault = Vault()
        self.folder = folder / "certificates"
        self.told: list[dict[str, object]] = []
        self.certifier = Certifier(self.vault, "test", "head", str(self.folder), self._say)

    def _say(self, event: str, **fields: object) -> None:
        # before there is a file
        self.told.append({"event": event, "files": self.files(), **fields})

    def files(self) -> list[str]:
        return [name for name in self.everything() if not name.startswith(".")]

    def everything(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []

    def public(self) -> bytes:
        return pem(self.vault.public_keys()[3]).encode()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_draft_is_signed_told_and_kept(world: World) -> None:
    document = world.certifier.of_draft(17, [ENTRY])
    made = verify(document, world.public())
    assert (made["job"], made["cluster"], made["issuer"]) == (17, "test", "head")
    assert made["keys"][0]["vault"]["answer"] == 404
    assert json.loads(document)["signature"]["version"] == 3
    name = f"17-{'a' * 32}.json"
    assert (world.folder / name).read_bytes() == document
    # the daemon's umask is 077, and the auditors' group must read it
    assert (world.folder / name).stat().st_mode & 0o777 == 0o640
    assert world.folder.stat().st_mode & 0o777 == 0o750
    (told,) = world.told
    assert (told["event"], told["files"], told["count"], told["lost"]) == ("destruction.certificate", [], 1, 1)
    world.certifier.of_draft(17, [ENTRY])
    assert world.files() == [name]


def test_a_key_that_is_still_there(world: World) -> None:
    world.vault.there = {KEY}
    with pytest.raises(Refused) as refused:
        world.certifier.of_draft(17, [ENTRY])
    assert refused.value.rule == "certificate.key"
    assert (world.files(), world.told) == ([], [])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"key": f"n1_test-18-{'ab' * 8}"}, "certificate.key"),
        ({"key": f"n1_other-17-{'ab' * 8}"}, "certificate.key"),
        ({"key": f"n2_test-17-{'ab' * 8}"}, "certificate.key"),
        ({"node": "n2"}, "certificate.key"),
        ({"key": "secure-slurm-certificates"}, "names.key"),
        ({"key": None}, "names.key"),
        ({"made": "now"}, "certificate.form"),
        ({"mapping": {}}, "certificate.form"),
        ({"extra": "alice"}, "certificate.form"),
    ],
)
def test_a_draft_of_something_else_is_not_signed(world: World, change: dict[str, Any], rule: str) -> None:
    with pytest.raises(Refused) as refused:
        world.certifier.of_draft(17, [{**ENTRY, **change}])
    assert refused.value.rule == rule
    assert (world.files(), world.told) == ([], [])


@pytest.mark.parametrize("keys", [None, {}, [], "x", [1], [None]])
def test_a_draft_that_is_none(world: World, keys: object) -> None:
    with pytest.raises(Refused) as refused:
        world.certifier.of_draft(17, keys)
    assert refused.value.rule == "certificate.form"


@pytest.mark.parametrize("words", [{"job": b"0"}, {"job": b"17; x"}, {"job": b""}, {}])
def test_a_request_without_a_job(world: World, words: dict[str, bytes]) -> None:
    with pytest.raises(SecureSlurmError):
        asyncio.run(world.certifier.certify({"keys": b"[]", **words}, ROOT))


@pytest.mark.parametrize("keys", [b"", b"[", b'[{"node":"n1","node":"n2"}]', b'[],"more":1}'])
def test_a_request_that_is_no_json(world: World, keys: bytes) -> None:
    with pytest.raises(Refused):
        asyncio.run(world.certifier.certify({"job": b"17", "keys": keys}, ROOT))
    assert world.files() == []


def test_the_verbs(world: World) -> None:
    answer = asyncio.run(world.certifier.certify({"job": b"17", "keys": json.dumps([ENTRY]).encode()}, ROOT))
    told = asyncio.run(world.certifier.public_key({}, ROOT))
    document, public = answer["document"], told["pem"]
    assert isinstance(document, bytes)
    assert isinstance(public, str)
    assert verify(document, public.encode())["job"] == 17
    wire.encode({**answer, "nonce": "0" * 32})


def test_what_ended_is_certified_when_vault_can(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifying, "WAIT_AGAIN", 0.01)
    world.vault.away = True

    async def act() -> None:
        with ThreadPoolExecutor(1) as pool:
            task = asyncio.create_task(world.certifier.forever(pool))
            world.certifier.ended(17, [Destroyed("n1", KEY, "2026-11-21T20:41:05.198Z", "1790000000", "a" * 32)])
            while not world.certifier.error:
                await asyncio.sleep(0.01)
            assert "sealed" in world.certifier.error
            world.vault.away = False
            while not world.files():
                await asyncio.sleep(0.01)
            while world.certifier.error:
                await asyncio.sleep(0.01)
            task.cancel()

    asyncio.run(act())
    (name,) = world.files()
    (key,) = verify((world.folder / name).read_bytes(), world.public())["keys"]
    assert key["vault"] == {"answer": 404, "at": "2026-11-21T20:41:05.198Z"}
    assert (key["made"], key["mapping"]["state"]) == ("2026-09-21T14:13:20.000Z", form.UNCONFIRMED)


class Trails:
    """What the head node holds of the nodes' lines."""

    def __init__(self) -> None:
        self.gone = False
        self.last = Link(7, "b" * 64)

    def has_said_gone(self, node: str, job: int, incarnation: str) -> bool:
        assert (node, job, incarnation) == ("n1", 17, "a" * 32)
        return self.gone

    def end(self, _: str) -> Link:
        return self.last

    def about(self, node: str, job: int) -> list[dict[str, object]]:
        said = {"writer": "node", "node": node, "job": job, "incarnation": "a" * 32, "hash": "b" * 64}
        lines: list[dict[str, object]] = [
            {**said, "event": "scratch.ready", "time": READY_AT, "cipher": "aes-xts-plain64", "key_bits": 512},
            {**said, "event": "scratch.gone", "time": GONE_AT},
        ]
        return lines if self.gone else lines[:1]


READY_AT, GONE_AT = "2026-11-21T20:41:03.000000Z", "2026-11-21T20:41:04.000000Z"
ENDED = Destroyed("n1", KEY, "2026-11-21T20:41:05.198Z", "1790000000", "a" * 32)


def issued(world: World, act: Callable[[], None] = lambda: None) -> dict[str, Any]:
    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            task = asyncio.create_task(world.certifier.forever(pool))
            world.certifier.ended(17, [ENDED])
            async with asyncio.timeout(60):
                while not world.certifier.waiting and not world.files():
                    await asyncio.sleep(0.01)
                act()
                while not world.files():
                    await asyncio.sleep(0.01)
            task.cancel()

    asyncio.run(main())
    (name,) = world.files()
    (key,) = verify((world.folder / name).read_bytes(), world.public())["keys"]
    return dict(key)


def test_it_waits_for_the_nodes_lines_and_says_what_they_say(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifying, "NODES_LOOK", 0.01)
    trails = world.certifier.trails = Trails()

    def arrives() -> None:
        assert world.files() == []
        trails.gone = True

    key = issued(world, arrives)
    assert key["trail"] == {"arrived": True, "seq": 7, "hash": "b" * 64}
    assert key["mapping"]["state"] == form.ABSENT
    assert (key["mapping"]["at"], key["mapping"]["cipher"]) == (GONE_AT, "aes-xts-plain64")
    (told,) = world.told
    assert told["lost"] == 0


def test_a_node_that_says_nothing_is_not_waited_for_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifying, "NODES_WAIT", 0.05)
    monkeypatch.setattr(certifying, "NODES_LOOK", 0.01)
    world.certifier.trails = Trails()
    key = issued(world)
    assert key["trail"] == {"arrived": False, "seq": 7, "hash": "b" * 64}
    assert key["mapping"]["state"] == form.UNCONFIRMED


def test_of_a_node_that_sends_nothing_at_all_it_waits_for_nothing(world: World) -> None:
    trails = world.certifier.trails = Trails()
    trails.last = GENESIS
    assert issued(world)["trail"] == form.no_trail()


def test_root_cannot_say_that_lines_have_arrived(world: World) -> None:
    lie = {"arrived": True, "seq": 9, "hash": "c" * 64}
    (key,) = verify(world.certifier.of_draft(17, [{**ENTRY, "trail": lie}]), world.public())["keys"]
    assert key["trail"] == form.no_trail()
    world.certifier.trails = Trails()
    (key,) = verify(world.certifier.of_draft(17, [{**ENTRY, "trail": lie}]), world.public())["keys"]
    assert key["trail"] == {"arrived": False, "seq": 7, "hash": "b" * 64}


def test_an_export_is_signed_by_its_digest_alone(world: World) -> None:
    digest = "ab" * 32
    answer = asyncio.run(world.certifier.sign_export({"digest": digest.encode()}, ROOT))
    assert verify_block(digest_bytes(digest), json.loads(str(answer["signature"])), world.public())
    # it is no signature of a certificate, nor of another digest
    assert not verify_block(digest_bytes("cd" * 32), json.loads(str(answer["signature"])), world.public())
    for bad in (b"", b"AB" * 32, b"ab" * 33, b"ab\n"):
        with pytest.raises(wire.WireError):
            asyncio.run(world.certifier.sign_export({"digest": bad}, ROOT))


def test_a_defect_in_one_does_not_end_the_others(world: World) -> None:
    async def act() -> None:
        with ThreadPoolExecutor(1) as pool:
            task = asyncio.create_task(world.certifier.forever(pool))
            world.certifier.ended(16, [Destroyed("n_1", "x", "now")])
            world.certifier.ended(17, [Destroyed("n1", KEY, "2026-11-21T20:41:05.198Z")])
            while not world.files():
                await asyncio.sleep(0.01)
            task.cancel()

    asyncio.run(act())
    assert world.files() == ["17-unknown.json"]


def test_no_place_to_write(world: World) -> None:
    world.folder.write_text("a file in its place")
    with pytest.raises(BackendUnavailable):
        world.certifier.of_draft(17, [ENTRY])


@pytest.mark.parametrize("keys", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_public_key_that_is_none(world: World, keys: bytes) -> None:
    document = world.certifier.of_draft(17, [ENTRY])
    with pytest.raises(UsageError):
        verify(document, keys)


@pytest.mark.parametrize(
    ("part", "value", "rule"),
    [
        ("signature", None, "certificate.form"),
        ("signature", {"algorithm": "none", "value": "AAAA"}, "certificate.form"),
        ("signature", {"algorithm": "ed25519", "value": "!"}, "certificate.form"),
        ("signature", {"algorithm": "ed25519", "value": "AAAA"}, "certificate.signature"),
        ("certificate", {}, "certificate.form"),
        ("more", 1, "certificate.form"),
    ],
)
def test_a_document_that_was_changed(world: World, part: str, value: object, rule: str) -> None:
    document = json.loads(world.certifier.of_draft(17, [ENTRY]))
    document[part] = value
    with pytest.raises(Refused) as refused:
        verify(json.dumps(document).encode(), world.public())
    assert refused.value.rule == rule


def test_another_clusters_key(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    document = world.certifier.of_draft(17, [ENTRY])
    with pytest.raises(Refused) as refused:
        verify(document, World(tmp_path / "other").public())
    assert refused.value.rule == "certificate.signature"


async def run_until(certifier: Certifier, over: Callable[[], bool]) -> None:
    with ThreadPoolExecutor(2) as pool:
        task = asyncio.create_task(certifier.forever(pool))
        async with asyncio.timeout(60):
            while not over():
                await asyncio.sleep(0.01)
        task.cancel()


def restarted(world: World) -> Certifier:
    return Certifier(world.vault, "test", "head", str(world.folder), world._say)


def test_a_restart_loses_no_certificate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifying, "WAIT_AGAIN", 0.01)
    # Vault is away, and the daemon ends
    world.vault.away = True
    world.certifier.ended(17, [ENDED])
    asyncio.run(run_until(world.certifier, lambda: bool(world.certifier.error)))
    (note,) = world.everything()
    assert note.startswith(".due-head-17-")
    # nobody else's, and nothing that is broken, keeps the next one from it
    others = [".due-head-16-00000000.json", ".due-head-2-18-00000000.json"]
    (world.folder / others[0]).write_text('{"job": 16}')
    (world.folder / others[1]).write_bytes((world.folder / note).read_bytes())
    world.vault.away = False
    made = f"17-{'a' * 32}.json"
    asyncio.run(run_until(restarted(world), lambda: world.everything() == [*others, made]))
    assert [(one["event"], one["job"]) for one in world.told] == [("destruction.certificate", 17)]
    (key,) = verify((world.folder / made).read_bytes(), world.public())["keys"]
    assert key["deleted"] == ENDED.at
    # it is Vault's word of now
    assert (key["vault"]["answer"], key["vault"]["at"] != ENDED.at) == (404, True)


@pytest.mark.parametrize(
    ("key", "alive", "refused"),
    [
        (KEY, True, "Vault still has the key"),
        (KEY.replace("test-17", "other-17"), False, "is no key of job 17"),
        (KEY.replace("test-17", "test-18"), False, "is no key of job 17"),
        (KEY.replace("n1_", "n2_"), False, "is no key of job 17"),
    ],
    ids=["still there", "another cluster's", "another job's", "another node's"],
)
def test_a_note_is_nobodys_word(world: World, key: str, alive: bool, refused: str) -> None:
    if alive:
        world.vault.there.add(key)
    world.certifier.ended(17, [attrs.evolve(ENDED, key=key)])
    after = restarted(world)
    asyncio.run(run_until(after, lambda: bool(after.error)))
    assert refused in after.error
    assert (world.files(), world.told) == ([], [])
