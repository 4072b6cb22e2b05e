"""The lifecycle daemon's verbs with real files behind them, and a fake in the place of Vault alone."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from audit.chain import AuditError, Chain
from conf.errors import BackendUnavailable, InternalError, Refused, SecureSlurmError
from conf.policy import load_policy
from conf.site import Site
from keys import lifecycle_keys
from keys.grant import Grant
from keys.secret import Secret
from keys.vault_errors import VaultNotFound
from keys.vault_head import VaultHead
from slurm_hooks import ended, record, wire
from slurm_hooks import live as live_module
from slurm_hooks.filters.verdict import Context
from slurm_hooks.lifecycled import LifecycleDaemon
from slurm_hooks.links import Connected
from slurm_hooks.live import Live
from slurm_hooks.membership import Group
from slurm_hooks.record import Record
from slurm_hooks.serve import Peer
from slurm_hooks.snapshot import Snapshot

PEER = Peer(1, 64030, 64030)
PHI_EU = "cn=phi-eu,ou=groups,dc=example,dc=org"
DECIDED = Record("test", 1001, "alice", "phi", "eu", 2**30, "ab" * 8, "cd" * 16, 1790000000)
START = {
    **{"verb": b"start", "job": b"17", "uid": b"1001", "user_id": b"1001", "restarts": b"0", "het_job_id": b"0"},
    **{"nodes": b"n1,n2", "job.extra": b"secure-slurm:class=phi;residency=eu;scratch=1073741824"},
    **{"job.features": b"eu", "job.partition": b"phi"},
    "job.admin_comment": record.sign(DECIDED, Secret(b"k" * 32)).encode(),
}
ENDED = {"verb": b"ended", "job": b"17", "nodes": b"n1,n2"}


class Head:
    """Vault's head side by what it keeps: transit keys, and grants by (node, job)."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.locked: set[str] = set()
        self.grants: dict[tuple[str, str], dict[str, str]] = {}
        self.away: set[str] = set()

    def _reach(self, name: str) -> None:
        if {"*", name.partition("_")[0]} & self.away:
            raise BackendUnavailable("Vault is away")

    def create_key(self, name: str) -> None:
        self._reach(name)
        self.keys.add(name)

    def allow_deletion(self, name: str) -> None:
        self._reach(name)

    def delete_key(self, name: str) -> None:
        self._reach(name)
        self.keys.discard(name)

    def key_exists(self, name: str) -> bool:
        return name in self.keys

    def lock_key(self, name: str) -> None:
        self._reach(name)
        self.locked.add(name)

    def unlock_key(self, name: str) -> None:
        self._reach(name)
        self.locked.discard(name)

    def write_grant(self, node: str, job: str, data: Mapping[str, str], cas: int = 0) -> None:
        self._reach(node)
        assert cas == 0
        Grant.from_dict(dict(data))
        self.grants[node, job] = dict(data)

    def read_grant(self, node: str, job: str) -> dict[str, str] | None:
        self._reach(node)
        return self.grants.get((node, job))

    def delete_grant(self, node: str, job: str) -> None:
        self.grants.pop((node, job), None)

    def list_grants(self) -> list[tuple[str, str]]:
        return sorted(self.grants)

    @property
    def session(self) -> Head:
        return self

    def call(self, _action: str, _request: object) -> dict[str, Any]:
        """What a node's enrolment left; none here has enrolled."""
        self._reach("*")
        raise VaultNotFound("nothing is remembered")


class World:
    def __init__(self, folder: Path, site: Site, head: Head) -> None:
        self.folder = folder
        self.notes = Path(site.lifecycle.ended_dir)
        self.running = Path(site.lifecycle.running_dir)
        self.running.mkdir(parents=True)
        self.notes.mkdir(parents=True)
        self.head = head
        live = Live(str(folder / "policy.yaml"), Members())  # type: ignore[arg-type]
        self.daemon = LifecycleDaemon(site, live, Chain(folder / "audit" / "lifecycle", "lifecycle", "head"))

    def note(self, job: int, *nodes: str) -> None:
        ended.write(str(self.notes), job, nodes)

    def trail(self, *events: str) -> list[dict[str, Any]]:
        paths = list((self.folder / "audit").rglob("*.jsonl"))
        lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return [line for line in lines if not events or line["event"] in events]


