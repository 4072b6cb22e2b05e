"""The bucket by the clients of ParallelCluster's machines, the real ``aws`` and boto3, before what answers like S3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services.bundle.archives import small, write
from tests.services.bundle.conftest import Bucket, Machine, Offer

ENVIRONMENTS = "/opt/parallelcluster/pyenv/versions/3.12.8/envs"
# HEAD and GET of an object, whole or in ranges, by path; what is asked for is written down, with its signer and region
SERVER = """
import http.server, pathlib, re
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        signer = re.search("Credential=[^,]*", self.headers.get("Authorization", ""))[0]
        with open("/run/asked", "a") as asked:
            print(self.command, self.path, signer, file=asked)
        bucket, _, key = self.path[1:].partition("?")[0].partition("/")
        path = pathlib.Path("/out", key.rpartition("/")[2])
        if bucket != "site-bucket" or not key.startswith("prefix/") or not path.is_file():
            self.send_response(404); self.send_header("Content-Length", "0"); self.end_headers(); return
        data, code = path.read_bytes(), 200
        size = len(data)
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        if wanted:
            first = int(wanted[1]); last = min(int(wanted[2] or size - 1), size - 1)
            data, code = data[first:last + 1], 206
        self.send_response(code)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        for name, value in (("Content-Length", str(len(data))), ("ETag", '"x"'), ("Accept-Ranges", "bytes"),
                            ("Last-Modified", "Sun, 22 Nov 2026 00:00:00 GMT")):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
    do_HEAD = do_GET
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Handler)
open("/run/serving", "w").close()
server.serve_forever()
"""
AWS = f"""#!{ENVIRONMENTS}/x/bin/python3
import sys
from awscli.clidriver import main
sys.exit(main())
"""


@pytest.fixture
def serving(machine: Machine, bucket: Bucket) -> Iterator[tuple[Machine, Offer]]:
    """A machine of ParallelCluster before a bucket."""
    machine.put("/run/server.py", SERVER)
    machine.put("/etc/parallelcluster/cfnconfig", 'stack_name=x\ncfn_region="eu-central-1"\n')
    machine.sh("setsid python3 /run/server.py >/run/server.log 2>&1 </dev/null &")
    machine.sh("for n in $(seq 1200); do [ ! -e /run/serving ] || exit 0; sleep 0.1; done; exit 1")
    place = "s3://site-bucket/prefix"
    yield machine, Offer(f"{place}/{bucket.name}", bucket.keys.public, f"{place}/site.tar.gz")


def action(machine: Machine, *words: str) -> tuple[int, str]:
    given = ["AWS_ENDPOINT_URL=http://127.0.0.1:9000", "AWS_EC2_METADATA_DISABLED=true"]
    given += ["AWS_ACCESS_KEY_ID=AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY=x"]
    done = machine.run("env", *given, "/src/conf/parallelcluster/actions/secure-slurm-action.sh", *words)
    return done.code, done.out + done.err


def client(machine: Machine, name: str) -> None:
    """An environment as the vendor's; without the command, what is left is its Python and boto3."""
    machine.sh(f"python3 -m venv --without-pip {ENVIRONMENTS}/x")
    machine.sh(f"for each in {ENVIRONMENTS}/x/lib/python3.*/site-packages; do echo /s3 > $each/s3.pth; done")
    if name == "aws":
        machine.put(f"{ENVIRONMENTS}/x/bin/aws", AWS)
        machine.sh(f"chmod 755 {ENVIRONMENTS}/x/bin/aws")


@pytest.mark.parametrize("name", ["aws", "boto3"])
@pytest.mark.parametrize("system", ["bookworm"], indirect=True)
def test_a_bundle_from_a_bucket(serving: tuple[Machine, Offer], bucket: Bucket, name: str) -> None:
    machine, offer = serving
    client(machine, name)
    code, said = action(machine, "compute", "start", *offer)
    assert code == 0, said
    asked = machine.sh("cat /run/asked")
    # 25 MB are read in parts, and what is signed is signed for the region of the machine
    assert asked.count(f"GET /site-bucket/prefix/{bucket.name} ") > 1
    assert {line.split("/")[-3] for line in asked.splitlines()} == {"eu-central-1"}
    # and what comes from there is verified like anything else
    write(bucket.folder / bucket.name, small("0.1.0"))
    code, said = action(machine, "login", "configured", *offer)
    assert (code, "not by the key" in said) == (1, True)
    assert not machine.there("/canary")


@pytest.mark.parametrize("system", ["bookworm"], indirect=True)
def test_nothing_there(serving: tuple[Machine, Offer]) -> None:
    machine, offer = serving
    client(machine, "aws")
    code, said = action(machine, "head", "start", offer.bundle.replace("prefix", "other"), offer.key, offer.site)
    assert (code, "could not be read" in said) == (1, True)
    # three times: a bucket may have its moments
    assert machine.sh("grep -c HEAD /run/asked").strip() == "3"
    machine.untouched()
