"""The metadata service is closed by real rules in a real kernel, in network namespaces of the tests' own."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin import imds_cmd

SPACE, INNER = "imds-test", "imds-inner"
ADDRESSES = ["169.254.169.254", "fd00:ec2::254"]
ROOT = Path(__file__).parents[3]
# a service on both addresses that answers whoever comes, as EC2's does
SERVICE = """
import http.server, socket, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"secret credentials")
    do_PUT = do_GET
    def log_message(self, *_): pass
class Six(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
for kind, address in ((http.server.ThreadingHTTPServer, sys.argv[1]), (Six, sys.argv[2])):
    threading.Thread(target=kind((address, 80), Handler).serve_forever).start()
print("ready", flush=True)
"""
GET = """
import socket, sys
with socket.create_connection((sys.argv[1], 80), timeout=3) as connection:
    connection.sendall(b"GET /latest/meta-data/iam/ HTTP/1.0\\r\\n\\r\\n")
    print(connection.makefile().read())
"""


def inside(argv: list[str], *, space: str = SPACE, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["ip", "netns", "exec", space, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    """A node's network with the service in it, and a container's behind that."""
    missing = [name for name in ("nft", "ip", "setpriv") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        message = f"needs root and {missing}: run it in the test root (make test-services)"
        pytest.fail(message) if os.environ.get("SECURE_SLURM_REQUIRE_SERVICES") else pytest.skip(message)
    Path("/run/netns").mkdir(exist_ok=True)
    for space in (SPACE, INNER):
        subprocess.run(["ip", "netns", "add", space], check=True, timeout=60)
    server = None
    try:
        inside(["ip", "link", "set", "lo", "up"])
        for address in ADDRESSES:
            inside(["ip", "addr", "add", address, "dev", "lo", *(["nodad"] if ":" in address else [])])
        server = subprocess.Popen(
            ["ip", "netns", "exec", SPACE, sys.executable, "-c", SERVICE, *ADDRESSES], stdout=subprocess.PIPE
        )
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        if server is not None:
            server.kill()
            server.wait(20)
        for space in (INNER, SPACE):
            subprocess.run(["ip", "netns", "del", space], check=False, timeout=60)


@pytest.fixture
def opened(service: None) -> Iterator[None]:
    inside(["nft", "flush", "ruleset"])
    yield
    inside(["nft", "flush", "ruleset"])


def reach(user: str, address: str) -> bool:
    """Whether that user gets an answer."""
    uid = str(pwd.getpwnam(user).pw_uid)
    who = [] if user == "root" else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return "secret credentials" in inside([*who, sys.executable, "-IS", "-c", GET, address], check=False).stdout


def close(*uids: str) -> None:
    """As the command does it, with the accounts of this root."""
    code = (
        "import sys; from admin import imds_cmd; imds_cmd.close({0, *map(int, sys.argv[1:])}); "
        "found = imds_cmd.state(); print(found.rules, found.reached)"
    )
    assert inside([sys.executable, "-c", code, *uids]).stdout == "True ()\n"


@pytest.mark.parametrize("address", ADDRESSES)
def test_before_it_is_closed_any_user_is_the_instance(opened: None, address: str) -> None:
    assert reach("alice", address)
    assert reach("root", address)
    code = "from admin import imds_cmd; found = imds_cmd.state(); print(found.rules, found.problem)"
    seen = inside([sys.executable, "-c", code]).stdout
    assert seen.startswith("False users of this node reach the metadata service")
    assert address in seen


@pytest.mark.parametrize("address", ADDRESSES)
def test_closed_to_users_and_open_to_root_and_the_node_daemon(opened: None, address: str) -> None:
    close(str(pwd.getpwnam("secure-node").pw_uid))
    assert not reach("alice", address)
    assert not reach("nobody", address)
    assert reach("root", address)
    assert reach("secure-node", address)


def test_a_container_with_a_network_of_its_own(opened: None) -> None:
    """What it sends is forwarded and has no owner on the node: root in there is refused as well."""
    inside(["ip", "link", "add", "outer0", "type", "veth", "peer", "name", "inner0", "netns", INNER])
    inside(["ip", "addr", "add", "10.77.0.1/24", "dev", "outer0"])
    inside(["ip", "link", "set", "outer0", "up"])
    inside(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
    # a way out, so that what is forwarded would go somewhere
    inside(["ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1"])
    inside(["ip", "link", "set", "out0", "up"])
    inside(["ip", "link", "set", "out1", "up"])
    inside(["ip", "addr", "del", f"{ADDRESSES[0]}/32", "dev", "lo"])
    inside(["ip", "route", "add", f"{ADDRESSES[0]}/32", "dev", "out0"])
    try:
        inside(["ip", "addr", "add", "10.77.0.2/24", "dev", "inner0"], space=INNER)
        inside(["ip", "link", "set", "inner0", "up"], space=INNER)
        inside(["ip", "route", "add", "default", "via", "10.77.0.1"], space=INNER)
        argv = [sys.executable, "-IS", "-c", GET, ADDRESSES[0]]
        assert "Connection refused" not in inside(argv, space=INNER, check=False).stderr
        close()
        assert "Connection refused" in inside(argv, space=INNER, check=False).stderr
    finally:
        inside(["ip", "route", "del", f"{ADDRESSES[0]}/32", "dev", "out0"])
        inside(["ip", "addr", "add", ADDRESSES[0], "dev", "lo"])
        for name in ("outer0", "out0"):
            inside(["ip", "link", "del", name])


def test_again_changes_nothing_and_open_removes_it(opened: None) -> None:
    for _ in range(3):
        close("12345")
    tables = json.loads(inside(["nft", "--json", "list", "tables"]).stdout)["nftables"]
    assert [each["table"]["name"] for each in tables if "table" in each] == ["secure_slurm_imds"]
    assert len(json.loads(inside(["nft", "--json", "list", "ruleset"]).stdout)["nftables"]) == 10
    code = "from admin import imds_cmd; imds_cmd.remove(); imds_cmd.remove(); print(imds_cmd.state().rules)"
    assert inside([sys.executable, "-c", code]).stdout == "False\n"
    assert reach("alice", ADDRESSES[0])


def test_other_rules_stay(opened: None) -> None:
    inside(["nft", "add", "table", "inet", "sites_own"])
    close()
    assert "sites_own" in inside(["nft", "list", "ruleset"]).stdout
    assert imds_cmd.TABLE.split()[1] in inside(["nft", "list", "ruleset"]).stdout
