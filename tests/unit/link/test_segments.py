"""A node's audit lines on their way: read by the hand, sent by the node daemon, kept by the head node."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from audit import sealing
from audit.chain import Chain
from audit.line import GENESIS, Link
from audit.verify import verify
from conf.errors import BackendUnavailable, Refused
from slurm_hooks import handd, link, segments, segments_send
from slurm_hooks.links import Links
from slurm_hooks.segments import Segments
from slurm_hooks.segments_link import Intake
from slurm_hooks.segments_read import Reader, answer
from slurm_hooks.segments_send import Sender
from slurm_hooks.serve import Answer, Fields, Peer
from slurm_hooks.wire import WireError
from tests.unit.link import test_nodelink as nodelink

GONE = {"job": 17, "node": "n1", "evidence": "nothing is there"}


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def of(self, event: str) -> list[dict[str, object]]:
        return [fields for name, fields in self.events if name == event]


class World:
    """A node's folder and the head node's."""

    def __init__(self, folder: Path) -> None:
        self.node = folder / "node-n1"
        self.node.mkdir()
        (folder / "lifecycle").mkdir()
        self.folder = folder / "lifecycle/nodes"
        self.told = Told()
        self.now = 0.0
        self.boot = ""
        self.restart()
        self.reader = Reader(str(self.node), "n1")

    def restart(self) -> None:
        self.head = Segments(str(self.folder), self.told, lambda: self.now)

    def write(self, count: int = 1, **fields: object) -> Chain:
        chain = Chain(self.node, "node", "n1")
        chain.boot = self.boot or chain.boot
        for _ in range(count):
            chain.append("scratch.gone", durable=True, **{**GONE, **fields})
        return chain

    def held(self) -> Link:
        said = self.head.take("n1", "node", b"")
        return Link(int(str(said["seq"])), str(said["hash"]))

    def send(self) -> str:
        """Everything there is; the problem that the head node had."""
        while lines := self.reader.after("node", self.held()):
            problem = str(self.head.take("n1", "node", lines)["problem"])
            if problem:
                return problem
        return ""

    def copy(self) -> Path:
        return self.folder / "n1/n1-node.jsonl"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_lines_arrive_byte_for_byte(world: World) -> None:
    world.write(3)
    assert world.send() == ""
    assert world.copy().read_bytes() == (world.node / "n1-node.jsonl").read_bytes()
    world.write(2)
    assert world.send() == ""
    assert world.copy().read_bytes() == (world.node / "n1-node.jsonl").read_bytes()
    report = verify([world.folder])
    assert (report.findings, report.events) == ([], 5)
    assert not world.told.events


def test_both_can_be_read_together(world: World) -> None:
    world.write(3)
    world.send()
    assert verify([world.node.parent]).findings == []


def test_what_is_not_on_the_nodes_disk_is_not_sent(world: World) -> None:
    chain = world.write(1)
    chain.append("scratch.gone", durable=False, **GONE)
    world.send()
    assert world.held().seq == 1
    chain.flush()
    world.send()
    assert world.held().seq == 2


def test_it_goes_on_after_a_restart_of_either(world: World) -> None:
    world.write(3)
    world.send()
    world.write(2)
    world.restart()
    world.reader = Reader(str(world.node), "n1")
    assert world.held().seq == 3
    assert world.send() == ""
    assert verify([world.folder]).events == 5


def test_a_torn_end_that_was_never_confirmed_is_written_anew(world: World) -> None:
    world.write(2)
    world.send()
    with world.copy().open("ab") as file:
        file.write(b'{"v":1,"seq":3,"ti')
    world.restart()
    world.write(1)
    assert world.send() == ""
    assert verify([world.folder]).findings == []


def test_a_line_that_was_kept_and_not_yet_confirmed(world: World) -> None:
    world.write(2)
    lines = world.reader.after("node", world.held())
    world.head.take("n1", "node", lines)
    # the head file is behind, as after a crash
    Path(f"{world.copy()}.head").unlink()
    world.restart()
    assert world.held().seq == 2


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def forged(world: World) -> bytes:
    """The node's third line as somebody would rather have it, in a chain that fits together."""
    world.write(3)
    world.send()
    text = (world.node / "n1-node.jsonl").read_bytes().splitlines(keepends=True)
    for path in world.node.iterdir():
        path.unlink()
    (world.node / "n1-node.jsonl").write_bytes(b"".join(text[:2]))
    Path(world.node / "n1-node.jsonl.head").write_text(json.dumps({"seq": 2, "hash": json.loads(text[1])["hash"]}))
    world.write(2, evidence="another story")
    return b"".join((world.node / "n1-node.jsonl").read_bytes().splitlines(keepends=True)[2:])


