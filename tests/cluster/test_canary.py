"""A data key that went the real way is nowhere but in the kernel."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tests.testbed import settings
from tests.testbed.cluster import Cluster

PLACES = ("/var", "/etc", "/run", "/tmp", "/home", "/root", "/opt/secure-slurm", "/out", "/dev/shm")
SKIPPED = ("/run/ov", "/run/testbed/canary")


def forms(key: bytes) -> dict[str, bytes]:
    """How a key could have been written down. Half a key is a key, too: AES-XTS uses two."""
    found = {}
    for name, part in (("whole", key), ("first half", key[:32]), ("second half", key[32:])):
        found[f"{name} raw"] = part
        found[f"{name} hex"] = part.hex().encode()
        found[f"{name} HEX"] = part.hex().upper().encode()
        found[f"{name} base64"] = base64.b64encode(part).rstrip(b"=")
        found[f"{name} base64url"] = base64.urlsafe_b64encode(part).rstrip(b"=")
    return found


def files() -> Iterator[Path]:
    for place in PLACES:
        for path in Path(place).rglob("*"):
            if path.is_file() and not path.is_symlink() and not str(path).startswith(SKIPPED):
                yield path


def processes() -> Iterator[Path]:
    for folder in Path("/proc").glob("[0-9]*"):
        yield folder / "environ"
        yield folder / "cmdline"


def search(key: bytes) -> tuple[list[str], int]:
    wanted = re.compile(b"|".join(re.escape(form) for form in forms(key).values()))
    hits, looked = [], 0
    for path in [*files(), *processes()]:
        try:
            content = path.read_bytes()
        except OSError:
            continue
        looked += 1
        if wanted.search(content):
            hits.append(str(path))
    return hits, looked


def test_the_key_is_nowhere(clean: Cluster) -> None:
    cluster = clean
    job = cluster.submit(
        "alice", "--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M", "--wrap=srun sleep 600"
    )
    cluster.until(lambda: cluster.leftovers(job)["task"], "scratch", 60)
    node = cluster.command(["squeue", "-h", "-j", str(job), "-o", "%N"]).stdout.strip()
    journal = json.loads(Path(f"{settings.RUN}/node-{node}/journal/{job}.json").read_text())
    name = cluster.vault_keys(job)[0]
    answer = cluster.bao.request("POST", f"secure-slurm-transit/decrypt/{name}", {"ciphertext": journal["wrapped_key"]})
    key = base64.b64decode(answer["data"]["plaintext"])
    assert len(key) == 64
    # the canary is the real key: the kernel has it
    assert key.hex() in cluster.command(["dmsetup", "table", "--showkeys", f"secure-{node}-{job}"]).stdout

    # and the search finds what is there to be found
    planted = Path("/tmp/canary-control")
    planted.write_bytes(b"x" + base64.b64encode(key) + b"y")
    assert search(key)[0] == [str(planted)]
    planted.unlink()

    hits, looked = search(key)
    assert hits == []
    assert looked > 500
    for log in ("/var/log/noded-n1.log", "/var/log/slurm/slurmctld.log", str(cluster.bao.audit_log)):
        assert Path(log).stat().st_size, log
    cluster.command(["scancel", str(job)])
    cluster.wait_end(job)
    cluster.wait_gone(job, 30)
    assert search(key)[0] == []