class Members:
    def poll(self, _now: float) -> None: ...

    def current(self, now: float) -> Snapshot:
        return Snapshot(now, "test", {PHI_EU: Group("phi-eu", frozenset({"alice"}))})


@pytest.fixture
def world(folder: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> World:
    head = Head()
    monkeypatch.setattr(VaultHead, "from_site", lambda _: head)
    return World(folder, site, head)


def play(act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await act()

    asyncio.run(main())


def start(world: World, **more: bytes) -> Mapping[str, bytes | str]:
    fields = {
        **START,
        "since": str(time.monotonic_ns()).encode(),
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return asyncio.run(world.daemon.start(fields, PEER))


def end(world: World, **more: bytes | None) -> Mapping[str, bytes | str]:
    fields = {name: value for name, value in {**ENDED, **more}.items() if value is not None}
    return asyncio.run(world.daemon.ended(fields, PEER))


def test_start_and_ended(world: World) -> None:
    answer = start(world)
    assert answer["verdict"] == "allow"
    assert {grant["incarnation"] for grant in world.head.grants.values()} == {answer["incarnation"]}
    assert len(world.head.keys) == len(world.head.grants) == 2
    made = set(world.head.keys)
    assert [path.name for path in world.running.iterdir()] == ["17"]

    world.note(17, "n1", "n2")
    assert end(world) == {"verdict": "allow", "destroyed": "2"}

    assert (world.head.keys, world.head.grants, list(world.notes.iterdir())) == (set(), {}, [])
    assert list(world.running.iterdir()) == []
    assert {line["key"] for line in world.trail("key.delete")} == made
    assert [line["count"] for line in world.trail("revocation.done")] == [2]
    judged, *rest = world.trail()
    assert (judged["event"], judged["nonce"], judged["nodes"]) == ("start.judged", "cd" * 16, "n1,n2")
    assert {line["event"] for line in rest[:4]} == {"grant.write", "key.create"}


def test_what_this_daemon_has_not_read_yet_refuses_no_start(world: World) -> None:
    """The decision daemon looked at the files a moment earlier, and let the job in by what it found."""
    policy = world.folder / "policy.yaml"
    text = policy.read_text()
    policy.write_text(text.replace("cn=phi-eu,", "cn=phi-elsewhere,"))
    world.daemon._live.look()
    with pytest.raises(Refused) as caught:
        start(world)
    assert caught.value.rule == "rbac.role"

    policy.write_text(text)
    assert start(world)["verdict"] == "allow"


@pytest.mark.parametrize("disk", ["fails", "hangs"])
def test_files_that_cannot_be_read_again_leave_a_refusal_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    policy = world.folder / "policy.yaml"
    policy.write_text(policy.read_text().replace("cn=phi-eu,", "cn=phi-elsewhere,"))
    world.daemon._live.look()
    answers = threading.Event()

    def look() -> None:
        if disk == "fails":
            raise OSError(errno.EIO, "Input/output error")
        answers.wait(30)

    monkeypatch.setattr(live_module, "LOOK_AGAIN", 0.2)
    monkeypatch.setattr(world.daemon._live, "look", look)

    async def refused() -> None:
        try:
            for _ in range(3):
                with pytest.raises(Refused) as caught:
                    await world.daemon.start({**START, "since": str(time.monotonic_ns()).encode()}, PEER)
                assert caught.value.rule == "rbac.role"
        finally:
            answers.set()

    play(refused)
    assert [line["rule"] for line in world.trail("start.refused")] == ["rbac.role"] * 3
    assert (world.head.keys, world.head.grants) == (set(), {})


def test_a_start_that_began_before_its_end_is_refused(world: World) -> None:
    began = str(time.monotonic_ns()).encode()
    end(world)
    with pytest.raises(Refused) as caught:
        start(world, since=began)
    assert caught.value.rule == "lifecycle.ended"
    assert (world.head.keys, world.head.grants) == (set(), {})
    assert start(world)["verdict"] == "allow"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("job", value) for value in (None, b"", b"x", b"-1", b"0", b"+17", b" 17", b"17\n", b"1_7", b"017", b"1.0")),
        *(("job", value) for value in ("\u0661".encode(), b"\xff", b"9" * 11, b"9" * 5000)),
        *(("nodes", value) for value in (None, b",", b"n1,", b"n1,,n2", b"n_1", b"../n1", b"n1 n2", b"n1\nn2")),
        *(("nodes", value) for value in (b"n[1-2]", b"\xff", "ñ".encode(), b"n1,$(id)", b"n" * 64)),
    ],
)
def test_a_malformed_end_is_refused_as_malformed(world: World, field: str, value: bytes | None) -> None:
    start(world)

    with pytest.raises(wire.WireError, match="job" if field == "job" else "nodes"):
        end(world, **{field: value})
    assert len(world.head.keys) == 2
    assert world.trail("revocation.pending") == []


