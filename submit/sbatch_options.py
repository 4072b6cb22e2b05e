"""sbatch's options: how each is written, and where its value goes in the job that slurmctld gets.

Measured with sbatch 24.11 and 26.05 (what getopt_long says to a wrong use of each; the fields of what arrives at
job_submit.lua). An option that only one of them has is in the table: asking about it is no mistake.
"""

from __future__ import annotations

from typing import NamedTuple

VALUE, MAYBE, FLAG = "value", "maybe", "flag"
"""With a value, with or without one (then never as the next word), without."""
IGNORED, UNREAD = "ignored", "unread"
"""No rule of a policy looks at it; something that a rule looks at may depend on it in a way that is not followed."""


class Option(NamedTuple):
    """``kind``: how the value is read (``text``, ``number``, or a word of its own); ``field``: Slurm's name for it.

    ``variables``: of the environment, which say the same; a later one counts.
    """

    name: str
    short: str = ""
    takes: str = VALUE
    kind: str = IGNORED
    field: str = ""
    variables: tuple[str, ...] = ()


def _texts() -> list[Option]:
    rows = """
        account A account ACCOUNT | acctg-freq - acctg_freq ACCTG_FREQ | array a array_inx ARRAY_INX
        batch - batch_features BATCH | bb - burst_buffer BURST_BUFFER | clusters M clusters CLUSTERS
        comment - comment - | constraint C features CONSTRAINT | container - container CONTAINER
        context - selinux_context - | dependency d dependency - | exclude x exc_nodes - | job-name J name JOB_NAME
        licenses L licenses - | mail-user - mail_user - | mcs-label - mcs_label - | network - network NETWORK
        partition p partition PARTITION | prefer - prefer - | qos q qos QOS | reservation - reservation RESERVATION
        resources - licenses - | tres-bind - tres_bind TRES_BIND | wckey - wckey WCKEY
    """
    return [_row(row.split(), "text") for row in rows.replace("\n", "|").split("|") if row.strip()]


def _numbers() -> list[Option]:
    rows = """
        cores-per-socket - cores_per_socket - | cpus-per-task c cpus_per_task - | mincpus - pn_min_cpus -
        ntasks n num_tasks - | ntasks-per-core - ntasks_per_core - | ntasks-per-node - ntasks_per_node -
        ntasks-per-socket - ntasks_per_socket - | sockets-per-node - sockets_per_node -
        tasks-per-node - ntasks_per_node - | threads-per-core - threads_per_core THREADS_PER_CORE
    """
    return [_row(row.split(), "number") for row in rows.replace("\n", "|").split("|") if row.strip()]


def _row(words: list[str], kind: str) -> Option:
    name, short, field, variable = ("" if word == "-" else word for word in words)
    return Option(name, short, VALUE, kind, field, (f"SBATCH_{variable}",) if variable else ())


def _plain(rows: str, takes: str, kind: str) -> list[Option]:
    """``name``, ``name:short`` or ``name=VARIABLE``, separated by spaces."""
    found = []
    for row in rows.split():
        words, _, variable = row.partition("=")
        name, _, short = words.partition(":")
        found.append(Option(name, short, takes, kind, "", (f"SBATCH_{variable}",) if variable else ()))
    return found


