"""Three Vault servers whose leader is killed while jobs start and end: no job is lost, no node is drained."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from slurm_hooks import tries
from tests.cluster.test_blame import mark
from tests.cluster.test_ends import gone, running
from tests.cluster.test_head_reaper import dead
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.openbao_raft import OpenBaoRaft

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
ROUNDS = 2
TOGETHER = 4
PATIENCE = 240


@contextlib.contextmanager
def three_servers(cluster: Cluster) -> Iterator[OpenBaoRaft]:
    """The cluster with another Vault: three servers behind a load balancer; afterwards all is as before."""
    etc = Path(settings.ETC)
    site, single = etc / "secure-slurm.yaml", cluster.bao
    before = site.read_text()
    words = {name: (etc / "head" / name).read_bytes() for name in ("role-id", "secret-id")}

    def change(text: str) -> None:
        cluster.cancel_all()
        cluster.until(lambda: not cluster.command(["squeue", "-h", "-t", "R,CF,CG"]).stdout.strip(), "no job", 120)
        cluster.stop_slurm()
        cluster.stop_daemon("lifecycled")
        cluster.write(site, text)
        cluster.tool("conf", "render")

    with OpenBaoRaft(cluster.directory / "raft", cluster.ca, address=settings.ADDRESS) as trio:
        change(before.replace(f"{settings.ADDRESS}:{settings.VAULT_PORT}", f"{settings.ADDRESS}:{trio.port}"))
        try:
            for name in words:
                (etc / "head" / name).unlink()
            cluster.bao = trio
            cluster.init_vault()
            cluster.daemon("lifecycled", "secure-life")
            cluster.start_slurm()
            yield trio
        finally:
            change(before)
            cluster.bao = single
            for name, word in words.items():
                cluster.write(etc / "head" / name, word, mode=0o400, owner="secure-life")
            cluster.daemon("lifecycled", "secure-life")
            cluster.start_slurm()


def test_the_leader_is_killed_while_jobs_start_and_end(clean: Cluster) -> None:
    with three_servers(clean) as trio:
        for number in range(ROUNDS):
            # one that ends, and its node's next one that starts, while there is no leader; and some around it
            job = running(clean, "--wrap=sleep 600")
            (key,) = clean.vault_keys(job)
            jobs = [clean.submit("alice", *TAG, "--wrap=echo ran; sleep 1") for _ in range(TOGETHER)]
            since = time.monotonic()
            killed = trio.kill_leader()
            clean.command(["scancel", str(job)])
            jobs += [clean.submit("alice", *TAG, "-N2", "--wrap=echo ran")]
            trio.wait_for_leader(killed)
            took = time.monotonic() - since
            clean.until(lambda k=key: dead(clean, k), "the key of the job that ended to die", PATIENCE)
            died = time.monotonic() - since
            for each in jobs:
                clean.until(lambda j=each: clean.state(j) == "COMPLETED", f"job {each} to run to its end", PATIENCE)
                assert Path(f"/home/alice/slurm-{each}.out").read_text().startswith("ran")
                found = mark(clean, each)
                # waited for, or put back once; never held
                assert found is None or found.word in (tries.WAITING, tries.REQUEUED)
                gone(clean, each)
            gone(clean, job)
            assert clean.drained() == ""
            put_back = [each for each in jobs if clean.facts(each)["restart_cnt"]]
            print(
                f"\nround {number}: a leader after {took:.0f} s, the key gone after {died:.0f} s, requeued {put_back}"
            )
            trio.bring_back(killed)
    assert clean.drained() == ""
