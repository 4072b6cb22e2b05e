"""The soak: very many secured jobs of all kinds, with faults at random, and nothing left at the end.

The seed decides the jobs and the faults, and is told, so that a run can be asked for again; when what happens is up to
the machine. An admin is played, who releases held jobs and resumes nodes that were drained for a hook that was struck.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.bed import FAULTS, FaultBed
from tests.faults.table import SETUP, START, TEARDOWN
from tests.testbed import settings
from tests.testbed.nodes import on_node
from tests.testbed.people import ClusterError

AT_ONCE = 10
"""Jobs in the queue: enough that all nodes are busy, few enough that a fault meets them at different steps."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
KINDS = ("short", "short", "writes", "fails", "array", "two nodes", "cancel", "requeue")
WANTED = {
    "short": "COMPLETED",
    "writes": "COMPLETED",
    "array": "COMPLETED",
    "two nodes": "COMPLETED",
    "requeue": "COMPLETED",
    "fails": "FAILED",
    "cancel": "CANCELLED",
}
VERBS = {"cancel": ["scancel"], "requeue": ["scontrol", "requeue"]}
TROUBLES = ("Vault stopped", "Vault sealed", "Vault 403", "Vault 429", "Vault standby", "LDAP away")
STRUCK = tuple(f"{act} {step}" for step in (*SETUP[1:], *TEARDOWN) for act in ("kill", "error"))
OTHERS = (*(f"error {step}" for step in START), "kill lifecycled", "kill noded", "slurmctld restart")
TICK = 0.5
TIMER = 20.0
STUCK = 150.0
"""Seconds after which the admin requeues a job that should long be over."""
IDLE = 300.0
"""Seconds without any job that ends after which a run has failed."""
FOLDER = Path("/home/alice/soak")


class Held(NamedTuple):
    """A trouble that lasts for a while."""

    fault: str
    until: float
    stack: contextlib.ExitStack


