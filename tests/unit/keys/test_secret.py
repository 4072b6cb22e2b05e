"""A secret shows itself to nobody."""

from __future__ import annotations

import copy
import json
import pickle
import traceback

import pytest

from keys.secret import Secret

TEXT = b"correct-horse"


@pytest.mark.parametrize("show", [str, repr, lambda s: f"{s}", lambda s: f"{s!r:>40}", lambda s: str([s])])
def test_never_shown(show: object) -> None:
    assert "horse" not in show(Secret(TEXT))  # type: ignore[operator]


@pytest.mark.parametrize("carry", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps])
def test_never_carried_away(carry: object) -> None:
    with pytest.raises(TypeError):
        carry(Secret(TEXT))  # type: ignore[operator]


def test_not_in_a_traceback() -> None:
    try:
        raise ValueError("unlock", Secret(TEXT))
    except ValueError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "horse" not in shown


def test_wipe_zeroes_the_very_buffer() -> None:
    buffer = bytearray(TEXT)
    seen: list[bytes] = []

    class Watched(bytearray):
        def __setitem__(self, key: object, value: object) -> None:
            super().__setitem__(key, value)  # type: ignore[call-overload]
            seen.append(bytes(self))

    watched = Watched(buffer)
    secret = Secret(watched)
    secret.wipe()
    assert seen == [bytes(len(TEXT))]
    assert len(secret) == 0
    assert bytes(secret.reveal()) == b""
    secret.wipe()


def test_wiped_on_the_way_out_even_of_a_failure() -> None:
    secret = Secret(TEXT)
    with pytest.raises(RuntimeError), secret:
        assert bytes(secret.reveal()) == TEXT
        raise RuntimeError
    assert len(secret) == 0


def test_has_no_other_attributes() -> None:
    assert not hasattr(Secret(TEXT), "__dict__")
