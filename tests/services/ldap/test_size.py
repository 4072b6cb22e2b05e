"""A big site in a real slapd: 100,000 people, somebody in 500 groups, and a group of everybody."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.errors import SecureSlurmError
from slurm_hooks import membersfile, reading
from slurm_hooks.membership import Members
from slurm_hooks.reading import Request, read_directory
from slurm_hooks.snapshot import Snapshot, SnapshotCache, write_snapshot
from tests.testbed.slapd import Slapd, group, group_dn, person, user

PEOPLE, GROUPS, EACH = 100_000, 500, 100
NAMES = [f"p{number:06}" for number in range(PEOPLE)]


def test_a_hundred_thousand_people_and_a_group_of_them_all(
    own: Slapd, request_to: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {f"g{number}": {NAMES[0], *NAMES[number * EACH : number * EACH + EACH]} for number in range(GROUPS)}
    groups["everybody"] = set(NAMES)
    own.stop()
    own.load("".join(map(user, NAMES)))
    own.load("".join(group(cn, [person(name) for name in sorted(names)]) for cn, names in groups.items()))
    own.start()
    request = request_to(own, *map(group_dn, groups))
    memory = tmp_path / "memory"
    pack = reading._pack

    def pack_and_tell(result: Members | SecureSlurmError) -> bytes:
        memory.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        return pack(result)

    monkeypatch.setattr(reading, "_pack", pack_and_tell)
    began = time.monotonic()
    got = read_directory(request, time.time())
    took = time.monotonic() - began
    assert {dn: set(found.members) for dn, found in got.members.groups.items()} == {
        group_dn(cn): names for cn, names in groups.items()
    }
    path = tmp_path / "members.json"
    write_snapshot(path, Snapshot(time.time(), got.uri, got.members.groups))
    cache = SnapshotCache(path, os.geteuid(), 600.0)
    began = time.monotonic()
    assert cache.poll(time.time())
    first = time.monotonic() - began
    found = cache.current(time.time())
    assert len(found.groups_of(NAMES[0])) == GROUPS + 1
    assert found.groups_of(NAMES[-1]) == {group_dn("everybody")}
    # one person leaves one group: one line of the file is read, and not that of everybody
    own.set_members("g7", [person(name) for name in sorted(groups["g7"] - {NAMES[0]})])
    again = read_directory(request, time.time())
    write_snapshot(path, Snapshot(time.time(), again.uri, again.members.groups))
    read: list[int] = []
    really = membersfile._parse_line

    def parse_line(line: bytes) -> object:
        read.append(len(line))
        return really(line)

    monkeypatch.setattr(membersfile, "_parse_line", parse_line)
    began = time.monotonic()
    assert cache.poll(time.time())
    changed = time.monotonic() - began
    assert len(read) == 1
    assert read[0] < 10_000
    assert len(cache.current(time.time()).groups_of(NAMES[0])) == GROUPS
    print(
        f"\n{PEOPLE} people, {GROUPS + 1} groups, one of {PEOPLE}: read in {took:.1f} s with {memory.read_text()} kB, "
        f"members file {path.stat().st_size >> 10} KB, taken over in {first * 1000:.0f} ms, "
        f"after one change in {changed * 1000:.0f} ms"
    )
