"""One node's part of bench/scratch.py: it runs in the mount namespace of that node's slurmd and prints JSON.

Each round takes all ways of getting scratch in turns, in an order that changes:

* ``bare``: the commands that an admin would write, in one shell;
* ``hook``: the installed Prolog and Epilog, as slurmd starts them, with the hook server;
* ``inner``: in this process, the question to the node daemon and then ``open_scratch`` and ``close_scratch`` alone;
* ``start``: Python started as the hook's stub starts it without that server, with the Prolog's imports and no more.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from bench import stub
from bench.measure import BenchError, in_turns, paired, summary, timed
from conf.hookconf import read_hook_config
from keys.durable import folder_of
from keys.journal import Journal
from keys.process import environment
from keys.scratch import crypt, filesystem
from keys.scratch.plan import BLOCK, ScratchPlan
from keys.scratch.setup import open_scratch
from keys.scratch.teardown import close_scratch
from keys.secret import Secret
from slurm_hooks import hookd, wire

NODE = "n1"
USER = "alice"
RUN = f"/run/secure-slurm/node-{NODE}"
WARM_UP = 2
STUBS = 30
PATIENCE = 30.0


class Jobs:
    """The job ids that grants were made for, each used once; and what the acts of a round leave to their second half.

    ``size`` in bytes. The seconds of set-up are returned by the acts, those of tear-down collected in ``down``.
    """

    def __init__(self, size: int, ids: list[int]) -> None:
        self.size = size
        self.ids = iter(ids)
        self.down: dict[str, list[float]] = {"bare": [], "hook": [], "inner": []}
        self.asked: list[float] = []
        self.config = read_hook_config()
        self.user = pwd.getpwnam(USER)

    def bare(self) -> float:
        """The commands, with the same flags as the suite's own; cryptsetup reads the key from standard input."""
        name = f"bare-{next(self.ids)}"
        file, point = f"{self.config['scratch']['directory']}/{name}", f"/secure-scratch/{name}"
        # where the shell writes down which loop device it got, for the tear-down
        note = f"/run/{name}"
        mkfs = shlex.join(filesystem._MAKE["ext4"])
        up = f"""
            truncate -s {self.size} {file}
            losetup --find --show {file} > {note}; read -r device < {note}
            cryptsetup open --type plain --batch-mode --cipher {crypt.CIPHER} --key-size {crypt.KEY_BITS} \\
              --sector-size {BLOCK} --key-file=- "$device" {name}
            {mkfs} /dev/mapper/{name}
            mkdir {point}
            mount -t ext4 -o {filesystem._OPTIONS["ext4"]} /dev/mapper/{name} {point}
            chown {self.user.pw_uid}:{self.user.pw_gid} {point}
            chmod 700 {point}"""
        down = f"""
            read -r device < {note}
            umount {point}
            rmdir {point}
            cryptsetup close {name}
            losetup -d "$device"
            rm {file}"""
        seconds = timed(["/bin/sh", "-ec", up], env=environment(), data=secrets.token_bytes(crypt.KEY_BYTES))
        _check(point, name, there=True)
        self.down["bare"].append(timed(["/bin/sh", "-ec", down], env=environment()))
        _check(point, name, there=False)
        Path(note).unlink()
        return seconds

    def hook(self) -> float:
        """The Prolog and the Epilog with the environment that slurmd gives them."""
        job = next(self.ids)
        env = {
            **stub.UNMARKED,
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_UID": str(self.user.pw_uid),
            "SLURM_JOB_GID": str(self.user.pw_gid),
            "SLURM_JOB_EXTRA": f"secure-slurm:class=phi;residency=eu;scratch={self.size}",
        }
        point, mapper = f"/secure-scratch/{job}", f"secure-{NODE}-{job}"
        _wait_for_server()
        seconds = timed([f"{stub.PREFIX}/hooks/prolog"], env=env)
        # a Prolog that refuses holds the job and ends with 0
        _check(point, mapper, there=True)
        self.down["hook"].append(timed([f"{stub.PREFIX}/hooks/epilog"], env=env))
        _check(point, mapper, there=False)
        return seconds

    def inner(self) -> float:
        """``open_scratch`` with what the node daemon answers; the seconds for the answer go to ``asked``."""
        job = next(self.ids)
        begun = time.perf_counter()
        answer = wire.exchange(f"{RUN}/daemon/node.sock", self._request(job), timeout=60)
        if answer.get("verdict") != b"allow":
            raise BenchError(f"the node daemon refused job {job}: {wire.text(answer, 'message', '')}")
        self.asked.append(time.perf_counter() - begun)
        journal = Journal(RUN, NODE, folder_of({}, NODE))
        journal.claim_incarnation(job, wire.text(answer, "grant.incarnation"))
        begun = time.perf_counter()
        open_scratch(
            self._plan(job),
            Secret(answer.pop("plaintext")),
            journal,
            incarnation=wire.text(answer, "grant.incarnation"),
            key_name=wire.text(answer, "grant.key"),
            wrapped=wire.text(answer, "wrapped"),
        )
        opened = time.perf_counter() - begun
        begun = time.perf_counter()
        close_scratch(journal, job, self.config["scratch"], uid=self.user.pw_uid)
        self.down["inner"].append(time.perf_counter() - begun)
        return opened

    def _request(self, job: int) -> dict[str, bytes | str]:
        return {
            "verb": "open",
            "job": str(job),
            "uid": str(self.user.pw_uid),
            "user": USER,
            "cluster": "test",
            "node": NODE,
            "nodes": NODE,
            "restarts": "0",
        }

    def _plan(self, job: int) -> ScratchPlan:
        named = ("backing", "directory", "overcommit", "volume_group", "device", "mount_root", "filesystem")
        options = {name: self.config["scratch"][name] for name in named}
        user = self.user
        return ScratchPlan(
            node=NODE, job=job, uid=user.pw_uid, gid=user.pw_gid, size_bytes=self.size, run_dir=RUN, **options
        )


