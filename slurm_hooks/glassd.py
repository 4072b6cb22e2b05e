"""The break-glass daemon: writes down what people ask for, approve and end, and who said it, as the kernel tells it.

It decides nothing but who may end a grant and how much one person may write: whether a paper counts is judged by the
deciders, who know policy and members. It has no network, no key, and one folder, which nobody else can write to. Who
may connect is a matter of the socket's group.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import secrets
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from conf.quote import quote
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import load_site
from conf.version import __version__
from slurm_hooks import breakglass_papers as papers
from slurm_hooks import pulse, wire
from slurm_hooks.breakglass_ask import Shown, page
from slurm_hooks.breakglass_dir import WRITER, Box, Papers, Pen
from slurm_hooks.handed import handed
from slurm_hooks.notify import Systemd
from slurm_hooks.serve import Answer, Fields, Peer, serve

LOG = logging.getLogger(__name__)

DEADLINE = 10.0
SOCKET_MODE = 0o660
ROOT = 0
MAX_CONNECTIONS_OF_ONE = 8
MAX_OPEN = 8
"""Requests of one person that are neither over nor ended."""
MAX_KEPT = 32
"""Grants of one requester in the folder, old ones among them."""
MAX_GRANTS = 1000
"""Grants in the folder: with three papers each, below what the deciders read (breakglass_dir.MAX_FILES)."""
MAX_PAPERS, MAX_PAPERS_OF_ALL = 12, 120
"""Requests and approvals in a minute, of one person and of all. Ends are as many as there are grants."""
KEPT_FOR = 30 * 86400
"""Seconds for which a grant that is over stays in the folder, if there is room. The trail keeps it for ever."""
MAX_LENGTH = 366 * 86400

_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


class Pace:
    """How many papers were written in the last minute. ``clock``: seconds, never set back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all: deque[float] = deque()
        self._of: defaultdict[int, deque[float]] = defaultdict(deque)

    def check(self, uid: int) -> None:
        """Refused ``glass.limit`` when a person, or all together, are too fast."""
        since = self._clock() - 60.0
        for times, most, who in ((self._of[uid], MAX_PAPERS, "you"), (self._all, MAX_PAPERS_OF_ALL, "all together")):
            while times and times[0] <= since:
                times.popleft()
            if len(times) >= most:
                raise Refused("glass.limit", f"{most} papers a minute are enough for {who}", advice="wait a minute")

    def count(self, uid: int) -> None:
        """One was written."""
        for times in (self._of[uid], self._all):
            times.append(self._clock())


