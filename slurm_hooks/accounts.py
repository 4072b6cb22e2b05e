"""Accounts as a directory shows them: the login name of an entry, and whether it may be used now.

What cannot be read with certainty (a name that is no login name, a state that is malformed, two entries that claim one
name) is left out and noted, so that a mistake in the directory refuses somebody instead of letting somebody in.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import NamedTuple

from slurm_hooks.dn import DnError, first_value, normalise

OPENLDAP = "openldap"
ACTIVE_DIRECTORY = "active-directory"
MAX_NOTES = 100

# Login names that NSS, Slurm and our records can carry. All digits is refused: tools would take it for a uid.
_USER_NAME = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}\Z")
_SECONDS_PER_DAY = 86400
# AD counts 100 ns steps since 1601-01-01 UTC; 0 and the largest value mean "never" (MS-ADA1, accountExpires)
_AD_EPOCH = 11_644_473_600
_AD_NEVER = frozenset({0, 0x7FFFFFFFFFFFFFFF})
_AD_DISABLED = 0x0002

# Points in time at which an account ends: slapo-ppolicy(5), and the Kerberos schema that FreeIPA uses
_ENDS = ("pwdEndTime", "krbPrincipalExpiration")
_BEGINS = "pwdStartTime"
# RFC 4517, 3.3.13: minutes and seconds may be absent, a fraction is of the last of them
_TIME = re.compile(r"(\d{10})(\d{2})?(\d{2})?(?:[.,]\d{1,9})?(Z|[+-]\d{4})\Z", re.ASCII)

OPENLDAP_USER_STATE = ("shadowExpire", "nsAccountLock", "pwdAccountLockedTime", _BEGINS, *_ENDS)
AD_USER_STATE = ("userAccountControl", "accountExpires")


class Entry(NamedTuple):
    """One entry of a directory; attribute names are lower case."""

    dn: str
    attributes: dict[str, list[bytes]]

    def texts(self, name: str) -> list[str]:
        """The values of an attribute as text; one that is not UTF-8 becomes text that matches nothing."""
        return [value.decode("utf-8", "backslashreplace") for value in self.attributes.get(name.lower(), ())]


class Notes:
    """Remarks for the log, each once, at most :data:`MAX_NOTES` of them."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}
        self._dropped = 0

    def add(self, text: str) -> None:
        """Keep one remark."""
        if text in self._seen:
            return
        if len(self._seen) >= MAX_NOTES:
            self._dropped += 1
            return
        self._seen[text] = None

    def all(self) -> tuple[str, ...]:
        """What was kept, in a stable order, and how many more there were."""
        more = (f"and {self._dropped} more remarks",) if self._dropped else ()
        return (*sorted(self._seen), *more)


def valid_user_name(name: str) -> bool:
    """Whether this can be a login name: ASCII letters, digits and ``_ . @ -``, not all digits, at most 255."""
    return _USER_NAME.match(name) is not None


def account_open(entry: Entry, flavour: str, now: float) -> bool:
    """Whether the account may be used at ``now`` (Unix seconds). A state that cannot be read counts as closed."""
    try:
        return _ad_open(entry, now) if flavour == ACTIVE_DIRECTORY else _openldap_open(entry, now)
    except (ValueError, OverflowError):
        return False


def _openldap_open(entry: Entry, now: float) -> bool:
    for value in entry.texts("shadowExpire"):
        # shadow(5): the day, since 1970, on which the account ends; pam_unix takes all but -1 as a date
        day = int(value)
        if day != -1 and now // _SECONDS_PER_DAY >= day:
            return False
    if any(value.lower() not in ("false", "") for value in entry.texts("nsAccountLock")):
        return False
    if any(_seconds(value) <= now for name in _ENDS for value in entry.texts(name)):
        return False
    if any(_seconds(value) > now for value in entry.texts(_BEGINS)):
        return False
    # slapo-ppolicy(5): this value is an administrator's lock; other times are a password guessed wrong too often,
    # which ends by itself and must not let a guesser stop somebody else's jobs.
    return not any(value.startswith("00000101") for value in entry.texts("pwdAccountLockedTime"))