def test_a_rewritten_line_is_refused_and_told_once(world: World, forged: bytes) -> None:
    before = world.copy().read_bytes()
    for _ in range(3):
        said = world.head.take("n1", "node", forged)
        assert "sent a second time" in str(said["problem"])
        assert said["seq"] == "3"
    assert world.copy().read_bytes() == before
    (told,) = world.told.of("segment.refused")
    assert (told["node"], told["trail"], told["rule"]) == ("n1", "node", "segment.fork")
    (problem,) = world.head.report(["n1"])["problems"]
    assert problem["node"] == "n1"
    assert "a second time" in problem["why"]


def test_what_the_hand_of_such_a_node_gives_is_refused_as_well(world: World, forged: bytes) -> None:
    assert forged
    world.reader = Reader(str(world.node), "n1")
    assert "begins anew" in world.send()


def test_a_line_of_another_node(world: World) -> None:
    world.write(1)
    lines = world.reader.after("node", GENESIS)
    assert "another host" in str(world.head.take("n2", "node", lines)["problem"])
    assert not (world.folder / "n2/n2-node.jsonl").exists()


@pytest.mark.parametrize(("node", "writer"), [("n1", "lifecycle"), ("n1", "../x"), ("..", "node"), ("n/1", "node")])
def test_names_that_are_none(world: World, node: str, writer: str) -> None:
    assert world.head.take(node, writer, b"x\n")["problem"]
    assert not world.folder.exists()


def test_more_than_a_node_may_send(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "BURST", 2000)
    world.write(4)
    lines = world.reader.after("node", GENESIS)
    first, rest = lines.splitlines(keepends=True)[:3], lines.splitlines(keepends=True)[3:]
    assert world.head.take("n1", "node", b"".join(first))["problem"] == ""
    for _ in range(3):
        assert "for ever" in str(world.head.take("n1", "node", b"".join(rest) * 3)["problem"])
    assert [told["rule"] for told in world.told.of("segment.refused")] == ["segment.rate"]
    world.now += 3600
    assert world.head.take("n1", "node", b"".join(rest))["problem"] == ""
    assert world.head.report(["n1"])["problems"] == []


def test_a_disk_that_is_nearly_full_keeps_room_for_the_head_nodes_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(1)
    monkeypatch.setattr(segments, "FREE", 1.01)
    assert "nearly full" in world.send()
    assert world.held() == GENESIS
    monkeypatch.undo()
    assert world.send() == ""


def test_a_copy_that_was_cut_on_the_head_node_takes_nothing_more(world: World) -> None:
    world.write(3)
    world.send()
    text = world.copy().read_bytes().splitlines(keepends=True)
    world.copy().write_bytes(b"".join(text[:2]))
    world.restart()
    assert "holds less than its head file says" in str(world.head.take("n1", "node", b"")["problem"])
    (problem,) = world.head.report(["n1"])["problems"]
    assert (problem["node"], problem["trail"]) == ("n1", "node")


def test_a_write_that_failed_behind_the_lines_writes_none_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    world.write(2)
    monkeypatch.setattr(segments, "write_head", fail)
    assert "No space left" in world.send()
    assert world.head.report(["n1"])["problems"]
    monkeypatch.undo()
    world.write(1)
    assert world.send() == ""
    assert world.copy().read_bytes() == (world.node / "n1-node.jsonl").read_bytes()
    assert world.head.report(["n1"])["problems"] == []


# -- gaps, and the successor of a machine ----------------------------------------------------------------------------


