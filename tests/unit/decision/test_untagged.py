"""Jobs without a tag that job_submit.lua lets pass by itself: when it may, what it tells, and that it is never wrong.

The last is a property: whatever the engine refuses about a job, the filter asks about.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf import render
from conf.tag import Tag
from keys.secret import Secret
from slurm_hooks import engine, wire
from slurm_hooks.filters.verdict import Context
from slurm_hooks.running import Inside
from tests.unit.decision.conftest import make_policy, make_snapshot
from tests.unit.decision.lua import LUAS, Daemon, Fields, Filter, Reply, say

POLICY = "ab" * 8
LOCAL = f'untagged="local", policy="{POLICY}"'
# what is tested is not how fast this machine is
PATIENT = ("local CONFIRMED_SECONDS = 1 ", "local CONFIRMED_SECONDS = 60 ")

if shutil.which("lua5.1") is None and not os.environ.get("CI"):
    pytest.skip("lua5.1 with lua-socket is not installed", allow_module_level=True)


class Taker(Daemon):
    """A daemon that confirms its policy with every answer, and each note at once unless a test says otherwise."""

    def __init__(self, path: Path) -> None:
        self.policy = POLICY
        self.inside = ""
        self.note: Reply = self.confirm
        self.told = 0
        super().__init__(path)
        self.reply = self.answer

    def start(self) -> None:
        self.told = 0
        super().start()

    def confirm(self, fields: Fields) -> bytes:
        count = str(self.told)
        return say(verdict="allow", count=count, policy=self.policy, ask_about=self.inside)(fields) or b""

    def answer(self, fields: Fields) -> bytes | None:
        if fields["verb"] == b"note":
            self.told += 1
            return self.note(fields)
        return say(verdict="allow", policy=self.policy, ask_about=self.inside)(fields)

    def verbs(self) -> list[str]:
        """What was sent so far, in the order of sending, for the two connections race each other."""
        seen = -1
        while seen != len(self.requests):
            seen = len(self.requests)
            time.sleep(0.1)
        self.requests.sort(key=lambda fields: int(fields["nonce"].split(b"-")[1]))
        return [fields["verb"].decode() for fields in self.requests]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Taker]:
    server = Taker(tmp_path / "decide.sock")
    yield server
    server.stop()


@pytest.fixture(params=LUAS)
def lua(request: pytest.FixtureRequest, tmp_path: Path, daemon: Taker) -> Iterator[Filter]:
    made = Filter(request.param, tmp_path, daemon.path)
    yield made
    made.stop()


def settle(daemon: Taker, told: int = 0) -> None:
    """Until so many notes have reached the daemon, and a confirmation has come back."""
    end = time.monotonic() + 20
    while daemon.told < told and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)


def test_the_policy_is_compared_in_the_form_that_is_rendered() -> None:
    assert render.POLICY_DIGITS == engine.POLICY_DIGITS == len(POLICY)


def test_it_asks_first_and_tells_then(lua: Filter, daemon: Taker) -> None:
    lua.start(config=LOCAL, patch=PATIENT)

    for _ in range(5):
        assert lua.submit("partition = 'open', script = 'echo', name = 'x', work_dir = '/home/alice'").allowed
    assert daemon.verbs() == ["submit", "note", "note", "note", "note"]
    assert daemon.requests[1] == {
        "verb": b"note",
        "nonce": daemon.requests[1]["nonce"],
        "policy": POLICY.encode(),
        "submit_uid": b"1001",
        "user_id": b"1001",
        "user_name": b"alice",
        "partition": b"open",
        "alloc_node": b"login1",
        "demand_nodes": b"phi=p[01-04],q-st-[1-2],solo",
    }
    assert len({fields["nonce"] for fields in daemon.requests}) == 5


@pytest.mark.parametrize("config", ["", 'untagged="ask"', f'untagged="ask", policy="{POLICY}"'])
def test_it_asks_unless_told_otherwise(lua: Filter, daemon: Taker, config: str) -> None:
    lua.start(config=config)

    assert all(lua.submit().allowed for _ in range(3))
    assert daemon.verbs() == ["submit"] * 3


@pytest.mark.parametrize("policy", ["cd" * 8, "", POLICY[:-1], POLICY.upper()])
def test_another_policy_is_asked_about_every_job(lua: Filter, daemon: Taker, policy: str) -> None:
    """The rendered configuration is of another policy than the daemon's, which may demand more."""
    daemon.policy = policy
    lua.start(config=LOCAL, patch=PATIENT)

    assert all(lua.submit().allowed for _ in range(3))
    assert daemon.verbs() == ["submit"] * 3


