"""The members file for who tries a policy: of any age, whoever wrote it, as nothing is decided by it."""

from __future__ import annotations

import math
import os
import time

from conf.errors import ConfigError, Refused
from slurm_hooks.snapshot import Snapshot


def load_members(path: str) -> Snapshot:
    """Read it. ConfigError: it cannot be read, or is no members file."""
    advice = "name another one with --members"
    try:
        return Snapshot.load(path, os.lstat(path).st_uid, max_age=math.inf, now=time.time())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there can be no such name"
        raise ConfigError(f"the members file {path} cannot be read: {reason}", advice=advice) from None
    except Refused as error:
        raise ConfigError(f"{path}: {error}", advice=advice) from None
