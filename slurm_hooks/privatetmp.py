"""The job's own /tmp and /var/tmp, on its encrypted scratch: Slurm's InitScript (job_container.conf(5)), and back.

job_container/tmpfs and namespace/tmpfs make ``BasePath/<job>``, and in the job's namespace bind folders below
``BasePath/<job>/.<job>`` to /tmp and whatever else ``Dirs`` lists. They begin after the Prolog and refuse a
``BasePath/<job>`` that is already there, so a Prolog cannot put anything under it; their InitScript runs when the first
is made and the second is not. It binds a folder of the scratch there: what the job writes to /tmp has the job's key.
Standard library only (root hooks import it under ``python3 -IS``).
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH108, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets

from conf.errors import InternalError, SecureSlurmError
from conf.hookconf import read_hook_config
from conf.slurmnames import for_node
from keys.scratch import crypt
from keys.scratch.mounts import below, mounts
from keys.scratch.paths import open_directory
from keys.scratch.plan import names_from_config
from keys.scratch.unmount import unmount
from slurm_hooks.hookenv import read_job, say

NOTES = "private"
"""Below the run directory: one file for each job whose /tmp is on its scratch, with the place that was bound to. It is
written before the bind, and taken away after everything at that place is."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MS_BIND, _MS_PRIVATE = 4096, 1 << 18
_STEP = 5.0


def main() -> int:
    """The InitScript. Returns its exit status: with anything but 0 Slurm does not launch the job on this node."""
    os.umask(0o077)
    try:
        # a configuration that is being changed is for the Prolog to refuse, which came just before
        config = read_hook_config(check_sources=False)
        job = read_job(os.environ)
        bind(config, job.node, job.job, os.environ.get("SLURM_JOB_MOUNTPOINT_SRC", ""))
    except (SecureSlurmError, OSError) as error:
        say("private tmp", f"a job gets no /tmp on its scratch, and does not start: {error}")
        return 1
    return 0


def bind(config: dict[str, object], node: str, job: int, place: str) -> None:
    """Show a new folder of the job's scratch at ``place``, which Slurm names, and which does not exist yet.

    :raises InternalError: the scratch is not there, or ``place`` is none of Slurm's; nothing was bound then.
    """
    scratch, run_dir = config["scratch"], for_node(str(config["node"]["run_dir"]), node)  # type: ignore[index]
    names = names_from_config(node, job, scratch)  # type: ignore[arg-type]
    mapping = crypt.find(names.mapper)
    if mapping is None:
        raise InternalError(f"the job has no mapping {names.mapper} that its /tmp could lie on")
    _check_place(place, job)
    with contextlib.ExitStack() as opened:

        def hold(descriptor: int) -> int:
            opened.callback(os.close, descriptor)
            return descriptor

        top = hold(os.open(str(job), _FOLDER, dir_fd=hold(open_directory(names.mount_root))))
        if os.fstat(top).st_dev != mapping.device:
            raise InternalError(f"what is mounted at {names.mount_point} is not {names.device}")
        # A name that cannot be foreseen, and root's until Slurm has made its folders in it: another job of the same
        # user may be here, and Slurm's mkdir and mount follow whatever they find.
        name = f".private-{secrets.token_hex(8)}"
        os.mkdir(name, 0o700, dir_fd=top)
        source = hold(os.open(name, _FOLDER, dir_fd=top))
        if os.fstat(source).st_uid != os.geteuid():
            raise InternalError(f"{name} in {names.mount_point} was exchanged")
        parent = hold(open_directory(os.path.dirname(place)))
        _note(run_dir, job, place)
        os.mkdir(os.path.basename(place), 0o700, dir_fd=parent)
        target = hold(os.open(os.path.basename(place), _FOLDER, dir_fd=parent))
        _mount(source, f"/proc/self/fd/{target}")


def _check_place(place: str, job: int) -> None:
    if not re.fullmatch(rf"/(?:[^/]+/)+{job}/\.{job}", place) or not {".", ".."}.isdisjoint(place.split("/")):
        raise InternalError(
            f"Slurm names no place for it that is known here: {place[:200]!r}",
            advice="use job_container/tmpfs, or from Slurm 25.11 on namespace/tmpfs",
        )


def _mount(source: int, target: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(f"/proc/self/fd/{source}".encode(), target.encode(), None, _MS_BIND, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def _note(run_dir: str, job: int, place: str) -> None:
    folder = open_directory(f"{run_dir}/{NOTES}", create=0o700)
    try:
        descriptor = os.open(
            str(job), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
        )
        with os.fdopen(descriptor, "w") as file:
            file.write(place)
    finally:
        os.close(folder)


def release(run_dir: str, job: int) -> bool:
    """Take away what :func:`bind` made, and what Slurm left of it; whether there was anything. May be called again.

    Removing the folders takes the mounts off them in other namespaces as well, where another job's may have copies.

    :raises SecureSlurmError: something is still mounted there, or the note is not one of ours.
    :raises OSError: a folder there is not empty.
    """
    path = f"{run_dir}/{NOTES}/{job}"
    try:
        with open(path, encoding="utf-8") as file:
            place = file.read(4096)
    except FileNotFoundError:
        return False
    _check_place(place, job)
    base = os.path.dirname(place)
    for each in below(base, mounts()):
        unmount(each.point, timeout=_STEP)
    with contextlib.suppress(FileNotFoundError):
        parent = open_directory(os.path.dirname(base))
        try:
            _remove(parent, job)
        finally:
            os.close(parent)
    os.unlink(path)
    return True


def _remove(parent: int, job: int) -> None:
    """``<job>`` with ``.<job>`` and ``.ns`` in it; anything else in it is not Slurm's, and stays, and is told."""
    folder = os.open(str(job), _FOLDER, dir_fd=parent)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f".{job}", dir_fd=folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(".ns", dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(str(job), dir_fd=parent)


def jobs(run_dir: str) -> list[int]:
    """The jobs that there are notes of. OSError: the folder cannot be listed."""
    try:
        names = os.listdir(f"{run_dir}/{NOTES}")
    except FileNotFoundError:
        return []
    return [int(name) for name in names if name.isascii() and name.isdecimal() and name == str(int(name)) and int(name)]
