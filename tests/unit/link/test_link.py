"""The link between node and head node, both ends over real TLS: who gets in, and what ends a connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BackendUnavailable, ConfigError, Refused, SecureSlurmError
from conf.site import Link
from slurm_hooks import link, presence, wire
from slurm_hooks.link import Channel
from slurm_hooks.links import Connected, Links
from slurm_hooks.presence import Present
from tests.testbed.pki import CA, Pair

INCARNATION = "ab" * 16
HELLO = {"node": "n1", "boot": "b", "version": "1", "jurisdiction": "eu"}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CA:
    return CA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def head(ca: CA) -> Pair:
    return ca.server("head", ["127.0.0.1"])


class Head:
    """The head node's end, and what it heard."""

    def __init__(self, ca: CA, pair: Pair, enrolled_in: str = "") -> None:
        site = Link(
            listen="127.0.0.1:0",
            certificate=str(pair.certificate),
            private_key=str(pair.private_key),
            ca_file=str(ca.certificate),
        )
        self.heard: list[tuple[str, dict[int, Present]]] = []
        self.links = Links(site, self._heard, enrolled_in)

    def _heard(self, connected: Connected) -> None:
        self.heard.append((connected.node, dict(connected.jobs or {})))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.links.port}"


def context(pair: Pair, ca: CA) -> ssl.SSLContext:
    return link.client_context(str(pair.certificate), str(pair.private_key), str(ca.certificate))


def run(ca: CA, pair: Pair, act: Callable[[Head], Awaitable[Any]], enrolled_in: str = "") -> Any:
    async def both() -> Any:
        head = Head(ca, pair, enrolled_in)
        async with asyncio.timeout(30), head.links:
            return await act(head)

    return asyncio.run(both())


