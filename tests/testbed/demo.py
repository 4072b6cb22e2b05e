"""``make demo``: the main job on a real cluster, told step by step, each claim checked. Writes demo.json."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.nodes import on_node

SUBMIT = ["--secure-class=phi", "--secure-residency=eu", "--secure-scratch=200M", "train.sh", "--", "epochs=3"]
TRAIN = """\
#!/bin/bash
#SBATCH --nodes=2
#SBATCH --job-name=train
echo "training with: $*"
srun bash -c 'echo "$SLURMD_NODENAME: $SECURE_SCRATCH ($(stat -c "%U %a" $SECURE_SCRATCH)), TMPDIR=$TMPDIR"
  echo weights > $TMPDIR/model'
touch started
for i in $(seq 300); do [ -e finish ] && break; sleep 0.2; done
"""
OUT = Path("/out")


class Story:
    """Prints what happens and collects what is claimed; a claim that is false ends the demo."""

    def __init__(self) -> None:
        self.color = sys.stdout.isatty()
        self.step = 0
        self.failed: list[str] = []

    def title(self, text: str) -> None:
        """A new step."""
        self.step += 1
        line = f"{self.step}. {text}"
        print(f"\n\033[1m{line}\033[0m" if self.color else f"\n{line}", flush=True)

    def show(self, text: str, prefix: str = "   | ") -> None:
        """What a command printed."""
        for line in text.strip().splitlines():
            print(prefix + line, flush=True)

    def claim(self, text: str, true: bool) -> bool:
        """A statement that was checked on the running cluster."""
        print(f"   {'ok  ' if true else 'FAIL'} {text}", flush=True)
        if not true:
            self.failed.append(text)
        return true


def main() -> int:
    """Tell the story. 0 only if every claim was true."""
    begun = time.monotonic()
    story = Story()
    result: dict[str, Any] = {}
    story.title("A cluster starts: slurmctld, nodes n1 n2 (eu) and n3 n4 (us), OpenBao, an LDAP directory over TLS")
    with Cluster() as cluster:
        story.show(cluster.command(["sinfo", "-N", "-o", "%N %P %f %t"]).stdout)
        job = _submit(story, cluster, result)
        _while_it_runs(story, cluster, job, result)
        _no_change(story, cluster, job, result)
        _end(story, cluster, job, result)
        _refusals(story, cluster, result)
        _audit(story, cluster, job, result)
    result["seconds"] = round(time.monotonic() - begun, 1)
    (OUT / "demo.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"\n{'all claims hold' if not story.failed else 'NOT TRUE: ' + '; '.join(story.failed)} ({result['seconds']} s)"
    )
    return 1 if story.failed else 0


def _submit(story: Story, cluster: Cluster, result: dict[str, Any]) -> int:
    story.title("alice (in LDAP group phi-eu through heart-study) submits: secure-sbatch " + " ".join(SUBMIT))
    cluster.script("alice", "train.sh", TRAIN)
    job = cluster.submit("alice", *SUBMIT)
    result["accepted_job"] = job
    story.show(f"Submitted batch job {job}")
    facts = cluster.facts(job)
    story.show(f"decision record: {facts['admin_comment']}")
    shown = cluster.job(job)
    exclusive = shown.get("Exclusive", shown.get("OverSubscribe")) in ("NODE", "NO")
    story.show(f"constraint that Slurm now has: {facts['features']}; nodes of its own: {'yes' if exclusive else 'no'}")
    story.claim("the record names class phi and residency eu", "class=phi residency=eu" in facts["admin_comment"])
    story.claim("the residency feature was forced on the job", facts["features"] == "eu")
    story.claim("the job shares its nodes with no other, as its class demands", exclusive)
    cluster.until(lambda: Path("/home/alice/started").exists(), "the job to run on both nodes", 90)
    return job


def _while_it_runs(story: Story, cluster: Cluster, job: int, result: dict[str, Any]) -> None:
    story.title(f"Job {job} runs: where, on what, under which key")
    nodes = cluster.command(["squeue", "-h", "-j", str(job), "-o", "%N"]).stdout.strip()
    story.claim(f"it landed on EU nodes only: {nodes}", nodes == "n[1-2]")
    result["node_region"] = "eu" if nodes == "n[1-2]" else nodes
    story.show(Path(f"/home/alice/slurm-{job}.out").read_text())
    scratch: dict[str, Any] = {}
    for node in ("n1", "n2"):
        mapper = f"secure-{node}-{job}"
        mount = on_node(node, ["findmnt", "-n", "-o", "SOURCE,TARGET,FSTYPE,OPTIONS", f"/secure-scratch/{job}"])
        table = cluster.command(["dmsetup", "table", mapper]).stdout.split()
        story.show(f"{node} findmnt: {mount.strip()}")
        story.show(f"{node} dmsetup: {' '.join(table)}   (the key is shown as zeros unless --showkeys)")
        owner = on_node(node, ["stat", "-c", "%U %a", f"/secure-scratch/{job}"]).strip()
        size = int(on_node(node, ["blockdev", "--getsize64", f"/dev/mapper/{mapper}"]))
        story.claim(f"{node}: {mapper} is a dm-crypt device of 200 MiB", table[2] == "crypt" and size == 200 * 2**20)
        story.claim(f"{node}: scratch belongs to alice, mode 0700", owner == "alice 700")
        status = cluster.command(["cryptsetup", "status", mapper]).stdout
        fields = dict(line.strip().split(":", 1) for line in status.splitlines() if ":" in line)
        scratch = {
            "fstype": mount.split()[2],
            "dm_target": table[2],
            "cipher": fields["cipher"].strip(),
            "key_bits": int(fields["keysize"].split()[0]),
        }
    story.claim("AES-256-XTS", scratch["cipher"] == "aes-xts-plain64" and scratch["key_bits"] == 512)
    result["scratch"] = scratch
    keys = cluster.vault_keys(job)
    story.show("transit keys in Vault: " + ", ".join(keys))
    story.claim("one transit key for each node", sorted(key.split("_")[0] for key in keys) == ["n1", "n2"])
    result["keys"] = keys


def _no_change(story: Story, cluster: Cluster, job: int, result: dict[str, Any]) -> None:
    story.title("alice tries to drop the tag of the running job, then root tries")
    denied = []
    for user in ("alice", "root"):
        words = ["scontrol", "update", f"JobId={job}", "Extra=nothing"]
        done = cluster.as_user(user, words) if user != "root" else cluster.command(words, check=False)
        story.show(f"{user}: {done.stderr}")
        denied.append(done.returncode != 0 and "modify." in done.stderr)
    result["modify_denied"] = story.claim("both were refused, by a rule that is named", all(denied))
    tag = cluster.facts(job)["extra"]
    story.claim(f"the job's tag is what it was: {tag}", tag.startswith("secure-slurm:class=phi;residency=eu"))


def _end(story: Story, cluster: Cluster, job: int, result: dict[str, Any]) -> None:
    story.title("The job ends")
    Path("/home/alice/finish").touch()
    state = cluster.wait_end(job)["JobState"]
    cluster.wait_gone(job)
    left = cluster.leftovers(job)
    for what, found in left.items():
        story.show(f"{what}: {', '.join(found) or 'none'}")
    answers = {key: cluster.bao.status("GET", f"secure-slurm-transit/keys/{key}")[0] for key in result["keys"]}
    story.claim(f"it ended as {state}", state == "COMPLETED")
    story.claim("no mapping, backing file, loop device, journal, key or grant is left", not any(left.values()))
    gone = story.claim(f"Vault answers 404 for both keys: {answers}", set(answers.values()) == {404})
    story.claim("no node was drained", cluster.drained() == "")
    result["after"] = {
        "mapping": bool(left["mappings"]),
        "backing_file": bool(left["backing"]),
        "vault_keys": "not found" if gone else "found",
    }


def _refusals(story: Story, cluster: Cluster, result: dict[str, Any]) -> None:
    story.title("bob, who is not in the group, submits the same")
    cluster.script("bob", "train.sh", TRAIN)
    done = cluster.as_user("bob", ["secure-sbatch", *SUBMIT])
    story.show(done.stderr)
    story.claim(
        "refused; the rule and the missing group are named",
        done.returncode == 1 and "rbac.role" in done.stderr and "phi-eu" in done.stderr,
    )
    result["denied"] = {"rule": "rbac.role" if "rbac.role" in done.stderr else "", "message": done.stderr.strip()}
    story.claim(
        "no node noticed", cluster.drained() == "" and not cluster.command(["squeue", "-h", "-u", "bob"]).stdout
    )
    story.title("alice asks for US nodes with data that must stay in the EU")
    done = cluster.as_user(
        "alice", ["secure-sbatch", "--secure-class=phi", "--secure-residency=eu", "-C", "us", "train.sh"]
    )
    story.show(done.stderr)
    story.claim("refused", done.returncode == 1 and "residency." in done.stderr)


def _audit(story: Story, cluster: Cluster, job: int, result: dict[str, Any]) -> None:
    story.title("The audit trail")
    story.show(cluster.tool("audit", "show", "--job", str(job), settings.LOG).stdout)
    done = cluster.tool("audit", "verify", "--json", settings.LOG, check=False)
    answer = json.loads(done.stdout)
    verified = done.returncode == 0
    result["audit"] = {"events": answer["events"], "verified": verified}
    story.claim(f"the chain is whole: {answer['events']} events", verified)


if __name__ == "__main__":
    sys.exit(main())