class Glass:
    """The verbs. ``writer``: the account that this runs as; ``clock`` gives Unix seconds."""

    def __init__(self, folder: str, *, writer: str = WRITER, clock: Callable[[], float] = time.time) -> None:
        self._pen = Pen(folder)
        self._box = Box(folder, writer)
        self._pace = Pace()
        self._clock = clock

    def close(self) -> None:
        """Let go of the folder."""
        self._pen.close()

    async def request(self, fields: Fields, peer: Peer) -> Answer:
        """Verb ``request``: ``user``, ``role`` or ``job``, ``seconds``, ``reason``.

        Answers ``id``, ``until`` (Unix seconds) and ``sha256``.
        """
        _no_root(peer, "glass.requester")
        self._pace.check(peer.uid)
        seconds = _number(fields, "seconds")
        if seconds is None or not 0 < seconds <= MAX_LENGTH:
            raise Refused("glass.too-long", "it lasts from one second to a year", advice="ask for less")
        now = int(self._clock())
        asked = papers.Request(
            id=f"{time.strftime('%Y%m%d', time.gmtime(now))}-{secrets.token_hex(4)}",
            by=peer.uid,
            user=wire.text(fields, "user"),
            role=wire.text(fields, "role", "") or None,
            job=_number(fields, "job"),
            time=now,
            until=now + seconds,
            reason=wire.text(fields, "reason"),
        )
        data = papers.dump_request(asked)
        papers.parse_request(asked.id, data)
        self._make_room(peer.uid, now)
        self._write(f"{asked.id}.request", data, peer)
        return {"verdict": "allow", "id": asked.id, "until": str(asked.until), "sha256": papers.digest(data)}

    async def approve(self, fields: Fields, peer: Peer) -> Answer:
        """Verb ``approve``: ``id``, ``sha256`` of the request that was read, ``reason``. Once for a request."""
        _no_root(peer, "glass.approver")
        self._pace.check(peer.uid)
        name, found = self._grant(fields)
        asked = papers.parse_request(name, found["request"].data)
        if peer.uid == asked.by:
            raise Refused("glass.same-person", "nobody approves their own request", advice="somebody else must do it")
        if "end" in found or self._pen.there(f"{name}.end"):
            raise Refused("glass.end", f"{quote(name)} has ended", advice="it can be asked for again")
        if self._clock() >= asked.until:
            raise Refused("glass.over", f"the time of {quote(name)} is over", advice="it can be asked for again")
        digest = papers.digest(found["request"].data)
        if wire.text(fields, "sha256") != digest:
            raise Refused(
                "glass.digest", "that is not the request that is there", advice="read it, and approve it then"
            )
        data = papers.dump_note(papers.Note(name, peer.uid, digest, wire.text(fields, "reason")))
        papers.parse_approval(name, data)
        self._write(f"{name}.approval", data, peer)
        return {"verdict": "allow", "id": name}

    async def end(self, fields: Fields, peer: Peer) -> Answer:
        """Verb ``end``: ``id``, ``reason``. Final. No limit holds it up: there is one for each grant."""
        name, found = self._grant(fields)
        approval = found.get("approval")
        if peer.uid not in {ROOT, found["request"].by, None if approval is None else approval.by}:
            raise Refused(
                "glass.end", "only its requester, its approver or root ends a grant", advice="ask one of them to end it"
            )
        data = papers.dump_note(papers.Note(name, peer.uid, "", wire.text(fields, "reason")))
        papers.parse_end(name, data)
        self._write(f"{name}.end", data, peer, counted=False)
        return {"verdict": "allow", "id": name}

    async def show(self, fields: Fields, _peer: Peer) -> Answer:
        """Verb ``list``: the papers as they are, of ``id`` or of all, from number ``start`` on."""
        found = self._papers()
        return page(Shown(found, self._box.odd), wire.text(fields, "id", ""), _number(fields, "start") or 0)

    async def ping(self, _fields: Fields, _peer: Peer) -> Answer:
        """Verb ``ping``: the daemon is there."""
        return {"verdict": "allow", "version": __version__}

    def clear(self) -> None:
        """Take away the grants that have been over for long."""
        now = self._clock()
        for name, over in self._over(self._papers(), now):
            if over < now - KEPT_FOR:
                self._forget(name)

    def _papers(self) -> Papers:
        self._box.poll()
        if self._box.problem:
            raise BackendUnavailable(self._box.problem, advice="tell an admin: see docs/admin.md, Break-glass")
        return self._box.papers

    def _grant(self, fields: Fields) -> tuple[str, dict[str, papers.Paper]]:
        name = wire.text(fields, "id")
        found = self._papers().get(name, {})
        if "request" not in found:
            raise Refused(
                "glass.request", f"there is no request {quote(name)}", advice="see 'secure-slurm break-glass list'"
            )
        return name, found

    def _write(self, name: str, data: bytes, peer: Peer, *, counted: bool = True) -> None:
        self._pen.write(name, data)
        if counted:
            self._pace.count(peer.uid)
        LOG.info("%s by uid %d", name, peer.uid)

    def _over(self, found: Papers, now: float) -> list[tuple[str, float]]:
        """The grants that have ended or whose time is over, and since when; the oldest first."""
        over = []
        for name, kinds in found.items():
            until = _until(name, kinds)
            if "end" in kinds or self._pen.there(f"{name}.end"):
                over.append((name, min(until, kinds["end"].changed if "end" in kinds else until)))
            elif until <= now:
                over.append((name, until))
        return sorted(over, key=lambda each: each[1])

    def _make_room(self, uid: int, now: float) -> None:
        """Refused ``glass.limit`` when there is none: what is in force or waits is never taken away for it."""
        self.clear()
        found = self._papers()
        own = {name for name, kinds in found.items() if "request" in kinds and kinds["request"].by == uid}
        over = [name for name, _ in self._over(found, now)]
        if len(own.difference(over)) >= MAX_OPEN:
            raise Refused(
                "glass.limit", f"you have {MAX_OPEN} requests that are open", advice="end those that nobody needs"
            )
        own_over = [name for name in over if name in own]
        for name in own_over[: max(0, len(own) - MAX_KEPT + 1)]:
            self._forget(name)
            over.remove(name)
        left = len(self._papers())
        if left - len(over) >= MAX_GRANTS:
            raise Refused("glass.limit", f"there are {MAX_GRANTS} open requests", advice="tell an admin")
        for name in over[: max(0, left - MAX_GRANTS + 1)]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        # the end last: at no moment is there an approved request without it
        for kind in ("approval", "request", "end"):
            self._pen.remove(f"{name}.{kind}")
        LOG.info("%s was over, and is cleared away", name)