def test_lines_that_a_node_has_lost_are_told(world: World) -> None:
    world.write(6)
    text = (world.node / "n1-node.jsonl").read_bytes().splitlines(keepends=True)
    (world.node / "n1-node.jsonl").write_bytes(b"".join(text[:1] + text[4:]))
    assert world.send() == ""
    (told,) = world.told.of("segment.gap")
    assert (told["lost"], told["count"]) == (3, 6)
    assert world.head.report(["n1"])["problems"] == [
        {"node": "n1", "trail": "node", "why": "3 lines of it are missing"}
    ]
    assert [found.kind for found in verify([world.folder]).findings] == ["missing"]


def test_the_successor_of_a_terminated_machine(world: World) -> None:
    world.write(3)
    world.send()
    for path in world.node.iterdir():
        path.unlink()
    world.boot = "22222222-2222-4222-8222-222222222222"
    world.reader = Reader(str(world.node), "n1")
    world.write(2)
    assert world.send() == ""
    (told,) = world.told.of("segment.begun")
    assert told["count"] == 3
    assert world.held().seq == 2
    assert len(list(world.copy().parent.glob("n1-node.jsonl.0*"))) == 1
    report = verify([world.folder])
    assert (report.findings, report.events) == ([], 5)
    # and over a restart
    world.restart()
    world.write(1)
    assert world.send() == ""
    assert verify([world.folder]).events == 6


def test_segments_that_a_node_has_sealed_arrive_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "SEGMENT_BYTES", 1500)
    world.write(12)
    assert len(list(world.node.glob("*.jsonl.0*"))) > 1
    monkeypatch.undo()
    assert world.send() == ""
    assert world.held().seq == 12
    assert verify([world.folder]).findings == []


def test_a_node_that_is_connected_and_silent_is_shown(world: World) -> None:
    assert world.head.report(["n7"])["problems"][0]["node"] == "n7"


# -- for the certificate ---------------------------------------------------------------------------------------------


def test_what_is_known_about_a_job(world: World) -> None:
    start = "ab" * 16
    assert not world.head.has_said_gone("n1", 17, start)
    world.write(1, incarnation=start)
    world.write(1, job=18)
    world.send()
    assert world.head.has_said_gone("n1", 17, start)
    assert not world.head.has_said_gone("n1", 17, "cd" * 16)
    assert world.head.has_said_gone("n1", 18, start)
    assert world.head.end("n1").seq == 2
    assert world.head.end("n2") == GENESIS
    world.restart()
    assert [line["job"] for line in world.head.about("n1", 17)] == [17]
    assert list(world.head.about("n2", 17)) == []


# -- the hand's part -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"writer": b"node", "seq": b"1"},
        {"writer": b"lifecycle", "seq": b"0", "hash": b"0" * 64},
        {"writer": b"node", "seq": b"-1", "hash": b"0" * 64},
        {"writer": b"node", "seq": b"0", "hash": b"0" * 63},
        {"writer": b"../../etc/passwd", "seq": b"0", "hash": b"0" * 64},
    ],
)
def test_a_malformed_question(world: World, fields: dict[str, bytes]) -> None:
    with pytest.raises(WireError):
        answer(world.reader, fields)


