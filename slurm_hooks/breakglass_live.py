"""Break-glass grants as a daemon holds them: looked at in the background, told to the trail before they count.

Both daemons read the papers that secure-slurm-glassd writes. The decision daemon also keeps the trail of them, a chain
of its own, and lets no grant count of which the trail does not know. After a restart it reads that chain, so that each
step is told once.
"""

from __future__ import annotations

import json
import logging
import pwd
import time
from pathlib import Path
from typing import NamedTuple

from audit.chain import AuditError, Chain
from audit.line import TRAIL_SUFFIX
from audit.reading import is_trail, read_lines
from conf.errors import ConfigError
from conf.policy import Policy
from conf.quote import quote
from slurm_hooks.breakglass import Frame, Grant, judge
from slurm_hooks.breakglass_dir import Box, Odd
from slurm_hooks.breakglass_papers import is_id
from slurm_hooks.filters.verdict import Exemption
from slurm_hooks.snapshot import Snapshot

LOG = logging.getLogger(__name__)

WRITER = "break-glass"
MAX_NEWS = 50
"""Lines for one look: whatever goes wrong in the folder shall not fill the disk as fast."""
HOLDS = 60.0
"""Seconds for which a look counts: when the next one hangs, on a disk that does not answer, nothing counts any more."""
NAMES_LAST = 60.0
"""Seconds for which a login name is not asked for again: the name service may be on a network."""

REQUESTED, APPROVED, ENDED, REFUSED = "glass.requested", "glass.approved", "glass.ended", "glass.refused"


class Accounts:
    """Login names by the name service; asked in the background only, for it may take its time."""

    def __init__(self) -> None:
        self._names: dict[int, str | None] = {}
        self._uids: dict[str, int | None] = {}
        self._since = 0.0

    def forget(self, now: float) -> None:
        """Ask anew from now on, if it is time to."""
        if not 0 <= now - self._since < NAMES_LAST:
            self._names, self._uids, self._since = {}, {}, now

    def name_of(self, uid: int) -> str | None:
        """The login name of a uid, which must lead back to it: otherwise it is not clear who that is."""
        if uid not in self._names:
            try:
                name = pwd.getpwuid(uid).pw_name
            except KeyError:
                self._names[uid] = None
            else:
                self._names[uid] = name if self.uid_of(name) == uid else None
        return self._names[uid]

    def uid_of(self, name: str) -> int | None:
        """The uid of a login name."""
        if name not in self._uids:
            try:
                self._uids[name] = pwd.getpwnam(name).pw_uid
            except (KeyError, ValueError):
                self._uids[name] = None
        return self._uids[name]


class Told(NamedTuple):
    """What the trail says last of a grant."""

    event: str
    digest: str
    rule: str


def _reason(text: str, rule: str) -> str | None:
    """For the trail, in which people are numbers: the name of no user may be a person's all the same."""
    return "there is no user of that name" if rule == "glass.user" else text or None


