"""Tries connections as an ordinary user would, and sends nothing over them. Run by itself under ``python3 -IS``.

``connect.py SECONDS HOST:PORT...`` prints a JSON list: ``target``, ``resolved`` (addresses of a name), ``result``:
``open``, ``refused``, ``silent``, ``not resolved``, or the kernel's word for why not, such as ``ENETUNREACH``.

A TCP connection is opened and closed. UDP has none to open: for port 123 the attempt is NTP's opening message, 48
bytes, the same for everybody, of which one is not zero (RFC 5905, 7.3: version 4, client); other UDP is not tried.
Standard library only.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading
import time

NTP = 123
_HELLO = bytes([0o43]) + bytes(47)


def attempt(target: str, patience: float) -> dict[str, object]:
    """One target. ``patience``: seconds for all of it but the resolver, whose time the caller limits."""
    host, port = split(target)
    kind = socket.SOCK_DGRAM if port == NTP else socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(host, port, type=kind)
    except (OSError, UnicodeError):
        # the second: what can be no name at all
        return {"target": target, "resolved": [], "result": "not resolved"}
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    named = [] if host in addresses else addresses
    results = []
    end = time.monotonic() + patience
    for family, _, _, _, where in found:
        left = end - time.monotonic()
        results.append(_try(family, kind, where, left) if left > 0 else "silent")
        if results[-1] == "open":
            break
    # what speaks most for a way out
    result = next((word for word in ("open", "refused") if word in results), results[0])
    return {"target": target, "resolved": named, "result": result}


def _try(family: int, kind: int, where: object, left: float) -> str:
    try:
        with socket.socket(family, kind) as trial:
            trial.settimeout(left)
            trial.connect(where)  # type: ignore[arg-type]
            if kind == socket.SOCK_DGRAM:
                trial.send(_HELLO)
                trial.recv(512)
            return "open"
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silent"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "error")


def split(target: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``."""
    host, _, port = target.rpartition(":")
    return host.strip("[]"), int(port)


def main(words: list[str]) -> int:
    """All at once; what has not ended a second after its time is called silent."""
    patience, targets = float(words[0]), words[1:]
    found: dict[str, dict[str, object]] = {}

    def note(target: str) -> None:
        found[target] = attempt(target, patience)

    threads = [threading.Thread(target=note, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    end = time.monotonic() + patience + 1.0
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = {"resolved": [], "result": "silent"}
    sys.stdout.write(json.dumps([found.get(target) or {"target": target, **late} for target in targets]))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
