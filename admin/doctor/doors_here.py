"""Doors to this machine: the kernel, its file systems and devices."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from admin import imds_cmd, store_ready
from admin.doctor.doors_far import attempts, read_place
from admin.doctor.doors_slurm import slurm_conf
from admin.doctor.facts import (
    Clock,
    Crypt,
    FileSystems,
    Fips,
    Leak,
    Metadata,
    ScratchPlace,
    Space,
    Speed,
)
from conf import store
from conf.errors import BackendUnavailable
from conf.hookconf import HOOKS_JSON, read_hook_config
from conf.slurmnames import for_node
from keys.process import ProcessError, ProgramMissing, program, run
from slurm_hooks import clear, mounts

if TYPE_CHECKING:
    from admin.doctor.scene import Scene

BENCHMARK_WAIT = 25.0
_STEP = 10.0
_RATE = re.compile(r"aes-xts\s+512b\s+([0-9.]+) MiB/s\s+([0-9.]+) MiB/s")
# adjtimex(2): struct timex with modes 0 asks only; on 64-bit machines ``status`` is behind five words
_TIMEX, _STATUS, _STA_UNSYNC = 256, 40, 0x0040


def clock(_: Scene) -> Clock:
    """Our time, and what the kernel says of it (adjtimex(2))."""
    buffer = ctypes.create_string_buffer(_TIMEX)
    if ctypes.sizeof(ctypes.c_long) != 8 or ctypes.CDLL(None, use_errno=True).adjtimex(buffer) < 0:
        return Clock(time.time(), None)
    status = int.from_bytes(buffer.raw[_STATUS : _STATUS + 4], "little")
    return Clock(time.time(), not status & _STA_UNSYNC)


def fips(scene: Scene) -> Fips:
    """/proc/sys/crypto/fips_enabled."""
    wanted = scene.site is not None and scene.site.doctor.fips == "required"
    try:
        return Fips(Path("/proc/sys/crypto/fips_enabled").read_text(encoding="ascii").strip() == "1", wanted)
    except OSError:
        return Fips(None, wanted)


def leaks(scene: Scene) -> tuple[Leak, ...]:
    """What the Prolog asks before each tagged job, for all classes; elsewhere as strictly."""
    config: dict[str, object] = {"node": {}, "private_tmp": {}}
    classes: tuple[str, ...] = ("",)
    if "compute" in scene.roles:
        rendered = read_hook_config(HOOKS_JSON, check_sources=False)
        config, classes = rendered, tuple(sorted(rendered.get("private_tmp", {}))) or ("",)
    else:
        # nobody has a job's /tmp here
        config["private_tmp"] = {"": "none"}
    found = clear.faults(config, scene.node, classes, slurm_conf(scene.need_site().cluster.slurm_bin))
    return tuple(Leak(each.rule, str(each), each.advice) for each in found)


def metadata(_: Scene) -> Metadata:
    """Tried as nobody, in a child; by who is not root, as who they are."""
    if os.geteuid() == 0:
        found = imds_cmd.state()
        return Metadata(found.reached, found.rules)
    tried = attempts(
        tuple(f"[{each}]:80" if ":" in each else f"{each}:80" for each in imds_cmd.ADDRESSES.values()), 2.0
    )
    return Metadata(tuple(each.target for each in tried if each.result == "open"), None)


def space(scene: Scene) -> tuple[Space, ...]:
    """Where audit lines and state are written, each file system once."""
    site = scene.need_site()
    paths = [site.audit.directory]
    paths += [site.lifecycle.state_dir] if "head" in scene.roles else []
    paths += (
        [for_node(site.node.state_dir, scene.node), for_node(site.node.run_dir, scene.node)]
        if "compute" in scene.roles
        else []
    )
    found: dict[int, Space] = {}
    for path in paths:
        here = _existing(path)
        free = os.statvfs(here)
        one = Space(path, free.f_bfree * free.f_frsize, free.f_blocks * free.f_frsize, free.f_ffree, free.f_files)
        found.setdefault(os.stat(here).st_dev, one)  # noqa: PTH116
    return tuple(found.values())


def _existing(path: str) -> Path:
    here = Path(path)
    while not here.exists():
        here = here.parent
    return here


def crypt(scene: Scene) -> Crypt:
    """What the hooks need to encrypt."""
    scratch = scene.need_site().scratch
    names = ["cryptsetup", "dmsetup", "losetup", f"mkfs.{scratch.filesystem}"]
    names += ["lvcreate", "vgs"] if scratch.backing in ("lvm", "auto") and scratch.volume_group else []
    missing = tuple(name for name in names if _is_missing(name))
    return Crypt(_has_target(), missing, _has_aes())


def _is_missing(name: str) -> bool:
    try:
        program(name)
    except ProgramMissing:
        return True
    return False


def _has_target() -> bool:
    """dm-crypt is there, or would be loaded when it is first used."""
    try:
        if "crypt" in run([program("dmsetup"), "targets"], timeout=_STEP).stdout.decode("ascii", "replace").split():
            return True
        run([program("modprobe"), "--dry-run", "dm_crypt"], timeout=_STEP)
    except ProcessError:
        return False
    return True


def _has_aes() -> bool | None:
    """The processor's own word; None: it says nothing of the kind."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    flags = [line.partition(":")[2].split() for line in text.splitlines() if re.match(r"(flags|Features)\s*:", line)]
    return "aes" in flags[0] if flags else None


