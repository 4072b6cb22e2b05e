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

SPACE, FAR, INNER = "imds-node", "imds-far", "imds-container"
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
with socket.create_connection((sys.argv[1], 80), timeout=120) as connection:
    connection.sendall(b"GET /latest/meta-data/iam/ HTTP/1.0\\r\\n\\r\\n")
    print(connection.makefile().read())
"""


def inside(argv: list[str], *, space: str = SPACE, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["ip", "netns", "exec", space, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    """A node's network, a container's behind it, and the service beyond, as the hypervisor has it."""
    missing = [name for name in ("nft", "ip", "setpriv") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        message = f"needs root and {missing}: run it in the test root (make test-services)"
        pytest.fail(message) if os.environ.get("SECURE_SLURM_REQUIRE_SERVICES") else pytest.skip(message)
    Path("/run/netns").mkdir(exist_ok=True)
    server = None
    try:
        for space in (SPACE, FAR, INNER):
            subprocess.run(["ip", "netns", "add", space], check=True, timeout=60)
            inside(["ip", "link", "set", "lo", "up"], space=space)
        cable((SPACE, "2"), (FAR, "1"), "66")
        cable((SPACE, "1"), (INNER, "2"), "77")
        for address in ADDRESSES:
            inside(["ip", "addr", "add", address, "dev", "lo", *(["nodad"] if ":" in address else [])], space=FAR)
        inside(["ip", "route", "add", ADDRESSES[0], "via", "10.66.0.1"])
        inside(["ip", "route", "add", ADDRESSES[1], "via", "fd66::1"])
        inside(["ip", "route", "add", "default", "via", "10.77.0.1"], space=INNER)
        inside(["ip", "route", "add", "10.77.0.0/24", "via", "10.66.0.2"], space=FAR)
        inside(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
        server = subprocess.Popen(
            ["ip", "netns", "exec", FAR, sys.executable, "-c", SERVICE, *ADDRESSES], stdout=subprocess.PIPE
        )
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        if server is not None:
            server.kill()
            server.wait(20)
        for space in (INNER, FAR, SPACE):
            subprocess.run(["ip", "netns", "del", space], check=False, timeout=60)


def cable(one: tuple[str, str], two: tuple[str, str], net: str) -> None:
    """Join two networks; each end is a namespace and the last part of its addresses."""
    name = f"net{net}"
    inside(["ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", two[0]], space=one[0])
    for space, host in (one, two):
        inside(["ip", "addr", "add", f"10.{net}.0.{host}/24", "dev", name], space=space)
        inside(["ip", "addr", "add", f"fd{net}::{host}/64", "dev", name, "nodad"], space=space)
        inside(["ip", "link", "set", name, "up"], space=space)


@pytest.fixture
def opened(service: None) -> Iterator[None]:
    inside(["nft", "flush", "ruleset"])
    yield
    inside(["nft", "flush", "ruleset"])


def reach(user: str, address: str, *, space: str = SPACE) -> bool:
    """Whether that user gets an answer; else the connection must be refused, and not time out."""
    uid = str(pwd.getpwnam(user).pw_uid)
    who = [] if user == "root" else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    done = inside([*who, sys.executable, "-IS", "-c", GET, address], space=space, check=False)
    assert "secret credentials" in done.stdout or "Connection refused" in done.stderr, done.stderr
    return not done.returncode


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
    assert reach("root", ADDRESSES[0], space=INNER)
    close()
    assert not reach("root", ADDRESSES[0], space=INNER)


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


def test_by_the_command_before_anything_is_configured(opened: None) -> None:
    """As the unit does it on a new node: the exit code says whether users reach the service."""
    command = [sys.executable, "-m", "admin.main", "node", "imds"]
    assert inside(command, check=False).returncode == 1
    done = inside([*command, "--close"])
    assert "closed to users" in done.stdout
    assert "no rendered configuration" in done.stderr
    assert reach("secure-node", ADDRESSES[0])
    assert not reach("alice", ADDRESSES[0])
    assert inside([*command, "--json"]).returncode == 0
    assert "open to users" in inside([*command, "--open"]).stdout
