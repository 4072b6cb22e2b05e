"""Whether there is a way out, tried in network namespaces of the tests' own: no packet leaves this machine."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin.doctor import connect
from admin.doctor.facts import Attempt
from admin.doctor.finding import Finding
from admin.doctor.judge_machine import no_way_out
from conf.site import Doctor
from tests.testbed.need import need

NODE, FAR = "outside-node", "outside-far"
RESOLVER = "10.88.0.1"
TARGETS = Doctor().outside
ADDRESSES = sorted({host for host, _ in map(connect.split, TARGETS) if host[0].isdigit()})
# of each port the last one: DNS, HTTPS over IPv6, NTP
NUMBERED = list({connect.split(each)[1]: each for each in TARGETS if each.lstrip("[")[0].isdigit()}.values())
NAMED = "192.0.2.80"
# an answer has to come from where the question went to
(TIME,) = (host for host, port in map(connect.split, TARGETS) if port == connect.NTP)
CONNECT = str(Path(connect.__file__))
# the world: TCP on every port that is tried, a time server, and a name server that knows one address for every name
WORLD = """
import socket, struct, sys, threading
resolver, named, clock, *ports = sys.argv[1:]
def accept(server):
    while True:
        connection, _ = server.accept()
        print("sent" if connection.recv(1) else "nothing", flush=True)
        connection.close()
def udp(address, answer):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); server.bind(address)
    while True:
        said, peer = server.recvfrom(512); server.sendto(answer(said), peer)
def name(said):
    body = said[12:].split(b"\\0", 1)[0] + b"\\0"
    asked = said[12 + len(body):16 + len(body)]
    found = asked[:2] == b"\\0\\1"
    head = said[:2] + struct.pack(">HHHHH", 0x8180, 1, found, 0, 0) + body + asked
    return head + (b"\\xc0\\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(named) if found else b"")
for port in ports:
    server = socket.create_server(("", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=accept, args=(server,), daemon=True).start()
threading.Thread(target=udp, args=((clock, 123), bytes), daemon=True).start()
threading.Thread(target=udp, args=((resolver, 53), name), daemon=True).start()
print("ready", flush=True); sys.stdin.read()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


def in_node(*argv: str, check: bool = True) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", NODE, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ},
    )
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def world() -> Iterator[subprocess.Popen[str]]:
    """A node with a cable to a world that answers everything; no route to it yet."""
    need("ip", "nft", "setpriv", root=True)
    for space in (NODE, FAR):
        subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
    ip("-n", NODE, "link", "add", "out0", "type", "veth", "peer", "name", "in0", "netns", FAR)
    ip("-n", NODE, "addr", "add", "10.88.0.2/24", "dev", "out0")
    ip("-n", NODE, "addr", "add", "fd88::2/64", "dev", "out0", "nodad")
    ip("-n", FAR, "addr", "add", "fd88::1/64", "dev", "in0", "nodad")
    for address in (f"{RESOLVER}/24", f"{NAMED}/32", *(f"{each}/32" for each in ADDRESSES if ":" not in each)):
        ip("-n", FAR, "addr", "add", address, "dev", "in0")
    for address in (each for each in ADDRESSES if ":" in each):
        ip("-n", FAR, "addr", "add", f"{address}/128", "dev", "in0", "nodad")
    for space, device in ((NODE, "out0"), (FAR, "in0")):
        ip("-n", space, "link", "set", device, "up")
    folder = Path(f"/etc/netns/{NODE}")
    folder.mkdir(parents=True)
    ports = sorted({str(connect.split(each)[1]) for each in TARGETS} - {"123"})
    argv = ["ip", "netns", "exec", FAR, sys.executable, "-c", WORLD, RESOLVER, NAMED, TIME, *ports]
    (folder / "resolv.conf").write_text("")
    try:
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            assert running.stdin is not None
            assert running.stdout.readline() == "ready\n"
            yield running
            running.terminate()
    finally:
        for space in (NODE, FAR):
            ip("netns", "del", space)
        (folder / "resolv.conf").unlink()
        folder.rmdir()


@pytest.fixture
def node(world: subprocess.Popen[str]) -> Iterator[Path]:
    """The node without route, rules or name server; the file for its name server."""
    resolver = Path(f"/etc/netns/{NODE}/resolv.conf")
    yield resolver
    for family in ("-4", "-6"):
        in_node("ip", family, "route", "flush", "default", check=False)
    in_node("nft", "flush", "ruleset")
    resolver.write_text("")


def route() -> None:
    in_node("ip", "route", "add", "default", "via", RESOLVER)
    in_node("ip", "-6", "route", "add", "default", "via", "fd88::1")


def rules(policy: str, *more: str) -> None:
    """A firewall on the node; neighbour discovery passes, without which IPv6 has nobody to talk to."""
    chain = f"add table inet t; add chain inet t o {{ type filter hook output priority 0; policy {policy}; }}"
    discovery = "meta l4proto ipv6-icmp accept"
    in_node("nft", "; ".join([chain, *(f"add rule inet t o {each}" for each in (discovery, *more))]))


def look() -> Finding:
    """As doctor does: as nobody, and in the node's network."""
    as_nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]
    said = json.loads(in_node(*as_nobody, sys.executable, "-IS", CONNECT, "2", *TARGETS))
    return no_way_out(tuple(Attempt(each["target"], tuple(each["resolved"]), each["result"]) for each in said))


def test_a_network_with_a_way_out(node: Path) -> None:
    node.write_text(f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
    route()
    found = look()
    assert found.state == "fail"
    assert "1.1.1.1:53" in found.seen
    assert "and 1 more" in found.seen  # DNS, HTTP, HTTPS and NTP: each of them answers


@pytest.mark.parametrize("target", NUMBERED)
def test_one_way_out_is_enough(node: Path, target: str) -> None:
    host, port = connect.split(target)
    kind = "udp" if port == connect.NTP else "tcp"
    route()
    rules("drop", f"{'ip6' if ':' in host else 'ip'} daddr {host} {kind} dport {port} accept")
    found = look()
    assert (found.state, found.seen) == ("fail", f"an ordinary user reaches {target}")


def test_a_way_out_for_users_but_not_for_root(node: Path) -> None:
    route()
    rules("drop", "meta skuid 0 accept")
    assert look().state == "ok"
    in_node("nft", "add rule inet t o meta skuid 65534 accept")
    assert look().state == "fail"


def test_names_of_the_outside_are_resolved_though_nothing_gets_there(node: Path) -> None:
    node.write_text(f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
    found = look()
    assert (found.state, f"example.com ({NAMED})" in found.seen) == ("warn", True)


def test_a_firewall_that_rejects(node: Path) -> None:
    route()
    rules("accept", "meta l4proto tcp reject", "udp dport 123 drop")
    assert look().state == "warn"


@pytest.mark.parametrize("how", ["no route", "dropped", "unreachable"])
def test_no_way_out(node: Path, how: str) -> None:
    if how != "no route":
        route()
    if how == "dropped":
        rules("drop")
    if how == "unreachable":
        for family in ("-4", "-6"):
            in_node("ip", family, "route", "replace", "unreachable", "default")
    assert look().state == "ok"


def test_nothing_was_sent_over_any_connection(world: subprocess.Popen[str], node: Path) -> None:
    route()
    assert look().state == "fail"
    assert world.stdout is not None
    said = b""
    # what the connections of this test and of those before it came to; each was accepted before it was called open
    while select.select([world.stdout], [], [], 2)[0]:
        said += os.read(world.stdout.fileno(), 4096)
    assert set(said.split()) == {b"nothing"}