def test_an_end_without_nodes_is_an_end_wherever_there_are_grants(world: World) -> None:
    start(world)
    other = world.head.grants["n1", "17"]
    world.head.grants["n9", "18"] = dict(other)

    assert end(world, nodes=b"")["verdict"] == "allow"
    assert world.head.keys == set()
    assert set(world.head.grants) == {("n9", "18")}


def test_a_refused_start_makes_nothing_and_is_in_the_trail(world: World) -> None:
    with pytest.raises(Refused):
        start(world, job__extra=b"")
    assert (world.head.keys, world.head.grants) == (set(), {})
    (line,) = world.trail()
    assert (line["event"], line["job"], line["uid"], line["rule"]) == ("start.refused", 17, 1001, "start.tag")


@pytest.mark.parametrize("uid", [b"-1", b"4294967296"])
def test_a_refusal_without_a_user_is_in_the_trail_too(world: World, uid: bytes) -> None:
    with pytest.raises(Refused):
        start(world, uid=uid)
    (line,) = world.trail()
    assert line["rule"] == "record.uid"
    assert "uid" not in line


@pytest.mark.parametrize("number", [b"x", b"", b"0", b"-17"])
def test_a_malformed_start(world: World, number: bytes) -> None:
    with pytest.raises(wire.WireError):
        start(world, job=number)
    assert world.head.keys == set()


def test_vault_away_at_the_start(world: World) -> None:
    world.head.away = {"*"}
    with pytest.raises(BackendUnavailable):
        start(world)
    assert [line["rule"] for line in world.trail("start.refused")] == ["backend.unavailable"]


def test_a_defect_at_the_start_is_in_the_trail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise InternalError("a defect")

    monkeypatch.setattr(lifecycle_keys, "create", fail)
    with pytest.raises(InternalError):
        start(world)
    assert [line["rule"] for line in world.trail("start.refused")] == ["engine.error"]


def test_without_the_trail_nothing_starts_and_everything_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    start(world)
    made = set(world.head.keys)

    def full(*_: object, **__: object) -> None:
        raise AuditError("no space")

    monkeypatch.setattr(Chain, "append", full)
    with pytest.raises(BackendUnavailable):
        start(world, job=b"18")
    assert world.head.keys == made
    assert end(world)["destroyed"] == "2"
    assert world.head.keys == set()


def test_a_start_that_takes_too_long_is_in_the_trail_and_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> None:
        loop, reached = asyncio.get_running_loop(), asyncio.Event()
        write = world.head.write_grant
        release = asyncio.Event()

        def slow(*args: Any, **more: Any) -> None:
            loop.call_soon_threadsafe(reached.set)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(20)
            write(*args, **more)

        monkeypatch.setattr(world.head, "write_grant", slow)
        task = asyncio.create_task(world.daemon.start(START, PEER))  # type: ignore[arg-type]
        await reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    play(act)
    assert (world.head.keys, world.head.grants) == (set(), {})
    assert [line["rule"] for line in world.trail("start.refused")] == ["engine.timeout"]
    # whatever was announced has an end, or its job would be said to have left a key
    told = [*world.trail("key.delete"), *world.trail("key.unmade")]
    assert sorted(line["key"] for line in told) == sorted(line["key"] for line in world.trail("key.create"))


def test_a_key_that_is_gone_is_proved_although_another_has_to_wait(world: World) -> None:
    start(world)
    made = set(world.head.keys)
    world.note(17, "n1", "n2")
    world.head.away = {"n2"}
    with pytest.raises(BackendUnavailable):
        end(world)
    assert [line["node"] for line in world.trail("key.delete")] == ["n1"]
    assert len(list(world.notes.iterdir())) == 1

    assert asyncio.run(world.daemon.pending.once()) is False
    world.head.away = set()
    assert asyncio.run(world.daemon.pending.once()) is True

    assert {line["key"] for line in world.trail("key.delete")} == made
    assert len(world.trail("key.delete")) == 2
    assert (world.head.keys, world.head.grants, list(world.notes.iterdir())) == (set(), {}, [])