def test_a_link_in_place_of_a_trail_is_not_followed(world: World, tmp_path: Path) -> None:
    world.write(1)
    (world.node / "n1-node.jsonl").rename(tmp_path / "elsewhere")
    (world.node / "n1-node.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        world.reader.after("node", GENESIS)


def test_no_trail_is_nothing_to_send(world: World) -> None:
    assert world.reader.after("hand", GENESIS) == b""


# -- between them ----------------------------------------------------------------------------------------------------


class Channel:
    """One side of a connection."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.closed = False

    async def send(self, verb: str, fields: dict[str, Any]) -> None:
        self.sent.append((verb, fields))

    def close(self) -> None:
        self.closed = True


def test_the_sender_waits_for_each_answer_and_rests_after_a_refusal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.01)
    world.write(3)
    channel, problem = Channel(), ["", "", "no"]

    async def ask(request: dict[str, bytes | str], _: float) -> dict[str, bytes]:
        fields = {name: str(value).encode() for name, value in request.items()}
        return {name: value.encode() for name, value in answer(world.reader, fields).items()}

    async def main() -> None:
        sender = Sender(ask)
        task = asyncio.create_task(sender.keep(channel))  # type: ignore[arg-type]
        while len(channel.sent) < 3:
            if channel.sent and not done(sender):
                _, fields = channel.sent[-1]
                reply = world.head.take("n1", fields["writer"], fields["lines"])
                sender.kept({name: str(value).encode() for name, value in reply.items()})
            await asyncio.sleep(0.01)
        reply = {"seq": b"0", "hash": b"0" * 64, "problem": problem[2].encode()}
        sender.kept(reply)
        await asyncio.sleep(0.1)
        assert len(channel.sent) == 3
        with pytest.raises(WireError):
            sender.kept(reply)
        task.cancel()

    def done(sender: Sender) -> bool:
        return sender._answer is None or sender._answer.done()

    asyncio.run(main())
    # what is held is asked for first, of both trails; then come the lines
    assert [fields["lines"] == b"" for _, fields in channel.sent] == [True, True, False]


def test_the_sender_gives_up_a_connection_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_send, "KEPT", 0.05)
    channel = Channel()

    async def ask(_: dict[str, bytes | str], __: float) -> dict[str, bytes]:
        raise BackendUnavailable("the hand is away")

    asyncio.run(Sender(ask).keep(channel))  # type: ignore[arg-type]
    assert channel.closed


def test_one_message_at_a_time(world: World) -> None:
    world.write(1)
    lines = world.reader.after("node", GENESIS)
    channel = Channel()

    async def main() -> None:
        intake = Intake(world.head)
        intake.take("n1", channel, {"writer": b"node", "lines": lines})  # type: ignore[arg-type]
        with pytest.raises(WireError, match="without waiting"):
            intake.take("n1", channel, {"writer": b"node", "lines": lines})  # type: ignore[arg-type]
        while not channel.sent:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert channel.sent[0][1]["seq"] == "1"


def test_modes(world: World) -> None:
    os.umask(0o022)
    world.write(1)
    world.send()
    assert world.copy().stat().st_mode & 0o777 == 0o640


def test_refused_is_what_a_bad_name_is(world: World) -> None:
    with pytest.raises(Refused):
        world.head._chain("n1", "x")


class Both(nodelink.World):
    """A head node and a node over real TLS; the hand reads a real trail."""

    def __init__(self, folder: Path, world: World) -> None:
        super().__init__(folder)
        self.world = world
        self.forged = False

    async def verb(self, fields: Fields, peer: Peer) -> Answer:
        if fields["verb"] == b"trail":
            lines = answer(self.world.reader, fields)["lines"]
            return {"verdict": "allow", "lines": lines.replace("nothing", "nobody!") if self.forged else lines}
        return await super().verb(fields, peer)


def test_over_tls_until_the_head_node_has_everything(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.05)
    (tmp_path / "link").mkdir()
    both = Both(tmp_path / "link", world)
    world.write(3)
    own = world.node / "n1-node.jsonl"

    async def arrived() -> None:
        while not world.copy().exists() or world.copy().read_bytes() != own.read_bytes():
            await asyncio.sleep(0.01)

    async def act(links: Links) -> None:
        links.intake = Intake(world.head)
        await arrived()
        # the connection breaks, and it goes on behind what is held
        world.write(2)
        links.nodes["n1"].channel.close()
        await arrived()
        # what is forged is refused, the connection stays
        both.forged = True
        world.write(1)
        while not world.told.of("segment.refused"):
            await asyncio.sleep(0.01)
        while "n1" not in links.nodes:
            await asyncio.sleep(0.01)

    both.play(act)
    assert verify([world.folder]).events == 5
    assert world.told.of("segment.refused")[0]["rule"] == "segment.changed"


def test_the_hand_answers_for_its_trail(world: World, tmp_path: Path) -> None:
    chain = world.write(2)
    hand = handd.Hand("n1", str(tmp_path), 0.0, chain)
    question = {"verb": b"trail", "writer": b"node", "seq": b"0", "hash": b"0" * 64}
    assert handd.answer(hand, question)["lines"].encode() == (world.node / "n1-node.jsonl").read_bytes()
    with pytest.raises(WireError):
        handd.answer(hand, {**question, "hash": b"x"})
    # a hand that has no trail says so, and nothing else breaks
    with pytest.raises(OSError, match="No such file"):
        handd.answer(handd.Hand("n1", str(tmp_path), 0.0, None), question)
