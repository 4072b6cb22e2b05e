"""A node of its own for each test: run directory, mount root, backing stores. As root, in a kernel with dm-crypt."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from admin import store_look, store_take, store_unit
from conf.errors import SecureSlurmError
from keys.journal import Journal
from keys.process import Budget, program, run
from keys.scratch import crypt, filesystem, loop, present, setup, stacked, volume
from keys.scratch.plan import ScratchInfo, ScratchNames, ScratchPlan
from keys.scratch.report import Report
from keys.scratch.setup import open_scratch
from keys.scratch.teardown import close_scratch, verify_gone
from keys.secret import Secret

UID = 4001
GID = 4002
MIB = 1024**2
_JOBS = itertools.count(1001)


class Node:
    """One node as the hooks see it, and one job on it."""

    uid = UID
    gid = GID

    def __init__(self, base: Path, **options: object) -> None:
        self.base = base
        self.job = next(_JOBS)
        self.journal = Journal(str(base / "run"), "n1")
        (base / "run").mkdir(mode=0o755, exist_ok=True)
        self.plan = ScratchPlan(
            node="n1", job=self.job, uid=UID, gid=GID, size_bytes=64 * MIB, backing="file",
            directory=str(base / "store"), overcommit=True, volume_group="", device="",
            mount_root=str(base / "mnt"), filesystem="ext4", run_dir=str(base / "run"),
        )._replace(**options)  # type: ignore[arg-type]  # fmt: skip
        self.keys: list[bytes] = []

    @property
    def names(self) -> ScratchNames:
        return self.plan.names

    @property
    def config(self) -> dict[str, object]:
        """The part of hooks.json that a tear-down gets."""
        wanted = ("backing", "directory", "overcommit", "volume_group", "device", "mount_root", "filesystem")
        return {name: getattr(self.plan, name) for name in wanted}

    def new_key(self) -> Secret:
        self.keys.append(secrets.token_bytes(crypt.KEY_BYTES))
        return Secret(self.keys[-1])

    def open(self, key: Secret | None = None, **options: object) -> ScratchInfo:
        incarnation = secrets.token_hex(16)
        self.journal.claim_incarnation(self.job, incarnation)
        return self.open_claimed(incarnation, key, **options)

    def open_claimed(self, incarnation: str, key: Secret | None = None, **options: object) -> ScratchInfo:
        return open_scratch(
            self.plan, self.new_key() if key is None else key, self.journal,
            incarnation=incarnation, key_name=f"n1_test-{self.job}-{secrets.token_hex(8)}",
            wrapped="vault:v1:abcd", **{"seconds": 120.0, **options},  # type: ignore[arg-type]
        )  # fmt: skip

    def close(self, **options: object) -> Report:
        return close_scratch(self.journal, self.job, self.config, **{"patience": 120.0, **options})  # type: ignore[arg-type]

    def left(self) -> list[str]:
        return verify_gone(self.names)

    def table(self) -> str:
        return crypt.table(self.names.mapper, Budget(120))


@pytest.fixture(autouse=True)
def _unhurried() -> Iterator[None]:
    """What a single step may take on a node is no claim here: a machine that others have a share of may stand still."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (crypt, filesystem, stacked, volume):
            patch.setattr(module, "_STEP", 120.0)
        for module in (store_look, store_take, store_unit):
            patch.setattr(module, "TIMEOUT", 120.0)
        patch.setattr(crypt, "_GONE_WITHIN", 120.0)
        patch.setattr(setup, "_UNDO", 120.0)
        patch.setattr(present, "QUERY_TIMEOUT", 120.0)
        yield


@pytest.fixture
def base() -> Iterator[Path]:
    """A private tmpfs: root's own folders all the way down, and room for sparse files of any size."""
    path = Path(f"/run/scratch-test-{os.getpid()}-{secrets.token_hex(4)}")
    path.mkdir(mode=0o755)
    run([program("mount"), "-t", "tmpfs", "-o", "mode=755,size=700m", "tmpfs", str(path)], timeout=120)
    yield path
    for _ in range(50):
        with contextlib.suppress(SecureSlurmError):
            run([program("umount"), str(path)], timeout=120)
            break
        time.sleep(0.1)
    path.rmdir()


@pytest.fixture
def make_node(base: Path) -> Iterator[Callable[..., Node]]:
    """Makes nodes, and takes down what a failing test left of them."""
    made: list[Node] = []

    def make(**options: object) -> Node:
        made.append(Node(base, **options))
        return made[-1]

    yield make
    for node in made:
        with contextlib.suppress(SecureSlurmError):
            node.close(uid=UID)


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()


def loop_device(path: Path, size: int) -> str:
    """A block device of our own to stand in for a disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return run([program("losetup"), "--find", "--show", str(path)], timeout=120).stdout.decode().strip()


@pytest.fixture
def disk(base: Path) -> Iterator[str]:
    device = loop_device(base / "disk", 256 * MIB)
    yield device
    loop.detach(device)


@pytest.fixture
def volume_group(base: Path) -> Iterator[str]:
    device = loop_device(base / "pv", 256 * MIB)
    name = "vg-" + secrets.token_hex(3)
    run(volume._lvm("vgcreate", "--yes", name, device), timeout=120)
    yield name
    run(volume._lvm("vgremove", "--yes", "--force", name), timeout=120)
    loop.detach(device)


Hold = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts processes that run Python code as the job's user, and waits until they say that they are ready."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, *, uid: int = UID, cwd: str = "/", wrap: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        text = f"import os, sys, time\n{code}\nprint('ready', flush=True)\ntime.sleep(600)\n"
        user = {"user": uid, "group": GID, "extra_groups": []} if not wrap else {}
        process = subprocess.Popen(
            [*wrap, sys.executable, "-IS", "-c", text],
            stdout=subprocess.PIPE,
            cwd=cwd,
            **user,  # type: ignore[call-overload]
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """Does something in a process of its own that dies at once at the end, as a killed hook does; its exit code."""

    def do(act: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            try:
                act()
            except BaseException:  # noqa: BLE001
                os._exit(77)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return do


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No test may leave a mapping of ours in the kernel."""
    yield
    names = [path.read_text().strip() for path in Path("/sys/block").glob("dm-*/dm/name")]
    assert [name for name in names if name.startswith("secure-")] == []
