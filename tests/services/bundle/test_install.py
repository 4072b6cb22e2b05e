"""From nothing to installed, upgraded and off again, on machines that no route leads away from."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.bundle.archives import small, write
from tests.services.bundle.conftest import BUNDLE, SOURCE, SYSTEMS, Bucket, Keys, Machine

PYTHON = "/opt/secure-slurm/venv/bin/python3 -I"
# the filter as slurmctld loads it, as far as its configuration; the table is what slurm_lua.c provides
LOAD_FILTER = """
slurm = { ERROR = -1, SUCCESS = 0, log_error = function() end, log_info = function() end }
dofile("/opt/slurm/etc/job_submit.lua")
print(_VERSION, package.loaded["socket.unix"] ~= nil, type(slurm_job_submit))
"""


def test_the_bundle_is_the_same_when_it_is_made_again(made: Path) -> None:
    """The second was made with everything compiled anew."""
    again = BUNDLE / "second" / made.name
    assert subprocess.run(["cmp", str(made), str(again)], check=False, timeout=60).returncode == 0
    # and it was not the one file, seen twice
    assert made.stat().st_ino != again.stat().st_ino


def test_there_is_no_way_out(machine: Machine) -> None:
    """What the other tests rely on."""
    assert machine.sh("ip route; ip -6 route show table main").strip() == ""
    for family, address in (("AF_INET", "192.0.2.1"), ("AF_INET6", "2001:db8::1")):
        tried = machine.run(
            "python3", "-c", f"import socket; socket.socket(socket.{family}).connect(('{address}', 443))"
        )
        assert tried.code == 1
        assert "Network is unreachable" in tried.err or "Cannot assign requested address" in tried.err


def test_root_in_a_folder_of_somebody_elses(machine: Machine, made: Path) -> None:
    """The installer without its wheels looks for python-ldap and makes the environment: not with what lies around."""
    machine.sh(f"tar -xzf /out/{made.name} -C /root && rm -r /root/{made.name.removesuffix('.tar.gz')}/wheels")
    for name in ("ldap", "ensurepip", "venv", "pip"):
        machine.put(f"/tmp/{name}.py", "open('/canary', 'w')\n")
    # python-ldap is not there, and no network to get it from
    done = machine.run("sh", "-c", f"cd /tmp && sh /root/{made.name.removesuffix('.tar.gz')}/install.sh --role login")
    assert done.code != 0
    assert not machine.there("/canary")


@pytest.fixture(scope="module", params=SYSTEMS)
def head(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, keys: Keys, made: Path, site_source: Path
) -> Iterator[tuple[str, Machine, Bucket]]:
    """A head node after OnNodeStart."""
    bucket = Bucket(tmp_path_factory.mktemp("head") / "out", keys, made, site_source)
    machine = Machine(BUNDLE / str(request.param), bucket.folder)
    machine.untouched()
    done = machine.action("head", "start", bucket.offer())
    assert done.code == 0, done
    yield str(request.param), machine, bucket
    machine.stop()


class TestHead:
    def test_python_has_what_the_lock_file_says_and_no_more(self, head: tuple[str, Machine, Bucket]) -> None:
        _, machine, _ = head
        names = "f'{each.name.lower()}=={each.version}' for each in importlib.metadata.distributions()"
        code = f"import importlib.metadata; print(*sorted({names}))"
        found = machine.sh(f'{PYTHON} -c "{code}"').split()
        lock = (SOURCE / "requirements/runtime.lock").read_text() + (SOURCE / "requirements/ldap.lock").read_text()
        locked = re.findall(r"^([a-z0-9-]+==[^ ;\\]+)", lock, re.MULTILINE)
        assert sorted(each.replace("_", "-") for each in found) == sorted(locked)

    def test_python_is_this_systems(self, head: tuple[str, Machine, Bucket]) -> None:
        system, machine, _ = head
        said = machine.sh(f"{PYTHON} -c 'import sys; print(\"%d.%d\" % sys.version_info[:2], sys.flags.isolated)'")
        assert said.split() == [SYSTEMS[system], "1"]

    def test_the_directory_can_be_read(self, head: tuple[str, Machine, Bucket]) -> None:
        """python-ldap is the bundle's, compiled for this system, with the system's own libldap."""
        _, machine, _ = head
        code = "import _ldap, ldap; print(ldap.__version__, _ldap.__file__); ldap.initialize('ldaps://localhost')"
        assert machine.sh(f'{PYTHON} -c "{code}"').startswith("3.4.8 /opt/secure-slurm/venv/")
        maps = machine.sh(f"{PYTHON} -c 'import ldap; print(open(\"/proc/self/maps\").read())'")
        assert re.search(r" /usr/lib/x86_64-linux-gnu/libldap[-.]", maps)

    @pytest.mark.parametrize("lua", ["5.1", "5.3", "5.4"])
    def test_the_filter_loads_with_the_bundles_luasocket(self, head: tuple[str, Machine, Bucket], lua: str) -> None:
        _, machine, _ = head
        machine.put("/tmp/load.lua", LOAD_FILTER)
        assert machine.sh(f"lua{lua} /tmp/load.lua").split() == ["Lua", lua, "true", "function"]

    @pytest.mark.parametrize("lua", ["5.1", "5.3", "5.4"])
    def test_and_not_without_it(self, head: tuple[str, Machine, Bucket], lua: str) -> None:
        _, machine, _ = head
        machine.sh("mv /opt/secure-slurm/lua /opt/secure-slurm/lua.away")
        try:
            tried = machine.run(f"lua{lua}", "/tmp/load.lua")
        finally:
            machine.sh("mv /opt/secure-slurm/lua.away /opt/secure-slurm/lua")
        assert tried.code == 1
        assert "LuaSocket is missing" in tried.err

    def test_commands_and_hooks(self, head: tuple[str, Machine, Bucket]) -> None:
        _, machine, _ = head
        assert machine.version() == "0.1.0"
        machine.sh("secure-slurm conf check && secure-slurm policy --help >/dev/null")
        modes = machine.sh("cd /opt/secure-slurm/hooks && stat -c '%n %a %U' *").splitlines()
        assert "prolog 755 root" in modes
        assert "hookd.sh 644 root" in modes
        # the hooks run with the standard library alone, and an untagged job costs nothing
        machine.sh("SLURM_JOB_PARTITION=x SLURM_JOB_ID=1 /opt/secure-slurm/hooks/prolog")
        assert machine.sh("find /opt/secure-slurm ! -user root -o -perm /022 ! -type l") == ""

    def test_the_units_of_the_role(self, head: tuple[str, Machine, Bucket]) -> None:
        _, machine, _ = head
        units = machine.sh("cat /opt/secure-slurm/UNITS").split()
        assert {"secure-slurm-lifecycled", "secure-slurm-ldapd"} <= set(units)
        assert "secure-slurm-noded" not in units
        for unit in units:
            machine.sh(f"test -s /opt/secure-slurm/lib/conf/systemd/{unit}.service -a -x /opt/secure-slurm/bin/{unit}")

    def test_all_that_the_rendered_configurations_name_is_there_before_slurmctld(
        self, head: tuple[str, Machine, Bucket]
    ) -> None:
        """Hooks, filter and plugin are named by the cluster's configuration and brought by the action."""
        _, machine, _ = head
        texts = [path.read_text() for path in sorted((SOURCE / "conf/parallelcluster").glob("*.yaml"))]
        named = {path for text in texts for path in re.findall(r"/(?:opt|etc)/secure-slurm/[\w./-]+", text)}
        assert named >= {"/opt/secure-slurm/hooks/prolog_slurmctld", "/etc/secure-slurm/ldap-ca.crt"}
        for path in named:
            machine.sh(f"test -{'x' if '/hooks/' in path else 's'} {path}")
        assert all("JobSubmitPlugins: lua" in text for text in texts)
        machine.sh("cmp /opt/slurm/etc/job_submit.lua /opt/secure-slurm/hooks/job_submit.lua")
        assert "return {" in machine.sh("cat /etc/secure-slurm/job_submit.conf.lua")
        assert all("NamespaceType: namespace/tmpfs" in text for text in texts)
        container = machine.sh("cat /opt/slurm/etc/job_container.conf")
        assert container == (SOURCE / "conf/slurm/job_container.conf").read_text()
        for script in re.findall(r"InitScript=(\S+)", container):
            machine.sh(f"test -x {script}")

    def test_every_daemon_has_its_account(self, head: tuple[str, Machine, Bucket]) -> None:
        _, machine, _ = head
        units = machine.sh("cat /opt/secure-slurm/UNITS").split()
        assert "secure-slurm-enrold" in units
        for unit in units:
            text = (SOURCE / f"conf/systemd/{unit}.service").read_text()
            for kind, name in re.findall(r"^(User|Group)=(\S+)$", text, re.MULTILINE):
                machine.sh(f"getent {'passwd' if kind == 'User' else 'group'} {name}")

    def test_what_the_site_made_of_the_plugins_file_is_kept(self, head: tuple[str, Machine, Bucket]) -> None:
        _, machine, bucket = head
        file = "/opt/slurm/etc/job_container.conf"
        machine.sh(f"sed -i 's|/var/lib/job-tmp|/local/job-tmp|' {file}")
        done = machine.action("head", "start", bucket.offer())
        assert done.code == 0, done
        assert f"{file} is not the shipped one, and is kept" in done.out
        assert "/local/job-tmp" in machine.sh(f"cat {file}")
        machine.sh(f"cp /opt/secure-slurm/lib/conf/slurm/job_container.conf {file}")

    def test_keys_are_made_here(self, head: tuple[str, Machine, Bucket]) -> None:
        _, machine, _ = head
        assert machine.sh("stat -c '%a %U %G %s' /etc/secure-slurm/record.key").split() == [
            "640",
            "root",
            "secure-record",
            "32",
        ]

    def test_the_bill_of_materials(self, made: Path) -> None:
        with tarfile.open(made) as tar:
            opened = tar.extractfile("secure-slurm-0.1.0/sbom.cdx.json")
            assert opened
            bill = json.load(opened)
            wheels = {name.rpartition("/")[2] for name in tar.getnames() if name.endswith(".whl")}
        listed = {part["name"].rpartition("/")[2] for each in bill["components"] for part in each["components"]}
        assert wheels <= listed
        assert {"pkg:pypi/cryptography@50.0.2", "pkg:luarocks/luasocket@3.1.0"} <= {
            each["purl"] for each in bill["components"]
        }
        assert all(each["licenses"] for each in bill["components"])

    def test_nothing_is_left_behind(self, head: tuple[str, Machine, Bucket]) -> None:
        _, machine, _ = head
        assert (
            machine.sh("ls -A /var/tmp; ls -d /opt/secure-slurm/*.new /opt/secure-slurm/*.old 2>/dev/null || true")
            == ""
        )


