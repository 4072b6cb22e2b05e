"""job_submit.lua in a real Lua interpreter against a real Unix socket: every way in which a yes could be wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_hooks import wire
from tests.unit.decision.lua import CONFIG_LINE, HARNESS, LUAS, SOURCE, Daemon, Fields, Filter, Reply, allow, say

if shutil.which("lua5.1") is None and not os.environ.get("CI"):
    pytest.skip("lua5.1 with lua-socket is not installed", allow_module_level=True)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    server = Daemon(tmp_path / "decide.sock")
    yield server
    server.stop()


@pytest.fixture(params=LUAS)
def lua(request: pytest.FixtureRequest, tmp_path: Path, daemon: Daemon) -> Iterator[Filter]:
    made = Filter(request.param, tmp_path, daemon.path)
    yield made
    made.stop()


def test_allow(lua: Filter, daemon: Daemon) -> None:
    result = lua.start().submit()

    assert result.allowed
    assert result.message == ""
    assert daemon.requests[0]["verb"] == b"submit"
    assert daemon.requests[0]["user_name"] == b"alice"
    assert daemon.requests[0]["submit_uid"] == b"1001"


def test_one_connection_serves_many_jobs(lua: Filter, daemon: Daemon) -> None:
    lua.start()

    assert all(lua.submit().allowed for _ in range(20))
    assert daemon.connections == 1
    assert len({fields["nonce"] for fields in daemon.requests}) == 20


def test_refuse_tells_why_and_what_to_do(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = say(verdict="refuse", rule="rbac.role", message="no role", advice="ask for one")

    result = lua.start().submit()

    assert result.refused
    assert result.message == "secure-slurm: no role\nWhat to do: ask for one\n(rule rbac.role)"


@pytest.mark.parametrize(
    ("exported", "code"),
    [
        ("slurm.ESLURM_ACCESS_DENIED = 2002", "2002"),
        ("slurm.ESLURM_ACCESS_DENIED = nil", "-1"),
        ("slurm.ESLURM_ACCESS_DENIED = 0", "-1"),
        ("slurm.ESLURM_ACCESS_DENIED = '2002'", "-1"),
        ("slurm.ESLURM_ACCESS_DENIED = nil; slurm.ERROR = 7", "7"),
        ("slurm.ESLURM_ACCESS_DENIED = nil; slurm.ERROR = 0", "-1"),
        ("slurm.ESLURM_ACCESS_DENIED = nil; slurm.ERROR = nil", "-1"),
        ("slurm.ESLURM_ACCESS_DENIED = nil; slurm.ERROR = 'no'", "-1"),
        ("slurm = nil", "-1"),
    ],
)
def test_the_number_of_a_refusal(lua: Filter, daemon: Daemon, exported: str, code: str) -> None:
    """Access/permission denied where Slurm has a number for it; whatever it exports, never the number of a yes."""
    daemon.reply = say(verdict="refuse", rule="x", message="no", advice="")

    result = lua.start(patch=("local REFUSED =", f"{exported}\nlocal REFUSED =")).submit()

    assert (result.kind, result.code) == ("number", code)


def test_nothing_of_a_message_reaches_the_terminal_as_a_command(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = say(verdict="refuse", rule="x", message="a\x1b[2J\x00b%s%n", advice="c\nd\re")

    assert lua.start().submit().message == "secure-slurm: a?[2J?b%s%n\nWhat to do: c\nd?e\n(rule x)"


def test_allow_with_fields_to_set(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = lambda fields: allow(
        fields,
        set_features="a&eu",
        set_prefer="b&eu",
        set_extra="e",
        set_admin_comment="r",
        set_shared="0",
        set_requeue="1",
    )

    result = lua.start().submit("features = 'a'")

    assert result.allowed
    assert result.job == {
        "features": "a&eu",
        "prefer": "b&eu",
        "extra": "e",
        "admin_comment": "r",
        "shared": "0",
        "requeue": "1",
        "partition": "nil",
    }


@pytest.mark.parametrize(
    "reply",
    [
        lambda fields: allow(fields, set_partition="open"),
        lambda fields: allow(fields, set_user_id="0"),
        lambda fields: allow(fields, set_shared="x"),
        lambda fields: allow(fields, set_shared=""),
        lambda fields: allow(fields, set_requeue="-1"),
        lambda fields: allow(fields, **{"set.": "x"}),
    ],
)
def test_only_the_closed_list_is_set(lua: Filter, daemon: Daemon, reply: Reply) -> None:
    daemon.reply = reply
    result = lua.start().submit()

    if b"set.," in (reply({"nonce": b"n"}) or b""):
        assert result.allowed
    else:
        assert result.refused
        assert "slurmctld's log" in result.message
    assert result.job["partition"] == "nil"


@pytest.mark.parametrize("field", ["admin_comment", "shared"])
def test_what_slurm_does_not_take_is_a_refusal(lua: Filter, daemon: Daemon, field: str) -> None:
    daemon.reply = lambda fields: allow(fields, set_admin_comment="r", set_shared="0")

    result = lua.start().submit(f"stubborn = '{field}'")

    assert result.refused
    assert f"slurmctld did not take {field}" in result.log


NO_ANSWERS: dict[str, Reply] = {
    "wrong nonce": lambda _: wire.encode({"nonce": "x", "verdict": "allow"}),
    "no nonce": lambda _: wire.encode({"verdict": "allow"}),
    "empty": lambda _: b"SS1 0\n",
    "another version": lambda fields: allow(fields).replace(b"SS1", b"SS2"),
    "no newline": lambda _: b"SS1 1234567890",
    "too long": lambda _: b"SS1 1048577\n",
    "garbage": lambda _: b"\x00\xff" * 40,
    "http": lambda _: b"HTTP/1.1 200 OK\r\n\r\nallow",
    "duplicate": lambda fields: frame(fields, b"7:verdict,5:allow,7:verdict,5:allow,"),
    "bad length": lambda fields: frame(fields, b"7:verdict,05:allow,x"),
    "key alone": lambda fields: frame(fields, b"7:verdict,"),
}


def frame(fields: Fields, tail: bytes) -> bytes:
    body = b"5:nonce,%d:%s,%s" % (len(fields["nonce"]), fields["nonce"], tail)
    return b"SS1 %d\n%s" % (len(body), body)


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer_is_a_refusal(lua: Filter, daemon: Daemon, name: str) -> None:
    daemon.reply = NO_ANSWERS[name]
    lua.start()

    result = lua.submit()

    assert result.refused
    assert "(rule daemon.down)" in result.message
    daemon.reply = allow
    assert lua.submit().allowed
    assert daemon.connections == 2


@pytest.mark.parametrize("cut", [0, 1, 5, 8, 20, -1])
def test_a_cut_answer_is_a_refusal(lua: Filter, daemon: Daemon, cut: int) -> None:
    daemon.reply = lambda fields: allow(fields)[:cut]
    daemon.close_after = True
    lua.start()

    assert lua.submit().refused


@pytest.mark.parametrize(
    "answer", [{}, {"verdict": ""}, {"verdict": "Allow"}, {"verdict": "allow\0"}, {"verdict": "0"}]
)
def test_only_the_word_allow_allows(lua: Filter, daemon: Daemon, answer: dict[str, str]) -> None:
    daemon.reply = say(**answer)

    result = lua.start().submit()

    assert result.refused
    assert "engine.no-verdict" in result.message


def test_the_daemon_is_down(lua: Filter, daemon: Daemon) -> None:
    daemon.stop()
    lua.start()

    result = lua.submit()

    assert result.refused
    assert "(rule daemon.down)" in result.message
    assert "decision daemon" in result.message


def test_a_restarted_daemon_is_found_again(lua: Filter, daemon: Daemon) -> None:
    lua.start()
    assert lua.submit().allowed
    daemon.stop()
    daemon.start()

    assert lua.submit().allowed


def test_a_timeout_is_a_refusal(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = lambda _: None

    result = lua.start(deadline=0.05).submit()

    assert result.refused
    assert "(rule daemon.down)" in result.message


def test_dripping_bytes_do_not_stretch_the_deadline(lua: Filter, daemon: Daemon) -> None:
    """Were the deadline for each read, an answer of one byte now and then would hold slurmctld for seconds."""
    done = threading.Event()

    def drip(fields: Fields) -> bytes | None:
        connection = daemon._open[-1]
        for byte in allow(fields):
            if done.wait(0.04):
                break
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
        return None

    daemon.reply = drip
    result = lua.start(deadline=0.2).submit()
    done.set()

    assert result.refused


def test_three_timeouts_then_nobody_is_asked(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = lambda _: None
    lua.start(deadline=0.05)
    for _ in range(3):
        assert lua.submit().refused
    daemon.reply = allow

    result = lua.submit()

    assert result.refused
    assert "three times" in result.log
    # a busy machine may not have brought each of them to the daemon in time
    assert len(daemon.requests) <= 3


def test_after_the_pause_it_asks_again(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = lambda _: None
    lua.start(deadline=1, patch=("local QUIET_SECONDS = 5", "local QUIET_SECONDS = 0.2"))
    for _ in range(3):
        assert lua.submit().refused
    daemon.reply = allow
    time.sleep(0.3)

    assert lua.submit().allowed


def test_an_answer_in_between_starts_the_count_again(lua: Filter, daemon: Daemon) -> None:
    lua.start(deadline=1)
    for silent in (True, True, False, True, True):
        daemon.reply = (lambda _: None) if silent else allow
        assert lua.submit().refused == silent
    daemon.reply = allow

    assert lua.submit().allowed


def test_a_late_answer_is_not_taken_for_the_next_job(lua: Filter, daemon: Daemon) -> None:
    held: list[bytes] = []
    daemon.reply = lambda fields: held.append(allow(fields))
    lua.start(deadline=1)
    assert lua.submit().refused

    def late(fields: Fields) -> bytes:
        # the yes that belongs to the first job comes first, on the second one's connection
        return held[0] + wire.encode({"nonce": fields["nonce"], "verdict": "refuse", "rule": "x", "message": "no"})

    daemon.reply = late

    assert lua.submit().refused


def test_surplus_bytes_are_not_taken_for_the_next_answer(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = lambda fields: allow(fields) + wire.encode({"nonce": "x", "verdict": "allow"})
    lua.start()
    assert lua.submit().allowed
    daemon.reply = say(verdict="refuse", rule="x", message="no", advice="")

    result = lua.submit()

    assert result.refused
    assert "(rule x)" in result.message
    assert daemon.connections == 2


@pytest.mark.parametrize(
    ("call", "canary"),
    [
        ("explode = 'features'", "canary of the job"),
        ("partition = setmetatable({}, {__index = error})", ""),
        ("script = setmetatable({}, {})", ""),
    ],
)
def test_an_exception_inside_is_a_refusal(lua: Filter, daemon: Daemon, call: str, canary: str) -> None:
    result = lua.start().submit(call)

    if canary:
        assert result.refused
        assert canary in result.log
        assert canary not in result.message
    assert result.kind == "number"
    assert lua.submit().allowed


@pytest.mark.parametrize("chunk", ["slurm_job_submit()", "slurm_job_submit(nil, nil, nil)", "slurm_job_modify()"])
def test_calls_without_a_job_are_refused(lua: Filter, daemon: Daemon, chunk: str) -> None:
    assert lua.start().call(f"return {chunk}").refused


def test_a_broken_slurm_table_does_not_allow(lua: Filter, daemon: Daemon) -> None:
    """Not even when telling the user fails, or slurm.ERROR has become nil (which slurmctld would take for a yes)."""
    daemon.reply = say(verdict="refuse", rule="x", message="no", advice="")
    lua.start()

    for line in ("slurm.ERROR = nil", "slurm.log_user = nil", "slurm.log_user = error", "slurm = {}", "slurm = nil"):
        result = lua.call(f"{line}; return slurm_job_submit(new_job{{}}, parts, 1)")
        assert result.refused, line


def test_no_partition_list(lua: Filter, daemon: Daemon) -> None:
    assert lua.start().submit(parts="nil").allowed
    assert "default_partition" not in daemon.requests[0]


HOSTILE = {
    "newline": ("name = 'a\\nb'", b"a\nb"),
    "nul": ("name = 'a\\0b'", b"a\0b"),
    "netstring": ("name = '3:abc,'", b"3:abc,"),
    "format": ("name = '%s%n%d'", b"%s%n%d"),
    "utf8": ("name = 'Größe'", "Größe".encode()),
    "not utf8": ("name = '\\255'", b"\xff"),
    "empty": ("name = ''", b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_strings_travel_as_they_are(lua: Filter, daemon: Daemon, name: str) -> None:
    job, sent = HOSTILE[name]

    assert lua.start().submit(job).allowed
    assert daemon.requests[0]["name"] == sent


def test_a_long_list_of_dependencies_is_sent_whole(lua: Filter, daemon: Daemon) -> None:
    assert lua.start().submit("dependency = repeated('afterok:1,', 2000) .. 'expand:2'").allowed
    assert daemon.requests[0]["dependency"] == b"afterok:1," * 2000 + b"expand:2"
    assert "dependency.cut" not in daemon.requests[0]


def test_a_long_comment_is_cut_and_flagged(lua: Filter, daemon: Daemon) -> None:
    assert lua.start().submit("comment = repeated('x', 65536)").allowed
    assert daemon.requests[0]["comment"] == b"x" * 8192
    assert daemon.requests[0]["comment.cut"] == b"1"


def test_too_much_altogether_is_a_refusal(lua: Filter, daemon: Daemon) -> None:
    lua.start(patch=("local BODY_LIMIT = 1024 * 1024", "local BODY_LIMIT = 10000"))

    result = lua.submit("comment = repeated('x', 8192), name = repeated('y', 8192)")

    assert result.refused
    assert daemon.requests == []


def test_unset_values_are_not_sent(lua: Filter, daemon: Daemon) -> None:
    lua.start().submit()

    assert set(daemon.requests[0]) == {
        *("nonce", "verb", "submit_uid", "user_id", "user_name", "alloc_node", "default_partition", "demand_nodes"),
    }
    assert daemon.requests[0]["demand_nodes"] == b"phi=p[01-04],q-st-[1-2],solo"
    assert daemon.requests[0]["default_partition"] == b"open"


@pytest.mark.parametrize(
    ("job", "sent"),
    [
        ("partition = 'force'", b"force"),
        ("partition = 'force1'", b"force1"),
        ("partition = 'phi,force,four,force1'", b"force,force1"),
        # unknown counts as the worst: it does not say, or the owner may not use it
        ("partition = 'silent'", b"silent"),
        ("partition = 'nowhere'", b"nowhere"),
        ("partition = 'phi'", None),
        ("partition = 'open,four'", None),
        ("partition = ''", None),
        ("", None),
    ],
)
def test_partitions_that_share_their_nodes_by_force(lua: Filter, daemon: Daemon, job: str, sent: bytes | None) -> None:
    lua.start().submit(job)

    assert daemon.requests[0].get("forced_sharing") == sent


def test_the_default_partition_may_share_by_force(lua: Filter, daemon: Daemon) -> None:
    default = "{force = {name = 'force', flag_default = 1, nodes = 'n1', max_share = 32772}, open = parts.open}"
    lua.start().submit(parts=default.replace("open = parts.open", ""))
    # no default: whatever there is
    lua.submit(parts="{force = parts.force, phi = parts.phi}")
    lua.submit(parts="{phi = parts.phi}")
    lua.submit("partition = 'phi'", parts="nil")

    assert [fields.get("forced_sharing") for fields in daemon.requests] == [b"force", b"force", None, b"phi"]


def test_a_changed_job_in_a_partition_that_shares_by_force(lua: Filter, daemon: Daemon) -> None:
    lua.start().modify("partition = 'force'")
    lua.modify("features = 'a'", "partition = 'force'")
    lua.modify("partition = 'phi'", "partition = 'force'")
    lua.modify("features = 'a'")

    assert [fields.get("forced_sharing") for fields in daemon.requests] == [b"force", b"force", None, None]


def test_numbers_and_truths(lua: Filter, daemon: Daemon) -> None:
    lua.start().submit("min_nodes = 3, shared = 0, het_job_offset = 0, time_limit = 4294967295, cron_job = true")
    lua.submit("cron_job = false, argc = 2, priority = 0")

    first, second = daemon.requests
    assert (first["min_nodes"], first["shared"], first["het_job_offset"]) == (b"3", b"0", b"0")
    assert (first["time_limit"], first["cron_job"]) == (b"4294967295", b"1")
    assert "cron_job" not in second
    assert (second["argc"], second["priority"]) == (b"2", b"0")


SCRIPTS = [
    ("#!/bin/sh\\necho hi\\n", None),
    ("#SECURE --class=phi\\n", b"#SECURE --class=phi"),
    ("#!/bin/sh\\n#SECURE a\\nx\\n#SECURE b", b"#SECURE a\n#SECURE b"),
    ("#SECURE a\\n#SECURE b\\n#SECURE c\\n", b"#SECURE a\n#SECURE b\n#SECURE c"),
    ("x\\n\\n#SECURE\\n", b"#SECURE"),
    ("x #SECURE a\\n ##SECURE b\\n", None),
    ("#!/bin/sh\\n#SECURELY\\n", b"#SECURELY"),
    ("", None),
]


@pytest.mark.parametrize(("script", "found"), SCRIPTS)
def test_lines_of_the_script(lua: Filter, daemon: Daemon, script: str, found: bytes | None) -> None:
    lua.start().submit(f"script = '{script}'")

    assert daemon.requests[0].get("script_lines") == found
    assert daemon.requests[0]["has_script"] == b"1"
    assert "script_lines.overflow" not in daemon.requests[0]


@pytest.mark.parametrize(
    "script", ["repeated('#SECURE a\\n', 65)", "'#SECURE ' .. repeated('a', 9000)", "repeated('#SECURE a\\n', 100000)"]
)
def test_too_many_lines_are_flagged(lua: Filter, daemon: Daemon, script: str) -> None:
    lua.start().submit(f"script = {script}")

    assert daemon.requests[0]["script_lines.overflow"] == b"1"


def test_sixty_four_lines_are_not_too_many(lua: Filter, daemon: Daemon) -> None:
    lua.start().submit("script = repeated('#SECURE a\\n', 64)")

    assert "script_lines.overflow" not in daemon.requests[0]
    assert daemon.requests[0]["script_lines"].count(b"#SECURE") == 64


def test_the_environment_of_batch_jobs_only(lua: Filter, daemon: Daemon) -> None:
    environment = "environment = {SECURE_CLASS = 'phi', SECURE_SCRATCH_SIZE = '1G', SECURE_SCRATCH = '/x', HOME = '/h'}"
    lua.start().submit(f"script = '', {environment}")
    lua.submit(f"het_job_offset = 1, {environment}")
    lua.submit(environment)

    batch, component, interactive = daemon.requests
    assert (batch["env.secure_class"], batch["env.secure_scratch_size"]) == (b"phi", b"1G")
    assert {name for name in batch if name.startswith("env.")} == {"env.secure_class", "env.secure_scratch_size"}
    assert component["env.secure_class"] == b"phi"
    assert "env.secure_class" not in interactive


def test_modify_sends_what_is_asked_and_what_is_stored(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = lambda fields: allow(fields, set_features="b&eu")

    result = lua.start().modify(
        "features = 'b'", "features = 'a', admin_comment = 'r', extra = 'e', job_state = 0", "0"
    )

    assert result.allowed
    assert result.job["features"] == "b&eu"
    fields = daemon.requests[0]
    assert fields["verb"] == b"modify"
    assert fields["modify_uid"] == b"0"
    assert {name: value for name, value in fields.items() if name.startswith("rec.")} == {
        "rec.job_id": b"7",
        "rec.user_id": b"1001",
        "rec.partition": b"open",
        "rec.features": b"a",
        "rec.admin_comment": b"r",
        "rec.extra": b"e",
        "rec.job_state": b"0",
    }
    assert "user_id" not in fields


def test_modify_is_refused_as_a_submission_is(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = say(verdict="refuse", rule="modify.tag", message="no", advice="")
    assert lua.start().modify("extra = 'x'").refused
    daemon.reply = NO_ANSWERS["wrong nonce"]
    assert lua.modify().refused
    daemon.stop()
    assert lua.modify().refused


def test_untagged_jobs_pass_when_the_daemon_is_down_if_the_admin_says_so(lua: Filter, daemon: Daemon) -> None:
    daemon.stop()
    lua.start(when_down="allow")

    assert lua.submit().allowed
    assert lua.submit("partition = 'open', extra = 'note', script = 'echo #SECURE'").allowed
    assert lua.submit("alloc_node = 'p05'").allowed
    assert lua.submit("dependency = repeated('afterok:1,', 2000) .. 'afterok:2'").allowed
    assert lua.modify("name = 'x'").allowed
    assert lua.modify("partition = 'open'", "admin_comment = 'note'").allowed


@pytest.mark.parametrize(
    "job",
    [
        "extra = 'secure-slurm:class=phi'",
        "extra = 'x Secure-Slurm'",
        "admin_comment = 'secure-slurm/1'",
        "script = '#SECURE --class=phi'",
        "script = 'x\\n#SECURE\\n'",
        "script = repeated('#SECURE\\n', 100)",
        "script = '', environment = {SECURE_CLASS = 'phi'}",
        "script = '', environment = {SECURE_RESIDENCY = ''}",
        "script = '', environment = {SECURE_SCRATCH_SIZE = '1G'}",
        "partition = 'phi'",
        "partition = 'open,phi'",
        "alloc_node = 'p01'",
        "alloc_node = 'p04.cluster.example'",
        "alloc_node = 'q-st-2'",
        "alloc_node = 'solo'",
        "alloc_node = false",
        "alloc_node = ''",
        "alloc_node = '10.0.0.5'",
        "alloc_node = 'ip-10-0-0-5'",
        "alloc_node = 'IP-10-0-0-5.ec2.internal'",
        "alloc_node = 'i-0123456789abcdef0.ec2.internal'",
        "alloc_node = 'fd00::5'",
        "alloc_node = '::ffff:10.0.0.5'",
        "dependency = 'expand:17'",
        "dependency = 'afterok:1,Expand:17'",
        "dependency = repeated('afterok:1,', 20000) .. 'expand:17'",
    ],
)
def test_a_trace_of_a_tag_is_refused_when_the_daemon_is_down(lua: Filter, daemon: Daemon, job: str) -> None:
    daemon.stop()

    result = lua.start(when_down="allow").submit(job)

    assert result.refused
    assert "(rule daemon.down)" in result.message


@pytest.mark.parametrize(
    ("job", "record"),
    [
        ("extra = 'secure-slurm:class=phi'", ""),
        ("partition = 'phi'", ""),
        ("", "extra = 'secure-slurm:class=phi'"),
        ("", "admin_comment = 'secure-slurm/1 x'"),
        ("admin_comment = 'secure-slurm/1 x'", ""),
        ("", "partition = 'phi'"),
        ("", "partition = false"),
        ("dependency = 'expand:17'", ""),
    ],
)
def test_a_tagged_job_is_not_changed_when_the_daemon_is_down(
    lua: Filter, daemon: Daemon, job: str, record: str
) -> None:
    daemon.stop()

    assert lua.start(when_down="allow").modify(job, record).refused


@pytest.mark.parametrize(
    "parts",
    [
        "{phi = {name = 'phi', flag_default = 1, nodes = 'p1'}}",
        "{}",
        "nil",
        "{open = {name = 'open', flag_default = 1}, phi = {name = 'phi', flag_default = 0, nodes = 'ALL'}}",
        "{open = {name = 'open', flag_default = 1}, phi = {name = 'phi', flag_default = 0, nodes = 'login[1'}}",
        "{open = {name = 'open', flag_default = 1}, phi = {name = 'phi', flag_default = 0, nodes = 'login[x-y]'}}",
        "{open = {name = 'open', flag_default = 1}, phi = {name = 'phi', flag_default = 0, nodes = 'login[01,1]'}}",
    ],
)
def test_what_is_unknown_is_refused_when_the_daemon_is_down(lua: Filter, daemon: Daemon, parts: str) -> None:
    daemon.stop()

    assert lua.start(when_down="allow").submit(parts=parts).refused


@pytest.mark.parametrize(
    "node", ["p1", "p001", "p00", "p05", "q-st-3", "solo1", "p01x", "p", "xp01", "10-0-0-5.x", "ip-10-0-0", "i-login"]
)
def test_hosts_that_are_not_in_the_list(lua: Filter, daemon: Daemon, node: str) -> None:
    daemon.stop()

    assert lua.start(when_down="allow").submit(f"alloc_node = '{node}'").allowed


@pytest.mark.parametrize("node", ["10.0.0.5", "fd00::5"])
def test_an_address_is_of_no_matter_where_nothing_is_demanded(lua: Filter, daemon: Daemon, node: str) -> None:
    daemon.stop()
    lua.start(when_down="allow", patch=("config = read_config()", "config = read_config(); config.demand = {}"))

    assert lua.submit(f"alloc_node = '{node}'").allowed


def test_a_refusal_of_the_daemon_is_not_down(lua: Filter, daemon: Daemon) -> None:
    daemon.reply = say(verdict="refuse", rule="x", message="no", advice="")

    assert lua.start(when_down="allow").submit().refused


def test_the_configuration_is_read_again(lua: Filter, daemon: Daemon, tmp_path: Path) -> None:
    lua.start(patch=("local CONFIG_SECONDS = 10", "local CONFIG_SECONDS = 0"))
    lua.submit()
    config = tmp_path / "job_submit.conf.lua"
    config.write_text(config.read_text().replace('["phi"]', '["open"]'))
    lua.submit()
    config.write_text("this is not Lua")
    result = lua.submit()

    assert [fields["demand_nodes"] for fields in daemon.requests] == [
        b"phi=p[01-04],q-st-[1-2],solo",
        b"open=n[1-9]",
        b"open=n[1-9]",
    ]
    assert result.allowed
    assert "job_submit.conf.lua" in result.log


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "return {}",
        "return {socket='/x', deadline=0, untagged_when_down='refuse', demand={}}",
        "return {socket='/x', deadline=0.2, untagged_when_down='perhaps', demand={}}",
        "return {socket='/x', deadline=0.2, untagged_when_down='allow'}",
        "return {",
    ],
)
def test_without_a_configuration_it_does_not_load(tmp_path: Path, config: str | None) -> None:
    """Then slurmctld does not start, or keeps the filter that it has."""
    path = tmp_path / "job_submit.conf.lua"
    if config is not None:
        path.write_text(config)
    script = tmp_path / "job_submit.lua"
    script.write_text(SOURCE.read_text().replace(CONFIG_LINE, f'local CONFIG = "{path}"'))

    done = subprocess.run(["lua5.1", str(HARNESS), str(script)], check=False, capture_output=True)

    assert done.returncode == 3
    assert b"load-error" in done.stdout


def test_it_starts_no_program() -> None:
    code = "\n".join(line.split("--")[0] for line in SOURCE.read_text().splitlines())

    for word in ("os.execute", "io.popen", "io.open", "loadstring", "os.exit"):
        assert word not in code