async def until(ready: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not ready():
            await asyncio.sleep(0.01)


async def connect(head: Head, pair: Pair, ca: CA, hello: dict[str, str] | None = None) -> Channel:
    channel, _ = await link.dial(head.address, context(pair, ca))
    await channel.send("hello", HELLO if hello is None else hello)
    return channel


async def ended(channel: Channel) -> str:
    """Why a connection ended."""
    with pytest.raises(wire.WireError) as caught:
        while True:
            await channel.receive(10)
    return str(caught.value)


# -- who gets in -----------------------------------------------------------------------------------------------------


def test_no_certificate(ca: CA, head: Pair) -> None:
    async def act(there: Head) -> None:
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.load_verify_locations(ca.certificate)
        with pytest.raises(BackendUnavailable):
            await link.dial(there.address, bare)
        assert not there.links.nodes

    run(ca, head, act)


def test_a_certificate_of_another_ca(ca: CA, head: Pair, tmp_path: Path) -> None:
    other = CA(tmp_path / "other")

    async def act(there: Head) -> None:
        mine = context(other.client("n1"), other)
        mine.load_verify_locations(ca.certificate)
        with pytest.raises(BackendUnavailable):
            await link.dial(there.address, mine)
        assert not there.links.nodes

    run(ca, head, act)


def test_a_server_certificate_is_no_nodes(ca: CA, head: Pair, tmp_path: Path) -> None:
    async def act(there: Head) -> None:
        with pytest.raises(BackendUnavailable):
            await link.dial(there.address, context(ca.server("n1", ["n1"], tmp_path), ca))

    run(ca, head, act)


@pytest.mark.parametrize("name", ["n_1", "n1 ", "../n1", "n1/n2", "-n1", "nœud", "n1\x00", "a" * 64])
def test_a_name_that_is_no_nodes_name(ca: CA, head: Pair, name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="common name") as caught:
        link.peer_name({"subject": ((("commonName", name),),)})
    assert caught.value.rule == "link.name"


@pytest.mark.parametrize(
    "certificate",
    [None, {}, {"subject": ()}, {"subject": ((("commonName", "n1"),), (("commonName", "n2"),))}],
)
def test_a_certificate_without_one_name(certificate: dict[str, Any] | None) -> None:
    with pytest.raises(Refused):
        link.peer_name(certificate)


def test_the_head_node_shows_a_certificate_for_another_name(ca: CA, tmp_path: Path) -> None:
    wrong = ca.server("elsewhere", ["elsewhere"], tmp_path)

    async def act(there: Head) -> None:
        with pytest.raises(BackendUnavailable, match="certificate is refused"):
            await link.dial(there.address, context(ca.client("n1", tmp_path), ca))

    run(ca, wrong, act)


def test_the_head_node_is_of_another_ca(ca: CA, tmp_path: Path) -> None:
    other = CA(tmp_path / "other")
    fake = other.server("head", ["127.0.0.1"])

    async def act(there: Head) -> None:
        with pytest.raises(BackendUnavailable, match="certificate is refused"):
            await link.dial(there.address, context(ca.client("n1", tmp_path), ca))

    run(other, fake, act)


def test_an_older_tls_is_refused(ca: CA, head: Pair, tmp_path: Path) -> None:
    async def act(there: Head) -> None:
        old = context(ca.client("n1", tmp_path), ca)
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(BackendUnavailable):
            await link.dial(there.address, old)

    run(ca, head, act)


def test_the_daemon_of_another_node_with_this_nodes_certificate(ca: CA, head: Pair, tmp_path: Path) -> None:
    async def act(there: Head) -> None:
        channel = await connect(there, ca.client("n1", tmp_path), ca, {**HELLO, "node": "n2"})
        await ended(channel)
        assert not there.links.nodes

    run(ca, head, act)


def test_plain_text(ca: CA, head: Pair) -> None:
    async def act(there: Head) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", there.links.port)
        writer.write(wire.encode({"verb": "hello", "nonce": "x"}))
        assert await reader.read() == b""
        writer.close()

    run(ca, head, act)


def test_a_key_of_another_certificate_is_a_config_error(ca: CA, tmp_path: Path) -> None:
    one, two = ca.client("n1", tmp_path), ca.client("n2", tmp_path)
    with pytest.raises(ConfigError, match="cannot be used"):
        link.client_context(str(one.certificate), str(two.private_key), str(ca.certificate))
    with pytest.raises(ConfigError, match="cannot be used"):
        link.client_context(str(tmp_path / "none"), str(two.private_key), str(ca.certificate))


# -- what ends a connection ------------------------------------------------------------------------------------------


def raw(nonce: str, **fields: str) -> bytes:
    return wire.encode({"verb": "jobs", "nonce": nonce, "jobs": "", "report": "r", **fields})


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(lambda session: raw(f"{session}.n.1"), id="repeated"),
        pytest.param(lambda session: raw(f"{session}.n.3"), id="one is missing"),
        pytest.param(lambda session: raw(f"{session}.h.2"), id="the head node's own"),
        pytest.param(lambda _: raw(f"{'0' * 32}.n.2"), id="of another session"),
        pytest.param(lambda _: raw("2"), id="no proper nonce"),
        pytest.param(lambda _: wire.encode({"verb": "jobs"}), id="no nonce"),
        pytest.param(lambda session: wire.encode({"verb": "what", "nonce": f"{session}.n.2"}), id="unknown"),
        pytest.param(lambda session: raw(f"{session}.n.2", jobs="17:zz:running"), id="malformed jobs"),
        pytest.param(lambda _: b"SS1 1048577\n", id="announces too much"),
        pytest.param(lambda _: b"x" * (wire.MAX_BODY + 4096), id="no end"),
        pytest.param(lambda _: b"GET / HTTP/1.1\r\n\r\n", id="garbage"),
    ],
)
def test_a_bad_message_ends_it(ca: CA, head: Pair, tmp_path: Path, message: Callable[[str], bytes]) -> None:
    async def act(there: Head) -> None:
        channel = await connect(there, ca.client("n1", tmp_path), ca)
        await until(lambda: "n1" in there.links.nodes)
        channel._writer.write(message(channel._session))
        await ended(channel)
        await until(lambda: "n1" not in there.links.nodes)
        assert there.heard == []

    run(ca, head, act)


def test_silence_ends_it(ca: CA, head: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Channel.receive, "__defaults__", (0.2,))

    async def act(there: Head) -> None:
        channel = await connect(there, ca.client("n1", tmp_path), ca)
        await ended(channel)
        assert "n1" not in there.links.nodes

    run(ca, head, act)


