"""Which of several head nodes acts, by what slurmctlds are made to say here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, Refused
from keys.process import ProcessError
from slurm_hooks import acting
from slurm_hooks.acting import Acting, OwnSlurmctld, only
from slurm_hooks.slurmview import NoAnswer

CONFIG = """\
Configuration data as of 1790000100
AuthAltTypes            = (null)
AuthInfo                = cred_expire=12
AuthType                = auth/munge
BOOT_TIME               = {boot}
ClusterName             = {cluster}
HashPlugin              = hash/k12
MCSParameters           = (null)
MinJobAge               = 600 sec
NEXT_JOB_ID             = 17
PluginDir               = /usr/lib/slurm
PrivateData             = none
SlurmUser               = slurm(64030)
SlurmctldHost[0]        = head(10.0.0.1)
SlurmctldHost[1]        = head2
SlurmctldPort           = 6817
TLSType                 = (null)

Slurmctld(primary) at head is UP
Slurmctld(backup) at head2 is UP
"""
STANDBY = "slurm_load_ctl_conf error: Slurm backup controller in standby mode"
AWAY = "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)"


def config(boot: int = 1790000000, cluster: str = "test") -> str:
    return CONFIG.format(boot=boot, cluster=cluster)


def failed(complaint: str, code: int = 1) -> NoAnswer:
    return NoAnswer("scontrol", ProcessError("it failed", returncode=code, stderr=complaint + "\n"))


class Slurm:
    """Answers in turn; ``asked`` are the configuration files that were named."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def config(self, conf: str = "") -> str:
        self.asked.append(conf)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def own(folder: Path, slurm: Slurm, host: str = "head2") -> OwnSlurmctld:
    return OwnSlurmctld(slurm, "test", host, str(folder))  # type: ignore[arg-type]


@pytest.mark.parametrize("no", [STANDBY, AWAY])
def test_a_slurmctld_that_stands_by_or_is_away_does_not_act(tmp_path: Path, no: str) -> None:
    slurm = Slurm(config(), failed(no))
    assert own(tmp_path, slurm).look() == ("1790000000", False)
    assert slurm.asked == ["", f"{tmp_path}/own-slurmctld.conf"]


def test_the_one_that_answers_by_itself_acts(tmp_path: Path) -> None:
    assert own(tmp_path, Slurm(config(), config())).look() == ("1790000000", True)
    text = (tmp_path / "own-slurmctld.conf").read_text()
    assert text.splitlines() == [
        "SlurmctldHost=head2",
        "SlurmUser=slurm",
        "AuthInfo=cred_expire=12",
        "AuthType=auth/munge",
        "ClusterName=test",
        "HashPlugin=hash/k12",
        "PluginDir=/usr/lib/slurm",
        "SlurmctldPort=6817",
    ]
    assert (tmp_path / "own-slurmctld.conf").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "answers",
    [
        [failed(AWAY)],
        [config(cluster="other")],
        ["half an answer"],
        [config(), failed("slurm_load_ctl_conf error: Protocol authentication error")],
        [config(), failed(STANDBY, code=-9)],
        [config(), config(boot=1790000001)],
        [config(), "half an answer"],
    ],
)
def test_anything_else_is_not_known(tmp_path: Path, answers: list[str | Exception]) -> None:
    with pytest.raises(BackendUnavailable):
        own(tmp_path, Slurm(*answers)).look()


def test_a_machine_that_slurm_does_not_name(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="is none of"):
        own(tmp_path, Slurm(config()), "elsewhere").look()


@pytest.mark.parametrize("host", ["head", "HEAD", "head.example.org"])
def test_its_address_stays_with_it(host: str) -> None:
    assert only(config(), host).startswith("SlurmctldHost=head(10.0.0.1)\n")


def test_a_standby_is_asked_again_at_another_boot_time_and_now_and_then(tmp_path: Path) -> None:
    spared = [config()] * acting.SPARED
    slurm = Slurm(
        config(), failed(STANDBY), *spared, config(), failed(STANDBY), config(boot=1790009999), config(1790009999)
    )
    mine = own(tmp_path, slurm)
    for _ in range(2 + acting.SPARED):
        assert mine.look() == ("1790000000", False)
    assert slurm.asked.count("") == 2 + acting.SPARED
    assert len(slurm.asked) == 4 + acting.SPARED
    assert mine.look() == ("1790009999", True)
    assert slurm.answers == []


