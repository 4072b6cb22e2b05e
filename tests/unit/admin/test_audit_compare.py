"""The trails against Vault's audit log and against the accounting: what one says and the other does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from admin import audit_sacct, audit_vault
from admin.audit_sacct import Accounts
from audit.facts import Facts, gather
from audit.gaps import Gap
from conf.errors import ConfigError
from keys.secret import Secret
from slurm_hooks.record import Record, sign
from tests.unit.audit.test_gaps import DATAKEY, DELETE, GONE, KEY, LATER, STORY, without

MOUNT = "secure-slurm-transit"
BASE = 1795291200  # 2026-11-21T20:00:00Z
HEAD = {"display_name": "approle", "metadata": {"role_name": "secure-slurm-head"}}
NODE = {"display_name": "cert-secure-slurm-node", "metadata": {"common_name": "n1"}}

Entry = dict[str, Any]


def entry(second: float, operation: str, path: str, auth: Entry = HEAD, **more: Any) -> Entry:
    time = f"2026-11-21T20:{int(second) // 60:02}:{int(second) % 60:02}.123456789Z"
    request = {"operation": operation, "path": f"{MOUNT}/{path}", "data": more.pop("sent", {})}
    return {"time": time, "type": "response", "auth": auth, "request": request, "response": {}, **more}


START = {"time": "2026-11-21T19:59:00Z", "type": "request", "request": {"path": "sys/health", "operation": "read"}}
CREATE = entry(11, "update", f"keys/{KEY}", sent={"exportable": False, "allow_plaintext_backup": False})
DATAKEY_ACT = entry(12, "update", f"datakey/plaintext/{KEY}", NODE, response={"data": {"plaintext": "hmac-sha256:x"}})
DELETED = entry(21, "delete", f"keys/{KEY}")
ABSENT = entry(21.5, "read", f"keys/{KEY}")
END = {**START, "time": "2026-11-21T20:20:00Z"}
LOG = [START, CREATE, DATAKEY_ACT, DELETED, ABSENT, END]


def compared(tmp_path: Path, log: list[Entry], lines: list[Entry] = STORY, text: bytes = b"") -> list[Gap]:
    path = tmp_path / "audit.log"
    path.write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in log) + text)
    return audit_vault.compare(gather(lines), audit_vault.read_log([path], MOUNT, "test"))


def kinds(gaps: list[Gap]) -> list[tuple[str, int]]:
    return [(gap.kind, gap.job) for gap in gaps]


def test_the_same_story(tmp_path: Path) -> None:
    assert compared(tmp_path, LOG) == []


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ([START, DATAKEY_ACT, DELETED, ABSENT, END], "vault-no-creation"),
        ([START, CREATE, DATAKEY_ACT, END], "vault-no-deletion"),
        ([*LOG[:-1], entry(30, "update", f"decrypt/{KEY}", NODE), END], "vault-not-gone"),
        ([*LOG[:-1], entry(30, "read", f"keys/{KEY}", response={"data": {"name": "x"}}), END], "vault-not-gone"),
        ([*LOG[:3], entry(13, "update", f"decrypt/{KEY}", NODE), *LOG[3:]], "vault-use-untold"),
        ([*LOG[:3], entry(13, "read", f"export/encryption-key/{KEY}"), *LOG[3:]], "vault-exportable"),
        ([*LOG[:3], entry(13, "read", f"backup/{KEY}"), *LOG[3:]], "vault-exportable"),
        (
            [*LOG[:3], entry(13, "update", f"keys/{KEY}/config", sent={"exportable": True}), *LOG[3:]],
            "vault-exportable",
        ),
        (
            [START, {**DATAKEY_ACT, "auth": {**NODE, "metadata": {"common_name": "n2"}}}, CREATE, *LOG[3:]],
            "vault-use-by-another",
        ),
        ([*LOG[:-1], entry(40, "update", f"keys/n2_test-18-{2:016x}"), END], "vault-key-untold"),
        ([START, entry(400, "update", f"keys/{KEY}"), DATAKEY_ACT, *LOG[3:]], "clock"),
    ],
)
def test_what_only_one_of_them_says(tmp_path: Path, log: list[Entry], kind: str) -> None:
    assert kind in {gap.kind for gap in compared(tmp_path, log)}


def test_what_vault_refused_did_not_happen(tmp_path: Path) -> None:
    failed = [
        {**entry(30, "update", f"decrypt/{KEY}", NODE), "error": "1 error occurred"},
        entry(31, "update", f"datakey/plaintext/{KEY}", NODE, response={"data": {"error": "hmac-sha256:x"}}),
        {**entry(32, "read", f"export/encryption-key/{KEY}"), "error": "permission denied"},
        {**DATAKEY_ACT, "type": "request"},
    ]
    assert compared(tmp_path, [*LOG[:-1], *failed, END]) == []


def test_a_key_that_vault_deleted_and_no_trail_ends(tmp_path: Path) -> None:
    lines = without(DELETE, GONE)
    assert ("vault-deletion-untold", 17) in kinds(compared(tmp_path, LOG, lines))


OF_ITS_LIFE = ("scratch.ready", "revocation.done")


def test_a_key_that_is_told_as_never_asked_for(tmp_path: Path) -> None:
    unmade = {**DELETE, "event": "key.unmade"}
    start = [line for line in without(DATAKEY, GONE, DELETE) if line["event"] not in OF_ITS_LIFE]
    assert compared(tmp_path, [START, END], [*start, unmade]) == []
    assert ("vault-key-untold", 17) in kinds(compared(tmp_path, [START, CREATE, END], [*start, unmade]))


def test_a_datakey_that_the_node_does_not_tell(tmp_path: Path) -> None:
    assert kinds(compared(tmp_path, LOG, without(DATAKEY))) == [("vault-use-untold", 17)]


def test_other_clusters_other_engines_and_other_times(tmp_path: Path) -> None:
    others = [
        entry(40, "update", f"keys/n1_other-17-{3:016x}"),
        entry(40, "update", "keys/secure-slurm-certificates"),
        {
            **entry(40, "update", f"keys/n2_test-18-{2:016x}"),
            "request": {"operation": "update", "path": "other/keys/n2_test-18-0000000000000002"},
        },
        {**entry(40, "update", f"keys/n2_test-18-{2:016x}"), "time": "2026-11-21T23:00:00Z"},
    ]
    assert compared(tmp_path, [*LOG[:-1], *others, END]) == []
    # a log that begins later says nothing of what was before
    assert compared(tmp_path, [{**START, "time": "2026-11-21T20:05:00Z"}, END], without(LATER)) == []


def test_a_log_of_something_else(tmp_path: Path) -> None:
    assert kinds(compared(tmp_path, [START, END])) == [("vault-other", 0)]
    with pytest.raises(ConfigError, match="not an audit log"):
        compared(tmp_path, [], text=b"hello\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        audit_vault.read_log([tmp_path / "none"], MOUNT, "test")


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    (gap,) = compared(tmp_path, LOG, text=b'{"time":"2026\n[' + b"[" * 9000 + b"\n\xff\n")
    assert (gap.kind, gap.job) == ("vault-damaged", 0)
    assert "3 of 9 lines" in gap.what


# -- the accounting --------------------------------------------------------------------------------------------------


RECORD = sign(
    Record(
        cluster="test",
        uid=1001,
        user="alice",
        klass="phi",
        residency="eu",
        scratch=2**20,
        policy="ab" * 8,
        nonce="c" * 32,
        time=BASE,
    ),
    Secret(b"k" * 32),
)


def job(number: int = 17, state: str = "COMPLETED", start: int = 10, end: int = 20, record: str = RECORD) -> Entry:
    times = {"submission": BASE, "start": BASE + start, "end": BASE + end if end else 0}
    return {
        "job_id": number,
        "cluster": "test",
        "comment": {"administrator": record},
        "state": {"current": [state]},
        "nodes": "n1",
        "time": times,
    }


OLD = {**job(3, record=""), "time": {"submission": BASE - 5000, "start": BASE - 4000, "end": BASE - 3000}}


def accounted(entries: list[object], lines: list[Entry] = STORY, now: float = BASE + 900) -> list[Gap]:
    accounts = Accounts("test")
    for one in entries:
        accounts.take(one)
    return audit_sacct.compare(gather(lines), accounts, now)


def test_the_same_jobs() -> None:
    assert accounted([OLD, job()]) == []


def test_a_job_that_no_trail_tells_of() -> None:
    (gap,) = accounted([OLD, job(), job(18, start=60, end=70)])
    assert (gap.kind, gap.job) == ("job-without-record", 18)
    assert "sacct -j 18" in gap.where


def test_a_job_that_was_over_within_a_second() -> None:
    assert kinds(accounted([OLD, job(), job(18, start=60, end=60)])) == [("job-without-record", 18)]
    assert kinds(accounted([OLD, job(start=11, end=11)], without(DELETE))) == [("key-outlives-job", 17)]


def test_a_job_that_the_accounting_does_not_know() -> None:
    assert kinds(accounted([OLD])) == [("job-not-accounted", 17)]


def test_a_key_that_outlives_its_job() -> None:
    assert kinds(accounted([OLD, job()], without(DELETE))) == [("key-outlives-job", 17)]
    assert accounted([OLD, job(state="RUNNING", end=0)], without(DELETE, GONE)) == []


def test_what_proves_nothing() -> None:
    entries = [
        OLD,
        job(),
        job(18, record=""),
        job(19, start=-1000, end=-900),
        {**job(20, state="CANCELLED", start=60, end=60), "nodes": "None assigned"},
        job(21, state="PENDING", start=-BASE, end=0),
        {**job(22, start=60, end=70), "cluster": "other"},
        None,
        [],
        {"job_id": "23"},
    ]
    assert accounted(entries) == []
    # an answer without any job says nothing about the time before it
    assert accounted([], now=0) == []


def test_facts_of_nothing() -> None:
    assert audit_sacct.compare(Facts(), Accounts("test"), 0) == []