class TestOtherRoles:
    @pytest.mark.parametrize("system", ["bookworm"], indirect=True)
    def test_login(self, machine: Machine, bucket: Bucket) -> None:
        offer = bucket.offer()
        assert machine.action("login", "start", offer).code == 0
        # the directory's CA, for sssd, which is set up before "configured"; who may do what is not for a login node
        assert machine.sh("ls /etc/secure-slurm").split() == ["ldap-ca.crt", "site.applied"]
        assert not machine.there("/opt/secure-slurm")
        # sssd runs before our first stage: it is started again with the CA, and not when that is the same
        for said in ("try-restart sssd.service\n", ""):
            machine.sh("mkdir -p /run/systemd/system && rm -f /run/asked")
            machine.put("/usr/local/sbin/systemctl", '#!/bin/sh\necho "$*" >> /run/asked\n')
            machine.sh("chmod 755 /usr/local/sbin/systemctl")
            if said:
                machine.sh("rm /etc/secure-slurm/ldap-ca.crt")
            assert machine.action("login", "start", offer).code == 0
            assert machine.sh("cat /run/asked 2>/dev/null || true") == said
        machine.sh("rm -r /run/systemd/system /usr/local/sbin/systemctl")
        done = machine.action("login", "configured", offer)
        assert done.code == 0, done
        assert "SYNOPSIS" in machine.sh("secure-sbatch --secure-help")
        assert not machine.there("/opt/secure-slurm/lua")
        assert not machine.there("/etc/secure-slurm/record.key")
        assert not machine.there("/etc/secure-slurm/policy.yaml")

    def test_a_node_that_is_not_enrolled_does_not_join(self, machine: Machine, bucket: Bucket) -> None:
        """There is no Vault here: what comes before works, the metadata service is closed, and the action fails."""
        machine.put("/etc/parallelcluster/cfnconfig", "cfn_region=eu-central-1\ncfn_node_type=ComputeFleet\n")
        machine.put("/etc/parallelcluster/slurm_plugin/slurm_nodename", "phi-dy-c5-1\n")
        # sssd is set up before "configured", with the CA that the cluster's configuration names
        assert machine.action("compute", "start", bucket.offer()).code == 0
        assert machine.sh("cat /etc/secure-slurm/ldap-ca.crt") == (bucket.site_source / "ldap-ca.crt").read_text()
        assert not machine.there("/opt/secure-slurm")
        done = machine.action("compute", "configured", bucket.offer())
        assert done.code == 1
        assert "this node was not enrolled" in done.err
        assert machine.sh("cat /etc/secure-slurm/place") == "eu-central-1\n"
        assert machine.there("/run/secure-slurm/node-phi-dy-c5-1/daemon")
        assert "169.254.169.254" in machine.sh("nft list ruleset")
        assert machine.sh("ls /run/*.pid 2>/dev/null || true") == ""

        # with a certificate in its image it need not be enrolled; it is not green even so, and fails as well
        machine.sh("cd /etc/secure-slurm && echo x > node-phi-dy-c5-1.crt && echo x > node-phi-dy-c5-1.key")
        done = machine.action("compute", "configured", bucket.offer())
        assert done.code == 1
        assert "not enrolled" not in done.err
        assert "this node is not green, and takes no job" in done.err or "does not start" in done.err
        # without systemd each was started with the account that its unit names
        started = machine.sh(
            "for each in /run/secure-slurm-*@phi-dy-c5-1.pid; do ps -o user:20= -p $(cat $each) || true; done"
        )
        assert {"root", "secure-node"} >= set(started.split()) > set()

    def test_a_node_that_does_not_know_where_it_is(self, machine: Machine, bucket: Bucket) -> None:
        done = machine.action("compute", "configured", bucket.offer())
        assert done.code == 1
        assert "does not know where it is" in done.err
        assert not machine.there("/opt/secure-slurm")


