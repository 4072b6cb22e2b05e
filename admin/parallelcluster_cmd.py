"""``secure-slurm parallelcluster``: configurations and VPCs of AWS ParallelCluster, made and checked without AWS."""

from __future__ import annotations

import argparse

from admin import vpc_check
from admin.parallelcluster import check as checking
from admin.parallelcluster import render as rendering
from conf.policy import DEFAULT_PATH


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``parallelcluster render``, ``check`` and ``vpc-check``."""
    parser = subparsers.add_parser(
        "parallelcluster", help="make and check configurations of AWS ParallelCluster, and their VPCs"
    )
    commands = parser.add_subparsers(dest="parallelcluster_command", required=True, metavar="COMMAND")
    render = commands.add_parser(
        "render",
        help="write a cluster's configuration",
        description="Write a cluster's configuration, with comments, from secure-slurm.yaml (--config before the "
        "command), policy.yaml and the answers file. Exit 0: written; 1: written, and it has an error; 3: a file has "
        "a mistake, and nothing was written.",
        allow_abbrev=False,
    )
    render.add_argument("--answers", metavar="FILE", required=True, help="what only the AWS account knows")
    render.add_argument("--out", metavar="DIR", required=True, help="where to write CLUSTER.yaml")
    render.set_defaults(run=rendering.run)
    check = commands.add_parser(
        "check",
        help="look for what cannot work or is not safe",
        description="Look at a configuration with our own rules and, where it is installed, with ParallelCluster's own "
        "schema and those of its validators that need no AWS. Exit 0: no error by either; 1: errors; 4: no error by "
        "ours, and ParallelCluster's own were not run; 3: a file cannot be used.",
        allow_abbrev=False,
    )
    check.add_argument("file", metavar="FILE", help="the configuration, as for 'pcluster create-cluster'")
    check.add_argument("--answers", metavar="FILE", help="the answers file: the endpoints of the VPC, the versions")
    check.add_argument(
        "--pcluster-python",
        metavar="PYTHON",
        help="the Python of a virtual environment with aws-parallelcluster (that of the pcluster on the PATH)",
    )
    check.add_argument("--strict", action="store_true", help="warnings are errors")
    check.set_defaults(run=checking.run)
    for each in (render, check):
        each.add_argument("--policy", metavar="FILE", default=DEFAULT_PATH, help="the policy (%(default)s)")
        each.add_argument("--json", action="store_true", help="print JSON")
    vpc_check.add_to(commands)
