"""Every daemon is watched, started again, and described as it is; and one has its socket from systemd."""

from __future__ import annotations

import re

import pytest

from conf.site import Site
from tests.unit.conf.test_systemd import HARDENED, INSTALL, ROOT, folders, one, site, unit

__all__ = ["site"]

DAEMONS = ("decisiond", "lifecycled", "requeued", "ldapd", "glassd", "enrold", "noded", "handd", "hookd")
PAGE = (ROOT / "docs/units.md").read_text()
SECONDS = {"s": 1, "min": 60}


def seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)(s|min)", text)
    assert match is not None
    return int(match[1]) * SECONDS[match[2]]


def told(name: str) -> list[str]:
    """The row of a daemon in the first table."""
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize("name", DAEMONS)
class TestDaemons:
    def test_systemd_waits_for_its_word(self, name: str) -> None:
        assert (one(name, "Type"), one(name, "NotifyAccess")) == ("notify", "main")

    def test_silence_ends_it_without_a_core(self, name: str) -> None:
        assert 30 <= seconds(one(name, "WatchdogSec")) <= 180
        assert one(name, "WatchdogSignal") == "SIGKILL"
        assert one(name, "LimitCORE") == "0"

    def test_a_killed_one_comes_back(self, name: str) -> None:
        # both do so after a watchdog and a SIGKILL (systemd.service(5))
        assert one(name, "Restart") in ("on-failure", "always")
        assert seconds(one(name, "RestartSec")) >= 1
        assert one(name, "RestartPreventExitStatus") == "2"

    def test_the_page_says_what_the_unit_says(self, name: str) -> None:
        watchdog, again = told(name)[-2:]
        assert watchdog == one(name, "WatchdogSec")
        pace = f"after {seconds(one(name, 'RestartSec'))} s"
        if name == "hookd":
            assert (one(name, "StartLimitIntervalSec"), one(name, "StartLimitBurst")) == ("10min", "60")
            assert again == f"{pace}, at most 60 times in 10 minutes"
        else:
            assert one(name, "StartLimitIntervalSec") == "0"
            assert again == f"{pace}, without end"


def test_a_reading_of_the_directory_may_take_longer_than_a_beat() -> None:
    assert seconds(one("ldapd", "TimeoutStartSec")) == 600
    assert seconds(one("ldapd", "RestartSec")) == 30


@pytest.mark.parametrize("name", ["reaper", "reaper-boot"])
def test_the_reaper_has_the_powers_of_what_it_takes_down(name: str) -> None:
    for key in ("CapabilityBoundingSet", "SystemCallFilter", "RestrictNamespaces", "RestrictSUIDSGID"):
        assert unit(name)[key] == unit("hookd")[key]
    assert {key: unit(name)[key] for key in ("NoNewPrivileges", "LimitCORE")} == {
        key: [HARDENED[key]] for key in ("NoNewPrivileges", "LimitCORE")
    }


class TestSocket:
    LINES = (ROOT / "conf/systemd/secure-slurm-glassd.socket").read_text().splitlines()

    def value(self, key: str) -> str:
        (found,) = [line.partition("=")[2] for line in self.LINES if line.startswith(f"{key}=")]
        return found

    def test_is_where_the_site_file_says(self, site: Site) -> None:
        assert self.value("ListenStream") == site.controller.break_glass_socket

    def test_lets_in_whom_the_folder_lets_in(self, site: Site) -> None:
        folder = folders()[site.controller.break_glass_socket.rpartition("/")[0]]
        assert (self.value("SocketUser"), self.value("SocketGroup")) == (folder.user, folder.group)
        assert self.value("SocketMode") == "0660"

    def test_comes_with_its_service(self) -> None:
        for key in ("Requires", "After", "Also"):
            assert one("glassd", key) == "secure-slurm-glassd.socket"
        assert "secure-slurm-glassd.socket" in INSTALL
        # a connection is the daemon's to accept: it counts them
        assert not any(line.startswith("Accept=") for line in self.LINES)

    def test_is_the_only_one(self) -> None:
        assert [path.name for path in (ROOT / "conf/systemd").glob("*.socket")] == ["secure-slurm-glassd.socket"]