# on the other system it happens while Slurm runs: test_live.py
@pytest.mark.parametrize("head", ["bookworm"], indirect=True)
class TestUpgrade:
    def test_configuration_and_keys_stay(self, head: tuple[str, Machine, Bucket], tmp_path: Path) -> None:
        _, machine, bucket = head
        key = machine.sh("sha256sum /etc/secure-slurm/record.key")
        # an admin's own change on this machine, and the site's change of another file in the bucket
        machine.sh("echo '# ours' >> /etc/secure-slurm/secure-slurm.yaml")
        later = tmp_path / "later"
        shutil.copytree(bucket.site_source, later)
        with (later / "policy.yaml").open("a") as file:
            file.write("# from the second archive\n")
        bucket.site(2, later)
        newer = bucket.newer("0.10.0")
        done = machine.action("head", "start", bucket.offer(newer))
        assert done.code == 0, done
        assert "0.10.0 installed over 0.1.0" in done.out
        assert machine.version() == "0.10.0"
        assert machine.sh("sha256sum /etc/secure-slurm/record.key") == key
        assert machine.sh("tail -n 1 /etc/secure-slurm/secure-slurm.yaml") == "# ours\n"
        assert "# from the second archive" in machine.sh("cat /etc/secure-slurm/policy.yaml")
        # what the site has in its place lies beside it only where it is another
        assert machine.there("/etc/secure-slurm/secure-slurm.yaml.site")
        assert not machine.there("/etc/secure-slurm/policy.yaml.site")
        assert "was changed on this machine and is kept" in done.out

    def test_the_same_again_is_no_second_installation(self, head: tuple[str, Machine, Bucket]) -> None:
        _, machine, bucket = head
        before = machine.sh("stat -c %i%Y /opt/secure-slurm/lib")
        done = machine.action("head", "start", bucket.offer("secure-slurm-0.10.0.tar.gz"))
        assert done.code == 0, done
        assert "0.10.0 is installed" in done.out
        assert machine.sh("stat -c %i%Y /opt/secure-slurm/lib") == before

    @pytest.mark.parametrize("version", ["0.1.0", "0.9.9"])
    def test_back_is_refused(self, head: tuple[str, Machine, Bucket], version: str) -> None:
        """Signed by the same key, and named so in the cluster's configuration."""
        _, machine, bucket = head
        name = f"secure-slurm-{version}.tar.gz"
        if not (bucket.folder / name).exists():
            write(bucket.folder / name, small(version))
            bucket.sign(name)
        done = machine.action("head", "start", bucket.offer(name))
        assert done.code == 1
        assert f"{version} is older than 0.10.0" in done.err
        assert machine.version() == "0.10.0"
        assert not machine.there("/canary")

    def test_back_is_refused_for_the_sites_configuration(self, head: tuple[str, Machine, Bucket]) -> None:
        _, machine, bucket = head
        bucket.site(1)
        done = machine.action("head", "start", bucket.offer("secure-slurm-0.10.0.tar.gz"))
        assert done.code == 1
        assert "serial number 1, and 2 is in force" in done.err
        assert "# from the second archive" in machine.sh("cat /etc/secure-slurm/policy.yaml")
        # nor under a name that says another number
        shutil.copy(bucket.folder / "site.tar.gz", bucket.folder / "site-3.tar.gz")
        shutil.copy(bucket.folder / "site.tar.gz.sig", bucket.folder / "site-3.tar.gz.sig")
        done = machine.action("head", "start", bucket.offer("secure-slurm-0.10.0.tar.gz", "site-3.tar.gz"))
        assert done.code == 1
        assert "it was renamed" in done.err
