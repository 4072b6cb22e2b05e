"""The queue of starts, and the hook that asks again."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from conf.errors import Refused
from slurm_hooks import patience, wire
from slurm_hooks.admission import Admission


def test_first_come_first_served_and_never_more_than_allowed() -> None:
    order: list[int] = []
    most = 0

    async def main() -> None:
        queue = Admission(60, at_once=3, most_waiting=100)

        async def one(number: int) -> None:
            nonlocal most
            async with queue.turn():
                order.append(number)
                most = max(most, queue.active)
                await asyncio.sleep(0)

        await asyncio.gather(*map(one, range(50)))
        assert (queue.active, queue.waiting, queue.turned_away) == (0, 0, 0)

    asyncio.run(main())
    assert order == list(range(50))
    assert most == 3


def test_one_more_than_may_wait_is_told_so() -> None:
    async def main() -> Counter[str]:
        queue = Admission(60, at_once=2, most_waiting=5)
        go = asyncio.Event()

        async def one() -> str:
            try:
                async with queue.turn():
                    await go.wait()
            except Refused as error:
                return error.rule
            return "done"

        tasks = [asyncio.create_task(one()) for _ in range(10)]
        await asyncio.sleep(0.01)
        assert (queue.active, queue.waiting, queue.turned_away) == (2, 5, 3)
        go.set()
        found = Counter(await asyncio.gather(*tasks))
        assert (queue.active, queue.waiting) == (0, 0)
        return found

    assert asyncio.run(main()) == {"done": 7, "lifecycle.busy": 3}


def test_who_waits_too_long_is_told_so_and_who_is_cancelled_is_forgotten() -> None:
    async def main() -> None:
        queue = Admission(0.03, at_once=1, most_waiting=5)
        async with queue.turn():
            with pytest.raises(Refused, match="waiting for their keys"):
                async with queue.turn():
                    raise AssertionError("not its turn")
            patient_queue = Admission(60, at_once=1, most_waiting=5)
        async with patient_queue.turn():
            waiting = asyncio.create_task(patient_queue.turn().__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert patient_queue.waiting == 0
        assert (queue.active, patient_queue.active) == (0, 0)

    asyncio.run(main())


def test_a_turn_that_comes_as_its_owner_is_cancelled_goes_to_the_next() -> None:
    async def main() -> None:
        queue = Admission(60, at_once=1, most_waiting=5)
        first = queue.turn()
        await first.__aenter__()
        second = asyncio.create_task(queue.turn().__aenter__())
        third = queue.turn()
        waiting = asyncio.create_task(third.__aenter__())
        await asyncio.sleep(0.01)
        await first.__aexit__(None, None, None)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        async with asyncio.timeout(10):
            await waiting
        assert (queue.active, queue.waiting) == (1, 0)
        await third.__aexit__(None, None, None)
        assert queue.active == 0

    asyncio.run(main())


class Answers:
    def __init__(self, *rules: bytes) -> None:
        self.rules = list(rules)

    def __call__(self, _path: str, _fields: Mapping[str, bytes | str], *, timeout: float) -> dict[str, bytes]:
        assert timeout > 0
        rule = self.rules.pop(0)
        return {"verdict": b"refuse", "rule": rule} if rule else {"verdict": b"allow"}


def ask(seconds: float) -> dict[str, bytes]:
    return patience.ask(lambda: wire.exchange("x", {}, timeout=60), time.monotonic() + seconds)


def test_who_is_told_to_wait_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "exchange", Answers(b"lifecycle.busy", b"lifecycle.busy", b""))
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.01)
    assert ask(60)["verdict"] == b"allow"


@pytest.mark.parametrize(("rule", "seconds"), [(b"start.changed", 60.0), (b"lifecycle.busy", 0.1)])
def test_a_refusal_is_one_and_so_is_busy_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, rule: bytes, seconds: float
) -> None:
    monkeypatch.setattr(wire, "exchange", Answers(rule))
    assert ask(seconds)["rule"] == rule


def test_a_full_socket_is_waited_for_until_the_time_is_over(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        with pytest.raises(wire.WireError, match="no answer in time"):
            wire.exchange(path, {"verb": "x"}, timeout=0.2)