def test_a_policy_alone_confirms_nothing(lua: Filter, daemon: Taker) -> None:
    daemon.reply = say(verdict="allow", policy=POLICY)
    lua.start(config=LOCAL, patch=PATIENT)

    assert all(lua.submit().allowed for _ in range(3))
    assert daemon.verbs() == ["submit"] * 3


def test_a_policy_that_changes_is_asked_about_at_the_next_job(lua: Filter, daemon: Taker) -> None:
    lua.start(config=LOCAL, patch=PATIENT)
    assert all(lua.submit().allowed for _ in range(2))
    settle(daemon, 1)
    daemon.policy = "cd" * 8
    assert lua.submit().allowed
    settle(daemon, 2)

    assert all(lua.submit().allowed for _ in range(2))
    assert daemon.verbs() == ["submit", "note", "note", "submit", "submit"]


def test_what_was_confirmed_a_while_ago_is_not_confirmed(lua: Filter, daemon: Taker) -> None:
    lua.start(config=LOCAL, patch=("local CONFIRMED_SECONDS = 1 ", "local CONFIRMED_SECONDS = 0.2 "))
    assert all(lua.submit().allowed for _ in range(2))
    time.sleep(0.4)

    assert lua.submit().allowed
    assert daemon.verbs() == ["submit", "note", "submit"]


def test_a_daemon_that_takes_nothing_is_asked(lua: Filter, daemon: Taker) -> None:
    """It lives, and confirms nothing: after a while nothing counts as confirmed."""
    daemon.note = lambda _: None
    lua.start(config=LOCAL, patch=("local CONFIRMED_SECONDS = 1 ", "local CONFIRMED_SECONDS = 0.2 "))
    assert all(lua.submit().allowed for _ in range(3))
    time.sleep(0.4)

    assert lua.submit().allowed
    assert daemon.verbs() == ["submit", "note", "note", "submit"]


TRACES = [
    "extra = 'secure-slurm:class=phi'",
    "extra = 'x Secure-Slurm'",
    "admin_comment = 'secure-slurm/1'",
    "script = '#SECURE --class=phi'",
    "script = 'x\\n#SECURELY\\n'",
    "script = '', environment = {SECURE_CLASS = 'phi'}",
    "script = '', environment = {SECURE_RESIDENCY = ''}",
    "script = '', environment = {SECURE_SCRATCH_SIZE = '1G'}",
    "script = '', environment = {SECURE_DATASETS = 'a'}",
    "het_job_offset = 0, environment = {SECURE_CLASS = 'phi'}",
    "partition = 'phi'",
    "partition = 'open,phi'",
    "partition = ','",
    "alloc_node = 'p01'",
    "alloc_node = 'q-st-2'",
    "alloc_node = 'solo.cluster.example'",
    "alloc_node = false",
    "alloc_node = ''",
    "alloc_node = '10.0.0.5'",
    "alloc_node = 'ip-10-0-0-5.ec2.internal'",
    "alloc_node = 'i-0123456789abcdef0'",
    "alloc_node = 'fd00::5'",
    # any node, for a tagged job may run there
    "alloc_node = 'n1'",
    "alloc_node = 'N9.cluster.example'",
    "dependency = 'expand:17'",
    "dependency = repeated('afterok:1,', 2000)",
    "extra = repeated('x', 9000)",
    "admin_comment = repeated('x', 9000)",
    "partition = repeated('x', 9000)",
    "alloc_node = repeated('x', 9000)",
    "user_name = repeated('x', 9000)",
]


@pytest.mark.parametrize("job", TRACES)
def test_a_trace_of_a_tag_is_asked_about(lua: Filter, daemon: Taker, job: str) -> None:
    lua.start(config=LOCAL, patch=PATIENT)
    assert lua.submit().allowed

    lua.submit(job)
    assert daemon.verbs() == ["submit", "submit"]


