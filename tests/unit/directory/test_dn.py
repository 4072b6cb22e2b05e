import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_hooks.dn import MAX_DN, MAX_RDNS, DnError, _normalise, first_value, normalise


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "=alice",
        "uid",
        "uid=",
        "uid=   ",
        "uid=a,",
        "uid=a,,dc=b",
        ",uid=a",
        "uid=a+",
        "uid=a\\",
        "uid=a\\g0",
        'uid="a"',
        "uid=a;dc=b",
        "uid=a<b",
        "uid=a\0",
        "uid=#04024869",
        "uid=\\ff\\fe",
        "u id=a",
        "üid=a",
        "uid=" + "a" * MAX_DN,
        "dc=a," * 200 + "dc=a",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(DnError):
        normalise(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("uid=alice,dc=test", "UID=Alice , DC=TEST"),
        ("uid=alice,dc=test", "userid=alice,domainComponent=test"),
        ("cn=a,o=b", "2.5.4.3=a,2.5.4.10=b"),
        ("cn=Smith\\, John,dc=test", "CN=Smith\\2c John,DC=test"),
        ("cn=a  b,dc=test", "cn=a b,dc=test"),
        ("cn=a+uid=b,dc=test", "uid=b+cn=a,dc=test"),
        ("cn=caf\\c3\\a9", "cn=CAFÉ"),
        ("cn=cafe\u0301", "cn=café"),
        ("cn=\\20a", "cn=a"),
    ],
)
def test_two_spellings_of_one_name_are_one_key(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cn=a,dc=b", "cn=a\\,dc=b"),
        ("cn=a+uid=b", "cn=a\\+uid=b"),
        ("cn=a,cn=b", "cn=a+cn=b"),
        ("cn=a,cn=b", "cn=b,cn=a"),
        ("cn=a b", "cn=ab"),
        ("cn=a\\0ab", "cn=ab"),
        ("cn=\\23a", "cn=a"),
        ("cn=a\\\\2c", "cn=a\\2c"),
        ("cn=a", "uid=a"),
    ],
)
def test_different_names_stay_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_the_first_value_is_as_written() -> None:
    assert first_value("CN=Smith\\, John,DC=test") == "Smith, John"
    assert first_value("cn=x+uid=Alice,dc=test", "userid") == "Alice"
    assert first_value("cn=x,uid=alice", "uid") is None


VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: text.strip())


def written(value: str) -> str:
    return "".join(f"\\{byte:02x}" for byte in value.encode())


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_the_normal_form_is_its_own_normal_form_and_fit_for_a_log(values: list[str]) -> None:
    try:
        once = normalise(",".join(f"cn={written(value)}" for value in values))
    except DnError:  # nothing is left of a value of exotic spaces
        return
    assert normalise(once) == once
    assert once.isprintable()


@given(VALUES)
def test_no_value_adds_a_part_to_the_name(value: str) -> None:
    try:
        key = normalise(f"cn={written(value)},dc=test")
    except DnError:
        return
    assert key.endswith(",dc=test")
    assert key.replace("\\,", "").count(",") == 1


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        normalise(text)
    except DnError:
        return


PIECES = st.sampled_from(
    [
        *("uid", "UID", "Uid", "cn", "dc", "o", "userid", "=", ",", ", ", " ", "  ", "+", "\\", "#", "a", "Bob", "K"),
        *("x.y@z-_9", "\u212a", "\u017f", "\n", "\t", '"', ";", "\\2c", "\0", "é"),
    ]
)


@given(st.lists(PIECES, max_size=16).map("".join))
def test_the_short_way_for_usual_names_says_what_the_long_way_says(text: str) -> None:
    try:
        expected = _normalise(text)
    except DnError:
        with pytest.raises(DnError):
            normalise(text)
    else:
        assert normalise(text) == expected


@pytest.mark.parametrize("text", [",".join(["dc=a"] * (MAX_RDNS + 1)), "dc=" + "a" * MAX_DN])
def test_the_short_way_has_the_same_limits(text: str) -> None:
    with pytest.raises(DnError):
        normalise(text)
    with pytest.raises(DnError):
        _normalise(text)