def test_a_note_without_a_message_is_enough(world: World) -> None:
    start(world)
    world.note(17, "n1", "n2")

    assert asyncio.run(world.daemon.pending.once()) is True
    assert (world.head.keys, world.head.grants, list(world.notes.iterdir())) == (set(), {}, [])


def test_one_job_that_cannot_be_ended_keeps_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    start(world)
    world.note(17, "n1", "n2")
    # two names that are one to Vault: refused each time; and a defect
    world.note(15, "n1", "N1")
    world.note(16, "n3")
    destroy = lifecycle_keys.destroy

    def broken(head: Any, job: str, nodes: tuple[str, ...], **_: object) -> Any:
        if job == "16":
            raise RuntimeError("a defect")
        return destroy(head, job, nodes)

    monkeypatch.setattr(lifecycle_keys, "destroy", broken)
    assert asyncio.run(world.daemon.pending.once()) is False
    assert world.head.keys == set()
    assert sorted(path.name.partition(".")[0] for path in world.notes.iterdir()) == ["15", "16"]


def test_without_the_folder_of_notes_nothing_starts_and_the_looking_goes_on(world: World) -> None:
    world.notes.rmdir()

    assert asyncio.run(world.daemon.pending.once()) is False
    with pytest.raises(SecureSlurmError, match="notes"):
        start(world)
    assert world.head.keys == set()
    world.notes.mkdir()
    assert asyncio.run(world.daemon.pending.once()) is True
    assert start(world)["verdict"] == "allow"


def test_ping(world: World) -> None:
    start(world)
    world.note(9, "n3")

    assert asyncio.run(world.daemon.ping({}, PEER)) == {"verdict": "allow", "open": "1", "pending": "1"}


def test_live_takes_a_request_whole(folder: Path) -> None:
    """What a request was given does not change under it."""
    live = Live(str(folder / "policy.yaml"), Members())  # type: ignore[arg-type]
    context = live.context()
    text = (folder / "policy.yaml").read_text()
    (folder / "policy.yaml").write_text(text.replace("max_scratch: 1T", "max_scratch: 2T"))
    live.look()

    assert isinstance(context, Context)
    assert live.policy == load_policy(str(folder / "policy.yaml")) != context.policy
    assert live.context().policy is live.policy


@pytest.mark.parametrize("connected", ["", "i-0aaaaaaaaaaaaaaa1"])
def test_another_instance_under_a_nodes_name(world: World, connected: str) -> None:
    """Whether the first one was there when the job began, or booted for it."""
    links = world.daemon.revoker.links
    if connected:
        links.nodes["n1"] = Connected("n1", None, "1", "eu", 0.0, machine=connected)  # type: ignore[arg-type]
    start(world)
    if not connected:
        links.arrived("n1", "i-0aaaaaaaaaaaaaaa1")
    asyncio.run(world.daemon.tenants.once())
    assert len(world.head.keys) == 2

    links.arrived("n1", "i-0bbbbbbbbbbbbbbb2")
    world.head.away = {"*"}
    asyncio.run(world.daemon.tenants.once())
    assert world.daemon.tenants.waiting == 1
    world.head.away = set()
    asyncio.run(world.daemon.tenants.once())

    assert list(world.head.grants) == [("n2", "17")]
    assert [key.partition("_")[0] for key in world.head.keys] == ["n2"]
    (line,) = world.trail("revocation.done")
    assert (line["job"], line["node"], line["count"]) == (17, "n1", 1)
    assert [line["node"] for line in world.trail("key.delete")] == ["n1"]
    assert end(world)["destroyed"] == "1"


def test_a_node_that_a_running_job_has_lost(world: World) -> None:
    incarnation = str(start(world)["incarnation"])
    asyncio.run(world.daemon._take_start(17, "n2", "ef" * 16))
    assert len(world.head.keys) == 2
    asyncio.run(world.daemon._take_start(17, "n2", incarnation))

    assert list(world.head.grants) == [("n1", "17")]
    assert [path.name for path in world.running.iterdir()] == ["17"]
