"""A listening socket that systemd holds for a daemon (sd_listen_fds(3)): who connects while it starts waits for it.

One daemon has one, and why the others do not is in docs/decisions/0036-units.md.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from conf.errors import ConfigError

FIRST = 3
"""The first descriptor that is handed over (SD_LISTEN_FDS_START)."""


def handed(path: str, environment: MutableMapping[str, str] | None = None) -> socket.socket | None:
    """The socket that was handed over for ``path``, None when none was. It may be asked for once.

    Raises ConfigError when more than one was, or one that is not a listening Unix socket at ``path``: the daemon would
    serve where nobody asks.
    """
    found = os.environ if environment is None else environment
    pid, count = found.pop("LISTEN_PID", ""), found.pop("LISTEN_FDS", "")
    found.pop("LISTEN_FDNAMES", "")
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    if count != "1":
        raise ConfigError(f"systemd handed over {count} sockets, and one is served", advice="see its .socket unit")
    os.set_inheritable(FIRST, False)
    try:
        given = socket.socket(fileno=FIRST)
    except OSError as error:
        raise ConfigError(f"what systemd handed over is no socket: {error.strerror}") from None
    listens = given.family == socket.AF_UNIX and given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listens or given.type != socket.SOCK_STREAM or given.getsockname() != path:
        where = given.getsockname() or "no path"
        given.close()
        raise ConfigError(
            f"systemd listens at {where!r}, and the site file says {path}",
            advice="give the .socket unit a drop-in with ListenStream= empty, and ListenStream= with that path",
        )
    return given
