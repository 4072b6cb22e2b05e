"""One cell of the fault matrix: a job, a fault at one of its steps, and what is there afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from audit.facts import gather
from audit.gaps import SLACK, find
from tests.faults.bed import HEAD, NODE, FaultBed
from tests.faults.table import END, NOTE, SETUP, START, TEARDOWN, VAULT, Cell, expected
from tests.testbed import settings
from tests.testbed.nodes import on_node, slurmd_pid
from tests.testbed.people import ClusterError

TAG = (
    "--secure-class=phi",
    "--secure-residency=eu",
    "--secure-scratch=16M",
    "-w",
    "n1",
    "-J",
    "cell",
    "-o",
    "/dev/null",
)
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
HOOKS = Path(settings.PREFIX) / "hooks"
NOTHING = "#!/bin/sh\nexit 0\n"
REST = 90.0
"""Seconds for a job to come to rest while a service is in trouble; then the trouble ends, at rest or not."""
LONG = 300.0
CLEAN = 200.0
STALL = {True: 30.0, False: 8.0}
"""Seconds that the daemon stands still at a start (longer than a start may take), and at an end."""

_RULE = re.compile(r" \| [^\[]*\[([a-z0-9._-]+)\]")


class CellFailed(Exception):
    """What was expected of a cell is not what was seen."""


class Run:
    """One job under one fault. ``result`` is the line of faults.json."""

    def __init__(self, bed: FaultBed, cell: Cell) -> None:
        self.bed = bed
        self.cluster = bed.cluster
        self.cell = cell
        self.job = 0
        self.drained = ""
        self.how = ""
        self.said = ""
        self.begun = time.monotonic()
        self.times: dict[str, float] = {}

    def _reached(self, what: str) -> None:
        """For who reads faults.json: when it was, in seconds since the cell began."""
        self.times[what] = round(time.monotonic() - self.begun, 1)

    def run(self) -> dict[str, Any]:
        """Run it; the line for faults.json, whatever was seen. Nothing is left of it when this returns."""
        result: dict[str, Any] = {"step": self.cell.step, "fault": self.cell.fault, "clean": False, "drained": False}
        problems: list[str] = []
        try:
            self._story()
            result["clean"] = True
        except (ClusterError, LookupError, OSError, subprocess.TimeoutExpired, CellFailed) as error:
            problems.append(str(error))
            self._tidy()
        result["drained"] = bool(self.drained)
        result["end_state"] = self.cluster.state(self.job) if self.job else ""
        result["how"] = self.how
        wanted = expected(self.cell)
        if not problems:
            if result["end_state"] != "COMPLETED":
                problems.append(f"the job ended as {result['end_state']}")
            if self.how not in wanted.how:
                problems.append(f"its start went {self.how!r}, not {' or '.join(wanted.how)}")
            if result["drained"] != wanted.drains:
                problems.append(f"drained: {self.drained or 'no'}")
            verified = self.cluster.tool("audit", "verify", settings.LOG, check=False)
            if verified.returncode:
                problems.append(f"the audit chain is not whole: {verified.stdout}{verified.stderr}")
            problems += self._untold()
        result["reason"] = self.drained
        result["said"] = self.said
        result["seconds"] = round(time.monotonic() - self.begun, 1)
        result["times"] = self.times
        if problems:
            result["problems"] = problems
        return result

    def _untold(self) -> list[str]:
        """Ends of scratch that the trail will never tell: ``audit verify`` finds them two minutes later."""
        text = self.cluster.tool("audit", "show", "--json", "--job", str(self.job), settings.LOG).stdout
        facts = gather(json.loads(text))
        facts.last += SLACK + 1.0
        return [f"{gap.kind}: {gap.what}" for gap in find(facts) if gap.kind == "mapping-unconfirmed"]

    # -- the story -----------------------------------------------------------------------------------------------

    def _story(self) -> None:
        step, fault = self.cell
        with contextlib.ExitStack() as until_rest:
            if fault == "no Epilog":
                until_rest.enter_context(self._without("epilog" if step in (*SETUP, *TEARDOWN) else "epilog_slurmctld"))
            plan = self.bed.plan(step, self._act())
            self.job = self.cluster.submit("alice", *TAG, "--wrap=true")
            if step in TEARDOWN and fault == "no Epilog":
                self._until_over()
                self._reap_until(lambda: self.bed.fired(plan) != 0)
            self.cluster.until(lambda: self.bed.fired(plan), f"{step} to be reached", 150)
            self._reached("struck")
            with self._struck(plan):
                self._rest()
                self._reached("at rest")
            self._reached("well again")
        self._to_the_end()

    def _act(self) -> str:
        acts = {"SIGKILL": "kill", "error": "error", "hang": "stop", "no Epilog": "kill"}
        if self.cell.fault == "double Epilog" and self.cell.step in SETUP:
            return "kill"
        return acts.get(self.cell.fault, "wait")

    @contextlib.contextmanager
    def _struck(self, plan: str) -> Iterator[None]:
        """What happens at the step; what it takes away comes back when the job has come to rest."""
        bed, (step, fault) = self.bed, self.cell
        go: Callable[[], None] = lambda: bed.go(plan)  # noqa: E731
        head = step in (*START, *END)
        if fault in (*VAULT, "LDAP away"):
            with bed.trouble(fault):
                go()
                yield
            return
        if fault == "disk full":
            with bed.full(HEAD if head else NODE):
                go()
                yield
            return
        if fault in ("SIGKILL", "no Epilog") and head and step != NOTE:
            go()
            bed.restart_head_daemon()
        elif fault == "hang" and head and step != NOTE:
            go()
            self._stalled(bed.fired(plan))
        elif fault == "reboot":
            (bed.reboot_head if head else bed.reboot_node)()
        elif fault == "slurmd restart":
            bed.restart_slurmd(before_wait=go)
        elif fault == "slurmctld restart":
            bed.restart_slurmctld(before_wait=go)
        elif fault == "double Epilog":
            self._second_epilog(head, go)
        go()
        yield

    def _stalled(self, pid: int) -> None:
        """The daemon stands still until whoever waits for it has given up, and then goes on with what it was at."""
        end = time.monotonic() + STALL[self.cell.step in START]
        while time.monotonic() < end:
            time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)

    def _second_epilog(self, head: bool, go: Callable[[], None]) -> None:
        words = [
            f"SLURM_JOB_ID={self.job}",
            "SLURM_JOB_EXTRA=secure-slurm:class=phi",
            "SLURM_JOB_UID=0",
            *(("SLURM_JOB_NODELIST=n1",) if head else ("SLURMD_NODENAME=n1",)),
        ]
        if head:
            if self.cell.step in START:
                # it would end the start that is under way: that is what the first one is for
                go()
                self._until_over()
            second = ["setpriv", "--reuid=slurm", "--regid=slurm", "--init-groups", "env", *words]
            process = subprocess.Popen([*second, str(HOOKS / "epilog_slurmctld")], stdin=subprocess.DEVNULL)
        else:
            if self.cell.step in SETUP:
                self.cluster.until(lambda: self.cluster.state(self.job) != "RUNNING", "the Prolog's end", 90)
            pid = slurmd_pid("n1")
            second = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--uts=/proc/{pid}/ns/uts", "env", *words]
            process = subprocess.Popen([*second, str(HOOKS / "epilog")], stdin=subprocess.DEVNULL)
        time.sleep(0.5)
        go()
        if process.wait(120) and not head:
            raise CellFailed(f"the second Epilog ended with {process.returncode}")

    # -- how it goes on ------------------------------------------------------------------------------------------

    def _until_over(self) -> None:
        self.cluster.until(lambda: self.cluster.state(self.job) in (*ENDED, "COMPLETING"), "the job's end", 150)

    def _look(self) -> tuple[str, bool]:
        """The job's state, and whether it waits for an admin."""
        found = self.cluster.job(self.job)
        self._note_drained()
        held = found.get("JobState") == "PENDING" and (
            "Held" in found.get("Reason", "") or "held" in found.get("Reason", "") or found.get("Priority") == "0"
        )
        return found.get("JobState", ""), held

    def _note_drained(self) -> None:
        for line in self.cluster.drained().splitlines():
            if not line.startswith("n1 "):
                raise CellFailed(f"another node is drained: {line}")
            self.drained = self.drained or line.removeprefix("n1 ")

    def _rest(self) -> None:
        """The job comes to rest: over, held, or waiting for what is in trouble."""
        end = time.monotonic() + REST
        while time.monotonic() < end:
            state, held = self._look()
            if held or (state == "PENDING" and self.drained) or (state in ENDED and not self._epilogs_run()):
                return
            time.sleep(0.3)

    def _epilogs_run(self) -> bool:
        return bool(self.cluster.command(["squeue", "-h", "-t", "CG", "-o", "%i"]).stdout.strip())

    def _to_the_end(self) -> None:
        """All is well again: what is left goes, a held job is released, a drained node resumed, the job runs."""
        cluster = self.cluster
        how = "straight"
        end = time.monotonic() + LONG
        while True:
            state, held = self._look()
            if state in ENDED and not self._epilogs_run():
                break
            if held:
                how = self._held()
                self._clean()
                self._reached("clean before release")
                self._resume()
                # what a service held, the head node may have released by now, and it may be over
                cluster.command(["scontrol", "release", str(self.job)], check=False)
                cluster.until(lambda: not self._look()[1], "the release", 30)
            elif state == "PENDING" and self.drained:
                self._clean()
                self._resume()
            elif state == "RUNNING" and self.cell.fault in ("reboot", "slurmctld restart") and self._stuck():
                how = "requeued by an admin"
                cluster.command(["scontrol", "requeue", str(self.job)])
            if time.monotonic() > end:
                raise CellFailed(f"job {self.job} does not end: {cluster.job(self.job)}\n{cluster.logs()}")
            time.sleep(0.3)
        self._reached("over")
        if how == "straight" and cluster.facts(self.job)["restart_cnt"]:
            how = "requeued"
        self.how = how
        self._clean()
        self._note_drained()
        self._resume()

    def _stuck(self) -> bool:
        """Whether slurmctld has called a job running for two minutes that ends at once where it does run."""
        minutes = self.cluster.job(self.job).get("RunTime", "00:00:00").rsplit(":", 1)[0]
        return minutes not in ("00:00", "00:01")

    def _held(self) -> str:
        self.said = str(self.cluster.facts(self.job)["admin_comment"]).partition(" | ")[2]
        rule = _RULE.search(f" | {self.said}")
        return f"held [{rule[1]}]" if rule else "held by Slurm"

    def _resume(self) -> None:
        if self.cluster.drained():
            self.cluster.command(["scontrol", "update", "NodeName=n1", "State=RESUME"], check=False)
            self.cluster.until(lambda: not self.cluster.drained(), "n1 to be resumed", 30)

    # -- what is left --------------------------------------------------------------------------------------------

    def left(self) -> dict[str, list[str]]:
        """What is there of the job, on n1, in the kernel and in Vault."""
        found = self.cluster.leftovers(self.job)
        with contextlib.suppress(LookupError):
            mounts = on_node("n1", ["findmnt", "-rn", "-o", "TARGET"]).splitlines()
            found["mounts"] = [line for line in mounts if line.startswith(f"/secure-scratch/{self.job}")]
            points = on_node("n1", ["ls", "/secure-scratch"]).split()
            found["mount points"] = [name for name in points if name == str(self.job)]
        found["records"] = [str(p) for p in Path("/var/lib/secure-slurm").glob(f"node-*/{self.job}.json")]
        notes = Path("/var/lib/secure-slurm/lifecycle/ended")
        found["notes"] = [note.name for note in notes.iterdir() if note.name.startswith(f"{self.job}.")]
        return {kind: what for kind, what in found.items() if what}

    def _clean(self) -> None:
        self._reap_until(lambda: not self.left())

    def _reap_until(self, ready: Callable[[], bool]) -> None:
        """The timers of the node strike until it is so; a moment first for the hooks that are still at work."""
        soon, end = time.monotonic() + 4.0, time.monotonic() + CLEAN
        while not ready():
            if time.monotonic() > end:
                raise CellFailed(f"left of job {self.job}: {self.left()}\n{self.cluster.logs()}")
            if time.monotonic() > soon:
                self.bed.reap()
            time.sleep(0.2)

    @contextlib.contextmanager
    def _without(self, hook: str) -> Iterator[None]:
        path = HOOKS / hook
        before = path.read_text()
        self.cluster.write(path, NOTHING, mode=0o755)
        try:
            yield
        finally:
            self.cluster.write(path, before, mode=0o755)

    def _tidy(self) -> None:
        """After a failure: the next cell must have a cluster that works."""
        self.bed.go("none")
        with contextlib.suppress(ClusterError, LookupError, OSError):
            self._note_drained()
        with contextlib.suppress(CellFailed, ClusterError, LookupError, OSError):
            self.cluster.command(["scancel", str(self.job)], check=False)
            self._reap_until(lambda: not self.left())
        with contextlib.suppress(ClusterError, LookupError, OSError):
            self._resume()
