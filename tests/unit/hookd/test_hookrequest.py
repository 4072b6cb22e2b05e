"""What a request may be: exactly what a stub of this version writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conf.errors import UsageError
from slurm_hooks.hookrequest import FIXED, NAMES, answer, is_whole, parse

STUBS = Path(__file__).parents[3] / "slurm_hooks" / "stubs"


def request(hook: str = "epilog", stub: str = "4711", **changed: str) -> bytes:
    values = {**dict.fromkeys(NAMES.get(hook, ()), ""), "SLURM_JOB_ID": "17", **changed}
    return b"".join(f"{each}\0".encode() for each in (hook, stub, *(f"{k}={v}" for k, v in values.items()), ""))


@pytest.mark.parametrize("hook", NAMES)
def test_a_request(hook: str) -> None:
    found = parse(request(hook, SLURMD_NODENAME="n=1"))
    assert (found.hook, found.stub, found.address) == (hook, 4711, "17 4711")
    expected = {**FIXED, **dict.fromkeys(NAMES[hook], ""), "SLURM_JOB_ID": "17", "SLURMD_NODENAME": "n=1"}
    assert found.environ == expected


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0\0", b"epilog\0\0", request()[:-1], request() + b"x", request("other"), request("EPILOG"),
        request(stub="0"), request(stub="-1"), request(stub="1 2"), request(stub="\u0661"),
        request(LD_PRELOAD="/x.so"), request(SLURM_JOB_ID=""), request(SLURM_JOB_ID="0x1"), request(SLURM_JOB_ID="1\n"),
        request().replace(b"SLURM_JOB_UID", b"SLURM_JOB_GID"), request().replace(b"SLURM_JOB_UID=\0", b""),
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        parse(data)


def test_it_is_whole_when_the_empty_text_has_come() -> None:
    data = request("prolog", SLURM_JOB_EXTRA="x")
    assert is_whole(data)
    assert not any(is_whole(data[:length]) for length in range(len(data)))


@pytest.mark.parametrize("hook", ["prolog", "epilog"])
def test_the_names_are_those_of_the_stub(hook: str) -> None:
    text = (STUBS / hook).read_text()
    (block,) = re.findall(r"^set -- (.*?[^\\])\n", text, re.MULTILINE | re.DOTALL)
    assert tuple(re.findall(r"(\w+)=\"", block)) == NAMES[hook]
    assert NAMES["protected"] == NAMES["prolog"]
    assert f"PATH={FIXED['PATH']} LC_ALL={FIXED['LC_ALL']} " in text


def test_an_answer_ends_with_the_exit_status() -> None:
    asked = parse(request())
    assert answer(asked, 0, b"", b"") == b"exit 17 4711 0\n"
    text = answer(asked, 1, b"a\n", b"exit 17 4711 0\n\nlast")
    assert text == b"1 a\n2 exit 17 4711 0\n2 \n2 last\nexit 17 4711 1\n"
