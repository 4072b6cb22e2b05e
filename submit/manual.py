"""What ``--secure-help`` shows."""

from __future__ import annotations

_OPERANDS = {
    "sbatch": "[script [argument...]]",
    "srun": "command [argument...]",
    "salloc": "[command [argument...]]",
}

_PAGE = """\
NAME
    secure-{tool} - submit a job that carries a data class and a residency

SYNOPSIS
    secure-{tool} [--secure-class=NAME] [--secure-residency=NAME] [--secure-scratch=SIZE]
        [--secure-dataset=NAME[,NAME...]] [any option of {tool}...] {operands}

DESCRIPTION
    secure-{tool} writes a tag that says what data the job works on, and then becomes {tool}: every other option,
    the output, the exit code, {parity} are {tool}'s own.
    The cluster judges the tag when the job is submitted, when it is changed and when it starts. A refusal names
    its rule and what would be accepted.

    A job with encrypted scratch finds it in $SECURE_SCRATCH (and $TMPDIR). It is encrypted under a key that
    exists for this job on this node alone; when the job ends the key is destroyed and the data is gone with it.
    Copy what you want to keep before the job ends.

OPTIONS
    These come first, before every option of {tool}:

    --secure-class=NAME        the data class, such as phi
    --secure-residency=NAME    the jurisdiction that the data must not leave, such as eu
    --secure-scratch=SIZE      encrypted scratch on each node: a whole number and K, M, G, T or P (powers of 1024)
    --secure-dataset=NAME      a dataset that the job works on; its class and residency follow. May be repeated, or
                               be a list with commas
    --secure-dry-run           print the tag and the command, and submit nothing
    --secure-explain           {explain}
    --secure-json              print the explanation as JSON
    --secure-help              this page
    --secure-version           the version

    A value may also be the next word: --secure-class phi.
{script}
ENVIRONMENT
    SECURE_CLASS, SECURE_RESIDENCY, SECURE_SCRATCH_SIZE, SECURE_DATASETS
        mean the same as the options. A job has them set to what it was given, so that a job submitted from inside
        a tagged job carries at least the same tag.

    What the command line says is added to what {others} say{s}, and may strengthen it, never
    weaken it. All must name the same residency. Without any of them nothing is submitted: use {tool} itself for a
    job without a tag.

RESTRICTIONS
    --extra is where the tag travels and cannot be used for anything else. Heterogeneous jobs (":" between
    components) cannot carry a tag.

EXIT STATUS
    {tool}'s own, or before {tool} was reached:
    2   the command line, the script or the environment is wrong
    3   this machine is not set up: the message says what is missing
{asking}
EXAMPLES
{examples}
SEE ALSO
    {tool}(1); why was a job refused or held: secure-slurm why JOB
"""

_SCRIPT = """
THE SCRIPT
    A script may say it itself, before its first command, beside the #SBATCH lines:

        #SECURE --class=phi --residency=eu --scratch=200G

    A script with such a line must be submitted with secure-sbatch: plain sbatch is refused.
"""

_TESTS = "ask the cluster whether and why it would take the job, and submit nothing"
_EXPLAIN = {"sbatch": _TESTS, "srun": _TESTS, "salloc": "refused: salloc cannot only ask; use secure-sbatch for it"}

_EXIT = """
    With --secure-explain: 0 the cluster takes the job, 1 it does not, 4 nobody could answer. What the policy says is
    told step by step, with the line of the policy and the nearest command that would be accepted. Slurm itself may
    say no where the policy does not, for a reason of its own such as nodes that it does not have.
"""

_EXAMPLES = {
    "sbatch": """\
    secure-sbatch job.sh
        Submit a script that has a #SECURE line.

    secure-sbatch --secure-class=phi --secure-residency=eu --secure-scratch=200G -N 2 -t 4:00:00 job.sh input.csv
        Say everything on the command line.

    job=$(secure-sbatch --secure-class=phi --secure-residency=eu --parsable job.sh)
        The output is sbatch's, so what worked in a workflow works on.

    secure-sbatch --secure-dry-run --secure-class=phi --secure-residency=eu job.sh
        See the tag without submitting.

    secure-sbatch --secure-explain --secure-class=phi --secure-residency=eu -p phi job.sh
        Hear what the cluster would say, without submitting.
""",
    "srun": """\
    secure-srun --secure-class=phi --secure-residency=eu -n 4 ./analyse input.csv
        Run four tasks and wait for them.

    secure-srun --secure-class=phi --secure-residency=eu --pty bash
        A shell on a compute node.
""",
    "salloc": """\
    secure-salloc --secure-class=phi --secure-residency=eu --secure-scratch=50G -N 2
        Two nodes with encrypted scratch, to work on interactively.
""",
}


def page(tool: str) -> str:
    """The manual page of ``secure-<tool>``."""
    batch = tool == "sbatch"
    return _PAGE.format(
        tool=tool,
        operands=_OPERANDS[tool],
        parity="--parsable and --wait" if batch else "signals and the terminal",
        script=_SCRIPT if batch else "",
        others="script and environment" if batch else "the environment",
        s="" if batch else "s",
        explain=_EXPLAIN[tool],
        asking="" if tool == "salloc" else _EXIT,
        examples=_EXAMPLES[tool],
    )
