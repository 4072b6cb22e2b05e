from typing import Any

import pytest

from slurm_hooks.accounts import (
    ACTIVE_DIRECTORY,
    MAX_NOTES,
    OPENLDAP,
    Entry,
    Notes,
    Users,
    account_open,
    short,
    user_name,
    valid_user_name,
)

NOW = 1_800_000_000.0
TODAY = int(NOW // 86400)


def entry(dn: str = "uid=alice,dc=test", **attributes: str | list[str]) -> Entry:
    listed = {name: [value] if isinstance(value, str) else value for name, value in attributes.items()}
    return Entry(dn, {name.lower(): [each.encode() for each in values] for name, values in listed.items()})


def ad_ticks(unix: float) -> str:
    return str(int((unix + 11_644_473_600) * 1e7))


@pytest.mark.parametrize(
    "name",
    [
        *("", "-rf", ".", "..", ".hidden", "1001", "a b", "a,b", 'a"b', "a\n", "a\nb", "a:b", "a/b", "a\\b", "a=b"),
        *("älice", "a\u212a", "a\0", "$(id)", "a;b", "a|b", "~a", "+a", "@a", "a" * 256),
    ],
)
def test_names_that_are_no_login_names(name: str) -> None:
    assert not valid_user_name(name)


@pytest.mark.parametrize("name", ["alice", "Alice", "_svc", "a.b-c_d", "alice@ad.test", "0day", "a" * 255])
def test_login_names(name: str) -> None:
    assert valid_user_name(name)


@pytest.mark.parametrize("day", ["0", "1", str(TODAY), str(TODAY - 1), "-2", "soon", ""])
def test_an_expired_or_unreadable_shadow_date_closes_the_account(day: str) -> None:
    assert not account_open(entry(shadowExpire=day), OPENLDAP, NOW)


@pytest.mark.parametrize(
    "more",
    [
        {"nsAccountLock": "TRUE"},
        {"pwdAccountLockedTime": "000001010000Z"},
        # 1_800_000_000 is 2027-01-15 08:00:00 UTC
        {"pwdEndTime": "20270115080000Z"},
        {"pwdEndTime": "20270115075959.9Z"},
        {"pwdEndTime": "2027011509+0100"},
        {"pwdEndTime": ["20990101000000Z", "20200101000000Z"]},
        {"pwdEndTime": "soon"},
        {"pwdEndTime": "20271301000000Z"},
        {"pwdEndTime": "00000101000000Z"},
        {"pwdEndTime": "20990101000000"},
        {"pwdEndTime": "\u0662\u0660990101000000Z"},
        {"krbPrincipalExpiration": "20270101000000Z"},
        {"pwdStartTime": "20270115080001Z"},
        {"pwdStartTime": "never"},
        {"shadowExpire": "9" * 5000},
    ],
)
def test_a_locked_account_is_closed(more: dict[str, str]) -> None:
    assert not account_open(entry(**more), OPENLDAP, NOW)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"shadowExpire": "-1"},
        {"shadowExpire": str(TODAY + 1)},
        {"pwdEndTime": "20270115080001Z", "pwdStartTime": "20270115080000Z"},
        {"krbPrincipalExpiration": "202701150901+0100"},
        {"nsAccountLock": "FALSE"},
        # by wrong guesses: not the account's fault, and it ends by itself
        {"pwdAccountLockedTime": "20261101120000Z"},
    ],
)
def test_an_open_account_is_open(more: dict[str, str]) -> None:
    assert account_open(entry(**more), OPENLDAP, NOW)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"userAccountControl": "514"},
        {"userAccountControl": "what"},
        {"userAccountControl": ["512", "512"]},
        {"userAccountControl": "512", "accountExpires": ad_ticks(NOW)},
        {"userAccountControl": "512", "accountExpires": ad_ticks(NOW - 1)},
        {"userAccountControl": "512", "accountExpires": "1"},
        {"userAccountControl": "512", "accountExpires": "tomorrow"},
        {"userAccountControl": "512", "accountExpires": "9" * 400},
        {"userAccountControl": "9" * 5000},
    ],
)
def test_a_closed_active_directory_account(attributes: dict[str, Any]) -> None:
    assert not account_open(entry(**attributes), ACTIVE_DIRECTORY, NOW)


@pytest.mark.parametrize("expires", ["0", str(0x7FFFFFFFFFFFFFFF), ad_ticks(NOW + 1)])
def test_an_open_active_directory_account(expires: str) -> None:
    assert account_open(entry(userAccountControl="512", accountExpires=expires), ACTIVE_DIRECTORY, NOW)