def test_what_was_asked_in_vain_is_asked_again(tmp_path: Path) -> None:
    mine = own(tmp_path, Slurm(config(), failed(STANDBY), config(boot=2), failed("?"), config(boot=2), config(boot=2)))
    assert mine.look()[1] is False
    with pytest.raises(BackendUnavailable):
        mine.look()
    assert mine.look() == ("2", True)


class Part:
    """One head node's daemon; ``said`` are the answers, ``calls`` what it was told to do."""

    def __init__(
        self, folder: Path, *said: tuple[str, bool] | Exception, heads: tuple[str, ...] = ("head", "head2")
    ) -> None:
        self.said: Iterator[tuple[str, bool] | Exception] = iter(said)
        self.calls: list[str] = []
        self.acting = Acting(
            heads,
            "head2",
            str(folder),
            self.look,
            took_over=lambda: self.calls.append("took over"),
            stands_by=lambda: self.calls.append("stands by"),
        )

    def look(self) -> tuple[str, bool]:
        found = next(self.said)
        if isinstance(found, Exception):
            raise found
        return found


def test_with_one_head_node_nobody_is_asked(tmp_path: Path) -> None:
    part = Part(tmp_path / "heads", heads=("head2",))
    asyncio.run(part.acting.look())
    asyncio.run(part.acting.forever())
    assert (part.acting.acts, part.acting.may_end("any"), part.acting.acted_for()) == (True, True, math.inf)
    part.acting.check()
    assert not (tmp_path / "heads").exists()


def test_a_take_over_and_back(tmp_path: Path) -> None:
    away = BackendUnavailable("nobody answers")
    part = Part(
        tmp_path / "heads", away, ("1", False), ("1", False), ("2", True), away, ("2", True), ("3", True), ("4", False)
    )
    seen = []

    async def play() -> None:
        for _ in range(8):
            await part.acting.look()
            seen.append(part.acting.acts)

    asyncio.run(play())
    # when nobody answers it stays what it was; another slurmctld here is a take-over as well
    assert seen == [None, False, False, True, True, True, True, False]
    assert part.calls == ["stands by", "took over", "took over", "stands by"]


def test_it_ends_only_what_the_slurmctld_beside_it_calls_over(tmp_path: Path) -> None:
    part = Part(tmp_path / "heads", ("1", True), ("2", False))
    assert not part.acting.may_end("1")
    asyncio.run(part.acting.look())
    assert part.acting.may_end("1")
    assert not part.acting.may_end("2")
    assert part.acting.acted_for() < 60
    asyncio.run(part.acting.look())
    assert not part.acting.may_end("1")
    assert not part.acting.may_end("2")


def test_an_admin_is_sent_to_the_head_node_that_acts(tmp_path: Path) -> None:
    part = Part(tmp_path / "heads", ("1", False))
    # as long as it is not known, no revocation is refused
    part.acting.check()
    asyncio.run(part.acting.look())
    with pytest.raises(Refused) as refused:
        part.acting.check()
    assert (refused.value.rule, refused.value.advice) == ("lifecycle.standby", "repeat it there: head")


# OSError: a shared folder that fails while it is listed
@pytest.mark.parametrize("kind", [BackendUnavailable, OSError])
def test_a_take_over_that_fails_is_tried_again(tmp_path: Path, kind: type[Exception]) -> None:
    part = Part(tmp_path / "heads", ("1", True), ("1", True))
    calls = iter([kind("the folder cannot be read"), None])

    def took_over() -> None:
        error = next(calls)
        if error is not None:
            raise error

    part.acting._took_over = took_over
    asyncio.run(part.acting.look())
    assert (part.acting.acts, part.acting.problem) == (None, "the folder cannot be read")
    asyncio.run(part.acting.look())
    assert (part.acting.acts, part.acting.problem) == (True, "")


def test_each_leaves_a_sign_in_the_shared_folder(tmp_path: Path) -> None:
    part = Part(tmp_path / "heads", ("1", True))
    asyncio.run(part.acting.look())
    told = part.acting.report()
    assert (told["acts"], told["several"], told["problem"]) == (True, True, "")
    heads = told["heads"]
    assert isinstance(heads, dict)
    assert heads["head"] is None
    assert heads["head2"] < 60
