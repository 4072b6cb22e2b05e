"""Three servers whose leader is killed: requests are answered late, or with "unavailable", and never with a lie."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, SecureSlurmError
from keys import lifecycle_keys
from keys.grant import Grant
from keys.vault_head import VaultHead
from tests.services.vault.conftest import patiently
from tests.services.vault.test_life_of_a_key import start
from tests.testbed.openbao import OpenBao
from tests.testbed.openbao_raft import OpenBaoRaft
from tests.testbed.pki import CA
from tests.testbed.vault_world import World

WORKERS = 4
PATIENCE = 90.0


@pytest.fixture
def trio(tmp_path: Path, ca: CA) -> Iterator[OpenBaoRaft]:
    with OpenBaoRaft(tmp_path / "raft", ca) as bao:
        yield bao


class Worker(threading.Thread):
    """Starts and ends one job after the other, asking again while Vault is away, as PrologSlurmctld does."""

    def __init__(self, head: VaultHead, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.head = head
        self.stop = stop
        self.ended = 0
        self.longest = 0.0
        self.waited = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set() and not self.wrong:
            grants = start()
            since = time.monotonic()
            self._until(self._make, grants)
            self._until(self._end, grants)
            self.longest = max(self.longest, time.monotonic() - since)
            self.ended += 1

    def _make(self, grants: list[Grant]) -> None:
        # what an interrupted try has left is closed first, as the lifecycle daemon does
        self._end(grants)
        lifecycle_keys.create(self.head, grants, lambda: True)

    def _end(self, grants: list[Grant]) -> None:
        keys = {grant.node: grant.key for grant in grants}
        for one in lifecycle_keys.destroy(self.head, grants[0].job, keys, keys=keys):
            if not one.done:
                raise BackendUnavailable(one.error)
            if one.read_answer != lifecycle_keys.ABSENT:
                self.wrong.append(f"{one.key}: {one.read_answer}")

    def _until(self, act: Callable[[list[Grant]], None], grants: list[Grant]) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                act(grants)
                return
            except BackendUnavailable as error:
                self.waited += 1
                if time.monotonic() > end:
                    self.wrong.append(f"for {PATIENCE:.0f} s: {error}")
                    return
                time.sleep(0.5)
            except SecureSlurmError as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                return


def test_the_leader_is_killed_while_keys_are_made_and_destroyed(
    trio: OpenBaoRaft, build: Callable[[OpenBao], World]
) -> None:
    world = build(trio)
    assert patiently(world.first_init, PATIENCE) == 0
    stop = threading.Event()
    with world.head(timeout=5.0) as head:
        workers = [Worker(head, stop) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        for _ in range(2):
            before = [worker.ended for worker in workers]
            killed = trio.kill_leader()
            trio.wait_for_leader(killed)
            # every one of them goes on with the new leader
            end = time.monotonic() + PATIENCE
            while any(worker.ended < old + 2 for worker, old in zip(workers, before, strict=True)):
                assert time.monotonic() < end, [worker.wrong for worker in workers]
                time.sleep(0.1)
            trio.bring_back(killed)
        stop.set()
        for worker in workers:
            worker.join(PATIENCE)
        assert [worker.wrong for worker in workers] == [[]] * WORKERS
        assert sum(worker.waited for worker in workers) > 0
        assert patiently(head.list_grants, PATIENCE) == []
    assert trio.status("LIST", "secure-slurm-transit/keys")[1].get("data", {}).get("keys", []) in (
        [],
        ["secure-slurm-certificates"],
    )
    print(f"\n{sum(worker.ended for worker in workers)} jobs, the longest {max(w.longest for w in workers):.1f} s")
