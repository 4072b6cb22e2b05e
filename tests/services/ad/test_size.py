"""A group larger than one answer may be, and somebody in 500 groups, in a real Active Directory."""

import time
from collections.abc import Callable

from slurm_hooks.membership import RANGE
from slurm_hooks.reading import Request, read_directory
from tests.testbed.samba_ad import USERS, SambaAD


def test_a_group_larger_than_one_answer_and_somebody_in_500_groups(
    ad: SambaAD, request_to: Callable[..., Request]
) -> None:
    count, groups = 5200, 500
    names = [f"big{number:04}" for number in range(count)]
    ad.load(
        [
            (f"CN={name},{USERS}", {"objectClass": "user", "sAMAccountName": name, "userAccountControl": "544"})
            for name in names
        ]
    )

    def entry(name: str, people: list[str]) -> tuple[str, dict[str, str | list[str]]]:
        listed = [f"CN={each},{USERS}" for each in people]
        return f"CN={name},{USERS}", {"objectClass": "group", "sAMAccountName": name, "member": listed}

    small = {f"small{number}": [names[0], names[number + 1]] for number in range(groups)}
    ad.load([entry("huge", names), *(entry(name, people) for name, people in small.items())])
    ad.load([entry("nested", ["huge"])])
    assert count > 3 * RANGE
    request = request_to(*(f"CN={name},{USERS}" for name in ("huge", "nested", *small)))
    began = time.monotonic()
    found = read_directory(request, time.time()).members.groups
    took = time.monotonic() - began
    assert found[f"CN=huge,{USERS}"].members == found[f"CN=nested,{USERS}"].members == set(names)
    assert all(found[f"CN={name},{USERS}"].members == set(people) for name, people in small.items())
    print(f"\n{count} people, {groups + 2} groups, one of {count}: read in {took:.1f} s")
