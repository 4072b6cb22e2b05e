"""What is printed cannot harm the terminal that shows it."""

from __future__ import annotations

import pytest

from admin.output import printable, say_error, say_table
from conf.errors import Refused


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb", r"a\nb"),
        ("caf\u00e9", "caf\u00e9"),
        ("\u202ereversed", r"\u202ereversed"),
        ("\udcff", r"\udcff"),
        (7, "7"),
    ],
)
def test_printable(value: object, shown: str) -> None:
    assert printable(value) == shown


def test_error_is_what_happened_then_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    say_error(Refused("a.rule", "one\ntwo\x1b", advice="do this"))
    assert capsys.readouterr().err == "secure-slurm: error: one\ntwo\\x1b\nsecure-slurm: do this\n"


def test_table_is_plain_when_it_is_not_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(["a", "long header"], [["x\x1b", 1], ["longer", ""]])
    assert capsys.readouterr().out == "a       long header\nx\\x1b   1\nlonger\n"


def test_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(["a", "b"], [])
    assert capsys.readouterr().out == "a  b\n"


def test_no_color_is_honoured_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    say_table(["a"], [["[red]x[/red]"]])
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown
    assert "\x1b[3" not in shown
