"""Off a machine again: not while a secured job needs it, and never with what the site must keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.bundle.conftest import BUNDLE, Bucket, Keys, Machine

UNINSTALL = "/opt/secure-slurm/uninstall.sh"
IN_LIB = "import sys; sys.path.insert(0, '/opt/secure-slurm/lib')"
# the journal and the file of what runs as the product itself writes them
BEGIN = f"""{IN_LIB}
from conf.hookconf import read_hook_config
from keys.journal import Record, journal_of
journal = journal_of(read_hook_config('/etc/secure-slurm/hooks.json', check_sources=False), 'head')
with journal.lock(7, 5.0):
    journal.write(Record(7, 'head', 1001, state='ready', incarnation='0' * 32))
"""
RUNS = f"""{IN_LIB}
from conf.tag import Tag
from slurm_hooks import running
running.write('/var/lib/secure-slurm/lifecycle/running', 9, 1001, Tag('phi', 'eu', None), ('n1',))
"""
KEPT = (
    "/etc/secure-slurm/record.key",
    "/etc/secure-slurm/policy.yaml",
    "/var/log/secure-slurm/x.jsonl",
    "/var/lib/secure-slurm",
)
ACCOUNTS = "secure-decide secure-life secure-ldap secure-glass secure-enrol secure-node"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, keys: Keys, made: Path, site_source: Path) -> Iterator[Machine]:
    """A machine that is head node and compute node, from the bundle's own installer."""
    bucket = Bucket(tmp_path_factory.mktemp("both") / "out", keys, made, site_source)
    machine = Machine(BUNDLE / "bookworm", bucket.folder)
    machine.sh(f"tar -xzf /out/{made.name} -C /root && sh /root/{made.name.removesuffix('.tar.gz')}/install.sh")
    machine.sh("secure-slurm conf render; echo '{}' > /var/log/secure-slurm/x.jsonl")
    yield machine
    machine.stop()


def python(machine: Machine, code: str) -> None:
    machine.put("/root/code.py", code)
    machine.sh("/opt/secure-slurm/venv/bin/python3 -I /root/code.py")


def refused(machine: Machine, words: str) -> None:
    done = machine.run(UNINSTALL)
    assert done.code == 1, done
    assert words in done.err, done
    assert all(machine.there(path) for path in (*KEPT, "/opt/secure-slurm/venv", "/usr/local/bin/secure-slurm"))


def test_scratch_of_a_job(both: Machine) -> None:
    python(both, BEGIN)
    refused(both, "there is scratch of job 7 here")
    both.sh("rm /run/secure-slurm/node-head/journal/7.json")


def test_a_mapping_without_a_journal(both: Machine) -> None:
    both.sh("mkdir -p /dev/mapper && touch /dev/mapper/secure-head-12")
    refused(both, "/dev/mapper/secure-head-12")
    both.sh("rm /dev/mapper/secure-head-12")


def test_instance_store_that_is_taken_over(both: Machine) -> None:
    folder = "/etc/systemd/system/setup-ephemeral.service.d"
    both.sh(f"mkdir -p {folder} && touch {folder}/50-secure-slurm.conf")
    refused(both, "node store --release")
    both.sh(f"rm -r {folder}")


def test_a_tagged_job_of_the_cluster(both: Machine) -> None:
    python(both, RUNS)
    refused(both, "the tagged job 9 has not ended")
    both.sh("rm /var/lib/secure-slurm/lifecycle/running/9")


def test_wherever_the_site_has_put_what_runs(both: Machine) -> None:
    both.sh("cp /etc/secure-slurm/secure-slurm.yaml /root/; mkdir -p /shared/running; touch /shared/running/11")
    both.sh("sed -i 's|^lifecycle:.*|lifecycle:\\n  state_dir: /shared|' /etc/secure-slurm/secure-slurm.yaml")
    refused(both, "the tagged job 11 has not ended")
    both.sh("cp /root/secure-slurm.yaml /etc/secure-slurm/; rm -r /shared")


def test_a_site_file_that_says_nothing(both: Machine) -> None:
    both.sh("cp /etc/secure-slurm/secure-slurm.yaml /root/; echo 'cluster: [' > /etc/secure-slurm/secure-slurm.yaml")
    refused(both, "not known whether tagged jobs run")
    both.sh("cp /root/secure-slurm.yaml /etc/secure-slurm/")


@pytest.mark.parametrize("option", [["--purg"], ["x"], ["--prefix"], ["--prefix", "/"], ["--prefix", "../x"]])
def test_what_it_does_not_understand(both: Machine, option: list[str]) -> None:
    assert both.run(UNINSTALL, *option).code == 2
    assert both.there("/opt/secure-slurm/venv")


@pytest.mark.parametrize("prefix", ["/usr", "//", "/opt/..", "/etc/secure-slurm"])
def test_a_folder_that_is_somebody_elses(both: Machine, prefix: str) -> None:
    done = both.run(UNINSTALL, "--force", "--prefix", prefix)
    assert (done.code, done.err) == (1, f"uninstall.sh: there is no secure-slurm in {prefix}\n")
    assert all(both.there(path) for path in (*KEPT, "/usr/bin/env", "/opt/secure-slurm/venv"))


def test_somebody_who_is_not_root(both: Machine) -> None:
    done = both.run("setpriv", "--reuid=65534", "--clear-groups", UNINSTALL)
    assert (done.code, "as root" in done.err) == (1, True)


def test_off_and_what_stays(both: Machine) -> None:
    both.sh("/opt/secure-slurm/bin/secure-slurm node imds --close")
    assert "169.254.169.254" in both.sh("nft list ruleset")
    before = both.sh("sha256sum /etc/secure-slurm/*; stat -c '%n %U %a' /etc/secure-slurm/*")
    done = both.run(UNINSTALL)
    assert done.code == 0, done
    assert "Still here" in done.out
    assert both.sh("sha256sum /etc/secure-slurm/*; stat -c '%n %U %a' /etc/secure-slurm/*") == before
    assert all(both.there(path) for path in KEPT)
    assert "169.254.169.254" not in both.sh("nft list ruleset")
    gone = "/opt/secure-slurm /run/secure-slurm /usr/local/bin/secure-slurm /usr/local/bin/secure-sbatch"
    assert both.sh(f"ls -d {gone} 2>/dev/null || true") == ""
    assert both.sh(f"getent passwd {ACCOUNTS} | wc -l").strip() == str(len(ACCOUNTS.split()))


def test_back_again_with_the_same_keys(both: Machine, made: Path) -> None:
    before = both.sh("sha256sum /etc/secure-slurm/record.key")
    both.sh(f"sh /root/{made.name.removesuffix('.tar.gz')}/install.sh")
    assert both.sh("sha256sum /etc/secure-slurm/record.key") == before


def test_all_of_it(both: Machine) -> None:
    done = both.run(UNINSTALL, "--purge")
    assert done.code == 0, done
    left = both.sh("find / -xdev -path /proc -prune -o -path /root -prune -o -name '*secure-slurm*' -print")
    assert (
        left.split() == ["/out/secure-slurm-0.1.0.tar.gz", "/out/secure-slurm-0.1.0.tar.gz.sig"] or left.split() == []
    )
    assert both.sh(f"getent passwd {ACCOUNTS} || true; getent group secure-record secure-break-glass || true") == ""
