from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.yamlmarks import Mark, parse


def problems(text: str | bytes) -> list[tuple[int, int, str]]:
    found = parse(text if isinstance(text, bytes) else text.encode()).problems
    assert all(message.isprintable() for _, message in found)
    return [(mark.line, mark.column, message) for mark, message in found]


@pytest.mark.parametrize(
    ("text", "line", "column", "part"),
    [
        ("", 1, 1, "empty"),
        ("# only a comment\n", 1, 1, "empty"),
        ("- a\n", 1, 1, "not a mapping"),
        ("word", 1, 1, "not a mapping"),
        (b"a: \xff\n", 1, 4, "UTF-8"),
        ("a: 1\nb: Gr\u00f6\xdfe\n".encode("latin-1"), 2, 6, "UTF-8"),
        ("a: 1\n\tb: 2\n", 2, 1, "a tab"),
        ("a: 1 \t# comment\n", 1, 6, "a tab"),
        ("a: \x1b[31mred\n", 1, 4, "U+001B"),
        ("a: \u202eyad\n", 1, 4, "U+202E"),
        ("a: x\u200by\n", 1, 5, "U+200B"),
        ("a:\u00a01\n", 1, 3, "U+00A0"),
        ("a: x\u2028b: 1\n", 1, 5, "U+2028"),
        ("a: x\x85b: 1\n", 1, 5, "U+0085"),
        ("\ufeffa: 1\n", 1, 1, "U+FEFF"),
        ("a: x\0\n", 1, 5, "U+0000"),
        ('a: "\\e[31m"\n', 1, 4, "control"),
        ('a: "x\\ny"\n', 1, 4, "control"),
        ("a: |\n  two\n  lines\n", 1, 4, "control"),
        ('"\\e": 1\n', 1, 1, "control"),
        ("a: 1\nb: 2\na: 3\n", 3, 1, "already on line 1"),
        ("x: {a: 1, a: 2}\n", 1, 11, "already on line 1"),
        ("a: &anchor 1\n", 1, 4, "anchor"),
        ("a: *other\n", 1, 4, "alias"),
        ("a: {<<: {b: 1}}\n", 1, 5, "merge key"),
        ("5: x\n", 1, 1, "key 5 is not a text"),
        ("true: x\n", 1, 1, "key true is not a text"),
        ("~: x\n", 1, 1, "key ~ is not a text"),
        ("? [a, b]\n: x\n", 1, 3, "cannot be a key"),
        ("a:\n", 1, 3, "value is missing"),
        ("a: null\n", 1, 4, "value is missing"),
        ("a: [x, ]\nb: {c}\n", 2, 6, "value is missing"),
        ("a: !!python/object/apply:os.system [id]\n", 1, 4, "the tag"),
        ("a: !!str 5\n", 1, 4, "the tag"),
        ("a: !local x\n", 1, 4, "the tag"),
        ("a: 1\n---\nb: 2\n", 2, 1, "single document"),
        ("a: [1,\n", 2, 1, "not YAML"),
        ("a: b: c\n", 1, 5, "not YAML"),
        ("a: 'x\n", 2, 1, "not YAML"),
        ("a: @x\n", 1, 4, "not YAML"),
        ('a: "\\U99999999"\n', 1, 1, "not YAML"),
        ('a: "\\ud800"\n', 1, 4, "control"),
        (f"%YAML 1.{'9' * 5000}\n---\na: 1\n", 1, 1, "not YAML"),
        ("a: " + "[" * 100_000, 1, 19, "nested deeper"),
    ],
)
def test_refused(text: str | bytes, line: int, column: int, part: str) -> None:
    found = problems(text)
    assert [(each[0], each[1]) for each in found] == [(line, column)]
    assert part in found[0][2]


def test_a_yaml_bomb_stays_small() -> None:
    text = "a: &a [x,x]\n" + "".join(
        f"{b}: &{b} [*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    document = parse(text.encode())
    assert len(document.problems) == 9 + 8 * 4
    assert document.data["i"] == ["", "", "", ""]


def test_a_number_of_many_digits_is_a_text() -> None:
    assert parse(f"a: {'9' * 10_000}".encode()).data["a"] == "9" * 10_000


def test_several_problems_at_once() -> None:
    assert [each[0] for each in problems("a: 1\na: 2\nb: &x 3\nc:\n7: x\n")] == [3, 2, 4, 5]


def test_values_as_in_yaml_1_2() -> None:
    text = (
        'a: no\nb: 010\nc: 1:30\nd: 2026-01-01\ne: 1_000\nf: true\ng: -5\nh: "5"\ni: yes\nj: 1.5\nk: trueish\nl: 12x\n'
    )
    assert parse(text.encode()).data == {
        "a": "no", "b": "010", "c": "1:30", "d": "2026-01-01", "e": "1_000", "f": True, "g": -5, "h": "5", "i": "yes",
        "j": "1.5", "k": "trueish", "l": "12x",
    }  # fmt: skip


def test_marks() -> None:
    document = parse(b"a:\r\n  - b: 1\r\n    c: 2\r\n")
    assert not document.problems
    assert document.keys["a", 0, "c"] == Mark(3, 5)
    assert document.values["a", 0, "c"] == Mark(3, 8)
    assert document.key_mark(("a", 0, "none", "deeper")) == Mark(2, 5)
    assert document.value_mark(("none",)) == Mark(1, 1)


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    document = parse(data)
    assert all(message.isprintable() for _, message in document.problems)


@given(st.text(alphabet="ab:-{}[],&*!|>'\"?#%@ \n1~<", max_size=60))
def test_no_yaml_makes_it_raise(text: str) -> None:
    document = parse(text.encode())
    assert document.problems or isinstance(document.data, dict)
    assert all(message.isprintable() for _, message in document.problems)


def test_a_tag_that_stands_for_a_key_is_read_as_one() -> None:
    found = parse(b"a: !Ref b\nc: [!Sub [x, {y: !Ref z}]]\n", tags={"!Ref": "Ref", "!Sub": "Fn::Sub"})
    assert found.problems == []
    assert found.data == {"a": {"Ref": "b"}, "c": [{"Fn::Sub": ["x", {"y": {"Ref": "z"}}]}]}
    assert found.key_mark(("a", "Ref")) == found.value_mark(("a",)) == Mark(1, 4)
    assert found.value_mark(("c", 0, "Fn::Sub", 1, "y", "Ref")) == Mark(2, 18)


def test_any_other_tag_stays_refused() -> None:
    for text in ("a: !Other b\n", "a: !!str b\n", "a: !<tag:yaml.org,2002:python/name:os.system> b\n"):
        assert [message[:7] for _, message in parse(text.encode(), tags={"!Ref": "Ref"}).problems] == ["the tag"]


def test_what_a_tag_stands_on_is_no_number() -> None:
    assert parse(b"a: !Ref 1\nb: !Ref true\nc: 1\n", tags={"!Ref": "Ref"}).data == {
        "a": {"Ref": "1"},
        "b": {"Ref": "true"},
        "c": 1,
    }


def test_a_text_of_lines_only_where_it_is_asked_for() -> None:
    text = b'a: |\n  two\n  lines\nb: "\\e"\n'
    assert [mark.line for mark, _ in parse(text).problems] == [1, 4]
    assert [mark.line for mark, _ in parse(text, lines=True).problems] == [4]
    assert parse(text, lines=True).data["a"] == "two\nlines\n"
