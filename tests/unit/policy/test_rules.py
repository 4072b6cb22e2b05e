"""Each rule of the model, refused and, with one thing less, allowed: the pair shows that this rule alone spoke."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.policy.people import JOBS, Changes, Decide

# rule, job, what makes it refuse, the nearest that is allowed
PAIRS: list[tuple[str, str, Changes, Changes]] = [
    # partitions of a class
    ("class.partition", "phi", {"partition": b"batch"}, {"partition": b"phi-gpu"}),
    ("class.partition", "phi", {"partition": b"phi,batch"}, {"partition": b"phi,phi-gpu"}),
    ("class.partition", "phi", {"partition": None}, {"partition": None, "default_partition": b"phi"}),
    # nodes
    ("limit.nodes", "phi", {"max_nodes": b"5"}, {"max_nodes": b"4"}),
    ("limit.nodes", "phi", {"min_nodes": b"5"}, {"min_nodes": b"4"}),
    ("limit.nodes", "phi", {"min_nodes": b"1", "max_nodes": b"100"}, {"min_nodes": b"1", "max_nodes": b"4"}),
    ("limit.nodes", "phi", {"max_nodes": b"0", "min_nodes": b"0"}, {"max_nodes": b"1"}),
    ("limit.nodes", "phi", {"num_tasks": b"2"}, {"num_tasks": b"1"}),
    ("limit.nodes", "internal", {"max_nodes": b"17"}, {"max_nodes": b"16"}),
    # time, in minutes
    ("limit.time", "phi", {"time_limit": None}, {"time_limit": b"1"}),
    ("limit.time", "phi", {"time_limit": b"2881"}, {"time_limit": b"2880"}),
    ("limit.time", "phi", {"time_limit": b"4294967295"}, {"time_limit": b"2879"}),
    ("limit.time", "phi", {"time_limit": b"0"}, {"time_limit": b"1"}),
    ("limit.time", "internal", {"time_limit": b"10081"}, {"time_limit": b"10080"}),
    # GPUs
    ("limit.gpus", "phi", {"tres_per_job": b"gres/gpu:9"}, {"tres_per_job": b"gres/gpu:8"}),
    ("limit.gpus", "phi", {"tres_per_job": b"gres/gpu:a100:9"}, {"tres_per_job": b"gres/gpu:a100:8"}),
    ("limit.gpus", "phi", {"tres_per_job": b"gres/gpu=9"}, {"tres_per_job": b"gres/gpu=8"}),
    ("limit.gpus", "phi", {"tres_per_node": b"gres:gpu:9"}, {"tres_per_node": b"gres:gpu:2"}),
    ("limit.gpus", "phi", {"tres_per_node": b"gres/gpu:3", "max_nodes": b"3"}, {"tres_per_node": b"gres/gpu:3"}),
    ("limit.gpus", "phi", {"tres_per_node": b"gres/gpu:1k"}, {"tres_per_node": b"gres/gpu"}),
    (
        "limit.gpus",
        "phi",
        {"tres_per_task": b"gres/gpu:1"},
        {"tres_per_task": b"gres/gpu:1", "num_tasks": b"8", "max_nodes": b"2"},
    ),
    (
        "limit.gpus",
        "phi",
        {"tres_per_task": b"cpu:2,gres/gpu:1", "num_tasks": b"9", "max_nodes": b"2"},
        {"tres_per_task": b"cpu:20"},
    ),
    ("limit.gpus", "phi", {"tres_per_socket": b"gres/gpu:1"}, {"tres_per_socket": b"gres/nvme:1"}),
    ("limit.gpus", "phi", {"tres_per_job": b"gres/gpu:a100:many"}, {"tres_per_job": b"gres/gpu:a100:1"}),
    (
        "limit.gpus",
        "phi",
        {"tres_per_job": b"gres/gpu:a100:8,gres/gpu:h100:8"},
        {"tres_per_job": b"gres/gpu:a100:4,gres/gpu:h100:4"},
    ),
    ("limit.gpus", "phi", {"tres_per_job": b"gres/gpu:5,gres/gpu:5"}, {"tres_per_job": b"gres/gpu:4,gres/gpu:4"}),
    (
        "limit.gpus",
        "phi",
        {"tres_per_node": b"gres/gpu:a100:4", "max_nodes": b"2", "tres_per_job": b"gres/gpu:h100:1"},
        {"tres_per_node": b"gres/gpu:a100:4", "max_nodes": b"2", "tres_per_job": b"gres/gpu:a100:8"},
    ),
    ("limit.gpus", "phi", {"tres_per_job": b"bb/gres/gpu:1"}, {"tres_per_job": b"gres:gpu:1"}),
    ("limit.gpus", "phi", {"tres_per_job": b" gres/gpu:1"}, {"tres_per_job": b"gpu:1"}),
    ("limit.gpus", "phi", {"tres_per_job": b"cpu:1;gres/gpu:1"}, {"tres_per_job": b"cpu:1,gres/gpu:1"}),
    ("limit.gpus", "phi", {"tres_per_job": b"license/gres/gpu:1"}, {"tres_per_job": b"license/matlab"}),
    ("limit.gpus", "phi", {"tres_per_job": b"gres/gpu:1G"}, {"tres_per_job": b"gres/gpu:1g.5gb:2"}),
    (
        "limit.gpus",
        "phi",
        {"ntasks_per_tres": b"1", "num_tasks": b"9", "max_nodes": b"4"},
        {"ntasks_per_tres": b"2", "num_tasks": b"9", "max_nodes": b"4"},
    ),
    ("limit.gpus", "phi", {"ntasks_per_tres": b"1"}, {"num_tasks": b"9", "max_nodes": b"4"}),
    ("limit.gpus", "internal", {"tres_per_job": b"gres/gpu:17"}, {"tres_per_job": b"gres/gpu:16,gres/shard:99"}),
    # GRES
    ("limit.gres", "phi", {"tres_per_job": b"gres/tape:1"}, {"tres_per_job": b"gres/nvme:1"}),
    ("limit.gres", "phi", {"tres_per_node": b"gres/gpu:1,gres/tape"}, {"tres_per_node": b"gres/gpu:1,gres/nvme"}),
    ("limit.gres", "phi", {"tres_per_task": b"tape"}, {"tres_per_task": b"cpu=1,mem=5,license/matlab:1"}),
    # arrays
    ("limit.array", "phi", {"array_inx": b"0-100"}, {"array_inx": b"0-99"}),
    ("limit.array", "phi", {"array_inx": b"1-200"}, {"array_inx": b"1-200:2%4"}),
    ("limit.array", "phi", {"array_inx": b"1-99,200,201"}, {"array_inx": b"1-99,200"}),
    ("limit.array", "phi", {"array_inx": b"9-1"}, {"array_inx": b"1"}),
    ("limit.array", "phi", {"array_inx": b"a-b"}, {"array_inx": b""}),
    ("limit.array", "phi", {"array_inx": b"1-9:0"}, {"array_inx": b"1-9:1"}),
    # working directory
    ("path.work-dir", "phi", {"work_dir": b"/home/bea"}, {"work_dir": b"/data/phi"}),
    ("path.work-dir", "phi", {"work_dir": b"/data/phi2"}, {"work_dir": b"/data/phi/2"}),
    ("path.work-dir", "phi", {"work_dir": b"/data/phi/../../home"}, {"work_dir": b"/data/phi/./x//y/"}),
    ("path.work-dir", "phi", {"work_dir": b"/data/phi/.."}, {"work_dir": b"/data/phi/..."}),
    ("path.work-dir", "phi", {"work_dir": b"data/phi"}, {"work_dir": b"/data/phi/"}),
    ("path.work-dir", "phi", {"work_dir": b"//data/phi"}, {"work_dir": b"/data//phi"}),
    ("path.work-dir", "phi", {"work_dir": None}, {"work_dir": b"/data/phi/x"}),
    # standard input, output and error
    ("path.output", "phi", {"std_out": b"/home/bea/out"}, {"std_out": b"/data/logs/out"}),
    ("path.output", "phi", {"std_err": b"/tmp/err"}, {"std_err": b"/dev/null"}),
    ("path.output", "phi", {"std_in": b"/home/bea/in"}, {"std_in": b"in"}),
    ("path.output", "phi", {"std_out": b"../out-%j"}, {"std_out": b"out-%j"}),
    ("path.output", "phi", {"std_out": b"%x", "name": b"../../home/x"}, {"std_out": b"%x", "name": b"x"}),
    ("path.output", "phi", {"std_out": b"/data/phi/%4x/y", "name": b".."}, {"std_out": b"%4x/y", "name": b"..."}),
    ("path.output", "phi", {"std_out": b".\\./y"}, {"std_out": b"y"}),
    (
        "path.output",
        "phi",
        {"std_out": b"/data/phi/" + b"%x" * 4000, "name": b"a" * 8000},
        {"std_out": b"/data/phi/%x%x", "name": b"a" * 1000},
    ),
    ("path.output", "phi", {"std_out": b"/data/phi/" + b"a" * 4096}, {"std_out": b"/data/phi/" + b"a" * 4000}),
    ("path.work-dir", "phi", {"work_dir": b"/data/phi/" + b"a" * 4096}, {"work_dir": b"/data/phi/" + b"a" * 4000}),
    ("path.output", "phi", {"std_out": b"/dev/tcp/host/80"}, {"std_out": b"/data/phi/%u/%A_%a.out"}),
    # mail
    ("route.mail", "phi", {"mail_type": b"1"}, {"mail_type": b"0"}),
    ("route.mail", "phi", {"mail_user": b"bea"}, {"mail_user": b""}),
    ("route.mail", "internal", {"mail_user": b"ann@elsewhere.example"}, {"mail_user": b"ann", "mail_type": b"1"}),
    ("route.mail", "export", {"mail_type": b"8"}, {}),
    # containers and burst buffers
    ("route.container", "phi", {"container": b"/data/phi/bundle"}, {"container": b""}),
    ("route.container", "internal", {"container": b"/x"}, {}),
    ("route.burst-buffer", "phi", {"burst_buffer": b"#BB create"}, {"burst_buffer": b""}),
    ("route.burst-buffer", "phi", {"script_burst_buffer": b"1"}, {}),
    # the submitter's environment
    ("route.environment", "phi", {"user_environment": b"1"}, {"env__slurm_get_user_env": b"1"}),
    ("route.environment", "export", {"user_environment": b"1"}, {}),
    ("route.user-env", "export", {"env__slurm_get_user_env": b"1"}, {}),
    # dependencies
    ("route.dependency-other", "phi", {"dependency_uids": b"1001,1002"}, {"dependency_uids": b"1001"}),
    ("route.dependency-other", "internal", {"dependency_uids": b"?"}, {"dependency_uids": b""}),
    ("route.dependency-other", "open", {"dependency_uids": b"0"}, {"dependency_uids": b"1001,1001"}),
    # what a role is limited to
    ("role.partition", "export", {"partition": b"x"}, {}),
    ("role.account", "phi", {"account": b"other"}, {"account": b"clinic-2"}),
    ("role.account", "phi", {"account": None}, {"account": None, "default_account": b"clinic"}),
    ("role.account", "phi", {"account": b"other", "default_account": b"clinic"}, {"account": b"clinic"}),
    ("role.qos", "phi", {"qos": b"express"}, {"qos": b"long"}),
    ("role.qos", "phi", {"qos": None}, {"qos": None, "default_qos": b"normal"}),
    ("role.reservation", "phi", {"reservation": b"day"}, {"reservation": b"night"}),
    ("role.reservation", "phi", {"reservation": b"night,day"}, {"reservation": b""}),
    ("role.license", "phi", {"licenses": b"ansys:1"}, {"licenses": b"matlab:2"}),
    ("role.license", "phi", {"licenses": b"matlab:1,ansys"}, {"licenses": b"matlab,matlab:1"}),
    ("role.license", "phi", {"licenses": b"matlab|ansys"}, {"licenses": b""}),
    ("role.license", "phi", {"tres_per_task": b"license/ansys:1"}, {"tres_per_task": b"cpu:1,license/matlab=2"}),
    ("role.license", "phi", {"tres_per_job": b"gres/gpu:1,license/ansys"}, {"tres_per_job": b"gres/gpu:1"}),
    # one role must cover all of it: partition of the one and account of the other are not enough
    ("role.account", "phi", {"account": b"ml"}, {"account": b"clinic"}),
    # roles that end
    (
        "role.expired",
        "phi",
        {
            "user_name": b"eva",
            "extra": b"secure-slurm:class=phi;residency=uk",
            "partition": b"phi-gpu",
            "now": b"2027-02-01",
        },
        {
            "user_name": b"eva",
            "extra": b"secure-slurm:class=phi;residency=uk",
            "partition": b"phi-gpu",
            "now": b"2027-01-31",
        },
    ),
    (
        "role.expired",
        "phi",
        {
            "user_name": b"cem",
            "extra": b"secure-slurm:class=phi;residency=uk",
            "partition": b"phi-gpu",
            "now": b"2027-04-01",
        },
        {
            "user_name": b"cem",
            "extra": b"secure-slurm:class=phi;residency=uk",
            "partition": b"phi-gpu",
            "now": b"2027-03-31",
        },
    ),
    ("rbac.role", "phi", {"user_name": b"ann"}, {"user_name": b"bea"}),
    ("rbac.role", "phi", {"user_name": b"eva"}, {"user_name": b"dan"}),
    # datasets
    ("dataset.unknown", "phi", {"extra": b"secure-slurm:datasets=genome"}, {"extra": b"secure-slurm:datasets=genomes"}),
    (
        "dataset.unknown",
        "phi",
        {"extra": b"secure-slurm:datasets=genomes,x"},
        {"extra": b"secure-slurm:class=phi;datasets=genomes"},
    ),
    (
        "dataset.class",
        "phi",
        {"extra": b"secure-slurm:class=open;datasets=genomes"},
        {"extra": b"secure-slurm:datasets=genomes"},
    ),
    (
        "dataset.residency",
        "phi",
        {"extra": b"secure-slurm:residency=us;datasets=genomes"},
        {"extra": b"secure-slurm:residency=eu;datasets=genomes"},
    ),
    (
        "dataset.residency",
        "phi",
        {"extra": b"secure-slurm:residency=uk;datasets=genomes"},
        {"extra": b"secure-slurm:datasets=genomes"},
    ),
    (
        "dataset.nowhere",
        "study",
        {"extra": b"secure-slurm:datasets=genomes,ukb"},
        {"extra": b"secure-slurm:datasets=genomes-shared,ukb"},
    ),
    (
        "dataset.nowhere",
        "internal",
        {"extra": b"secure-slurm:datasets=mri,swiss"},
        {"extra": b"secure-slurm:datasets=swiss"},
    ),
    # several places: nobody guesses, but a partition in one of them decides
    ("dataset.residency", "study", {}, {"partition": b"phi"}),
    ("dataset.residency", "study", {"partition": b"phi-gpu"}, {"extra": b"secure-slurm:residency=uk;datasets=joint"}),
    (
        "dataset.residency",
        "internal",
        {"extra": b"secure-slurm:datasets=mri"},
        {"extra": b"secure-slurm:datasets=mri", "partition": b"uk"},
    ),
    (
        "dataset.expired",
        "internal",
        {"extra": b"secure-slurm:datasets=ended"},
        {"extra": b"secure-slurm:datasets=ended", "now": b"2026-01-31"},
    ),
    (
        "dataset.expired",
        "study",
        {"extra": b"secure-slurm:datasets=ukb", "now": b"2027-01-02"},
        {"extra": b"secure-slurm:datasets=ukb", "now": b"2027-01-01"},
    ),
    (
        "dataset.role",
        "phi",
        {"extra": b"secure-slurm:residency=eu;datasets=genomes-shared"},
        {"extra": b"secure-slurm:residency=eu;datasets=genomes"},
    ),
    (
        "dataset.role",
        "phi",
        {"extra": b"secure-slurm:datasets=genomes,joint", "partition": b"phi"},
        {"extra": b"secure-slurm:datasets=genomes"},
    ),
    # what a script or the environment asks for
    (
        "tag.weaker-than-script",
        "phi",
        {"script_lines": b"#SECURE --dataset=genomes"},
        {"script_lines": b"#SECURE --dataset=genomes", "extra": b"secure-slurm:datasets=genomes"},
    ),
    (
        "tag.weaker-than-script",
        "phi",
        {"script_lines": b"#SECURE --secure-dataset=genomes,mri", "extra": b"secure-slurm:datasets=genomes"},
        {"extra": b"secure-slurm:datasets=genomes"},
    ),
    ("tag.weaker-than-environment", "phi", {"env__secure_datasets": b"genomes"}, {"env__secure_datasets": b""}),
    (
        "tag.syntax",
        "phi",
        {"env__secure_datasets": b"Genomes"},
        {"env__secure_datasets": b"genomes", "extra": b"secure-slurm:datasets=genomes"},
    ),
    ("tag.syntax", "phi", {"script_lines": b"#SECURE --dataset="}, {}),
    ("tag.syntax", "phi", {"extra": b"secure-slurm:datasets=a,,b"}, {}),
    ("tag.syntax", "phi", {"extra": b"secure-slurm:residency=eu"}, {}),
]


@pytest.mark.parametrize(("rule", "job", "wrong", "_right"), PAIRS)
def test_refused(rule: str, job: str, wrong: Changes, _right: Changes, decide_on: Decide) -> None:
    decision = decide_on(job, **wrong)

    assert (decision.allowed, decision.rule) == (False, rule), decision
    assert decision.message
    assert decision.advice
    assert not decision.changes


@pytest.mark.parametrize(("rule", "job", "_wrong", "right"), PAIRS)
def test_allowed(rule: str, job: str, _wrong: Changes, right: Changes, decide_on: Decide) -> None:
    decision = decide_on(job, **right)

    assert (decision.allowed, decision.rule) == (True, "allow.tagged"), (rule, decision)


@pytest.mark.parametrize("job", [name for name in JOBS if name != "study"])
def test_the_jobs_are_allowed_as_they_stand(job: str, decide_on: Decide) -> None:
    assert decide_on(job).rule == "allow.tagged"


def test_every_new_rule_has_its_pair() -> None:
    filters = Path(__file__).parents[3] / "slurm_hooks/filters"
    sources = [
        filters / f"{name}.py" for name in ("derive", "judge_class", "judge_paths", "judge_role", "judge_routes")
    ]
    found = {rule for path in sources for rule in re.findall(r'(?:Deny|Dimension)\(\s*"([a-z.-]+)"', path.read_text())}
    elsewhere = {"class.unknown", "route.dependency-expand", "route.clusters", "route.cron", "route.het"}

    assert found - elsewhere == {pair[0] for pair in PAIRS} & (found - elsewhere)