@pytest.mark.parametrize(
    "parts",
    [
        "nil",
        "{}",
        "{phi = parts.phi}",
        "{phi = {name = 'phi', flag_default = 1, nodes = 'p1'}, open = {name = 'open', flag_default = 0}}",
        "{open = parts.open, phi = {name = 'phi', flag_default = 0, nodes = 'ALL'}}",
        "{open = parts.open, four = {name = 'four', flag_default = 0}}",
        "{open = parts.open, phi = {name = 'phi', flag_default = 0, nodes = 'login[1'}}",
        "{open = parts.open, phi = {name = 'phi', flag_default = 0, nodes = repeated('x,', 70000)}}",
    ],
)
def test_what_is_unknown_is_asked_about(lua: Filter, daemon: Taker, parts: str) -> None:
    lua.start(config=LOCAL, patch=PATIENT)
    assert lua.submit().allowed

    lua.submit(parts=parts)
    assert daemon.verbs() == ["submit", "submit"]


def test_the_default_partition_may_become_another(lua: Filter, daemon: Taker) -> None:
    lua.start(config=LOCAL, patch=PATIENT)
    for default in ("open", "open", "four", "phi", "open"):
        parts = "".join(
            f"{name} = {{name = '{name}', flag_default = {int(name == default)}, nodes = 'n1'}},"
            for name in ("open", "four", "phi")
        )
        lua.submit(parts=f"{{{parts}}}")

    assert daemon.verbs() == ["submit", "note", "note", "submit", "note"]
    assert [fields["default_partition"].decode() for fields in daemon.requests] == [
        *("open", "open", "four", "phi", "open")
    ]


def test_users_with_a_tagged_job_are_asked_about(lua: Filter, daemon: Taker) -> None:
    daemon.inside = "100,1001,20010"
    lua.start(config=LOCAL, patch=PATIENT)
    for uid in (1001, 100, 1, 10, 2001, 20010):
        assert lua.submit(f"user_id = {uid}").allowed
    assert daemon.verbs() == ["submit", "submit", "note", "note", "note", "submit"]
    daemon.inside = ""
    assert lua.submit("user_id = 1001").allowed
    assert lua.submit("user_id = 1001").allowed
    assert daemon.verbs()[-2:] == ["submit", "note"]
    assert lua.submit("user_id = 4294967294").allowed
    assert daemon.verbs()[-1] == "submit"


def test_an_old_confirmation_takes_nothing_back(lua: Filter, daemon: Taker) -> None:
    lua.start(config=LOCAL, patch=PATIENT)
    for uid in (2000, 2000):
        assert lua.submit(f"user_id = {uid}").allowed
    assert daemon.verbs() == ["submit", "note"]
    # the confirmation of that note, which knows of nobody inside, is not read before the next job without a tag
    daemon.inside = "1001"
    assert lua.submit("user_id = 3000, extra = 'secure-slurm:class=x'").allowed
    for uid in (2000, 1001):
        assert lua.submit(f"user_id = {uid}").allowed

    assert daemon.verbs()[2:] == ["submit", "note", "submit"]


def test_a_change_is_always_asked_about(lua: Filter, daemon: Taker) -> None:
    lua.start(config=LOCAL, patch=PATIENT)

    assert all(lua.modify("name = 'x'").allowed for _ in range(3))
    assert daemon.verbs() == ["modify"] * 3


def test_a_dead_daemon_can_be_told_nothing(lua: Filter, daemon: Taker) -> None:
    lua.start(config=LOCAL, patch=PATIENT)
    assert all(lua.submit().allowed for _ in range(2))
    settle(daemon, 1)
    daemon.stop()

    assert "(rule daemon.down)" in lua.submit().message
    assert lua.submit().refused


def test_a_dead_daemon_and_an_admin_who_allows_that(lua: Filter, daemon: Taker) -> None:
    lua.start(config=LOCAL, when_down="allow")
    assert lua.submit().allowed
    daemon.stop()

    assert all(lua.submit().allowed for _ in range(3))
    assert lua.submit("partition = 'phi'").refused