def _seconds(text: str) -> float:
    """A GeneralizedTime as Unix seconds, its fraction left out. Raises ValueError or OverflowError."""
    match = _TIME.match(text)
    if match is None:
        raise ValueError("not a time")
    hours, minutes, seconds, zone = match.groups()
    digits = hours + (minutes or "00") + (seconds or "00")
    return datetime.datetime.strptime(digits + zone.replace("Z", "+0000"), "%Y%m%d%H%M%S%z").timestamp()


def _ad_open(entry: Entry, now: float) -> bool:
    control = entry.texts("userAccountControl")
    if len(control) != 1 or int(control[0]) & _AD_DISABLED:
        return False
    for value in entry.texts("accountExpires"):
        ticks = int(value)
        if ticks not in _AD_NEVER and ticks / 1e7 - _AD_EPOCH <= now:
            return False
    return True


def user_name(entry: Entry, attribute: str, flavour: str, notes: Notes) -> str | None:
    """The one login name of an entry, or None (noted) when it has none, several, or one that is not a login name."""
    names = entry.texts(attribute)
    if len(names) > 1:
        # several values: the one that names the entry is the account, the others are aliases
        try:
            named = first_value(entry.dn, attribute)
        except DnError:
            named = None
        names = [name for name in names if named is not None and name.lower() == named.lower()]
    if len(names) != 1:
        notes.add(f"{short(entry.dn)}: no single value of {attribute}; left out")
        return None
    # judged before it is folded: lower() turns the Kelvin sign into an ASCII k, and somebody else's name with it
    if not valid_user_name(names[0]):
        notes.add(f"{short(entry.dn)}: {attribute} {names[0][:80]!a} is not a login name; left out")
        return None
    return names[0].lower() if flavour == ACTIVE_DIRECTORY else names[0]


class Users:
    """The usable accounts of a directory: normal form of the entry's name -> login name, and the other way round.

    ``closed`` holds the entries and login names of those that are there and may not be used.
    """

    def __init__(self, by_dn: dict[str, str], closed: frozenset[str] = frozenset()) -> None:
        self.by_dn = by_dn
        self.names = frozenset(by_dn.values())
        self.closed = closed

    @classmethod
    def collect(cls, entries: Iterable[Entry], attribute: str, flavour: str, now: float, notes: Notes) -> Users:
        """Keep who is open and unmistakable; two entries with one name (or one normal form) are both left out."""
        by_dn: dict[str, str] = {}
        holders: dict[str, str] = {}
        doubled: set[str] = set()
        for entry in entries:
            name = user_name(entry, attribute, flavour, notes)
            key = normal_key(entry.dn, notes)
            # A closed account counts for doubles too: else closing one of two namesakes would open the other. So does
            # an alias: whose uid number a login by that name gets is not for us to guess.
            for claimed in _claims(entry, attribute, flavour):
                if claimed in holders:
                    doubled.add(claimed)
                    notes.add(
                        f"two entries for user {short(claimed)[1:-1]}: {short(holders[claimed])}, {short(entry.dn)}; "
                        "both left out"
                    )
                holders.setdefault(claimed, entry.dn)
            if key is None:
                continue
            if key in by_dn:
                doubled.update((by_dn[key], name or ""))
                notes.add(f"two entries are called {short(key)}; both left out")
            by_dn[key] = name if name and account_open(entry, flavour, now) else ""
        usable = {key: name for key, name in by_dn.items() if name and name not in doubled}
        return cls(usable, frozenset((*by_dn, *holders)).difference(usable, usable.values()))


def _claims(entry: Entry, attribute: str, flavour: str) -> set[str]:
    names = entry.texts(attribute)
    return {name.lower() for name in names} if flavour == ACTIVE_DIRECTORY else set(names)


def normal_key(dn: str, notes: Notes) -> str | None:
    """The normal form of a name, or None (noted) when it is no distinguished name."""
    try:
        return normalise(dn)
    except DnError as error:
        notes.add(f"{short(dn)}: not a distinguished name ({str(error)[:120]}); left out")
        return None


def short(dn: str) -> str:
    """A name for one log line: ASCII, quoted, cut at 160 characters."""
    return ascii(dn[:160])
