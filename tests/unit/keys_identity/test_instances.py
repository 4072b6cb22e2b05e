"""Which instance a node is, by what is not the node: the real programs' words, and whatever else may stand there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, Refused
from slurm_hooks.instances import RULE, FromCommand, FromFile, FromSlurm, Source, normal_address

ME, OTHER = "i-0123456789abcdef0", "i-0123456789abcdef1"
# as Slurm 24.11 writes it, shortened
SHOWN = (
    "NodeName=n1 Arch=x86_64 CoresPerSocket=1 CPUAlloc=0 CPUEfctv=1 CPUTot=1 CPULoad=0.00 AvailableFeatures=eu "
    "NodeAddr={address} NodeHostName=ip-10-0-0-10 Version=24.11.5 State=IDLE+CLOUD Comment=NodeAddr_is_not_here\n"
)


def program(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def refuses(source: Source, words: str, address: str = "10.0.0.10") -> None:
    with pytest.raises(Refused, match=words) as caught:
        source.check("n1", ME, address)
    assert caught.value.rule == RULE


def unavailable(source: Source, words: str) -> None:
    with pytest.raises(BackendUnavailable, match=words):
        source.check("n1", ME, "10.0.0.10")


def slurm(folder: Path, text: str) -> FromSlurm:
    program(folder, "scontrol", text)
    return FromSlurm(str(folder))


def answers(folder: Path, text: str, code: int = 0) -> FromSlurm:
    (folder / "answer").write_text(text)
    return slurm(folder, f"cat {folder}/answer; exit {code}")


class TestSlurm:
    @pytest.mark.parametrize("address", ["10.0.0.11", "n1", "ip-10-0-0-10", "10.0.0.100", "0.0.0.0", "fd00::1"])
    def test_at_another_address(self, tmp_path: Path, address: str) -> None:
        refuses(answers(tmp_path, SHOWN.format(address=address)), f"has the node n1 at {address}")

    def test_unknown(self, tmp_path: Path) -> None:
        refuses(answers(tmp_path, "Node n1 not found\n", 1), "knows no node n1")

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("", 0),
            ("", 1),
            ("slurm_load_node error: Unable to contact slurm controller (connect failure)\n", 1),
            (SHOWN.format(address="10.0.0.10").replace("NodeName=n1 ", "NodeName=n2 "), 0),
            (SHOWN.format(address="10.0.0.10") * 2, 0),
            (SHOWN.replace("NodeAddr={address} ", ""), 0),
            (SHOWN.format(address="10.0.0.10"), 1),
        ],
    )
    def test_no_answer(self, tmp_path: Path, text: str, code: int) -> None:
        unavailable(answers(tmp_path, text, code), "cannot be read")

    def test_no_slurm(self, tmp_path: Path) -> None:
        unavailable(FromSlurm(str(tmp_path)), "cannot be asked")
        unavailable(slurm(tmp_path, "exit 7"), "cannot be asked")

    @pytest.mark.parametrize(("told", "seen"), [("10.0.0.10", "10.0.0.10"), ("FD00::A", "fd00::a")])
    def test_at_its_address(self, tmp_path: Path, told: str, seen: str) -> None:
        answers(tmp_path, SHOWN.format(address=told)).check("n1", ME, seen)

    def test_is_asked_about_this_node(self, tmp_path: Path) -> None:
        slurm(tmp_path, f'echo "$@" > {tmp_path}/words')
        unavailable(FromSlurm(str(tmp_path)), "cannot be read")
        assert (tmp_path / "words").read_text() == "--all --oneliner show node n1\n"


class TestFile:
    def told(self, folder: Path, text: str) -> FromFile:
        path = folder / "instances"
        path.write_text(text)
        path.chmod(0o644)
        return FromFile(str(path), os.geteuid())

    @pytest.mark.parametrize(
        "text",
        ["", "n2 i-0123456789abcdef0\n", "n1\n", f"n1 {ME} x\n", "n1 x\n", f"# n1 {ME}\n", f"n10 {ME}\n", f"N1 {ME}\n"],
    )
    def test_names_none(self, tmp_path: Path, text: str) -> None:
        refuses(self.told(tmp_path, text), "names no instance for the node n1")

    def test_another(self, tmp_path: Path) -> None:
        refuses(self.told(tmp_path, f"n1 {OTHER}\n"), f"is {OTHER}, not {ME}")
        refuses(self.told(tmp_path, f"n1 {ME}\nn1 {OTHER}\n"), f"is {OTHER}, not {ME}")

    def test_missing_or_anybodys(self, tmp_path: Path) -> None:
        unavailable(FromFile(str(tmp_path / "nothing"), os.geteuid()), "does not exist")
        source = self.told(tmp_path, f"n1 {ME}\n")
        (tmp_path / "instances").chmod(0o666)
        unavailable(source, "can be written by group or others")

    def test_the_last_line_counts(self, tmp_path: Path) -> None:
        self.told(tmp_path, f"# nodes\n\nn2 {OTHER}\nn1 {OTHER}\n  n1   {ME}\n").check("n1", ME, "10.0.0.10")


class TestCommand:
    def test_another(self, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root has programs of root's")
        refuses(FromCommand(program(tmp_path, "which", f"echo {OTHER}")), f"is {OTHER}, not {ME}")
        refuses(FromCommand(program(tmp_path, "which", "echo")), "names no instance")
        refuses(FromCommand(program(tmp_path, "which", f"echo {ME} {ME}")), "names no instance")
        unavailable(FromCommand(program(tmp_path, "which", f"echo {ME}; exit 1")), "cannot be told")
        FromCommand(program(tmp_path, "which", f'[ "$#:$1" = 1:n1 ] && echo {ME}')).check("n1", ME, "10.0.0.10")

    def test_missing_or_anybodys(self, tmp_path: Path) -> None:
        unavailable(FromCommand(str(tmp_path / "nothing")), "cannot be told")
        path = program(tmp_path, "which", f"echo {ME}")
        Path(path).chmod(0o777)
        unavailable(FromCommand(path), "cannot be told")


@pytest.mark.parametrize(
    ("text", "normal"),
    [("10.0.0.10", "10.0.0.10"), ("::ffff:10.0.0.10", "10.0.0.10"), ("FE80::1%eth0", "fe80::1"), ("::1", "::1")],
)
def test_one_form_of_an_address(text: str, normal: str) -> None:
    assert normal_address(text) == normal


@pytest.mark.parametrize("text", ["", "n1", "10.0.0.1/8", "010.0.0.1", "10.0.0"])
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear"):
        normal_address(text)
