"""ParallelCluster 3.16.1's own package, as it is: it finds nothing in what is shipped, and speaks of what is broken.

Inside a root without a network and without credentials, by the command as an admin runs it.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.services.parallelcluster.broken import BROKEN
from tests.testbed.need import need
from tests.testbed.pcluster_examples import NAMES, Broken, Example, copy_of

PYTHON = "/venv/parallelcluster/bin/python3"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def _package() -> None:
    need(PYTHON)


def check(files: Example, *more: str) -> tuple[int, dict[str, Any]]:
    words = ["--config", str(files.site), "parallelcluster", "check", str(files.cluster), "--json"]
    words += ["--answers", str(files.answers), "--policy", str(files.policy), "--pcluster-python", PYTHON, *more]
    done = subprocess.run(
        [sys.executable, "-m", "admin.main", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_examples_load_and_nothing_is_found(tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o755)
    code, answer = check(copy_of(name, tmp_path), "--strict")
    assert answer["findings"] == []
    assert code == 0
    theirs = answer["parallelcluster"]
    assert theirs["run"] is True
    assert theirs["version"] == "3.16.1"
    assert {"CustomSlurmSettingsValidator", "NameValidator", "ComputeResourceSizeValidator"} <= set(
        theirs["validators"]
    )
    assert len(theirs["validators"]) >= 35
    # and it does not say of itself that it asked AWS
    assert {"InstanceTypeValidator", "KeyPairValidator", "SubnetsValidator"} <= set(theirs["need_aws"])


def test_the_directory_is_looked_at_by_its_validators(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    _, answer = check(copy_of("isolated-ad", tmp_path))
    assert {
        "DomainAddrValidator",
        "DomainNameValidator",
        "LdapTlsReqCertValidator",
        "AdditionalSssdConfigsValidator",
    } <= set(answer["parallelcluster"]["validators"])


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_what_is_broken_is_told_on_its_line(tmp_path: Path, broken: Broken) -> None:
    tmp_path.chmod(0o755)
    files = copy_of(broken.example, tmp_path)
    for which, old, new in broken.edits:
        files.edit(which, old, new)
    code, answer = check(files)
    assert code == (1 if answer["errors"] else 0)
    found = [each for each in answer["findings"] if each["check"] == broken.check and broken.says in each["message"]]
    assert found, [f"{each['line']}: {each['check']}: {each['message']}" for each in answer["findings"]]
    assert broken.at in files.cluster.read_text().splitlines()[found[0]["line"] - 1]
    assert broken.fix in found[0]["advice"]


def test_what_both_say_is_told_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    files = copy_of("isolated-ad", tmp_path)
    files.edit("cluster", "LdapTlsReqCert: hard", "LdapTlsReqCert: never")
    files.edit("cluster", "ldaps://", "ldap://")
    files.edit("cluster", "- JobSubmitPlugins: lua", "- Prolog: /x\n      - JobSubmitPlugins: lua")
    _, answer = check(files)
    lines = [each["line"] for each in answer["findings"] if each["severity"] == "error"]
    assert len(lines) == 3
    assert len(set(lines)) == 3


def test_its_list_of_forbidden_settings_does_not_see_an_entry_of_two(tmp_path: Path) -> None:
    """What our rule is for: the day that ParallelCluster sees it itself, this fails."""
    tmp_path.chmod(0o755)
    files = copy_of("isolated", tmp_path)
    files.edit("cluster", "- JobSubmitPlugins: lua", "- {Prolog: /x, Foo: 1}\n      - JobSubmitPlugins: lua")
    _, answer = check(files)
    assert "CustomSlurmSettingsValidator" not in {each["check"] for each in answer["findings"]}
    assert "setting-denied" in {each["check"] for each in answer["findings"]}


def test_our_list_of_forbidden_settings_is_theirs() -> None:
    from admin.parallelcluster import facts

    code = (
        "import json; from pcluster.validators.slurm_settings_validator import SLURM_SETTINGS_DENY_LIST as d; "
        "print(json.dumps({name: each['Global'] for name, each in d.items()}))"
    )
    done = subprocess.run([PYTHON, "-I", "-B", "-c", code], capture_output=True, text=True, check=True, timeout=120)
    theirs = json.loads(done.stdout)
    assert set(theirs["SlurmConf"]) == facts.DENIED
    assert set(theirs["Queue"]) == facts.DENIED_IN_QUEUE
    assert set(theirs["ComputeResource"]) == facts.DENIED_IN_RESOURCE


def test_no_connection_is_made_even_where_somebody_would_answer(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    files = copy_of("isolated", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        files.edit("cluster", r'Script: "s3://[^"]*"', f'Script: "https://127.0.0.1:{port}/x.sh"')
        _, answer = check(files)
        with pytest.raises(TimeoutError):
            server.accept()
    assert answer["parallelcluster"]["run"] is True
    assert "action-source" in {each["check"] for each in answer["findings"]}
    assert "AsyncTimedUrlValidator" in answer["parallelcluster"]["need_aws"]
