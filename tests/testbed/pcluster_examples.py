"""The shipped examples for ParallelCluster, copied so that a test can break one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "conf/parallelcluster"
NAMES = ("isolated", "isolated-ad", "hipaa-and-open", "govcloud")


class Example(NamedTuple):
    """One example's files."""

    site: Path
    policy: Path
    answers: Path
    cluster: Path

    def edit(self, which: str, old: str, new: str) -> None:
        """Replace the first match of a regular expression, which must be there, in one of the files."""
        path: Path = getattr(self, which)
        text = path.read_text()
        changed, count = re.subn(old, new, text, count=1, flags=re.MULTILINE)
        assert count == 1, f"{old!r} is not in {path.name}"
        path.write_text(changed)


class Broken(NamedTuple):
    """One way to break an example, and what has to be said of it.

    ``edits``: file, regular expression, replacement. ``check``: the finding's word. ``at``: what stands on its line.
    ``says`` and ``fix``: what its message and its advice have to have in them.
    """

    name: str
    example: str
    edits: tuple[tuple[str, str, str], ...]
    check: str
    at: str
    says: str
    fix: str


def copy_of(name: str, folder: Path) -> Example:
    """The example's files in ``folder``, for nobody else to write."""
    sources = {
        "site": SHIPPED / f"sites/{name}/secure-slurm.yaml",
        "policy": SHIPPED / f"sites/{name}/policy.yaml",
        "answers": SHIPPED / f"sites/{name}/answers.yaml",
        "cluster": SHIPPED / f"{name}.yaml",
    }
    found = {}
    for which, source in sources.items():
        path = folder / f"{which}.yaml"
        path.write_bytes(source.read_bytes())
        path.chmod(0o644)
        found[which] = path
    return Example(**found)


def one(  # noqa: PLR0917 - a row of a table
    name: str, example: str, old: str, new: str, check: str, at: str, says: str, fix: str
) -> Broken:
    """A broken cluster configuration, by one edit."""
    return Broken(name, example, (("cluster", old, new),), check, at, says, fix)