def test_no_hello_in_time(ca: CA, head: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(there: Head) -> None:
        channel, _ = await link.dial(there.address, context(ca.client("n1", tmp_path), ca))
        monkeypatch.setattr(link, "HANDSHAKE", 0.2)
        await ended(channel)
        assert not there.links.nodes

    monkeypatch.setattr(link, "HANDSHAKE", 1.0)
    run(ca, head, act)


def test_whoever_does_not_shake_hands(ca: CA, head: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HANDSHAKE", 0.2)

    async def act(there: Head) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", there.links.port)
        assert await reader.read() == b""
        writer.close()

    run(ca, head, act)


def test_a_certificate_that_ends_meanwhile(ca: CA, head: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(link, "valid_until", lambda _: time.time() + 0.3)

    async def act(there: Head) -> None:
        channel = await connect(there, ca.client("n1", tmp_path), ca)
        await ended(channel)
        await until(lambda: "n1" not in there.links.nodes)

    run(ca, head, act)


def test_a_second_connection_takes_the_place_of_the_first(ca: CA, head: Pair, tmp_path: Path) -> None:
    pair = ca.client("n1", tmp_path)

    async def act(there: Head) -> None:
        first = await connect(there, pair, ca)
        await until(lambda: "n1" in there.links.nodes)
        before = there.links.nodes["n1"]
        second = await connect(there, pair, ca)
        await ended(first)
        await until(lambda: there.links.nodes.get("n1") not in (None, before))
        await second.send("jobs", {"jobs": f"17:{INCARNATION}:running", "report": "r"})
        assert (await second.receive())[0] == "heard"
        assert there.heard == [("n1", {17: Present(17, INCARNATION, "running")})]
        second.close()

    run(ca, head, act)


# -- what it does ----------------------------------------------------------------------------------------------------


def test_an_order_and_its_answer(ca: CA, head: Pair, tmp_path: Path) -> None:
    async def act(there: Head) -> None:
        channel = await connect(there, ca.client("n1", tmp_path), ca)
        await channel.send("jobs", {"jobs": f"17:{INCARNATION}:running", "report": "r"})
        await until(lambda: there.heard)
        assert (await channel.receive())[1]["report"] == b"r"
        order = asyncio.create_task(there.links.stop("n1", 17, "a reason", 10))
        verb, fields = await channel.receive()
        assert (verb, fields["job"], fields["incarnation"]) == ("stop", b"17", INCARNATION.encode())
        await channel.send("stopped", {"order": "of nobody", "result": "stopped"})
        assert not order.done()
        await channel.send("stopped", {"order": fields["order"], "result": "stopped"})
        assert await order == "stopped"
        channel.close()

    run(ca, head, act)


def test_an_order_to_a_node_that_is_away_or_goes_away(ca: CA, head: Pair, tmp_path: Path) -> None:
    async def act(there: Head) -> None:
        with pytest.raises(BackendUnavailable, match="not connected"):
            await there.links.stop("n1", 17, "", 10)
        channel = await connect(there, ca.client("n1", tmp_path), ca)
        await until(lambda: "n1" in there.links.nodes)
        with pytest.raises(BackendUnavailable, match="not answered"):
            await there.links.stop("n1", 17, "", 0.1)
        order = asyncio.create_task(there.links.stop("n1", 17, "", 10))
        await asyncio.sleep(0.05)
        channel.close()
        with pytest.raises(BackendUnavailable, match="broke"):
            await order

    run(ca, head, act)


def test_a_head_node_that_stands_by_takes_no_node_and_renews_no_lease(ca: CA, head: Pair) -> None:
    node = ca.client("n1")

    async def act(mine: Head) -> None:
        channel, _ = await link.dial(mine.address, context(node, ca))
        await channel.send("hello", HELLO)
        await until(lambda: "n1" in mine.links.nodes)
        early, _ = await link.dial(mine.address, context(node, ca))
        mine.links.shut()
        with pytest.raises(wire.WireError):
            await channel.receive()
        await until(lambda: not mine.links.nodes)
        # one that was greeted just before is not taken either
        await early.send("hello", HELLO)
        with pytest.raises(wire.WireError):
            await early.receive()
        with pytest.raises(SecureSlurmError):
            await link.dial(mine.address, context(node, ca))
        assert mine.links.nodes == {}
        mine.links.open()
        again, _ = await link.dial(mine.address, context(node, ca))
        await again.send("hello", HELLO)
        await until(lambda: "n1" in mine.links.nodes)
        again.close()

    run(ca, head, act)


def test_no_link_listens_nowhere() -> None:
    async def act() -> int:
        async with Links(Link(), lambda _: None) as links:
            return links.port

    assert asyncio.run(act()) == 0


def test_a_port_that_is_taken(ca: CA, head: Pair) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        site = Link(
            listen=f"127.0.0.1:{taken.getsockname()[1]}",
            certificate=str(head.certificate),
            private_key=str(head.private_key),
            ca_file=str(ca.certificate),
        )

        async def act() -> None:
            async with Links(site, lambda _: None):
                raise AssertionError

        with pytest.raises(ConfigError, match="cannot listen"):
            asyncio.run(act())


def test_where_nodes_connect_to() -> None:
    assert link.addresses((), "0.0.0.0:6830", ("head", "backup")) == ("head:6830", "backup:6830")
    assert link.addresses(("h:1",), "0.0.0.0:6830", ("head",)) == ("h:1",)


# -- the list of jobs ------------------------------------------------------------------------------------------------


def test_the_list_of_jobs_comes_back() -> None:
    jobs = {17: Present(17, INCARNATION, "running"), 18: Present(18, "", "stopped")}
    assert presence.read(presence.write(jobs.values())) == jobs
    assert presence.read("") == {}


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "17",
        "17:x:running",
        "017::running",
        "17::dead",
        "17::running,17::running",
        "17::running\n",
        "\u0661::running",
    ],
)
def test_another_list_is_refused(text: str) -> None:
    with pytest.raises(wire.WireError):
        presence.read(text)