def test_the_state_of_an_account_that_shows_none_is_closed_in_active_directory() -> None:
    assert not account_open(entry(accountExpires="0"), ACTIVE_DIRECTORY, NOW)


@pytest.mark.parametrize(
    ("dn", "names"),
    [
        ("cn=x,dc=test", []),
        ("cn=x,dc=test", ["alice", "bob"]),
        ("uid=carol,dc=test", ["alice", "bob"]),
        ("no name", ["alice", "bob"]),
        ("cn=x,dc=test", ["al ice"]),
    ],
)
def test_no_certain_login_name_leaves_the_entry_out(dn: str, names: list[str]) -> None:
    notes = Notes()
    assert user_name(entry(dn, uid=names), "uid", OPENLDAP, notes) is None
    assert len(notes.all()) == 1


def test_of_several_values_the_one_that_names_the_entry_counts() -> None:
    assert user_name(entry("uid=Alice,dc=test", uid=["al", "alice"]), "uid", OPENLDAP, Notes()) == "alice"


def test_active_directory_names_are_lower_case() -> None:
    assert user_name(entry(sAMAccountName="ALICE"), "sAMAccountName", ACTIVE_DIRECTORY, Notes()) == "alice"
    assert user_name(entry(uid="ALICE"), "uid", OPENLDAP, Notes()) == "ALICE"


def test_a_letter_that_folds_to_ascii_does_not_make_somebody_elses_name() -> None:
    kelvin = "\u212aevin"
    assert kelvin.lower() == "kevin"
    assert user_name(entry(sAMAccountName=kelvin), "sAMAccountName", ACTIVE_DIRECTORY, Notes()) is None


def collect(*entries: Entry) -> tuple[Users, tuple[str, ...]]:
    notes = Notes()
    return Users.collect(entries, "uid", OPENLDAP, NOW, notes), notes.all()


def test_two_entries_for_one_name_are_both_left_out() -> None:
    users, notes = collect(
        entry("uid=alice,ou=a,dc=test", uid="alice"),
        entry("uid=alice,ou=b,dc=test", uid="alice"),
        entry("uid=bob,dc=test", uid="bob"),
    )
    assert users.names == {"bob"}
    assert "two entries for user alice" in notes[0]


def test_a_closed_namesake_does_not_open_the_other() -> None:
    users, _ = collect(
        entry("uid=alice,ou=a,dc=test", uid="alice", shadowExpire="1"), entry("uid=alice,ou=b,dc=test", uid="alice")
    )
    assert not users.names


def test_two_entries_whose_names_fold_to_one_are_both_left_out() -> None:
    users, _ = collect(entry("cn=strasse,dc=test", uid="alice"), entry("cn=straße,dc=test", uid="bob"))
    assert not users.names
    assert not users.by_dn


def test_an_alias_of_somebody_else_is_nobodys_name() -> None:
    notes = Notes()
    both = entry("uid=bob,dc=test", uid=["bob", "alice"])
    users = Users.collect([both, entry(uid="alice")], "uid", OPENLDAP, NOW, notes)
    assert users.names == {"bob"}
    assert any("two entries for user alice" in note for note in notes.all())


def test_an_entry_whose_name_cannot_be_read_still_doubles_a_login_name() -> None:
    users = Users.collect([entry("no name", uid="alice"), entry(uid="alice")], "uid", OPENLDAP, NOW, Notes())
    assert users.names == frozenset()


def test_who_is_known_and_may_not_be_used_is_told_from_strangers() -> None:
    users = Users.collect(
        [entry(uid="alice", shadowExpire="1"), entry("uid=bob,dc=test", uid="bob")], "uid", OPENLDAP, NOW, Notes()
    )
    assert users.closed == {"uid=alice,dc=test", "alice"}


def test_a_third_entry_does_not_bring_a_doubled_name_back() -> None:
    users, _ = collect(*(entry(f"uid=alice,ou={unit},dc=test", uid="alice") for unit in "abc"))
    assert not users.names


def test_notes_are_told_once_and_not_without_end() -> None:
    notes = Notes()
    for number in range(MAX_NOTES + 5):
        notes.add(f"{number:04}")
        notes.add(f"{number:04}")
    assert len(notes.all()) == MAX_NOTES + 1
    assert notes.all()[-1].startswith("and ")


def test_a_name_in_the_log_is_one_short_line() -> None:
    text = short("cn=a\nb\x1b[31mé" + "x" * 500)
    assert text.isprintable()
    assert text.isascii()
    assert len(text) < 220