class Trail:
    """The chain of break-glass, and what it says already. AuditError when it cannot be read or written."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.last: dict[str, Told] = {}
        self.odd: set[tuple[str, int | None]] = set()
        self._was_read = False

    def tell(self, event: str, grant: Grant) -> None:
        """Write a step of a grant, on the disk when this returns."""
        request = grant.request
        self._chain.append(
            event,
            durable=True,
            exemption=grant.id,
            uid=grant.user,
            submit_uid=grant.requester if event == REQUESTED else grant.actor,
            role=request.role if request else None,
            job=request.job if request else None,
            until=request.until if request else None,
            digest=grant.digest or None,
            rule=grant.rule or None,
            reason=_reason(request.reason if request and event == REQUESTED else grant.reason, grant.rule),
        )
        self.last[grant.id] = Told(event, grant.digest, grant.rule)

    def tell_odd(self, odd: Odd) -> bool:
        """Write that a file was ignored; once for a name and owner. False when that was told already."""
        reason, owner = f"{quote(odd.name)} {odd.what}", odd.owner if odd.owner >= 0 else None
        if (reason, owner) in self.odd:
            return False
        self._chain.append(REFUSED, durable=True, submit_uid=owner, rule="glass.file", reason=reason)
        self.odd.add((reason, owner))
        return True

    def read(self) -> None:
        """Learn what was told before this daemon started; once."""
        if not self._was_read:
            self._read()
            self._was_read = True

    def _read(self) -> None:
        folder, name = Path(self._chain.directory), f"{self._chain.host}-{self._chain.writer}{TRAIL_SUFFIX}"
        lines: list[dict[str, object]] = []
        try:
            files = [path for path in folder.iterdir() if path.name.startswith(name) and is_trail(path)]
            for path in files:
                lines += [line for _, raw in read_lines(path) if (line := _line(raw)) is not None]
        except FileNotFoundError:
            return
        except (OSError, ConfigError) as error:
            raise AuditError(f"the trail of break-glass in {folder} cannot be read: {error}") from None
        for line in sorted(lines, key=lambda line: _number(line.get("seq"))):
            event, grant, rule = str(line.get("event")), line.get("exemption"), str(line.get("rule", ""))
            owner = line.get("submit_uid")
            if isinstance(grant, str):
                self.last[grant] = Told(event, str(line.get("digest", "")), rule)
            elif event == REFUSED:
                self.odd.add((str(line.get("reason")), owner if isinstance(owner, int) else None))


def _line(raw: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


class BreakGlass:
    """The grants that count now. ``trail`` None: somebody else keeps it."""

    def __init__(self, path: str, trail: Trail | None = None) -> None:
        self._box = Box(path)
        self._trail = trail
        self._accounts = Accounts()
        self._news = 0
        self._looked = 0.0
        self.exemptions: tuple[Exemption, ...] = ()

    def current(self) -> tuple[Exemption, ...]:
        """What the last look found; nothing when that is too long ago."""
        return self.exemptions if time.monotonic() - self._looked <= HOLDS else ()

    def look(self, policy: Policy, members: Snapshot | None, now: float) -> None:
        """Judge what is in the folder. Does file I/O and asks the name service: never call it while a request waits.

        Without members nothing counts, and nothing is told of it: that passes, and says nothing about a grant.
        Never raises: whatever goes wrong, nothing counts.
        """
        began = time.monotonic()
        found: tuple[Exemption, ...] = ()
        try:
            found = self._judged(policy, members, now)
        except Exception:
            # grants that were found earlier must not outlive a folder that cannot be looked at
            LOG.exception("no break-glass grant counts: they could not be looked at")
        self.exemptions, self._looked = found, began

    def _judged(self, policy: Policy, members: Snapshot | None, now: float) -> tuple[Exemption, ...]:
        if self._box.poll() and self._box.problem and policy.break_glass is not None:
            LOG.error("no break-glass grant counts: %s", self._box.problem)
        if members is None or (self._box.problem and policy.break_glass is not None) or not self._can_tell():
            return ()
        self._news = MAX_NEWS
        self._accounts.forget(now)
        frame = Frame(policy, members, self._accounts, now)
        grants = [judge(name, papers, frame) for name, papers in sorted(self._box.papers.items())]
        # what counts or has ended must not wait behind what does not count: the lines of one look are limited
        wanted = [grant for grant in grants if grant.state in ("in-force", "ended")]
        known = [grant for grant in wanted if self._tell(grant)]
        self._tell_gone({grant.id for grant in grants})
        for state in ("waiting", "refused"):
            for grant in grants:
                if grant.state == state:
                    self._tell(grant)
        self._tell_odd()
        return tuple(each for each in (grant.exemption() for grant in known) if each is not None)

    def _can_tell(self) -> bool:
        try:
            if self._trail is not None:
                self._trail.read()
        except AuditError as error:
            LOG.error("no break-glass grant counts: %s", error)
            return False
        return True

    def _tell(self, grant: Grant) -> bool:
        """Whether the trail knows what is the matter with a grant; one that it cannot be told of does not count."""
        if self._trail is None:
            return True
        told = self._trail.last.get(grant.id)
        if told is not None and told.event == ENDED and not grant.digest:
            return False  # an old grant that is being cleared away: its request goes first
        if told is not None and told.digest != grant.digest:
            if told.event == APPROVED:
                self._end(grant.id, told, "glass.digest", "its request was changed")
            told = None
        return all(self._write(event, grant) for event in _steps(grant, told))

    def _end(self, name: str, told: Told, rule: str, reason: str) -> None:
        self._write(ENDED, Grant(id=name, state="ended", digest=told.digest, rule=rule, reason=reason))

    def _write(self, event: str, grant: Grant) -> bool:
        if self._trail is None or self._news <= 0:
            return False
        try:
            self._trail.tell(event, grant)
        except (AuditError, ValueError) as error:
            self._stuck(error)
            LOG.error("break-glass %s does not count: %s", grant.id, error)
            return False
        self._news -= 1
        LOG.warning("break-glass %s: %s %s", grant.id, event, grant.reason)
        return True

    def _stuck(self, error: Exception) -> None:
        """A trail that cannot be written is not tried again for each line; another look will."""
        if isinstance(error, AuditError):
            self._news = 0

    def _tell_odd(self) -> None:
        for each in self._box.odd:
            if self._trail is None or self._news <= 0:
                return
            try:
                self._news -= self._trail.tell_odd(each)
            except (AuditError, ValueError) as error:
                self._stuck(error)
                LOG.error("the trail of break-glass lacks %s: %s", quote(each.name), error)

    def _tell_gone(self, there: set[str]) -> None:
        """A request that is not there any more ends its grant."""
        for name, told in [] if self._trail is None else sorted(self._trail.last.items()):
            if name not in there and told.event in (REQUESTED, APPROVED) and is_id(name):
                self._end(name, told, "glass.request", "its request was taken away")


def _steps(grant: Grant, told: Told | None) -> list[str]:
    """What is to be told of a grant, after what was told last."""
    before = None if told is None else told.event
    asked = [] if before is not None or grant.request is None else [REQUESTED]
    if grant.state == "waiting":
        return asked if before != APPROVED else [ENDED]
    if grant.state == "in-force":
        return [] if before == APPROVED else [*asked, APPROVED]
    if grant.state == "ended":
        return [] if before == ENDED else [*asked, ENDED]
    if before == APPROVED:
        return [ENDED]
    return [] if told is not None and told.rule == grant.rule else [REFUSED]
