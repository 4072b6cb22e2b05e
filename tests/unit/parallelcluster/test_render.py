"""render: the shipped examples are what it writes; a mistake in a file is told with its line, and nothing written."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from admin import main as command
from tests.testbed.pcluster_examples import NAMES, SHIPPED, Example

Examples = Callable[[str], Example]


def render(files: Example, out: Path, *more: str) -> int:
    words = ["--config", str(files.site), "parallelcluster", "render", "--answers", str(files.answers)]
    return command.main([*words, "--policy", str(files.policy), "--out", str(out), *more])


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_example_is_what_render_writes(example: Examples, tmp_path: Path, name: str) -> None:
    out = tmp_path / "new" / "folder"
    assert render(example(name), out) == 0
    assert (out / f"{name}.yaml").read_bytes() == (SHIPPED / f"{name}.yaml").read_bytes()
    assert stat.S_IMODE((out / f"{name}.yaml").stat().st_mode) == 0o644
    assert [path.name for path in out.iterdir()] == [f"{name}.yaml"]


def test_every_shipped_configuration_has_its_sources() -> None:
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == set(NAMES)
    assert {path.name for path in (SHIPPED / "sites").iterdir()} == set(NAMES)


def test_json(example: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render(example("isolated"), tmp_path / "out", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"written": str(tmp_path / "out/isolated.yaml"), "errors": 0, "findings": []}


# which file, what becomes of it, and the line that is told (text that stands on it), with what is said
MISTAKES = [
    ("answers", "key_name: ", "keyname: ", "keyname", "did you mean 'key_name'"),
    ("answers", "max: 20", "maximum: 20", "maximum", "unknown key 'maximum'"),
    ("answers", "max: 20", "max: 20, min: 30", "min: 30", "min (30) is more than max (20)"),
    ("answers", "version: 1\n", "version: 2\n", "version: 2", "must be 1"),
    ("answers", "subnet-0a1b2c3d4e5f60001", "subnet-1", "subnet-1", "a subnet id"),
    ("answers", "sg-0a1b2c3d4e5f60011", "sg-x", "sg-x", "a security group id"),
    ("answers", "m6id.8xlarge", "m6id", "m6id", "an instance type"),
    ("answers", "public_key: cNgw", "public_key: cNg", "public_key", "Ed25519 public key in base64"),
    ("answers", "public_key: cNgwzSdf", "public_key: cNgw", "public_key", "has 29 bytes instead of 32"),
    ("answers", "bucket: genomics-secure-slurm", "bucket: Genomics", "Genomics", "name of an S3 bucket"),
    ("answers", "prefix: secure-slurm", "prefix: /secure-slurm/", "prefix", "without slashes"),
    ("answers", " kms,", " kmss,", "kmss", "did you mean 'kms'"),
    ("answers", "logs, ", "logs, logs, ", "endpoints", "names 'logs' twice"),
    ("answers", "type: efs", "type: nfs", "type: nfs", "must be one of 'ebs', 'efs' or 'fsx-lustre'"),
    ("answers", "type: efs", "type: efs, size: 1T", "size: 1T", "EFS has no size"),
    ("answers", "type: efs", "type: ebs", "type: ebs", "its id (one that is there) or a size"),
    ("answers", "type: efs", "type: ebs, id: fs-0a1b2c3d, size: 1T", "size: 1T", "not both"),
    ("answers", "parallelcluster: 3.16.1", "parallelcluster: 3.12.0", "3.12.0", "3.13.0 to 3.16.x"),
    ("answers", "parallelcluster: 3.16.1", "parallelcluster: 3.15.0", "3.15.0", "which Slurm is in"),
    (
        "answers",
        r"parallelcluster: 3.16.1((?:.*\n)+)head: {",
        r"parallelcluster: 3.13.2\1head: {internal: efs, ",
        "internal: efs",
        "cannot encrypt the EFS",
    ),
    ("answers", "os: ubuntu2404", "os: alinux2", "alinux2", "must be one of"),
    ("answers", "kms:eu-central-1", "kms:us-east-1", "encryption_key", "an ARN of 'us-east-1'"),
    ("answers", "arn:aws:iam", "arn:aws-us-gov:iam", "read_policy", "an ARN of the partition 'aws-us-gov'"),
    ("answers", "name: phi", "name: phy", "queues", "'phi', which demands a tag, is no queue (did you mean 'phy'?)"),
    ("answers", "name: phi", "name: Phi", "name: Phi", "a letter first"),
    ("answers", "queues:", "queue:", "queue:", "did you mean 'queues'"),
    ("answers", r"max: 20}", "max: 20}\n      - {name: cpu, instance_type: m6id.large, max: 1}", "name: cpu", "twice"),
    ("site", "slurm_bin: /opt/slurm/bin", "slurm_bin: /usr/bin", "slurm_bin", "must be /opt/slurm/bin"),
    ("site", r"head_nodes: \[head\]", "head_nodes: [head, other]", "head_nodes", "no second head node"),
    ("site", "pcluster-admin", "ec2-user", "metadata_users", "must have pcluster-admin"),
    ("site", "proof: ec2", "proof: none", "proof: none", "every tagged job is refused"),
    ("site", "name: isolated", "name: 1_isolated", "1_isolated", "no name of a ParallelCluster"),
    ("site", "vault:", "vauld:", "vauld", "did you mean 'vault'"),
    ("policy", "jurisdictions:", "jurisdiction:", "jurisdiction", "did you mean 'jurisdictions'"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake[0]}-{mistake[3]}")
def test_a_mistake_is_told_with_its_line_and_nothing_is_written(
    example: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: tuple[str, str, str, str, str]
) -> None:
    which, old, new, at, says = mistake
    files = example("isolated")
    files.edit(which, old, new)
    assert render(files, tmp_path / "out") == 3
    assert not (tmp_path / "out").exists()
    path: Path = getattr(files, which)
    told = [line for line in capsys.readouterr().err.splitlines() if says in line]
    assert told
    line = int(told[0].partition(f"{path}:")[2].partition(":")[0])
    assert at in path.read_text().splitlines()[line - 1]


@pytest.mark.parametrize(("region", "says"), [("eu-west-2", "in no jurisdiction"), ("eu-centra-1", "did you mean")])
def test_a_region_that_the_policy_does_not_know(
    example: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str], region: str, says: str
) -> None:
    files = example("isolated")
    files.edit("answers", "^encryption_key.*\n", "")
    files.edit("answers", "eu-central-1", region)
    assert render(files, tmp_path / "out") == 3
    assert says in capsys.readouterr().err


def test_every_mistake_is_told_at_once(example: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = example("isolated")
    files.edit("answers", "subnet-0a1b2c3d4e5f60001", "subnet-1")
    files.edit("answers", "m6id.8xlarge", "m6id")
    files.edit("answers", "key_name: ", "keyname: ")
    assert render(files, tmp_path / "out") == 3
    told = capsys.readouterr().err
    assert told.count(f"{files.answers}:") == 3


def test_a_release_whose_slurm_is_named(example: Examples, tmp_path: Path) -> None:
    files = example("isolated")
    files.edit("answers", "parallelcluster: 3.16.1", "parallelcluster: 3.15.0\nslurm: 25.05")
    assert render(files, tmp_path / "out") == 0
    assert "JobContainerType: job_container/tmpfs" in (tmp_path / "out/isolated.yaml").read_text()


def test_after_an_upgrade_what_an_update_cannot_change_stays(example: Examples, tmp_path: Path) -> None:
    files = example("isolated")
    files.edit("answers", "version: 0.1.0", "version: 0.2.0\n  created_with: 0.1.0")
    assert render(files, tmp_path / "out") == 0
    text = (tmp_path / "out/isolated.yaml").read_text()
    head, _, queues = text.partition("Scheduling:")
    before, _, updated = head.partition("LoginNodes:")[0].partition("OnNodeUpdated:")
    assert before.count("secure-slurm-0.1.0.tar.gz") == 2
    assert "secure-slurm-0.2.0.tar.gz" in updated
    assert "0.1.0" not in queues
    assert "secure-slurm-0.2.0.tar.gz" in queues


def test_what_our_own_rules_find_in_it_is_an_error(
    example: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = example("isolated")
    files.edit("answers", "m6id.8xlarge", "m6i.8xlarge")
    assert render(files, tmp_path / "out") == 1
    assert "no instance store" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(example: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = example("isolated")
    (tmp_path / "out").write_text("a file")
    assert render(files, tmp_path / "out") == 3
    assert "cannot be written" in capsys.readouterr().err


def test_both_readers_of_yaml_see_the_same(example: Examples) -> None:
    """ParallelCluster reads YAML 1.1: no rendered scalar may be anything else to it than to us."""
    import yaml

    from conf.yamlmarks import parse

    for name in NAMES:
        data = (SHIPPED / f"{name}.yaml").read_bytes()
        document = parse(data)
        assert document.problems == []
        assert yaml.safe_load(data) == document.data