def test_what_was_not_confirmed_is_told_to_the_next_daemon(lua: Filter, daemon: Taker) -> None:
    lua.start(config=LOCAL, patch=PATIENT)
    assert all(lua.submit().allowed for _ in range(2))
    settle(daemon, 1)
    daemon.note = lambda _: None
    assert all(lua.submit(f"partition = 'open', user_id = {number}").allowed for number in (1, 2, 3))
    assert daemon.verbs()[2:] == ["note"] * 3
    daemon.stop()
    daemon.requests.clear()
    daemon.note = daemon.confirm
    daemon.start()
    assert lua.submit("user_id = 4").allowed
    settle(daemon)
    assert lua.submit("user_id = 5").allowed

    assert daemon.verbs() == ["note"] * 5
    assert [fields["user_id"] for fields in daemon.requests] == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize(
    "reply",
    [
        say(verdict="allow", count="2", policy=POLICY),
        say(verdict="allow", count="-1", policy=POLICY),
        say(verdict="allow", count="x", policy=POLICY),
        say(verdict="allow", policy=POLICY),
        say(verdict="refuse", rule="x", message="no", count="1"),
        lambda _: b"SS1 1234567890",
        lambda _: b"garbage and more garbage",
        lambda _: b"SS1 3\nxyz",
    ],
)
def test_what_is_no_confirmation_ends_the_connection(lua: Filter, daemon: Taker, reply: Reply) -> None:
    daemon.note = reply
    lua.start(config=LOCAL, patch=PATIENT)
    assert all(lua.submit().allowed for _ in range(2))
    settle(daemon, 1)
    daemon.note, daemon.told = daemon.confirm, 0

    # on the next connection the first note is told again
    assert lua.submit().allowed
    assert daemon.verbs() == ["submit", "note", "note", "note"]
    assert daemon.connections == 3
    assert daemon.requests[1] == daemon.requests[2]


def test_a_confirmation_in_pieces_and_two_in_one(lua: Filter, daemon: Taker) -> None:
    held: list[bytes] = []
    daemon.note = lambda fields: held.append(daemon.confirm(fields))
    lua.start(config=LOCAL, patch=PATIENT)
    assert all(lua.submit().allowed for _ in range(3))
    settle(daemon, 2)
    notes = daemon._open[-1]
    both = b"".join(held)
    for piece in (both[:3], both[3:40], both[40:]):
        notes.sendall(piece)
        assert lua.submit().allowed
    settle(daemon)

    assert daemon.verbs() == ["submit"] + ["note"] * 5
    assert daemon.connections == 2


def test_too_much_unconfirmed_is_asked_about(lua: Filter, daemon: Taker) -> None:
    daemon.note = lambda _: None
    lua.start(config=LOCAL, patch=("local NOTES_LIMIT = 128 ", "local NOTES_LIMIT = 3 "))

    assert all(lua.submit().allowed for _ in range(6))
    assert daemon.verbs() == ["submit", "note", "note", "note", "submit", "submit"]


