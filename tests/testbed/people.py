"""What people do on a test cluster and what can be asked of it: as users, of Slurm, of the kernel and of Vault."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.testbed import settings
from tests.testbed.openbao import OpenBao

BIN = f"{settings.PREFIX}/bin"
ENVIRONMENT = {"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
Result = subprocess.CompletedProcess
UNDECIDED = ("(rule engine.timeout)", "(rule daemon.down)", "nobody could decide")
"""What is said of a decision daemon that was late. One that runs has answered before all tries are made."""
TRIES = 6
PATIENCE = 60
"""Seconds that are waited for anything: a machine that others have a share of may stand still for many of them."""


class ClusterError(Exception):
    """Part of the test cluster did not come up; the text names its log."""


def pause(began: float) -> None:
    """After a look that began then: three times as long as that took, 0.1 to 5 s: what is awaited needs the machine."""
    time.sleep(min(5.0, max(0.1, 3 * (time.monotonic() - began))))


def crypt_mappings() -> list[str]:
    """The names of all dm-crypt mappings; ClusterError when they cannot be listed."""
    for _ in range(TRIES):
        done = subprocess.run(["dmsetup", "ls", "--target", "crypt"], capture_output=True, text=True, check=False)
        if not done.returncode:
            return [line.split()[0] for line in done.stdout.splitlines() if "\t" in line]
        # it fails where a mapping goes between its list and its look at each
        if "does not exist" not in done.stderr:
            break
    raise ClusterError(f"dmsetup ls ended with {done.returncode}: {done.stderr}")


def _state(journal: Path) -> str:
    try:
        return str(json.loads(journal.read_text())["state"])
    except FileNotFoundError:
        return "destroyed"


class People:
    """Needs a running cluster around it (:class:`tests.testbed.cluster.Cluster`)."""

    bao: OpenBao
    daemons: dict[str, subprocess.Popen[bytes]]

    # -- doing things as people would ------------------------------------------------------------------------------

    def command(self, argv: list[str], *, check: bool = True, timeout: float = 120, **more: Any) -> Result[str]:
        """Run a command as root; what a machine too busy to decide refused is asked again, as the user is told to."""
        environment = {**ENVIRONMENT, **more.pop("env", {})}
        for _ in range(TRIES):
            if hasattr(more.get("stdin"), "seek"):
                more["stdin"].seek(0)
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env=environment,
                **{"stdin": subprocess.DEVNULL, "cwd": "/", **more},
            )
            if not any(word in done.stderr for word in UNDECIDED) or not self.decides():
                break
            time.sleep(2)
        if check and done.returncode:
            raise ClusterError(f"{argv} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def decides(self) -> bool:
        """Whether the decision daemon runs."""
        return "decisiond" in self.daemons and self.daemons["decisiond"].poll() is None

    def tool(self, *words: str, check: bool = True) -> Result[str]:
        """``secure-slurm ...`` as root."""
        return self.command([f"{BIN}/secure-slurm", *words], check=check)

    def as_user(self, user: str, argv: list[str], *, check: bool = False, **more: Any) -> Result[str]:
        """Run a command as a test user, in that user's home."""
        home = pwd.getpwnam(user).pw_dir
        environment = {"HOME": home, "USER": user, **more.pop("env", {})}
        if "input" in more:
            more["stdin"] = None
        return self.command(
            ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *argv],
            check=check,
            cwd=home,
            env=environment,
            **more,
        )

    def script(self, user: str, name: str, text: str) -> str:
        """A job script in a user's home; the path."""
        path = Path(pwd.getpwnam(user).pw_dir) / name
        self.write(path, text, mode=0o755, owner=user)
        return str(path)

    def submit(self, user: str, *words: str, command: str = "secure-sbatch", **more: Any) -> int:
        """Submit and return the job's id; a refusal raises ClusterError with what the user saw."""
        done = self.as_user(user, [command, *words], **more)
        number = done.stdout.strip().rsplit(" ", 1)[-1].split(";")[0]
        if done.returncode or not number.isdigit():
            raise ClusterError(f"{command} {words}: {done.returncode}\n{done.stdout}{done.stderr}")
        return int(number)

    def cancel_all(self) -> None:
        """Cancel every job there is."""
        jobs = self.command(["squeue", "-h", "-o", "%A"]).stdout.split()
        if jobs:
            self.command(["scancel", *sorted(set(jobs))], check=False)

    # -- asking Slurm --------------------------------------------------------------------------------------------

    def job(self, number: int) -> dict[str, str]:
        """``scontrol show job`` as fields (values with spaces are cut; ask :meth:`admin_comment` for that one)."""
        text = self.command(["scontrol", "show", "job", str(number)], check=False).stdout
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def facts(self, number: int) -> dict[str, Any]:
        """The job as slurmctld's JSON has it."""
        answer = self.command(["scontrol", "--json", "show", "job", str(number)]).stdout
        return dict(json.loads(answer)["jobs"][0])

    def state(self, number: int) -> str:
        """``PENDING``, ``RUNNING``, ``COMPLETED`` ..., empty if Slurm has forgotten the job."""
        return self.job(number).get("JobState", "")

    def wait_state(self, number: int, *states: str, timeout: float = 90) -> dict[str, str]:
        """Wait until the job is in one of these states."""
        self.until(lambda: self.state(number) in states, f"job {number} to be {states}", timeout)
        return self.job(number)

    def wait_end(self, number: int, timeout: float = 90) -> dict[str, str]:
        """Wait until the job has ended and its nodes have run their Epilogs."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        found = self.wait_state(number, *ended, timeout=timeout)
        self.until(
            lambda: not self.command(["squeue", "-h", "-t", "CG", "-o", "%i"]).stdout.strip(), "Epilogs", timeout
        )
        return found

    def sinfo(self, state: str) -> list[str]:
        """The nodes in one state."""
        return self.command(["sinfo", "-h", "-N", "-t", state, "-o", "%N"], check=False).stdout.split()

    def drained(self) -> str:
        """Nodes out of service with their reasons; empty when all is well."""
        return self.command(["sinfo", "-h", "-R", "-o", "%N %E"]).stdout.strip()

    # -- asking the kernel and Vault -----------------------------------------------------------------------------

    def mappings(self) -> list[str]:
        """The dm-crypt mappings of secured jobs."""
        return [name for name in crypt_mappings() if name.startswith("secure-")]

    def leftovers(self, number: int) -> dict[str, list[str]]:
        """What of a job is still on the nodes or in Vault; every list is empty when it is gone."""
        tail = f"-{number}"
        backing = [str(p) for p in Path("/var/lib/secure-slurm").glob(f"scratch*/*{tail}.img")]
        loops = self.command(["losetup", "-l", "-n", "-O", "NAME,BACK-FILE"]).stdout.splitlines()
        return {
            "mappings": [name for name in self.mappings() if name.endswith(tail)],
            "backing": backing,
            "loops": [line for line in loops if f"{tail}.img" in line],
            "journals": [
                str(p) for p in Path(settings.RUN).glob(f"node-*/journal/{number}.json") if _state(p) != "destroyed"
            ],
            "task": [str(p) for p in Path(settings.RUN).glob(f"node-*/task/{number}")],
            "keys": self.vault_keys(number),
            "grants": self.vault_grants(number),
        }

    def wait_gone(self, number: int, timeout: float = 45) -> None:
        """Wait until nothing of a job is left; ClusterError says what is, after a minute at least."""
        end = time.monotonic() + max(timeout, PATIENCE)
        while True:
            began = time.monotonic()
            left = self.leftovers(number)
            if not any(left.values()):
                return
            if began > end:
                raise ClusterError(f"left of job {number}: {left}\n{self.logs()}")
            pause(began)

    def vault_keys(self, number: int) -> list[str]:
        """Transit keys of one job."""
        status, answer = self.bao.status("LIST", "secure-slurm-transit/keys")
        return (
            [key for key in answer.get("data", {}).get("keys", []) if f"_test-{number}-" in key]
            if status == 200
            else []
        )

    def vault_grants(self, number: int) -> list[str]:
        """Grants of one job, as ``node/job``."""
        found = []
        for node in settings.NODES:
            status, answer = self.bao.status("LIST", f"secure-slurm-grants/metadata/{node}")
            keys = answer.get("data", {}).get("keys", []) if status == 200 else []
            found += [f"{node}/{key}" for key in keys if key == str(number)]
        return found

    # -- small things --------------------------------------------------------------------------------------------

    def until(self, ready: Any, what: str, timeout: float = 90) -> None:
        """Poll until ``ready()`` is true; ClusterError names what did not come, after a minute at least."""
        end = time.monotonic() + max(timeout, PATIENCE)
        while True:
            began = time.monotonic()
            if ready():
                return
            if began > end:
                raise ClusterError(f"waited {timeout:.0f} s for {what}\n{self.logs()}")
            pause(began)

    def logs(self) -> str:
        """The last lines of every log, for a failure's message."""
        files = [*Path("/var/log").glob("*.log"), *Path("/var/log/slurm").glob("*.log")]
        return "\n".join(
            f"--- {file}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-6:]) for file in files
        )

    @staticmethod
    def write(path: Path, content: str | bytes, *, mode: int = 0o644, owner: str = "root", group: str = "") -> None:
        """A file with owner and mode set before its content is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        entry = pwd.getpwnam(owner)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchown(descriptor, entry.pw_uid, grp.getgrnam(group).gr_gid if group else entry.pw_gid)
            os.fchmod(descriptor, mode)
            file.write(content.encode() if isinstance(content, str) else content)

    @staticmethod
    def make(path: str, owner: str, mode: int, group: str = "") -> None:
        """A folder with its owner and mode."""
        Path(path).mkdir(parents=True, exist_ok=True)
        shutil.chown(path, owner, group or owner)
        Path(path).chmod(mode)