def speed(_: Scene) -> Speed:
    """cryptsetup(8), benchmark: in memory, a second for each direction."""
    argv = [program("cryptsetup"), "benchmark", "--cipher", "aes-xts-plain64", "--key-size", "512"]
    try:
        told = run(argv, timeout=BENCHMARK_WAIT).stdout.decode("ascii", "replace")
    except ProcessError as error:
        raise BackendUnavailable(
            f"cryptsetup cannot measure it: {error.stderr or error}", advice="modprobe algif_skcipher"
        ) from None
    rates = _RATE.search(told)
    if rates is None:
        raise BackendUnavailable("cryptsetup did not say how fast it is")
    return Speed(min(float(rates[1]), float(rates[2])))


def scratch(scene: Scene) -> ScratchPlace:
    """Room, and the owner and mode that the hooks insist on."""
    site = scene.need_site()
    needed = max((each.default_scratch or 0 for each in scene.need_policy().classes), default=0)
    kind: str = site.scratch.backing
    if kind == "auto":
        kind = store.read(str(Path(HOOKS_JSON).parent))[0] or kind
    trouble = store_ready.problem(site.scratch, kind)
    if trouble:
        return ScratchPlace(f"scratch.backing {site.scratch.backing}", 0, needed, trouble, "secure-slurm node store")
    if kind == "memory":
        return ScratchPlace("memory", store_ready.memory_room(site.scratch), needed)
    if kind == "lvm":
        group = site.scratch.volume_group
        argv = [program("vgs"), "--noheadings", "--nosuffix", "--units", "b", "-o", "vg_free", group]
        try:
            return ScratchPlace(group, int(float(run(argv, timeout=_STEP).stdout.split()[0])), needed)
        except (ProcessError, ValueError, IndexError):
            return ScratchPlace(group, 0, needed, "there is no such volume group", "see scratch.volume_group")
    if kind == "block":
        return _device(site.scratch.device, needed)
    return _folder(site.scratch.directory, needed)


def _device(path: str, needed: int) -> ScratchPlace:
    try:
        with open(path, "rb") as device:  # noqa: PTH123
            if not stat.S_ISBLK(os.fstat(device.fileno()).st_mode):
                return ScratchPlace(path, 0, needed, "is no block device", "see scratch.device")
            return ScratchPlace(path, device.seek(0, os.SEEK_END), needed)
    except OSError as error:
        return ScratchPlace(path, 0, needed, error.strerror or "it cannot be opened", "see scratch.device")


def _folder(path: str, needed: int) -> ScratchPlace:
    advice = f"install -d -m 700 -o root {path}"
    try:
        status = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    except OSError as error:
        return ScratchPlace(path, 0, needed, error.strerror or "it cannot be looked at", advice)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o077:
        return ScratchPlace(path, 0, needed, "it must be a folder that is root's alone", advice)
    free = os.statvfs(path)
    return ScratchPlace(path, free.f_bavail * free.f_frsize, needed)


def file_systems(scene: Scene) -> FileSystems:
    """By the mount table alone, as the Prolog does."""
    region = read_place(scene.need_site().node.place_file)
    policy = scene.need_policy()
    place = policy.jurisdiction_of_region(region) or ""
    listed = policy.jurisdictions[place].file_systems if place else ()
    found = mounts.unlisted(mounts.read(), listed)
    words = {each: f"{each.point} ({each.source}, {each.fstype})" for each in found}
    return FileSystems(
        place,
        tuple(text for each, text in words.items() if not each.foreign),
        tuple(text for each, text in words.items() if each.foreign),
    )
