"""The Prolog's own look at the grant: root does not take the node daemon's word for what the job is protected with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit.chain import Chain
from conf.errors import Refused, SecureSlurmError
from keys import machine
from keys.place import Verdict
from keys.scratch.report import Report
from slurm_hooks.hookenv import read_job
from slurm_hooks.prolog import NODE_FAULTS, _check_grant, _check_place, _healed, _note_place, _record_refusal

EXTRA = "secure-slurm:class=phi;residency=eu;scratch=5"
GRANT = {"class": "phi", "residency": "eu", "scratch": "5", "datasets": ""}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    place = tmp_path / "place"
    place.write_text("eu-central-1\n")
    place.chmod(0o644)
    return {"node": {"place_file": str(place), "proof": "file"}, "regions": {"eu-central-1": "eu", "us-east-1": "us"}}


def check(config: dict[str, Any], grant: dict[str, str], extra: str = EXTRA) -> None:
    _check_grant(config, read_job({"SLURM_JOB_ID": "17", "SLURM_JOB_EXTRA": extra}), grant)


@pytest.mark.parametrize(
    ("change", "extra"),
    [
        ({"class": "internal"}, EXTRA),
        ({"residency": ""}, EXTRA),
        ({"datasets": "ukb"}, EXTRA),
        ({}, f"{EXTRA};datasets=ukb"),
        ({"residency": "us"}, EXTRA),
        ({"scratch": "0"}, EXTRA),
        ({"scratch": "4"}, EXTRA),
        ({}, "secure-slurm:class=phi;residency=eu"),
        ({}, "secure-slurm:"),
        ({}, "secure-slurm"),
        ({}, EXTRA + ";scratch=6"),
    ],
)
def test_a_grant_that_differs_from_the_tag(config: dict[str, Any], change: dict[str, str], extra: str) -> None:
    with pytest.raises(Refused) as caught:
        check(config, GRANT | change, extra)
    assert caught.value.rule == "grant.tag"
    assert caught.value.rule not in NODE_FAULTS


@pytest.mark.parametrize("place", ["us-east-1\n", "mars\n", "", "eu-central-1 us-east-1", "\xff"])
def test_a_place_that_is_not_the_jobs(config: dict[str, Any], place: str) -> None:
    Path(config["node"]["place_file"]).write_text(place)
    with pytest.raises(Refused) as caught:
        check(config, GRANT)
    assert caught.value.rule in NODE_FAULTS


def test_a_place_file_that_others_can_change(config: dict[str, Any]) -> None:
    Path(config["node"]["place_file"]).chmod(0o666)
    with pytest.raises(SecureSlurmError):
        check(config, GRANT)


def test_the_grant_of_the_job(config: dict[str, Any]) -> None:
    check(config, GRANT)
    check(config, GRANT | {"residency": "", "scratch": "0"}, "secure-slurm:class=phi")


@pytest.mark.parametrize("rule", ["Not A Rule", "", "x" * 65, "a\nb"])
def test_a_rule_that_is_none_does_not_end_the_refusal(
    tmp_path: Path, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = read_job({"SLURM_JOB_ID": "17", "SLURM_JOB_UID": "1001", "SLURMD_NODENAME": "n1"})
    _record_refusal(Chain(tmp_path, "node", "n1"), job, rule)
    assert "rule" in capsys.readouterr().err


VERDICT = Verdict("ec2", "eu-central-1", True, "i-0123456789abcdef0", "ab" * 32, "firmware")


class TestPlace:
    """The daemon's verdict on the place: of the method that root configured, about the region that root wrote down."""

    @pytest.mark.parametrize(
        ("method", "verdict"),
        [
            ("ec2", None),
            ("ec2", VERDICT._replace(verified=False)),
            ("ec2", VERDICT._replace(method="file")),
            ("ec2", VERDICT._replace(method="manifest")),
            ("manifest", VERDICT),
            ("manifest", VERDICT._replace(method="manifest", verified=False)),
            ("file", VERDICT),
            ("none", VERDICT._replace(method="none")),
            ("", VERDICT._replace(method="")),
            ("nonsense", VERDICT._replace(method="nonsense")),
            (None, VERDICT),
        ],
    )
    def test_another_method_or_no_proof(
        self, config: dict[str, Any], method: str | None, verdict: Verdict | None
    ) -> None:
        config["node"]["proof"] = method
        if method is None:
            # rendered by a version that knew no proofs
            del config["node"]["proof"]
        with pytest.raises(Refused) as caught:
            _check_place(config, verdict)
        assert caught.value.rule == "node.place-proof"
        assert caught.value.rule in NODE_FAULTS

    def test_another_region_than_roots(self, config: dict[str, Any]) -> None:
        config["node"]["proof"] = "ec2"
        with pytest.raises(Refused) as caught:
            _check_place(config, VERDICT._replace(region="us-east-1"))
        assert caught.value.rule == "node.place"

    @pytest.mark.parametrize("found", [False, None])
    def test_another_machine(self, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, found: bool | None) -> None:
        config["node"]["proof"] = "manifest"
        monkeypatch.setattr(machine, "matches", lambda _: found)
        with pytest.raises(Refused, match="another machine"):
            _check_place(config, VERDICT._replace(method="manifest", machine="product-uuid:" + "0" * 64))

    @pytest.mark.parametrize(
        ("method", "verdict"),
        [
            ("ec2", VERDICT),
            ("manifest", VERDICT._replace(method="manifest")),
            ("file", VERDICT._replace(method="file", verified=False)),
        ],
    )
    def test_what_was_demanded(self, config: dict[str, Any], method: str, verdict: Verdict) -> None:
        config["node"]["proof"] = method
        _check_place(config, verdict)

    def test_it_is_recorded(self, tmp_path: Path) -> None:
        job = read_job({"SLURM_JOB_ID": "17", "SLURM_JOB_UID": "1001", "SLURMD_NODENAME": "n1"})
        chain = Chain(tmp_path, "node", "n1")
        _note_place(chain, job, None)
        _note_place(chain, job, VERDICT)
        _note_place(chain, job, Verdict("ec2", reason="forged"))
        chain.flush()
        lines = (tmp_path / "n1-node.jsonl").read_text().splitlines()
        assert len(lines) == 2
        assert '"method":"ec2","verified":true,"identity":"i-0123456789abcdef0"' in lines[0]
        assert '"verified":false' in lines[1]
        with pytest.raises(Refused, match="cannot be recorded"):
            _note_place(chain, job, VERDICT._replace(digest="no digest"))


@pytest.mark.parametrize(
    ("incarnation", "told"), [("ab" * 16, ["scratch.gone", "reaper.healed"]), ("", ["reaper.healed"])]
)
def test_an_earlier_start_is_told_as_gone_if_it_is_known_which(
    tmp_path: Path, incarnation: str, told: list[str]
) -> None:
    """Else a certificate would take it for the end of the start that begins now."""
    report = Report("n1", 17)
    report.incarnation = incarnation
    _healed(Chain(str(tmp_path), "node", "n1"), report, "left by an earlier start of the job")
    (file,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == told
    assert {line.get("incarnation", "") for line in lines} == {incarnation}
