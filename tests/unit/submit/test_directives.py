"""#SECURE lines: before the first command, spelt right, once."""

from __future__ import annotations

import pytest

from conf.errors import UsageError
from submit.directives import read_directives


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"hostname\n#SECURE --class=phi\n", "line 3 of the script is a #SECURE line below the first command"),
        (b"#SECURE --clas=phi\n", r"line 2 of the script: unknown option '--clas' \(did you mean '--class'\?\)"),
        (b"#SECURE class=phi\n", "unknown option 'class'"),
        (b"#SECURE --class\n", "--class has no value"),
        (b"#SECURE\n", "line 2 of the script is not understood"),
        (b"#SECURE # --class=phi\n", "is not understood"),
        (b"#SECURE--class=phi\n", "is not understood"),
        (b"#SECURE --class='phi\n", "is not understood"),
        (b"#SECURE --class=\n", "--class has no value"),
        (b"#SECURE --class=phi\n#SECURE --class=open\n", "'phi' in line 2 and --class='open' in line 3"),
        (b"#SECURE --\xff=phi\n", "unknown option"),
    ],
)
def test_wrong_lines_are_named(body: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_directives(b"#!/bin/sh\n" + body)


def test_lines_are_read_as_slurm_reads_its_own() -> None:
    text = b"""#!/bin/sh
# a comment

#SBATCH -N 2
#SECURE --class=phi   --secure-residency=eu # and why
  # indented
#SECURE --scratch=200M
#SECURE --class "phi"
#SECURED --class=no
hostname
# SECURE --class=open
 #SECURE --class=open
"""
    assert read_directives(text) == {"class": "phi", "residency": "eu", "scratch": "200M"}


@pytest.mark.parametrize("text", [b"", b"#!/bin/sh", b"#!/bin/sh\nhostname\n", b"\xff\xfe\x00"])
def test_no_lines(text: bytes) -> None:
    assert read_directives(text) == {}
