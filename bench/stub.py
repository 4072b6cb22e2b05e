"""What a job that is not secured pays for the Prolog, and what a secured one pays before any work: starting Python."""

from __future__ import annotations

from typing import Any

from bench.measure import in_turns, paired, timed

PREFIX = "/opt/secure-slurm"
PYTHON = f"{PREFIX}/venv/bin/python3"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# as slurmd starts a Prolog, for a job without a tag in a partition that demands none
UNMARKED = {
    "PATH": PATH,
    "SLURM_CLUSTER_NAME": "test",
    "SLURMD_NODENAME": "n1",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_UID": "1000",
    "SLURM_JOB_GID": "1000",
    "SLURM_JOB_USER": "alice",
    "SLURM_JOB_PARTITION": "main",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_JOB_RESTART_COUNT": "0",
}
IMPORT = f'import sys; sys.path.insert(0, "{PREFIX}/lib"); import slurm_hooks.prolog'


def measure(rounds: int) -> dict[str, Any]:
    """The stub and Python's start against ``/bin/true``, in turns. Needs a rendered configuration."""
    env = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
    commands = {
        "true": (["/bin/true"], env),
        "sh": (["/bin/sh", "-c", ":"], env),
        "stub": ([f"{PREFIX}/hooks/prolog"], UNMARKED),
        "epilog_stub": ([f"{PREFIX}/hooks/epilog"], UNMARKED),
        "python": ([PYTHON, "-IS", "-c", "pass"], env),
        "python_with_imports": ([PYTHON, "-IS", "-c", IMPORT], env),
    }
    acts = {name: (lambda argv=argv, env=env: timed(argv, env=env)) for name, (argv, env) in commands.items()}
    in_turns(3, acts)
    found = in_turns(rounds, acts)
    return {name: paired(found[name], found["true"]) for name in commands if name != "true"}