def _until(name: str, kinds: dict[str, papers.Paper]) -> float:
    """When a grant's time is over; one without a request that can be read never counted."""
    try:
        return papers.parse_request(name, kinds["request"].data).until
    except (KeyError, Refused):
        return max((paper.changed for paper in kinds.values()), default=0.0)


def _no_root(peer: Peer, rule: str) -> None:
    if peer.uid == ROOT:
        raise Refused(rule, "root is nobody: people ask and approve", advice="run it as yourself, without sudo")


def _number(fields: Fields, name: str) -> int | None:
    text = wire.text(fields, name, "")
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise wire.WireError(f"{name} is no number")
    return int(text)


async def run(glass: Glass, path: str, stop: asyncio.Event) -> None:
    """Serve until ``stop``. Whoever the socket lets connect may use every verb."""
    handlers = {
        "request": (None, glass.request),
        "approve": (None, glass.approve),
        "end": (None, glass.end),
        "list": (None, glass.show),
        "ping": (None, glass.ping),
    }
    # the folder's set-group-ID bit gives the socket its group
    async with await serve(
        path,
        handlers,
        mode=SOCKET_MODE,
        group=None,
        deadline=DEADLINE,
        most_of_one=MAX_CONNECTIONS_OF_ONE,
        given=handed(path),
    ):
        LOG.info("listening at %s", path)
        systemd, status = Systemd(), f"listening at {path}"
        systemd.ready(status)
        beating = asyncio.create_task(pulse.keep(systemd, (), lambda: status))
        await stop.wait()
        systemd.stopping()
        beating.cancel()


async def _serve(folder: str, path: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    glass = Glass(folder)
    try:
        glass.clear()
        await run(glass, path, stop)
    finally:
        glass.close()


def main(argv: Sequence[str] | None = None) -> int:
    """``secure-slurm-glassd``: start the daemon. Exit codes as everywhere (docs/exit-codes.md)."""
    parser = argparse.ArgumentParser(prog="secure-slurm-glassd", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default=SITE_PATH, help="the site file (default: %(default)s)")
    options = parser.parse_args(argv)
    os.umask(0o077)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        controller = load_site(options.config).controller
        asyncio.run(_serve(controller.break_glass_dir, controller.break_glass_socket))
    except SecureSlurmError as error:
        LOG.error("%s%s", error, f" ({error.advice})" if error.advice else "")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
