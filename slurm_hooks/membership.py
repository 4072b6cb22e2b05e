"""Who is in the groups that the policy names: a pure reading of what a directory answered.

Nothing here opens a connection; a :class:`Source` hands over entries. There is no partial result: either every group
was read to its end, or an error says why nothing was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from conf.errors import ConfigError
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
# LDAP_MATCHING_RULE_IN_CHAIN (MS-ADTS 3.1.1.3.4.4.3): the server walks nested groups itself
_IN_CHAIN = "memberOf:1.2.840.113556.1.4.1941:"


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


def escape_filter(value: str) -> str:
    """A value inside a search filter (RFC 4515): everything that could end it or widen it becomes ``\\xx``."""
    return "".join(
        char if char.isalnum() and char.isascii() else "".join(f"\\{byte:02x}" for byte in char.encode())
        for char in value
    )


def walk(
    start: Entry,
    fetch: Callable[[str], Entry | None],
    users: Users,
    notes: Notes,
    *,
    max_depth: int = MAX_DEPTH,
) -> frozenset[str]:
    """Everybody in a group and in the groups inside it.

    ``fetch`` gives the group behind a normal form, or None when that is no group. Each group is read once, so a cycle
    ends by itself. Groups deeper than ``max_depth`` are left out; more than :data:`MAX_GROUPS_READ` groups or
    :data:`MAX_MEMBERS` members raise :class:`ConfigError`, because half a group would look like a whole one.
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
        if nobody:
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
    reading = reader(source, base, user_attribute, now, notes)
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
    return Members(found, notes.all())


class _OpenLdap:
    """Groups list their members; users and the names of all groups are read once for all groups of the policy."""

    def __init__(self, source: Source, base: str, attribute: str, now: float, notes: Notes) -> None:
        self.source, self.notes = source, notes
        wanted = (attribute, *OPENLDAP_USER_STATE)
        self.users = Users.collect(source.search(base, f"({attribute}=*)", wanted), attribute, OPENLDAP, now, notes)
        query = "".join(f"(objectClass={name})" for name in OPENLDAP_GROUP_CLASSES)
        # Only names here: a member that is neither a user nor in this table needs no question to the directory.
        self.inner: dict[str, str] = {}
        for entry in source.search(base, f"(|{query})", ("1.1",)):
            key = normal_key(entry.dn, notes)
            if key is not None:
                self.inner[key] = entry.dn
        self.cache: dict[str, Entry | None] = {}

    def group(self, dn: str) -> Group:
        entry = self._read(dn)
        if entry is None:
            return Group(_display(dn, None), frozenset(), missing=True)
        return Group(_display(dn, entry), walk(entry, self._fetch, self.users, self.notes))

    def _fetch(self, key: str) -> Entry | None:
        if key not in self.cache:
            if len(self.cache) >= MAX_GROUPS_READ:
                raise _too_large(key, f"more than {MAX_GROUPS_READ} groups")
            self.cache[key] = self._read(self.inner[key]) if key in self.inner else None
        return self.cache[key]

    def _read(self, dn: str) -> Entry | None:
        entry = self.source.read(dn, GROUP_ATTRIBUTES)
        if entry is None:
            return None
        classes = {value.lower() for value in entry.texts("objectClass")}
        return entry if classes & {name.lower() for name in OPENLDAP_GROUP_CLASSES} else None


class _ActiveDirectory:
    """One question per group of the policy; the server walks the nesting.

    Not seen: members by primary group (primaryGroupID has no memberOf), members from other domains of the forest
    (foreign security principals). They are refused until they are made ordinary members.
    """

    def __init__(self, source: Source, base: str, attribute: str, now: float, notes: Notes) -> None:
        self.source, self.base, self.attribute, self.now, self.notes = source, base, attribute, now, notes

    def group(self, dn: str) -> Group:
        entry = self.source.read(dn, AD_GROUP_ATTRIBUTES)
        if entry is None or "group" not in {value.lower() for value in entry.texts("objectClass")}:
            return Group(_display(dn, None), frozenset(), missing=True)
        # Distribution groups give no rights in Windows and are often run by their own members. The matching rule
        # walks through them all the same, so a group that is one, or has one inside, has to be seen by an admin.
        if not _gives_rights(entry):
            self.notes.add(f"{short(dn)}: not a security group, gives no rights; nobody is in it")
            return Group(_display(dn, entry), frozenset())
        chain = f"({_IN_CHAIN}={escape_filter(entry.dn)})"
        loose = f"(&(objectClass=group)(!(groupType:1.2.840.113556.1.4.803:={_AD_SECURITY_GROUP})){chain})"
        for inner in self.source.search(self.base, loose, ("1.1",)):
            self.notes.add(f"{short(dn)}: contains distribution group {short(inner.dn)}, whose members count")
        people = self.source.search(self.base, f"(&{_AD_PERSON}{chain})", (self.attribute, *AD_USER_STATE))
        users = Users.collect(people, self.attribute, ACTIVE_DIRECTORY, self.now, self.notes)
        if len(users.names) > MAX_MEMBERS:
            raise _too_large(dn, f"more than {MAX_MEMBERS} members")
        return Group(_display(dn, entry), users.names)


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