class Soak:
    """``jobs``: how many; ``every``: a fault for so many of them."""

    def __init__(self, bed: FaultBed, jobs: int, seed: int, every: int) -> None:
        self.bed, self.cluster = bed, bed.cluster
        self.jobs, self.every = jobs, every
        self.random = random.Random(seed)  # noqa: S311  (no secret)
        self.kinds: dict[int, str] = {}
        self.arrays: dict[int, int] = {}
        self.states: dict[int, str] = {}
        self.acted: set[int] = set()
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.right = 0
        self.plan = ""
        self.struck: set[str] = set()
        self.trouble: Held | None = None
        self.next_fault = every
        self.reaped = 0.0
        self.running: dict[int, float] = {}
        self.stuck = 0
        self.timers: list[subprocess.Popen[bytes]] = []

    def run(self) -> dict[str, Any]:
        """All of it; the content of soak.json, and more."""
        begun = changed = time.monotonic()
        over, told = -1, 0
        while self._submitted() < self.jobs or self._active():
            self._look()
            self._admin()
            self._faults()
            self._timers()
            if self._submitted() < self.jobs and len(self._active()) < AT_ONCE:
                self._submit()
            self._act()
            done = sum(state in OVER for state in self.states.values())
            if done != over:
                over, changed = done, time.monotonic()
                if done >= told:
                    told = done + max(1, self.jobs // 20)
                    words = ", ".join(f"{state} {count}" for state, count in Counter(self.states.values()).items())
                    print(
                        f"{changed - begun:7.0f} s: {done} of {self.jobs} jobs are over ({words}); "
                        f"{sum(self.faults.values())} faults",
                        flush=True,
                    )
            if time.monotonic() - changed > IDLE:
                break
            time.sleep(TICK)
        self._end_trouble()
        self.bed.go("none")
        left = self._left_in_the_end()
        self._admin()
        verified = self.cluster.tool("audit", "verify", settings.LOG, check=False)
        odd = [self._told(job, state) for job, state in sorted(self._odd().items())]
        return {
            "jobs": sum(state in OVER for state in self.states.values()),
            "leftovers": sum(len(each) for each in left.values()),
            "wrong_drains": len(self.wrong),
            "audit_verified": verified.returncode == 0,
            "faults_injected": sum(self.faults.values()),
            "seconds": round(time.monotonic() - begun, 1),
            "right_drains": self.right,
            "stuck": self.stuck,
            "end_states": dict(Counter(self.states.values())),
            "faults": dict(self.faults),
            "unexpected_ends": odd,
            "left": left,
            "wrong": self.wrong,
            "nodes": self.cluster.command(["sinfo", "-h", "-N", "-o", "%N %T %E"], check=False).stdout.split("\n"),
            "audit": "" if verified.returncode == 0 else verified.stdout[-2000:],
        }

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _submitted(self) -> int:
        return len(self.kinds)

    def _active(self) -> list[int]:
        return [job for job in self.kinds if self.states.get(job) not in OVER]

    def _submit(self) -> None:
        kind = self.random.choice(KINDS)
        user, residency = self.random.choice((("alice", "eu"), ("alice", "eu"), ("carol", "us")))
        size = self.random.choice((16, 16, 24, 48))
        words = [f"--secure-class=phi --secure-residency={residency} --secure-scratch={size}M", "-o /dev/null -t 5"]
        script, tasks = "true", 1
        if kind == "writes":
            script = 'dd if=/dev/zero of="$SECURE_SCRATCH/x" bs=64k count=40 status=none && sync "$SECURE_SCRATCH/x"'
        elif kind == "fails":
            script = "exit 3"
        elif kind in ("cancel", "requeue"):
            # the second start of a requeued job ends by itself
            script = '[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || sleep 240' if kind == "requeue" else "sleep 240"
        elif kind == "array":
            tasks = min(self.random.randint(2, 5), self.jobs - self._submitted())
            words.append(f"--array=1-{tasks}")
        elif kind == "two nodes":
            words.append("-N2")
            script = "srun true"
        try:
            job = self.cluster.submit(user, *" ".join(words).split(), f"--wrap={script}")
        except ClusterError as error:
            # a busy machine is late with an answer now and then: the user is told to try again
            if "What to do: try again" not in str(error) and self.trouble is None and not self._slurm_is_away():
                raise
            return
        if kind == "array":
            self.arrays[job] = tasks
        for number in range(tasks):
            # tasks have numbers of their own once they start; until then they are counted by the array's
            self.kinds[job if number == 0 else -(job * 100 + number)] = kind

    def _slurm_is_away(self) -> bool:
        return "UP" not in self.cluster.command(["scontrol", "ping"], check=False).stdout

    def _look(self) -> None:
        done = self.cluster.command(["squeue", "-h", "-r", "-t", "all", "-o", "%A %F %T %r"], check=False)
        self.reasons: dict[int, str] = {}
        now, before, self.running = time.monotonic(), self.running, {}
        tasks: dict[int, list[tuple[int, str, str]]] = {}
        for line in done.stdout.splitlines():
            words = line.split(None, 3)
            job, array, state, reason = int(words[0]), int(words[1]), words[2], words[3] if len(words) > 3 else ""
            if state in ("RUNNING", "CONFIGURING"):
                self.running[job] = before.get(job, now)
            if array in self.arrays:
                tasks.setdefault(array, []).append((job, state, reason))
            elif job in self.kinds:
                self._seen(job, state)
                self.reasons[job] = reason
        for array, found in tasks.items():
            mine = [array, *(-(array * 100 + number) for number in range(1, self.arrays[array]))]
            # those that are over keep what they had: a task may leave the list first
            for mark, (job, state, reason) in zip(mine, sorted(found), strict=False):
                self._seen(mark, state)
                self.reasons[job] = reason

    def _seen(self, job: int, state: str) -> None:
        if self.states.get(job) not in OVER or state not in OVER:
            self.states[job] = state

    def _act(self) -> None:
        for job, kind in self.kinds.items():
            if kind not in VERBS or job in self.acted or self.states.get(job) != "RUNNING":
                continue
            # at once, or when it has run for a moment: both have to be right
            if (
                self.random.random() < 0.5
                and not self.cluster.command([*VERBS[kind], str(job)], check=False).returncode
            ):
                self.acted.add(job)

    def _odd(self) -> dict[int, str]:
        return {
            job: self.states.get(job, "never seen")
            for job, kind in self.kinds.items()
            if self.states.get(job) != WANTED[kind]
        }

    def _told(self, job: int, state: str) -> str:
        """What there is to say of a job that did not end as it should."""
        facts = self.cluster.facts(job) if job > 0 and self.cluster.state(job) else {}
        words = [str(facts.get(name)) for name in ("state_reason", "restart_cnt", "nodes", "admin_comment")]
        words[-1] = words[-1].partition(" | ")[2]
        return f"{job} ({self.kinds[job]}): {state}: {', '.join(words)}"

    # -- the admin -----------------------------------------------------------------------------------------------

    def _admin(self) -> None:
        lines = self.cluster.command(["sinfo", "-h", "-R", "-o", "%n|%N|%E"], check=False).stdout.splitlines()
        # a strike is written down before it strikes: behind the drains, none of theirs is missed
        self._note_struck()
        for line in lines:
            _, nodes, reason = line.split("|", 2)
            for node in self._names(nodes):
                if node in self.struck and ("log error" in reason or reason.startswith("secure-slurm: ")):
                    self.right += 1
                    self.struck.discard(node)
                else:
                    self.wrong.append(f"{node}: {reason}")
                self.bed.reap("--once", node=node)
                self.cluster.command(["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=False)
        for job, since in self.running.items():
            # none runs for so long: slurmctld was restarted at the wrong moment (tests/faults/table.py)
            if time.monotonic() - since > STUCK:
                self.stuck += 1
                self.cluster.command(["scontrol", "requeue", str(job)], check=False)
        if self.trouble is None:
            for job, reason in getattr(self, "reasons", {}).items():
                if "eld" in reason:
                    self.cluster.command(["scontrol", "release", str(job)], check=False)

    def _names(self, nodes: str) -> list[str]:
        return self.cluster.command(["scontrol", "show", "hostnames", nodes]).stdout.split()

    def _timers(self) -> None:
        self.timers = [each for each in self.timers if each.poll() is None]
        if time.monotonic() - self.reaped > TIMER and not self.timers:
            self.reaped = time.monotonic()
            self.timers = [each for node in settings.NODES if (each := self.bed.timer(node)) is not None]

    # -- faults --------------------------------------------------------------------------------------------------

    def _faults(self) -> None:
        if self.trouble is not None and time.monotonic() > self.trouble.until:
            self._end_trouble()
        if self._submitted() < self.next_fault or self.trouble is not None:
            return
        self.next_fault += self.every
        fault = self.random.choice(self.random.choice((TROUBLES, STRUCK, OTHERS)))
        act, _, step = fault.partition(" ")
        if fault in TROUBLES:
            stack = contextlib.ExitStack()
            stack.enter_context(self.bed.trouble(fault))
            self.trouble = Held(fault, time.monotonic() + self.random.uniform(2, 8), stack)
            self.faults[fault] += 1
        elif fault == "kill lifecycled":
            self.bed.restart_head_daemon()
            self.faults[fault] += 1
        elif fault == "kill noded":
            self._restart_noded(self.random.choice(list(settings.NODES)))
            self.faults[fault] += 1
        elif fault == "slurmctld restart":
            self.bed.restart_slurmctld(before_wait=lambda: None)
            self.faults[fault] += 1
        else:
            # it counts when it has struck; one that has not yet is replaced
            self._note_struck()
            self.plan, self.planned = self.bed.plan(step, act), fault

    def _note_struck(self) -> None:
        if self.plan and self.bed.fired(self.plan):
            self.faults[self.planned] += 1
            node = self.bed.fired_on(self.plan)
            if node:
                self.struck.add(node)
            self.plan = ""
            (FAULTS / "plan.json").unlink(missing_ok=True)

    def _restart_noded(self, node: str) -> None:
        subprocess.run(["pkill", "-KILL", "-f", f"secure-slurm-noded --node {node}"], check=False)
        on_node(node, ["sh", "/opt/tests/tests/testbed/guest/node_daemon.sh", node, "daemon"])

    def _end_trouble(self) -> None:
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            trouble.stack.close()

    # -- what is left --------------------------------------------------------------------------------------------

    def _left_in_the_end(self) -> dict[str, list[str]]:
        end = time.monotonic() + 240
        while any((left := everything_left(self.bed)).values()) and time.monotonic() < end:
            for node in settings.NODES:
                self.bed.reap(node=node)
        return {kind: what for kind, what in left.items() if what}


def everything_left(bed: FaultBed) -> dict[str, list[str]]:
    """What there is of any secured job, anywhere; for when there is none."""
    cluster = bed.cluster
    loops = cluster.command(["losetup", "-l", "-n", "-O", "NAME,BACK-FILE"]).stdout.splitlines()
    status, answer = cluster.bao.status("LIST", "secure-slurm-transit/keys")
    keys = answer.get("data", {}).get("keys", []) if status == 200 else [] if status == 404 else ["unknown"]
    grants = []
    for node in settings.NODES:
        status, answer = cluster.bao.status("LIST", f"secure-slurm-grants/metadata/{node}")
        grants += [f"{node}/{key}" for key in answer.get("data", {}).get("keys", [])] if status == 200 else []
    mounts = []
    for node in settings.NODES:
        lines = on_node(node, ["findmnt", "-rn", "-o", "TARGET"]).splitlines()
        mounts += [f"{node}: {line}" for line in lines if line.startswith("/secure-scratch/")]
        mounts += [f"{node}: {name}" for name in on_node(node, ["ls", "/secure-scratch"]).split()]
    run = Path(settings.RUN)
    journals = [
        path for path in run.glob("node-*/journal/*.json") if json.loads(path.read_text())["state"] != "destroyed"
    ]
    return {
        "mappings": cluster.mappings(),
        "loops": [line for line in loops if ".img" in line],
        "mounts": mounts,
        "backing": [str(path) for path in Path("/var/lib/secure-slurm").glob("scratch*/*.img")],
        "journals": [str(path) for path in journals],
        "records": [str(path) for path in Path("/var/lib/secure-slurm").glob("node-*/*.json")],
        "tasks": [str(path) for path in run.glob("node-*/task/*")],
        "notes": [str(path) for path in Path("/var/lib/secure-slurm/lifecycle/ended").iterdir()],
        "running": [str(path) for path in Path("/var/lib/secure-slurm/lifecycle/running").glob("[0-9]*")],
        "keys": [key for key in keys if "_test-" in key or key == "unknown"],
        "grants": grants,
    }