def _check(point: str, mapper: str, *, there: bool) -> None:
    """BenchError unless the scratch is there, all of it, or is gone, all of it."""
    mapped = Path(f"/dev/mapper/{mapper}").exists()
    if os.path.ismount(point) is not there or mapped is not there:
        raise BenchError(f"{point} mounted: {os.path.ismount(point)}, {mapper} mapped: {mapped}, wanted: {there}")


def _wait_for_server() -> None:
    """Until all its processes are ready, as on a node that started no job in the last second. BenchError: none runs."""
    end = time.monotonic() + PATIENCE
    while len(list(Path(f"{RUN}/hookd").glob("*.ask"))) < hookd.READY:
        if time.monotonic() >= end:
            raise BenchError("the hook server does not run")
        time.sleep(0.05)


def one_size(size: int, ids: list[int], rounds: int) -> dict[str, Any]:
    """Set-up and tear-down of scratch of one size, each way against the bare commands."""
    jobs = Jobs(size, ids)
    env = environment()
    acts = {
        "bare": jobs.bare,
        "hook": jobs.hook,
        "inner": jobs.inner,
        "start": lambda: timed([stub.PYTHON, "-IS", "-c", stub.IMPORT], env=env),
    }
    in_turns(WARM_UP, acts)
    jobs.asked.clear()
    for series in jobs.down.values():
        series.clear()
    up = in_turns(rounds, acts)
    return {
        "bytes": size,
        "prolog": {
            "hook": paired(up["hook"], up["bare"]),
            "open_scratch": paired(up["inner"], up["bare"]),
            "node_daemon_ms": summary(jobs.asked),
            "python_with_imports_ms": summary(up["start"]),
        },
        "epilog": {
            "hook": paired(jobs.down["hook"], jobs.down["bare"]),
            "close_scratch": paired(jobs.down["inner"], jobs.down["bare"]),
        },
    }


def main() -> int:
    """Reads ``{"rounds": 12, "sizes": {"100M": [bytes, first job, last job]}}`` from standard input."""
    asked = json.load(sys.stdin)
    result = {
        name: one_size(size, list(range(first, last + 1)), asked["rounds"])
        for name, (size, first, last) in asked["sizes"].items()
    }
    print(json.dumps({"sizes": result, "stub": stub.measure(STUBS)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
