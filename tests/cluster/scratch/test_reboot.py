"""What a reboot leaves of each kind of backing store is found, and taken away by the record on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from keys.journal import Journal
from keys.process import program, run
from keys.scratch import crypt, deadboot
from keys.scratch.present import jobs_present

EARLIER = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def rebooted(make_node: Any, base: Path, request: pytest.FixtureRequest, in_child: Any) -> Any:
    """A node after a reboot in the middle of a job, or of a set-up that had got to ``step``."""

    def make(kind: str, step: str) -> Any:
        node = make_node(
            backing=kind, **({"volume_group": request.getfixturevalue("volume_group")} if kind == "lvm" else {})
        )
        node.journal = Journal(str(base / "run"), "n1", str(base / "state"))
        write = node.journal.write

        def killed(record: Any) -> Any:
            written = write(record)
            if record.state == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return written

        node.journal.write = killed
        assert in_child(node.open) == (-signal.SIGKILL if step else 0)
        node.journal.write = write
        if any(line.startswith("mount: ") for line in node.left()):
            run([program("umount"), node.names.mount_point], timeout=120)
        if crypt.find(node.names.mapper) is not None:
            run([program("dmsetup"), "remove", node.names.mapper], timeout=120)
        shutil.rmtree(base / "run/journal")
        record = base / f"state/{node.job}.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"boot": EARLIER}))
        return node

    return make


@pytest.mark.parametrize("step", ["planned", "mapping", "filesystem", "ready", ""])
@pytest.mark.parametrize("kind", ["file", "lvm"])
def test_it_is_found_by_its_name_and_goes(rebooted: Any, kind: str, step: str) -> None:
    node = rebooted(kind, step)
    if step != "planned":
        assert node.left()
        assert node.job in set(jobs_present("n1", node.config))
    (taken,) = deadboot.sweep(node.journal, node.config, seconds=120.0)
    assert taken.problem == ""
    assert taken.report.key_name.startswith(f"n1_test-{node.job}-")
    assert node.left() == []
    assert node.job not in set(jobs_present("n1", node.config))
    assert node.journal.durable.jobs() == []


@pytest.mark.parametrize("kind", ["file", "lvm"])
def test_the_next_start_of_the_same_job_takes_it(rebooted: Any, kind: str) -> None:
    node = rebooted(kind, "")
    healed: list[Any] = []
    node.open(healed=healed.append)
    assert healed[0].key_name.startswith(f"n1_test-{node.job}-")
    assert node.journal.durable.read(node.job).boot != EARLIER
    assert node.close().gone
    assert node.journal.durable.jobs() == []


def test_without_the_record_it_is_refused_as_before(rebooted: Any) -> None:
    node = rebooted("file", "")
    node.journal.settled(node.job)
    with pytest.raises(Exception, match="no journal of it"):
        node.open()
    assert node.close().gone