def test_a_socket_that_is_full_is_asked_about(lua: Filter, tmp_path: Path) -> None:
    """Nobody waits for room, no note is torn, and none is lost: what could not be told was asked."""
    path = tmp_path / "decide.sock"
    path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    kept: list[socket.socket] = []
    asked: list[Fields] = []

    def serve_the_first() -> None:
        kept.append(listening.accept()[0])
        with kept[0].makefile("rb") as file, contextlib.suppress(OSError):
            while header := file.readline():
                fields = wire.decode_body(file.read(wire.decode_header(header)))
                asked.append(fields)
                kept[0].sendall(say(verdict="allow", policy=POLICY, ask_about="")(fields) or b"")

    threading.Thread(target=serve_the_first, daemon=True).start()
    lua.start(config=LOCAL, patch=("local NOTES_LIMIT = 128 ", "local NOTES_LIMIT = 100000 "))
    count = 600
    assert all(lua.submit("partition = 'open'").allowed for _ in range(count))
    notes, _ = listening.accept()
    notes.setblocking(False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while part := notes.recv(1 << 20):
            data += part

    assert asked[0]["verb"] == b"submit"
    assert 1 < len(asked) < count
    assert len(asked) + data.count(b"4:verb,4:note,") == count
    for each in (*kept, notes, listening):
        each.close()


def literal(text: str) -> str:
    return "'" + "".join(f"\\{byte:03d}" for byte in text.encode("utf-8", "surrogateescape")) + "'"


WORDS = ["", "x", "secure-slurm", "Secure-Slurm:class=phi", "secure-slurm/1 x", "EXPAND:1", "afterok:1,expand:2"]
NODES = [
    "login1",
    "p01",
    "p05",
    "q-st-1",
    "solo",
    "solo.x.y",
    "10.0.0.1",
    "fe80::1",
    "",
    "n1",
    "N2.x",
    "256.1.1.1x",
    "P01",
]
PARTITIONS = ["open", "phi", "open,phi", "four,open", ",", ",,phi,", "", "lab", "nowhere", "PHI", " phi"]
SCRIPTS = [
    "",
    "#!/bin/sh\necho\n",
    "#SECURE --class=phi",
    "a\n#SECURE",
    "a\r\n#SECURE x",
    " #SECURE",
    "#secure",
    "\n\n#SECURELY",
]
VARIABLES = ["SECURE_CLASS", "SECURE_RESIDENCY", "SECURE_SCRATCH_SIZE", "SECURE_DATASETS", "HOME", "secure_class"]
texts = st.sampled_from(WORDS) | st.text(max_size=12) | st.sampled_from(["y" * 8192, "y" * 8193])
VALUES: dict[str, st.SearchStrategy[str]] = {
    **dict.fromkeys(("extra", "admin_comment"), st.sampled_from(WORDS) | texts),
    **dict.fromkeys(("comment", "features"), texts),
    "dependency": st.sampled_from(["", "afterok:1", "EXPAND:1", "afterok:1,expand:2", "afterok:1," * 900]),
    "user_name": st.sampled_from(["alice", "bob", "", "x" * 8193]),
    "alloc_node": st.sampled_from(NODES) | st.text(max_size=6),
    "partition": st.sampled_from(PARTITIONS) | st.text(alphabet="phi,open", max_size=9),
    "script": st.sampled_from(SCRIPTS) | st.text(alphabet="#SECUR \n", max_size=20),
}
# few fields at once: with many, something else is nearly always refused as well
jobs = st.lists(st.one_of(*(st.tuples(st.just(name), value) for name, value in VALUES.items())), max_size=2).map(dict)
environments = st.dictionaries(st.sampled_from(VARIABLES), st.sampled_from(["", "phi", "x y", "1G"]), max_size=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Filter, Filter, Taker]]:
    """A filter that asks, one that need not, and what they ask."""
    folder = tmp_path_factory.mktemp("lua")
    daemon = Taker(folder / "decide.sock")
    made = []
    for name, config in (("asks", ""), ("may", LOCAL)):
        (folder / name).mkdir()
        made.append(Filter("lua5.1", folder / name, daemon.path).start(config=config, demand=("phi", "lab")))
    yield made[0], made[1], daemon
    for each in made:
        each.stop()
    daemon.stop()


@settings(max_examples=400, deadline=None)
@given(
    jobs,
    environments,
    st.sampled_from(["parts", "{open = parts.open, phi = parts.phi, lab = parts.four}", "{four = parts.four}"]),
)
def test_whatever_the_engine_refuses_is_asked_about(
    pair: tuple[Filter, Filter, Taker], job: dict[str, str], environment: dict[str, str], parts: str
) -> None:
    asks, may, daemon = pair
    values = [f"{name} = {literal(value)}" for name, value in job.items()]
    values.append(f"environment = {{{', '.join(f'{name} = {literal(each)}' for name, each in environment.items())}}}")
    table = ", ".join(values)
    inside = (Inside(7, 1001, Tag("internal")),)
    context = Context(make_policy(), make_snapshot(), now=time.time(), running={"n1": inside, "n2": inside})
    signer = engine.Signer("test", Secret(b"k" * 32), frozenset({0}))
    may.submit("extra = 'secure-slurm'")  # asked about, so that the policy is confirmed
    daemon.requests.clear()
    asks.submit(table, parts)
    may.submit(table, parts)
    while len(daemon.requests) < 2:
        time.sleep(0.001)

    whole, told = daemon.requests
    verdict = engine.decide_submit(whole, context, signer)
    if told["verb"] == b"note":
        assert (verdict.allowed, verdict.rule) == (True, "allow.untagged"), verdict
        assert engine.decide_submit(told, context, signer).rule == "allow.untagged"
    else:
        assert {**told, "nonce": b""} == {**whole, "nonce": b""}
