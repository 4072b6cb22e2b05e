"""Who is in the groups that the policy names: a pure reading of what a directory answered.

Nothing here opens a connection; a :class:`Source` hands over entries. There is no partial result: either every group
was read to its end, or an error says why nothing was.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from conf.errors import BackendUnavailable, ConfigError
from slurm_hooks.accounts import (
    ACTIVE_DIRECTORY,
    AD_USER_STATE,
    OPENLDAP,
    OPENLDAP_USER_STATE,
    Entry,
    Notes,
    Users,
    normal_key,
    short,
)
from slurm_hooks.dn import first_value

MAX_DEPTH = 32
MAX_GROUPS_READ = 10_000
MAX_MEMBERS = 500_000

OPENLDAP_GROUP_CLASSES = ("groupOfNames", "groupOfUniqueNames", "groupOfMembers", "posixGroup")
GROUP_ATTRIBUTES = ("objectClass", "cn", "member", "uniqueMember", "memberUid")
AD_GROUP_ATTRIBUTES = ("objectClass", "cn", "groupType")
# sAMAccountType of an ordinary user account; computers and trusts have others
_AD_PERSON = "(sAMAccountType=805306368)"
# the bit of groupType that makes a group give rights (MS-ADTS 2.2.12)
_AD_SECURITY_GROUP = 0x80000000
RANGE = 1500  # values asked for at once: Active Directory's default limit (MaxValRange)
_RANGED = re.compile(r"member;range=([0-9]{1,9})-([0-9]{1,9}|\*)\Z")


class Source(Protocol):
    """What a directory can be asked. Every method raises instead of giving a part of an answer."""

    def read(self, dn: str, attributes: Sequence[str]) -> Entry | None:
        """The entry of this name; None when the directory has none that we may see."""

    def search(self, base: str, query: str, attributes: Sequence[str]) -> Iterator[Entry]:
        """Every entry below ``base`` that matches."""


class Group(NamedTuple):
    """A group of the policy: what to call it, who is in it, and whether the directory knows it at all."""

    name: str
    members: frozenset[str]
    missing: bool = False


class Members(NamedTuple):
    """One whole reading. ``notes`` says what was left out and why, for the log."""

    groups: dict[str, Group]
    notes: tuple[str, ...] = ()


def walk(
    start: Entry,
    fetch: Callable[[str], Entry | None],
    users: Users,
    notes: Notes,
    *,
    max_depth: int = MAX_DEPTH,
    by_name: bool = True,
) -> frozenset[str]:
    """Everybody in a group and in the groups inside it.

    ``fetch`` gives the group behind a normal form, or None when that is no group. ``by_name``: a member is a name, and
    outlives the account (not so in Active Directory). Each group is read once, so a cycle ends by itself. Groups deeper
    than ``max_depth`` are left out; more than :data:`MAX_GROUPS_READ` groups or :data:`MAX_MEMBERS` members raise
    :class:`ConfigError`, because half a group would look like a whole one.
    """
    members: set[str] = set()
    key = normal_key(start.dn, notes)
    seen = {key} if key else set()
    waiting = deque([(start, 0)])
    while waiting:
        group, depth = waiting.popleft()
        if depth > max_depth:
            notes.add(f"{short(start.dn)}: groups nested deeper than {max_depth} are left out")
            continue
        names = group.texts("memberUid")
        members.update(name for name in names if name in users.names)
        nobody = [name for name in names if name not in users.names and name not in users.closed]
        for key in _member_keys(group, notes):
            if key in users.by_dn:
                members.add(users.by_dn[key])
            elif key not in seen:
                seen.add(key)
                inner = fetch(key)
                if inner is not None:
                    waiting.append((inner, depth + 1))
                elif key not in users.closed:
                    nobody.append(key)
        if nobody and by_name:
            notes.add(_reserved(group.dn, nobody))
        if len(members) > MAX_MEMBERS or len(seen) > MAX_MEMBERS:
            raise _too_large(start.dn, f"more than {MAX_MEMBERS} members")
    return frozenset(members)


def _reserved(group: str, nobody: Sequence[str]) -> str:
    """A member that is left when its account is deleted lets in whoever gets that name next."""
    return (
        f"{short(group)}: {len(nobody)} of its members are no user and no group, such as {short(min(nobody))}; "
        "whoever is given such a name is in the group, so remove it there"
    )


def _member_keys(group: Entry, notes: Notes) -> Iterator[str]:
    for name in group.attributes:
        if name.startswith(("member;", "uniquemember;")):
            # a ranged answer is a part of the group (MS-ADTS 3.1.1.3.1.3.3): the wrong flavour is configured
            raise ConfigError(
                f"the directory gave only a part of group {short(group.dn)} ({name})",
                advice=f"set ldap.flavour to {ACTIVE_DIRECTORY} for this directory",
            )
    for attribute in ("member", "uniqueMember"):
        for value in group.texts(attribute):
            key = normal_key(value, notes)
            if key is not None:
                yield key


def read_members(
    source: Source, groups: Sequence[str], *, flavour: str, base: str, user_attribute: str, now: float
) -> Members:
    """The members of every group in ``groups`` (names as the policy writes them), from one directory.

    A name that is no distinguished name, or that the directory does not hold as a group, becomes a missing group
    without members. Errors of ``source`` pass through: there is no partial result.
    """
    notes = Notes()
    reader = _ActiveDirectory if flavour == ACTIVE_DIRECTORY else _OpenLdap
    reading: _OpenLdap = reader(source, base, user_attribute, now, notes)
    done: dict[str, Group] = {}
    found: dict[str, Group] = {}
    for written in groups:
        key = normal_key(written, notes)
        if key is None:
            found[written] = Group(written, frozenset(), missing=True)
            continue
        if key not in done:
            done[key] = reading.group(written)
            if done[key].missing:
                notes.add(f"{short(written)}: the directory has no such group; nobody is in it")
        found[written] = done[key]
    return Members(found, (*notes.all(), *reading.about_people.all()))


class _OpenLdap:
    """Groups list their members; users and the names of all groups are read once for all groups of the policy."""

    flavour = OPENLDAP
    state: tuple[str, ...] = OPENLDAP_USER_STATE
    by_name = True

    def __init__(self, source: Source, base: str, attribute: str, now: float, notes: Notes) -> None:
        self.source, self.notes = source, notes
        # Apart, for there may be many: what is said of a group must not be lost among them.
        self.about_people = Notes()
        people = source.search(base, self.people(attribute), (attribute, *self.state))
        self.users = Users.collect(people, attribute, self.flavour, now, self.about_people)
        # Only names here: a member that is neither a user nor in this table needs no question to the directory.
        self.inner: dict[str, str] = {}
        for entry in source.search(base, self.groups(), ("1.1",)):
            key = normal_key(entry.dn, notes)
            if key in self.inner:
                self.inner[key] = ""
                notes.add(f"two groups are called {short(key)}; inside of others both are left out")
            elif key is not None:
                self.inner[key] = entry.dn
        self.cache: dict[str, Entry | None] = {}

    def people(self, attribute: str) -> str:
        return f"({attribute}=*)"

    def groups(self) -> str:
        return "(|" + "".join(f"(objectClass={name})" for name in OPENLDAP_GROUP_CLASSES) + ")"

    def group(self, dn: str) -> Group:
        entry = self.read(dn)
        if entry is None:
            return Group(_display(dn, None), frozenset(), missing=True)
        members = walk(entry, self.fetch, self.users, self.notes, by_name=self.by_name)
        return Group(_display(dn, entry), members)

    def fetch(self, key: str) -> Entry | None:
        if key not in self.cache:
            if len(self.cache) >= MAX_GROUPS_READ:
                raise _too_large(key, f"more than {MAX_GROUPS_READ} groups")
            name = self.inner.get(key)
            self.cache[key] = self.read(name) if name else None
        return self.cache[key]

    def read(self, dn: str) -> Entry | None:
        entry = self.source.read(dn, GROUP_ATTRIBUTES)
        if entry is None:
            return None
        classes = {value.lower() for value in entry.texts("objectClass")}
        return entry if classes & {name.lower() for name in OPENLDAP_GROUP_CLASSES} else None


class _ActiveDirectory(_OpenLdap):
    """The same walk. The server could do it (LDAP_MATCHING_RULE_IN_CHAIN), but tries every account for every group.

    With 5,200 people Samba took more than 15 s for a group of which somebody is in 500 others (measured); here each
    group and each account is read once. Not seen: members by primary group (they are no values of ``member``), and
    those from other domains of the forest (foreign security principals). They are refused until they are made ordinary
    members. Members are links, so they follow a renamed entry and end with a deleted one.
    """

    flavour = ACTIVE_DIRECTORY
    state = AD_USER_STATE
    by_name = False

    def people(self, attribute: str) -> str:
        return f"(&{_AD_PERSON}({attribute}=*))"

    def groups(self) -> str:
        return "(objectClass=group)"

    def read(self, dn: str) -> Entry | None:
        entry = self.source.read(dn, (*AD_GROUP_ATTRIBUTES, _range(0)))
        if entry is None or "group" not in {value.lower() for value in entry.texts("objectClass")}:
            return None
        if not _gives_rights(entry):
            # In Windows a distribution group gives no rights, and its own members often run it.
            self.notes.add(f"{short(entry.dn)}: not a security group, gives no rights; nobody is in it")
            return Entry(entry.dn, {"cn": entry.attributes.get("cn", [])})
        attributes = {name: values for name, values in entry.attributes.items() if not _RANGED.match(name)}
        values, part = list(attributes.get("member", ())), entry
        while (found := _part(part)) is not None:
            first, last, more = found
            if first != len(values) or (last is not None and last + 1 != first + len(more)):
                raise BackendUnavailable(f"the directory gave other members of {short(dn)} than were asked for")
            values += more
            if last is None:
                break
            if len(values) > MAX_MEMBERS:
                raise _too_large(dn, f"more than {MAX_MEMBERS} members")
            following = self.source.read(dn, (_range(len(values)),))
            if following is None or _part(following) is None:
                raise BackendUnavailable(f"the directory gave only {len(values)} members of {short(dn)} and no end")
            part = following
        return Entry(entry.dn, {**attributes, "member": values})


def _range(start: int) -> str:
    return f"member;range={start}-{start + RANGE - 1}"


def _part(entry: Entry) -> tuple[int, int | None, list[bytes]] | None:
    """First and last number and the values of the one part of ``member`` in an answer; no last: it is the end."""
    parts = [(match, values) for name, values in entry.attributes.items() if (match := _RANGED.match(name))]
    if not parts:
        return None
    if len(parts) > 1:
        raise BackendUnavailable(f"the directory gave two parts of group {short(entry.dn)} at once")
    match, values = parts[0]
    return int(match[1]), None if match[2] == "*" else int(match[2]), values


def _gives_rights(group: Entry) -> bool:
    try:
        kinds = [int(value) for value in group.texts("groupType")]
    except ValueError:
        return False
    return len(kinds) == 1 and bool(kinds[0] & _AD_SECURITY_GROUP)


def _display(dn: str, entry: Entry | None) -> str:
    names = entry.texts("cn") if entry is not None else []
    return names[0] if names else (first_value(dn) or dn)


def _too_large(dn: str, what: str) -> ConfigError:
    return ConfigError(
        f"group {short(dn)} has {what}, which is not read",
        advice="name a smaller group in the policy; nothing was changed in the members file",
    )
