"""Links on the way to a mount are not followed. Run in a mount namespace of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from keys.process import ProcessError, ProcessTimeout
from keys.scratch import unmount

ROOT = str(Path(unmount.__file__).parents[2])
SCRIPT = """
import sys; sys.path.insert(0, {root!r})
import ctypes, os
from keys.process import ProcessError
from keys.scratch.mounts import mounts
from keys.scratch.unmount import unmount
base = {base!r}
libc = ctypes.CDLL(None, use_errno=True)
def mount(point, kind=b"tmpfs", flags=0):
    if libc.mount(b"none", os.fsencode(point), kind, flags, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")
def there(point):
    return sum(each.point == base + point for each in mounts())
def refused(point):
    try:
        unmount(base + point, timeout=20)
    except ProcessError as error:
        return str(error)
    raise SystemExit("it was unmounted: " + point)
if libc.unshare(0x20000) != 0 and libc.unshare(0x10020000) != 0:
    print("no privileges"); sys.exit(0)
try:
    mount("/", None, 0x4000 | (1 << 18))
except PermissionError:
    print("no privileges"); sys.exit(0)
for name in ("victim", "victim/inner", "job", "job/a", "job/a/inner"):
    os.mkdir(base + "/" + name)
mount(base + "/victim/inner"); mount(base + "/job/a/inner"); mount(base + "/job/a/inner")
{act}
print("good")
"""
SWAP = """
os.rename(base + "/job/a", base + "/job/b"); os.symlink(base + "/victim", base + "/job/a")
assert "directory" in refused("/job/a/inner"), refused("/job/a/inner")
assert there("/victim/inner") == 1
unmount(base + "/job/b/inner", timeout=20)
"""
LAST = """
os.symlink(base + "/victim/inner", base + "/job/link")
refused("/job/link")
assert there("/victim/inner") == 1
"""
PLAIN = """
before = len(os.listdir("/proc/self/fd")), os.getcwd()
for left in (1, 0):
    unmount(base + "/job/a/inner", timeout=20)
    assert there("/job/a/inner") == left
assert "Invalid" in refused("/job/a/inner")
assert "No such" in refused("/job/x/inner")
held = os.open(base + "/victim/inner", os.O_RDONLY)
assert "busy" in refused("/victim/inner")
os.close(held)
unmount(base + "/victim/inner", timeout=20)
assert before == (len(os.listdir("/proc/self/fd")), os.getcwd())
"""


@pytest.mark.parametrize("act", [SWAP, LAST, PLAIN], ids=["a folder is a link", "the mount is a link", "plain"])
def test_in_a_namespace(tmp_path: Path, act: str) -> None:
    """Without the right to a namespace (a developer's account) nothing is claimed; tests/cluster/scratch has it all."""
    script = SCRIPT.format(root=ROOT, base=str(tmp_path.resolve()), act=act)
    done = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout in ("good\n", "no privileges\n"), done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("point", ["", "x", "/", "/a//b", "/a/../b", "/a/./b", "/a/"])
def test_paths_that_are_none(point: str) -> None:
    with pytest.raises(ProcessError, match="not the path"):
        unmount.unmount(point, timeout=20)


def test_without_time_nothing_is_done() -> None:
    with pytest.raises(ProcessTimeout):
        unmount.unmount("/nothing", timeout=0)


def test_an_unmount_that_does_not_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(unmount, "_unmount", lambda *_: time.sleep(600))
    with pytest.raises(ProcessTimeout):
        unmount.unmount("/nothing", timeout=0.2)
    with pytest.raises(ProcessTimeout):
        unmount.unmount("/nothing", timeout=600, stop=lambda: True)


def test_a_child_that_dies_unmounted_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmount, "_unmount", lambda *_: 1 / 0)
    with pytest.raises(ProcessError, match="cut short"):
        unmount.unmount("/nothing", timeout=20)
