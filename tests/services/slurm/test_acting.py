"""Two real slurmctlds on one machine, and who of them acts by :mod:`slurm_hooks.acting`."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable
from slurm_hooks.acting import OwnSlurmctld
from slurm_hooks.slurmview import SlurmView
from tests.services.slurm.controller import Controller, run, until

HOSTS = {"head": "10.99.0.1", "head2": "10.99.0.2"}


class TwoControllers(Controller):
    """The second is in namespaces of its own, with another name; both have one StateSaveLocation."""

    def more(self) -> str:
        return "CommunicationParameters=NoCtldInAddrAny\nSlurmctldHost=head2\nSlurmctldTimeout=30\n"

    def prepare(self) -> None:
        hosts = Path("/etc/hosts")
        hosts.write_text(hosts.read_text() + "10.99.0.2 head2\n")
        run("ip", "addr", "add", "10.99.0.2/24", "dev", "lo")

    def second(self) -> None:
        """Start the one that stands by."""
        words = "hostname head2; mount -t tmpfs tmpfs /run/slurm; chown slurm /run/slurm; exec slurmctld"
        run("unshare", "-m", "-u", "sh", "-c", words)


@pytest.fixture(scope="module")
def two(throw_away_root: None) -> Iterator[TwoControllers]:
    with TwoControllers() as controller:
        controller.second()
        yield controller


def kill(host: str) -> None:
    def killed() -> bool:
        pids = run("pgrep", "-f", "-r", "D,R,S", "^(/usr/sbin/)?slurmctld", check=False).split()
        mine = [
            pid for pid in pids if run("nsenter", f"--uts=/proc/{pid}/ns/uts", "hostname", check=False).strip() == host
        ]
        if mine:
            subprocess.run(["kill", "-9", *mine], check=False)
        return not mine

    until(killed, f"slurmctld on {host} to end")


@pytest.fixture
def own(tmp_path: Path) -> dict[str, OwnSlurmctld]:
    folders = {host: tmp_path / host for host in HOSTS}
    for folder in folders.values():
        folder.mkdir()
    return {host: OwnSlurmctld(SlurmView("/usr/bin", "test"), "test", host, str(folders[host])) for host in HOSTS}


def said(own: OwnSlurmctld) -> bool | None:
    try:
        return own.look()[1]
    except BackendUnavailable:
        return None


def test_a_take_over(two: TwoControllers, own: dict[str, OwnSlurmctld]) -> None:
    def of_one_mind() -> bool:
        with contextlib.suppress(BackendUnavailable):
            first, acts = own["head"].look()
            return acts and own["head2"].look() == (first, False)
        return False

    until(of_one_mind, "the first to act")
    stranger = OwnSlurmctld(SlurmView("/usr/bin", "test"), "test", "elsewhere", "/tmp")
    with pytest.raises(BackendUnavailable, match="is none of slurm"):
        stranger.look()
    with pytest.raises(BackendUnavailable, match="is of the cluster 'test'"):
        OwnSlurmctld(SlurmView("/usr/bin", "other"), "other", "head", "/tmp").look()
    # by an order, which ends the first
    run("scontrol", "takeover")
    until(lambda: [said(each) for each in own.values()] == [False, True], "the second to act")
    # the first is back, and has the second stand by again
    run("slurmctld")
    until(lambda: [said(each) for each in own.values()] == [True, False], "the first to act again")
    # the first dies, and after SlurmctldTimeout the second acts
    kill("head")
    until(lambda: [said(each) for each in own.values()] == [False, True], "the second to take over")
    # the last one dies: nothing is known
    kill("head2")
    assert [said(each) for each in own.values()] == [None, None]
    run("slurmctld")
    two.second()
    until(lambda: [said(each) for each in own.values()] == [True, False], "both to be back")


def test_as_the_daemon_asks(two: TwoControllers, tmp_path: Path) -> None:
    """As an ordinary account, which is not SlurmUser."""
    folder = Path("/run/lifecycle-test")
    folder.mkdir()
    entry = pwd.getpwnam("secure-life")
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    code = (
        "from slurm_hooks.acting import OwnSlurmctld; from slurm_hooks.slurmview import SlurmView\n"
        f"for host in {[*HOSTS]}:\n"
        f"    print(OwnSlurmctld(SlurmView('/usr/bin', 'test'), 'test', host, '{folder}').look()[1])"
    )
    done = subprocess.run(
        ["python3", "-c", code], user="secure-life", group="secure-life", capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]
