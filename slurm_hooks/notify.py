"""What a daemon tells systemd: that it serves, that it is alive, that it ends, and how things are (sd_notify(3)).

Said by the loop that does the daemon's work, and never by a thread beside it: a daemon whose loop stands still must
fall silent, for that silence is what systemd acts on (``WatchdogSec=``, systemd.service(5)). Without systemd nothing
is said.

``systemctl status`` shows everybody what is said here: figures and places, no names of users, groups or jobs.
Standard library only, and light, because root's daemons use it as well.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SHARE = 3.0
"""Beats in one ``WatchdogSec``: two may be lost on a busy machine before the third counts."""
MAX_STATUS = 200
QUEUE = 1.0


def notify(*states: str) -> None:
    """Tell systemd, if it asked to be told: ``READY=1`` and the like, in one datagram. A failure is printed."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        try:
            # systemd's queue may be full: whoever serves does not wait for long
            connection.settimeout(QUEUE)
            connection.connect(address)
            connection.sendall("\n".join(states).encode())
        except OSError as error:
            print(f"systemd was not told {states[0]}: {error.strerror}", file=sys.stderr, flush=True)


class Systemd:
    """The daemon's side of it, by the ``environment`` that systemd set for this process, and for no child of it."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        found = os.environ if environment is None else environment
        self._watch = _watched(found) / SHARE
        self._told = ""
        self._next = 0.0

    @property
    def pace(self) -> float:
        """Seconds between two beats, at most; 0.0 when nobody waits for them."""
        return self._watch

    def ready(self, status: str) -> None:
        """The daemon serves from now on: who asks gets an answer."""
        self._told = _line(status)
        self._next = time.monotonic() + self._watch
        # both at once: until the first beat the time runs from here
        notify("READY=1", f"STATUS={self._told}", *(["WATCHDOG=1"] if self._watch else []))

    def alive(self, status: str = "") -> None:
        """The loop has come round. May be called at any pace: sent are beats that are due, and a changed status."""
        now = time.monotonic()
        says = []
        if self._watch and now >= self._next:
            # half a pace, so that a loop which comes round once in a pace is never a moment early
            self._next = now + self._watch / 2
            says.append("WATCHDOG=1")
        line = _line(status)
        if line and line != self._told:
            self._told = line
            says.append(f"STATUS={line}")
        if says:
            notify(*says)

    def stopping(self) -> None:
        """The daemon serves nobody any more; what is under way is finished."""
        notify("STOPPING=1", "STATUS=ending")


def _watched(environment: Mapping[str, str]) -> float:
    """Seconds of silence after which systemd acts; 0.0: never, or another process is meant (sd_watchdog_enabled(3))."""
    text, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit()) or (pid and pid != str(os.getpid())):
        return 0.0
    return int(text) / 1e6


def _line(text: str) -> str:
    """One line: a second one would be an assignment of its own."""
    return "".join(each if each.isprintable() else " " for each in text)[:MAX_STATUS]
