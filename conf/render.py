"""What the hooks read, made from the two YAML files: hooks.json (root hooks), hooks.sh (stubs), job_submit.conf.lua.

Rendering the same files twice gives the same bytes. hooks.json has ``format``; ``cluster`` (name, head_nodes,
slurm_bin, slurm_user); ``lifecycle`` (socket, start_deadline in seconds, ended_dir); ``node`` (run_dir with ``%n``,
place_file, proof, prolog_deadline in seconds and whatever else the site file says of nodes); ``scratch``; ``audit``
(directory); ``revocation`` (offline_grace and confirm_within in seconds, linked); ``regions`` (region id to
jurisdiction); ``secure_partitions``; ``mounts`` and, by class, ``private_tmp`` (:mod:`conf.surroundings`); and
``sources``, the sha256 of each YAML file, by which a stale one is refused.
"""

from __future__ import annotations

import json
import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from conf import policy as policy_file
from conf import site as site_file
from conf import store, surroundings
from conf.errors import ConfigError
from conf.hookconf import FORMAT
from conf.quote import quote
from conf.safefile import check_file_safety

if TYPE_CHECKING:
    from conf.policy import Policy
    from conf.site import Site

_MADE = "made by 'secure-slurm conf render': change secure-slurm.yaml or policy.yaml instead"
# as the daemon says it (slurm_hooks.engine), which job_submit.lua compares
POLICY_DIGITS = 16
# where the packages lie: the stubs put this on sys.path, for python3 -IS puts nothing there
LIBRARY = str(Path(__file__).resolve().parent.parent)


def render(
    site_path: str = site_file.DEFAULT_PATH,
    policy_path: str = policy_file.DEFAULT_PATH,
    directory: str = "/etc/secure-slurm",
    *,
    library: str = LIBRARY,
) -> list[Path]:
    """Check both files and write all three into ``directory`` (mode 0644, each replaced whole); the paths written.

    Raises ConfigError for a mistake in either file, before anything is written, and when a file cannot be written.
    """
    site = site_file.load_site(site_path)
    policy = policy_file.load_policy(policy_path)
    sources = {str(Path(site_path).absolute()): site.sha256, str(Path(policy_path).absolute()): policy.hash}
    files = {
        "hooks.sh": hooks_sh(site, policy, library=library),
        "job_submit.conf.lua": job_submit_lua(site, policy),
        # last: its hashes say that the two others are up to date as well
        "hooks.json": hooks_json(site, policy, sources, directory=directory),
    }
    return [replace(Path(directory) / name, text) for name, text in files.items()]


def hooks_json(site: Site, policy: Policy, sources: dict[str, str], *, directory: str) -> str:
    """The text of hooks.json; ``sources`` maps each YAML file's absolute path to its sha256, ``directory`` is where it
    goes: what ``scratch.backing: auto`` has chosen on this machine lies there too (:mod:`conf.store`).
    """
    content: dict[str, Any] = {
        "_": _MADE,
        "format": FORMAT,
        "cluster": attrs.asdict(site.cluster),
        "lifecycle": {
            "socket": site.lifecycle.socket,
            "start_deadline": site.lifecycle.start_deadline,
            "ended_dir": site.lifecycle.ended_dir,
        },
        "node": attrs.asdict(site.node),
        "scratch": store.rendered(site.scratch, directory),
        "audit": attrs.asdict(site.audit),
        "revocation": {"linked": bool(site.link.listen), **attrs.asdict(site.revocation)},
        "regions": policy.regions(),
        "secure_partitions": list(policy.demanding_partitions()),
        "mounts": surroundings.for_node(policy),
        "private_tmp": surroundings.private_tmp(policy),
        "sources": sources,
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def hooks_sh(site: Site, policy: Policy, *, library: str) -> str:
    """The text of hooks.sh: plain assignments, for ``sh`` to read as root and, in TaskProlog, as the job's user."""
    # '|' when no partition demands a tag: the stubs look for '|name|', which an empty name must not match either
    partitions = "|" + "".join(f"{name}|" for name in policy.demanding_partitions())
    values = {
        "SECURE_PARTITIONS": partitions,
        "MOUNT_ROOT": site.scratch.mount_root,
        "RUN_DIR": site.node.run_dir,
        "HOOKS": library,
        **surroundings.for_stub(policy),
        **surroundings.for_tasks(policy),
    }
    lines = [f"{name}={_in_single_quotes(value)}" for name, value in values.items()]
    return "\n".join([f"# {_MADE}", *lines]) + "\n"


def job_submit_lua(site: Site, policy: Policy) -> str:
    """The text of job_submit.conf.lua: one table, which slurmctld's Lua reads."""
    controller = site.controller
    demand = ", ".join(f"[{_lua(name)}]=true" for name in policy.demanding_partitions())
    return (
        f"-- {_MADE}\n"
        "return {\n"
        f"  socket={_lua(controller.socket)},\n"
        f"  deadline={controller.deadline!r},\n"
        f"  untagged={_lua(controller.untagged)},\n"
        f"  untagged_when_down={_lua(controller.untagged_when_down)},\n"
        f"  policy={_lua(policy.hash[:POLICY_DIGITS])},\n"
        f"  demand={{{demand}}},\n"
        "}\n"
    )


def _in_single_quotes(text: str) -> str:
    quoted = shlex.quote(text)
    return quoted if quoted.startswith("'") else f"'{quoted}'"


def _lua(text: str) -> str:
    """A Lua string. The schema lets nothing through that would need escaping, and nothing is escaped here."""
    if not text.isascii() or not text.isprintable() or '"' in text or "\\" in text:
        raise ConfigError(f"{quote(text)} cannot be written for Lua", advice="use letters, digits and ._/-")
    return f'"{text}"'


def replace(path: Path, text: str) -> Path:
    """Write beside it and rename, so that a hook that starts meanwhile reads the old file or the new, never half."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fchmod(fd, 0o644)
                os.fsync(fd)
            check_file_safety(temporary)
            temporary.replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", advice="run it as root") from None
    return path


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
