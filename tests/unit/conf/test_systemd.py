"""The units, the folders and the installer agree: with each other, the accounts, and the shipped site file."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from conf.site import Site, load_site
from keys.scratch import teardown
from slurm_hooks import reap_rule, reaper

ROOT = Path(__file__).parents[3]
PREFIX = "/opt/secure-slurm"
NAMES = ("decisiond", "lifecycled", "ldapd", "noded", "glassd", "enrold")
SEALED = ("decisiond", "glassd")  # no network at all
INSTALL = (ROOT / "install.sh").read_text()
ACCOUNTS = (ROOT / "requirements/accounts.sh").read_text()
USERS = {"root", *re.findall(r"^account ([a-z-]+)", ACCOUNTS, re.MULTILINE)}
# Slurm's own group comes with Slurm; each account has a group of its own name
GROUPS = USERS | {"slurm", *re.findall(r"^group ([a-z-]+)", ACCOUNTS, re.MULTILINE)}
MEMBERS = set(re.findall(r"^usermod -a -G ([a-z-]+) ([a-z-]+)", ACCOUNTS, re.MULTILINE))

# where the shipped site file says that a node which enrols should have its key
IDENTITY = "/var/lib/secure-slurm/identity-%l"

HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectProc": "invisible",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "SystemCallArchitectures": "native",
    "LimitCORE": "0",
    "UMask": "0077",
    "Type": "notify",
    "Restart": "on-failure",
}


class Folder(NamedTuple):
    mode: int
    user: str
    group: str
    part: str


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit, section by section; a name that stands twice has two values."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (ROOT / f"conf/systemd/secure-slurm-{name}.service").read_text().splitlines():
        if line.startswith("["):
            section = line
            assert section in {"[Unit]", "[Service]", "[Install]"}
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals
            assert section
            found.setdefault(key, []).append(value)
    return found


def one(name: str, key: str) -> str:
    (value,) = unit(name)[key]
    return value


def folders() -> dict[str, Folder]:
    found: dict[str, Folder] = {}
    part = "common"
    for line in (ROOT / "conf/tmpfiles/secure-slurm.conf").read_text().splitlines():
        if line.startswith("# part: "):
            part = line.removeprefix("# part: ")
        elif line and not line.startswith("#"):
            kind, path, mode, user, group = line.split()
            assert kind == "d"
            assert path not in found
            found[path] = Folder(int(mode, 8), user, group, part)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    # a copy: in a checkout the file may belong to anybody
    path = tmp_path_factory.mktemp("site") / "secure-slurm.yaml"
    shutil.copyfile(ROOT / "conf/secure-slurm.yaml", path)
    path.chmod(0o644)
    return load_site(str(path))


def written(site: Site) -> dict[str, set[str]]:
    """What each daemon writes to, by the shipped site file; ``%l`` is what install.sh and systemd make of it."""
    return {
        "decisiond": {str(Path(site.controller.socket).parent), f"{site.audit.directory}/decision"},
        "lifecycled": {
            str(Path(site.lifecycle.socket).parent),
            f"{site.audit.directory}/lifecycle",
            site.lifecycle.state_dir,
        },
        "glassd": {str(Path(site.controller.break_glass_socket).parent), site.controller.break_glass_dir},
        "ldapd": {str(Path(site.ldap.snapshot).parent)},
        "noded": {f"{site.node.run_dir.replace('%n', '%l')}/daemon", IDENTITY},
        "enrold": {f"{site.audit.directory}/enrol"},
    }


# each of these gives a unit a mount namespace of its own (systemd.exec(5)), of which no job would see anything
HIDING = {
    *("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectProc", "ProcSubset"),
    *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "MountFlags"),
    *("ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "TemporaryFileSystem", "RootDirectory"),
    *("DynamicUser", "StateDirectory", "PrivateUsers", "User"),
    # and these close the block devices
    *("ProtectClock", "DevicePolicy", "DeviceAllow"),
}


class TestUnits:
    def test_there_are_no_others(self) -> None:
        found = {path.name for path in (ROOT / "conf/systemd").iterdir()}
        services = {
            f"secure-slurm-{name}.service"
            for name in (*NAMES, "imds", "handd", "hookd", "requeued", "reaper", "reaper-boot")
        }
        assert found == services | {"secure-slurm-reaper.timer", "secure-slurm-glassd.socket"}

    @pytest.mark.parametrize("name", NAMES)
    def test_runs_as_an_account_of_its_own(self, name: str) -> None:
        user, group = one(name, "User"), one(name, "Group")
        assert user in USERS - {"root"}
        assert [other for other in NAMES if one(other, "User") == user] == [name]
        assert group in (user, "secure-record")
        for extra in unit(name).get("SupplementaryGroups", []):
            assert (extra, user) in MEMBERS

    @pytest.mark.parametrize("name", NAMES)
    def test_has_no_privileges(self, name: str) -> None:
        settings = unit(name)
        assert {key: settings.get(key) for key in HARDENED} == {key: [value] for key, value in HARDENED.items()}
        assert settings["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]
        # SO_PEERCRED would call everybody "nobody"
        assert "PrivateUsers" not in settings
        for key in ("ExecStart", "ExecReload"):
            # "+", "!" and "!!" would run it with full privileges (systemd.service(5))
            assert all(value.startswith("/") for value in settings.get(key, []))

    @pytest.mark.parametrize("name", NAMES)
    def test_families(self, name: str) -> None:
        families = set(one(name, "RestrictAddressFamilies").split())
        assert families == ({"AF_UNIX"} if name in SEALED else {"AF_UNIX", "AF_INET", "AF_INET6"})
        assert unit(name).get("PrivateNetwork") == (["yes"] if name in SEALED else None)

    @pytest.mark.parametrize("name", NAMES)
    def test_starts_what_is_installed(self, name: str) -> None:
        program = one(name, "ExecStart").split()[0]
        assert program == f"{PREFIX}/bin/secure-slurm-{name}"
        assert f"launcher secure-slurm-{name} slurm_hooks.{name} main\n" in INSTALL
        assert (ROOT / f"slurm_hooks/{name}.py").is_file()
        assert re.search(rf'units="[^"]*\bsecure-slurm-{name}\b', INSTALL)

    @pytest.mark.parametrize("name", NAMES)
    def test_writes_its_own_folders_and_nothing_else(self, name: str, site: Site) -> None:
        paths = set(one(name, "ReadWritePaths").split())
        assert paths == written(site)[name]
        for path in paths:
            folder = folders()[path]
            assert folder.user == one(name, "User")
            assert folder.part == ("compute" if name == "noded" else "head")

    def test_the_requeue_daemon_is_slurms_user_and_writes_nothing(self) -> None:
        settings = unit("requeued")
        assert {key: settings.get(key) for key in HARDENED} == {key: [value] for key, value in HARDENED.items()}
        assert (one("requeued", "User"), one("requeued", "Group")) == ("slurm", "slurm")
        assert "ReadWritePaths" not in settings
        assert one("requeued", "ExecStart") == f"{PREFIX}/bin/secure-slurm-requeued"
        assert "launcher secure-slurm-requeued slurm_hooks.requeued main\n" in INSTALL
        assert re.search(r'units="[^"]*\bsecure-slurm-requeued\b', INSTALL)

    def test_the_metadata_service_is_closed_before_a_job_can_start(self) -> None:
        assert one("imds", "Before").split() == ["secure-slurm-noded.service", "slurmd.service"]
        assert (one("imds", "Type"), one("imds", "RemainAfterExit")) == ("oneshot", "yes")
        for key in ("ExecStart", "ExecReload"):
            assert one("imds", key) == f"{PREFIX}/bin/secure-slurm node imds --close"
        # root without the powers that closing does not need
        assert one("imds", "CapabilityBoundingSet") == "CAP_NET_ADMIN CAP_SETUID CAP_SETGID CAP_SETPCAP"
        assert re.search(r'units="[^"]*\bsecure-slurm-imds\b', INSTALL)

    def test_the_hand_is_root_without_a_network(self, site: Site) -> None:
        assert one("handd", "ExecStart") == f"{PREFIX}/bin/secure-slurm-handd --node %l"
        assert "launcher secure-slurm-handd slurm_hooks.handd main\n" in INSTALL
        assert re.search(r'units="[^"]*\bsecure-slurm-handd\b', INSTALL)
        assert "secure-slurm-noded.service" in one("handd", "Before").split()
        assert (one("handd", "PrivateNetwork"), one("handd", "RestrictAddressFamilies")) == ("yes", "AF_UNIX")
        same = ("NoNewPrivileges", "ProtectSystem", "ProtectHome", "MemoryDenyWriteExecute", "LimitCORE", "UMask")
        assert {key: unit("handd")[key] for key in same} == {key: [HARDENED[key]] for key in same}
        run_dir = site.node.run_dir.replace("%n", "%l")
        wanted = {run_dir, f"{site.audit.directory}/node-%l", "/sys/fs/cgroup"}
        assert set(one("handd", "ReadWritePaths").split()) == wanted
        # it does not run as nobody's root: it must see and stop the processes of every user
        assert "User" not in unit("handd")
        assert "ProtectProc" not in unit("handd")

    def test_the_hook_server_works_where_slurmd_works(self) -> None:
        found = unit("hookd")
        assert one("hookd", "ExecStart") == f"{PREFIX}/bin/secure-slurm-hookd --node %l"
        assert "launcher secure-slurm-hookd slurm_hooks.hookd main\n" in INSTALL
        assert re.search(r'units="[^"]*\bsecure-slurm-hookd\b', INSTALL)
        assert "reaper private_tmp hookd.sh; do" in INSTALL
        assert "slurmd.service" in one("hookd", "Before").split()
        assert not HIDING & set(found)
        # its hooks go on when it is stopped, and are not told to end
        assert one("hookd", "KillMode") == "process"
        assert one("hookd", "Restart") == "always"
        same = ("NoNewPrivileges", "LimitCORE", "UMask", "RestrictRealtime", "LockPersonality", "RestrictSUIDSGID")
        assert {key: found[key] for key in same} == {key: [HARDENED[key]] for key in same}
        powers = set(one("hookd", "CapabilityBoundingSet").split())
        assert "CAP_SYS_ADMIN" in powers
        assert not powers & {
            "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_BOOT", "CAP_SYS_TIME", "CAP_NET_ADMIN", "CAP_SETPCAP",
        }  # fmt: skip

    def test_the_reaper_sees_what_slurmd_sees(self) -> None:
        for name, more in (("reaper", ""), ("reaper-boot", " --once")):
            assert one(name, "Type") == "oneshot"
            assert one(name, "ExecStart").removeprefix("-") == f"{PREFIX}/hooks/reaper %l{more}"
            assert not HIDING & set(unit(name))
            # a run of SECONDS and the tear-downs in it
            assert float(one(name, "TimeoutStartSec")) >= reaper.SECONDS + teardown.PATIENCE
            assert f"secure-slurm-{name}" in INSTALL
        assert one("reaper-boot", "Before") == "slurmd.service"

    def test_the_reaper_comes_often_enough(self) -> None:
        text = (ROOT / "conf/systemd/secure-slurm-reaper.timer").read_text()
        assert "OnUnitInactiveSec=20s\n" in text
        assert "OnActiveSec=20s\n" in text
        # a first look, a second one, and time for the tear-down
        assert 20 + reap_rule.APART < 60
        assert re.search(r'units="[^"]*\bsecure-slurm-reaper\.timer\b', INSTALL)

    def test_slurmctld_waits_for_no_directory_server(self) -> None:
        for name in ("decisiond", "lifecycled"):
            assert one(name, "Before") == "slurmctld.service"
            assert not any("ldapd" in value for value in unit(name).get("After", []))


class TestFolders:
    def test_belong_to_accounts_that_are_made(self) -> None:
        for path, folder in folders().items():
            assert folder.user in USERS, path
            assert folder.group in GROUPS, path

    def test_nobody_else_may_write(self) -> None:
        for path, folder in folders().items():
            assert not folder.mode & stat.S_IWOTH, path
            assert path.endswith("/ended") or not folder.mode & stat.S_IWGRP, path

    def test_are_made_from_the_top(self) -> None:
        made = ["/run", "/var/log", "/var/lib"]
        for path in folders():
            assert str(Path(path).parent) in made, path
            made.append(path)

    def test_nobody_but_root_owns_what_is_above_anothers(self) -> None:
        """systemd-tmpfiles calls it an unsafe transition, and whoever owns the upper one could replace the lower."""
        for path, folder in folders().items():
            above = folders().get(str(Path(path).parent))
            assert above is None or above.user in ("root", folder.user), path

    def test_are_those_of_the_shipped_site_file(self, site: Site) -> None:
        run_dir = site.node.run_dir.replace("%n", "%l")
        wanted = set().union(*written(site).values())
        wanted |= {site.lifecycle.ended_dir, site.scratch.directory}
        state_dir = site.node.state_dir.replace("%n", "%l")
        assert folders()[state_dir] == Folder(0o700, "root", "root", "compute")
        wanted |= {run_dir, state_dir, f"{site.audit.directory}/node-%l", site.audit.directory}
        assert wanted <= set(folders())
        assert folders()[site.lifecycle.ended_dir] == Folder(0o770, "secure-life", "slurm", "head")
        assert folders()[site.scratch.directory] == Folder(0o700, "root", "root", "compute")
        # set-group-ID: the deciders read the papers, and people of the group reach the socket; nobody else writes there
        assert folders()[site.controller.break_glass_dir] == Folder(0o2750, "secure-glass", "secure-record", "head")
        reached = folders()[str(Path(site.controller.break_glass_socket).parent)]
        assert reached == Folder(0o2750, "secure-glass", "secure-break-glass", "head")
        # root hooks: journal, task files and audit trail
        for path in (run_dir, f"{site.audit.directory}/node-%l"):
            assert folders()[path] == Folder(0o755, "root", "root", "compute")

    def test_slurm_reaches_the_sockets_and_nothing_more(self, site: Site) -> None:
        for path in (site.controller.socket, site.lifecycle.socket):
            folder = folders()[str(Path(path).parent)]
            assert (folder.mode, folder.group) == (0o2710, "slurm")

    def test_the_deciders_alone_read_the_members(self, site: Site) -> None:
        folder = folders()[str(Path(site.ldap.snapshot).parent)]
        assert (folder.mode, folder.user, folder.group) == (0o750, "secure-ldap", "secure-record")
        assert one("ldapd", "Group") == "secure-record"
        assert {user for group, user in MEMBERS if group == "secure-record"} == {"secure-decide", "secure-life"}


class TestInstaller:
    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        # as nobody in particular: each of these ends before anything is touched
        return subprocess.run(
            ["sh", str(ROOT / "install.sh"), *argv], capture_output=True, text=True, check=False, timeout=60
        )

    @pytest.mark.parametrize(
        "argv",
        [
            ["--role", "x"], ["--role", ""], ["--role"], ["--node", "a_b"], ["--node", "../x"], ["--node", "a|b"],
            ["--prefix", "relative"], ["--prefix", "/a b"], ["--prefix", "/a'b"], ["--prefix", "/"], ["--prefix", ""],
            ["--unknown"], ["word"],
        ],
    )  # fmt: skip
    def test_refuses_what_it_does_not_understand(self, argv: list[str]) -> None:
        done = self.run(*argv)
        assert done.returncode == 2
        assert done.stderr.startswith("install.sh: ")

    def test_help(self) -> None:
        done = self.run("--help")
        assert done.returncode == 0
        for option in ("--role", "--node", "--prefix", "--source", "--offline"):
            assert option in done.stdout

    def test_is_well_formed(self) -> None:
        assert subprocess.run(["sh", "-n", str(ROOT / "install.sh")], check=False, timeout=60).returncode == 0