_OWN = [
    Option("bbf", kind="burst-buffer-file"),
    Option("chdir", "D", kind="directory", field="work_dir"),
    Option("cluster", kind="text", field="clusters", variables=("SLURM_CLUSTERS",)),
    Option("error", "e", kind="file", field="std_err", variables=("SBATCH_ERROR",)),
    Option("exclusive", takes=MAYBE, kind="exclusive", field="shared", variables=("SBATCH_EXCLUSIVE",)),
    Option("export", kind="export", variables=("SBATCH_EXPORT",)),
    Option("extra", kind="text", field="extra"),
    Option("get-user-env", takes=MAYBE, kind="user-env", variables=("SBATCH_GET_USER_ENV",)),
    Option("gpus", "G", kind="gpus", field="tres_per_job", variables=("SBATCH_GPUS",)),
    Option("gpus-per-node", kind="gpus", field="tres_per_node", variables=("SBATCH_GPUS_PER_NODE",)),
    Option("gpus-per-socket", kind="gpus", field="tres_per_socket", variables=("SBATCH_GPUS_PER_SOCKET",)),
    Option("gpus-per-task", kind="gpus-per-task", field="tres_per_task", variables=("SBATCH_GPUS_PER_TASK",)),
    Option("gres", kind="gres", field="tres_per_node", variables=("SBATCH_GRES",)),
    Option("input", "i", kind="file", field="std_in", variables=("SBATCH_INPUT",)),
    Option("mail-type", kind="mail", field="mail_type"),
    Option("no-requeue", takes=FLAG, kind="no-requeue", field="requeue", variables=("SBATCH_NO_REQUEUE",)),
    Option("nodelist", "w", kind="nodelist", field="req_nodes"),
    Option("nodes", "N", kind="nodes", field="min_nodes"),
    Option("output", "o", kind="file", field="std_out", variables=("SBATCH_OUTPUT",)),
    Option("oversubscribe", "s", FLAG, kind="oversubscribe", field="shared"),
    Option("requeue", takes=MAYBE, kind="requeue", field="requeue", variables=("SBATCH_REQUEUE",)),
    Option("time", "t", kind="minutes", field="time_limit", variables=("SBATCH_TIMELIMIT",)),
    Option("time-min", kind="minutes", field="time_min"),
    Option("tres-per-task", kind="text", field="tres_per_task", variables=("SBATCH_TRES_PER_TASK",)),
    Option("no-kill", "k", MAYBE, variables=("SBATCH_NO_KILL",)),
    Option("wrap", kind="wrap"),
]

# what a rule looks at may depend on these: files, other uids, tasks that follow from something else
_UNREAD = (
    "cluster-constraint=CLUSTER_CONSTRAINT container-id=CONTAINER_ID export-file extra-node-info:B gid nodefile:F \
    ntasks-per-gpu ntasks-per-tres uid"
)
_UNREAD_FLAGS = "external"
_IGNORED = "autocomplete begin:b container-type=CONTAINER_TYPE core-spec:S=CORE_SPEC cpu-freq=CPU_FREQ_REQ \
    cpus-per-gpu=CPUS_PER_GPU deadline delay-boot=DELAY_BOOT distribution:m=DISTRIBUTION gpu-bind=GPU_BIND \
    gpu-freq=GPU_FREQ gres-flags=GRES_FLAGS hint=HINT kill-on-invalid-dep mem=MEM_PER_NODE mem-bind=MEM_BIND \
    mem-per-cpu=MEM_PER_CPU mem-per-gpu=MEM_PER_GPU mem-update open-mode=OPEN_MODE priority profile=PROFILE \
    segment=SEGMENT_SIZE signal=SIGNAL switches=REQ_SWITCH thread-spec=THREAD_SPEC tmp wait-all-nodes=WAIT_ALL_NODES"
_IGNORED_MAYBE = "nice oom-kill-step propagate resv-ports"
_IGNORED_FLAGS = "consolidate-segments=CONSOLIDATE_SEGMENTS contiguous help:h hold:H ignore-pbs=IGNORE_PBS \
    overcommit:O=OVERCOMMIT parsable quiet:Q reboot spread-job=SPREAD_JOB spread-segments=SPREAD_SEGMENTS stepmgr \
    test-only usage use-min-nodes=USE_MIN_NODES verbose:v version:V wait:W=WAIT"

OPTIONS: tuple[Option, ...] = (
    *_texts(),
    *_numbers(),
    *_OWN,
    *_plain(_UNREAD, VALUE, UNREAD),
    *_plain(_UNREAD_FLAGS, FLAG, UNREAD),
    *_plain(_IGNORED, VALUE, IGNORED),
    *_plain(_IGNORED_MAYBE, MAYBE, IGNORED),
    *_plain(_IGNORED_FLAGS, FLAG, IGNORED),
)
BY_NAME = {option.name: option for option in OPTIONS}
BY_SHORT = {option.short: option for option in OPTIONS if option.short}
# SBATCH_DEBUG, SBATCH_POWER and SBATCH_WAIT4SWITCH have no option of their own
BY_VARIABLE = {variable: option for option in OPTIONS for variable in option.variables}
