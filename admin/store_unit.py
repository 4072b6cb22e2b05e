"""ParallelCluster's unit that makes, formats and mounts ``lv_ephemeral`` at boot: kept from running, and given back.

Kept from running twice over: it is disabled, and a file beside it gives it a condition that fails as long as that file
is there, so that something that starts or enables it again does no harm (systemd.unit(5), ConditionPathExists).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from conf.errors import InternalError
from conf.safefile import check_file_safety
from keys.process import ProcessError, program, run

NAME = "setup-ephemeral.service"
SYSTEM = "/etc/systemd/system"
RUNNING = "/run/systemd/system"
"""There when systemd is the init (sd_booted(3))."""
TIMEOUT = 60.0
_WAS_ENABLED = "# it was enabled before\n"


def _drop_in() -> Path:
    # uninstall.sh looks for it too
    return Path(f"{SYSTEM}/{NAME}.d/50-secure-slurm.conf")


def exists() -> bool:
    """Whether this machine has the unit at all."""
    return Path(f"{SYSTEM}/{NAME}").exists()


def stopped() -> bool:
    """Whether it is kept from running, or is not there."""
    return not exists() or (_drop_in().exists() and not _enabled())


def stop() -> bool:
    """Keep it from running, now and at boot; whether anything had to be done. InternalError: it cannot be."""
    if stopped():
        return False
    enabled = _enabled()
    path = _drop_in()
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o755, exist_ok=True)
            path.parent.chmod(0o755)
            text = "# made by 'secure-slurm node store': the volume group is for the encrypted scratch of jobs\n"
            text += _WAS_ENABLED if enabled else ""
            temporary = path.with_suffix(".new")
            temporary.write_text(f"{text}[Unit]\nConditionPathExists=!{path}\n", encoding="ascii")
            temporary.chmod(0o644)
            temporary.replace(path)
        check_file_safety(str(path))
        if enabled:
            _systemctl("disable", NAME)
        _reload()
    except OSError as error:
        raise InternalError(
            f"{NAME} cannot be kept from running: {error}", advice=f"systemctl disable {NAME}"
        ) from None
    if not stopped():
        raise InternalError(f"{NAME} is still enabled", advice=f"systemctl disable {NAME}")
    return True


def give_back() -> bool:
    """Let it run again, at the next boot; whether anything had to be done."""
    path = _drop_in()
    try:
        enabled = _WAS_ENABLED in path.read_text(encoding="ascii", errors="replace")
        if enabled and exists():
            _systemctl("enable", NAME)
        path.unlink()
        with contextlib.suppress(OSError):  # somebody else's files are there as well
            path.parent.rmdir()
        _reload()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InternalError(f"{NAME} cannot be given back: {error}", advice=f"remove {path}") from None
    return True


def _enabled() -> bool:
    """Whether anything starts it at boot: a link of its name in some target's folder (systemd.unit(5))."""
    return any(Path(SYSTEM).glob(f"*.wants/{NAME}")) or any(Path(SYSTEM).glob(f"*.requires/{NAME}"))


def _systemctl(*words: str) -> None:
    try:
        run([program("systemctl"), "--quiet", *words], timeout=TIMEOUT)
    except ProcessError as error:
        raise InternalError(f"systemctl {words[0]} failed: {error}", advice=f"systemctl {' '.join(words)}") from None


def _reload() -> None:
    if Path(RUNNING).is_dir():
        _systemctl("daemon-reload")
