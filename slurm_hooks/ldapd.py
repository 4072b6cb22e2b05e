"""The daemon that reads the directory ahead: every ``ldap.refresh`` seconds it replaces the members file.

It alone talks LDAP, as a user that may do nothing else. When the directory is away the old file stays, and whoever
decides refuses once that is older than ``ldap.max_age``; nothing here ever makes an old reading look new.
Changed configuration files are taken over before the next reading, SIGHUP asks for that reading now; SIGTERM and
SIGINT end it.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from conf import policy as policy_file
from conf import site as site_file
from conf.errors import EXIT_OK, ConfigError, Refused, SecureSlurmError
from slurm_hooks.accounts import short
from slurm_hooks.directory import CredentialsRefused
from slurm_hooks.notify import Systemd
from slurm_hooks.reading import Request, read_directory
from slurm_hooks.snapshot import Snapshot, write_snapshot

LOG = logging.getLogger("secure-slurm-ldapd")
JITTER = 0.1  # of the interval, so that the daemons of two head nodes do not ask together for ever
REST = 1 / 6  # of the interval: the least time between the end of a reading and the next
PROMISED = 60.0  # seconds after which somebody who was taken out of a group gets nothing new
NOTICING = 2.0  # seconds until the deciders have the new file: they look every second
MAX_NAMES = 10  # of people in one log line
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = _ENDING | {signal.SIGHUP}


def groups_of_policy(policy: policy_file.Policy) -> tuple[str, ...]:
    """Every group that some role or the break-glass section names, once, as written."""
    names = [group for role in policy.roles.values() for group in role.groups]
    if policy.break_glass is not None:
        names += [*policy.break_glass.requesters, *policy.break_glass.approvers]
    return tuple(dict.fromkeys(names))


class Reader:
    """Keeps one members file up to date. ``clock`` gives Unix seconds."""

    def __init__(self, site: site_file.Ldap, groups: Sequence[str], *, clock: Callable[[], float] = time.time) -> None:
        self.site = site
        self.request = Request(
            flavour=site.flavour,
            uris=tuple(site.uris),
            ca_file=site.ca_file,
            bind_dn=site.bind_dn,
            bind_password_file=site.bind_password_file,
            base=site.base,
            user_attribute=site.user_attribute,
            groups=tuple(groups),
        )
        self.clock = clock
        self.last: Snapshot | None = None
        self._failed = False
        self._took = 0.0  # seconds, the last reading
        self._late = False
        self._refused = 0  # logins in a row that were refused
        self._said: frozenset[str] = frozenset()

    def recall(self) -> None:
        """Take the file that an earlier run left as what is known, for the log; an unusable one is as good as none."""
        try:
            self.last = Snapshot.load(self.site.snapshot, os.geteuid(), max_age=self.site.max_age, now=self.clock())
        except Refused as refusal:
            LOG.info("no earlier members are in use: %s", refusal)

    def refresh(self, *, stopping: Callable[[], bool] = lambda: False) -> None:
        """Read once and replace the file. Raises what the reading or the writing raised; the old file then stays."""
        # The moment before the reading: what the directory changed since may be missing from it.
        started = self.clock()
        began = time.monotonic()
        try:
            reading = read_directory(self.request, started, stopping=stopping)
            snapshot = Snapshot(started, reading.uri, reading.members.groups)
            write_snapshot(self.site.snapshot, snapshot)
        except SecureSlurmError as error:
            self._failed = True
            self._refused = self._refused + 1 if isinstance(error, CredentialsRefused) else 0
            raise
        finally:
            self._took = time.monotonic() - began
        self._report(snapshot, frozenset((*reading.failures, *reading.members.notes)))
        self.last, self._failed, self._refused = snapshot, False, 0

    def delay(self) -> float:
        """Seconds until the next reading, which begins at most ``ldap.refresh`` after the last one began.

        A directory that is slow is given a rest all the same. Refused logins make the wait longer each time, for they
        count towards a lock.
        """
        interval = self.site.refresh
        if self._refused:
            interval = min(interval * 2.0 ** min(self._refused, 20), max(interval, self.site.max_age))
        interval *= random.uniform(1 - JITTER, 1)  # noqa: S311 - spreads load, guards nothing
        return max(interval - self._took, interval * REST)

    def longest(self) -> float:
        """Seconds for which somebody may still count who was taken out of a group, if readings take what the last took.

        The worst case: the removal comes just after a reading has passed the group. The next one begins after the
        interval (or the rest), takes its time, and the deciders notice the new file.
        """
        return max(self.site.refresh, self._took + self.site.refresh * REST) + self._took + NOTICING

    def situation(self) -> str:
        """What the deciders have to work with after a failure, in words."""
        if self.last is None:
            return "there are no members to fall back on: tagged jobs are refused"
        age, limit = self.last.age(self.clock()), self.site.max_age
        if age > limit:
            return f"the last reading is {age:.0f} s old, more than {limit:.0f} s: tagged jobs are refused"
        return f"the reading of {age:.0f} s ago stays in use until it is {limit:.0f} s old"

    def _report(self, snapshot: Snapshot, remarks: frozenset[str]) -> None:
        for remark in sorted(remarks - self._said):
            LOG.warning("%s", remark)
        self._said = remarks
        late = self.longest() > PROMISED
        if late and not self._late:
            LOG.warning(
                "the reading took %.0f s: who is removed from a group may count for %.0f s more, not for %.0f; "
                "see ldap.refresh and ldap.uris",
                *(self._took, self.longest(), PROMISED),
            )
        self._late = late
        if self.last is None or self._failed:
            people = frozenset().union(*(group.members for group in snapshot.groups.values()))
            LOG.info("members read from %s: %d groups, %d people", snapshot.source, len(snapshot.groups), len(people))
        if self.last is not None:
            for line in changes(self.last, snapshot):
                LOG.info("%s", line)


def changes(old: Snapshot, new: Snapshot) -> list[str]:
    """One line for each group that is not as it was: ``'cn=…': +alice -bob``."""
    lines = []
    for dn, group in new.groups.items():
        before = old.groups.get(dn)
        if before is None:
            lines.append(f"{short(dn)}: new in the policy, {len(group.members)} people")
        elif before.members != group.members:
            gone, come = before.members - group.members, group.members - before.members
            lines.append(f"{short(dn)}:{_names('+', come)}{_names('-', gone)}")
    lines += [f"{short(dn)}: no longer in the policy" for dn in old.groups if dn not in new.groups]
    return lines


def _names(sign: str, names: frozenset[str]) -> str:
    text = "".join(f" {sign}{name}" for name in sorted(names)[:MAX_NAMES])
    return text + (f" ({sign}{len(names) - MAX_NAMES} more)" if len(names) > MAX_NAMES else "")


def make_reader(site_path: str, policy_path: str) -> Reader:
    """A reader for what the two files say. Raises :class:`ConfigError`."""
    groups = groups_of_policy(policy_file.load_policy(policy_path))
    if not groups:
        raise ConfigError(f"{policy_path}: no role names a group", advice="see roles.*.groups")
    return Reader(site_file.load_site(site_path).ldap, groups)


def _stopping() -> bool:
    return bool(signal.sigpending() & _ENDING)


def _attempt(reader: Reader, systemd: Systemd) -> str:
    """One reading; how it went, in words for everybody. A server that takes its time is no reason to be ended."""

    def waiting() -> bool:
        systemd.alive()
        return _stopping()

    try:
        reader.refresh(stopping=waiting)
    except SecureSlurmError as error:
        if not _stopping():
            LOG.warning("the directory was not read: %s; %s. %s", error, reader.situation(), error.advice)
        return f"the directory was not read; {reader.situation()}"
    return f"members read from {reader.last.source}: {len(reader.last.groups)} groups" if reader.last else ""


def _wait(seconds: float, systemd: Systemd, status: str) -> signal.struct_siginfo | None:
    """A signal, or None when the time is over; alive meanwhile."""
    end = time.monotonic() + seconds
    while True:
        systemd.alive(status)
        left = end - time.monotonic()
        caught = signal.sigtimedwait(_SIGNALS, max(0.0, min(left, systemd.pace or left)))
        if caught is not None or time.monotonic() >= end:
            return caught


def serve(site_path: str, policy_path: str) -> int:
    """Run until SIGTERM. systemd hears READY after the first attempt, whether or not the directory was there."""
    # Signals are held back and asked for, so that none ever cuts a reading or a file in two.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    seen = _seen(site_path, policy_path)
    reader = make_reader(site_path, policy_path)
    reader.recall()
    systemd = Systemd()
    status = _attempt(reader, systemd)
    systemd.ready(status)
    while True:
        caught = _wait(reader.delay(), systemd, status)
        if caught is not None and caught.si_signo in _ENDING:
            systemd.stopping()
            LOG.info("ended by signal %d", caught.si_signo)
            return EXIT_OK
        now = _seen(site_path, policy_path)
        if now != seen or caught is not None:
            reader, seen = _reload(reader, site_path, policy_path), now
        status = _attempt(reader, systemd)


def _seen(*paths: str) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when one of the files does. Deciders take a new policy at once; its groups must not wait for us."""
    seen: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            info = Path(path).stat()
            seen.append((info.st_mtime_ns, info.st_ino, info.st_size))
        except OSError:
            seen.append(None)
    return tuple(seen)


def _reload(reader: Reader, site_path: str, policy_path: str) -> Reader:
    try:
        fresh = make_reader(site_path, policy_path)
    except ConfigError as error:
        LOG.error("the configuration in use stays, the new one is refused: %s", error)
        return reader
    if fresh.site.snapshot == reader.site.snapshot:
        fresh.last = reader.last
    LOG.info("configuration read again")
    return fresh


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: ``secure-slurm-ldapd [--config FILE] [--policy FILE] [--once]``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="secure-slurm-ldapd", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--config", default=site_file.DEFAULT_PATH, metavar="FILE", dest="site", help="default: %(default)s"
    )
    parser.add_argument("--policy", default=policy_file.DEFAULT_PATH, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--once", action="store_true", help="read once and end; the exit code says how it went")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    try:
        if not options.once:
            return serve(options.site, options.policy)
        reader = make_reader(options.site, options.policy)
        reader.refresh()
    except SecureSlurmError as error:
        LOG.error("%s. %s", error, error.advice)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
