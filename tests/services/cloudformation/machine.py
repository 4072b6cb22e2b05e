"""A machine that vault-place.yaml would start: its UserData, as it is, in a root of its own with real OpenBao in it.

Not real are what AWS is asked (a program named ``aws`` that knows four questions), the metadata service, and systemd: a
program named ``systemctl`` starts what ExecStart of the unit says, as its User and without privileges.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from admin.vpc.template import load_template

TEMPLATE = Path(__file__).parents[3] / "conf/cloudformation/vault-place.yaml"
NAME = "vault.cluster.internal"
PORT = 8200
METADATA = "169.254.169.254"

AWS = """#!/usr/bin/python3 -IS
import os, shutil, sys
assert os.environ["AWS_DEFAULT_REGION"] == "eu-central-1" and os.environ["AWS_STS_REGIONAL_ENDPOINTS"] == "regional"
words = sys.argv[1:]
if words[:3] == "s3 cp --only-show-errors".split() and words[3].startswith("s3://"):
    shutil.copyfile("/aws/" + words[3][5:], words[4])
elif words[1] == "get-secret-value" and words[4:] == ["--query", "SecretString", "--output", "text"]:
    print(open("/aws/" + words[3].rpartition(":")[2]).read())
elif words[:2] == ["cloudformation", "signal-resource"]:
    open("/aws/signals", "a").write(" ".join(words[2:]) + "\\n")
else:
    sys.exit(f"aws: {words}")
"""
SYSTEMCTL = """#!/bin/sh
case "$*" in
daemon-reload) exit 0 ;;
"enable --now vault.service" | "restart vault.service") ;;
*) exit 2 ;;
esac
unit=/etc/systemd/system/vault.service
setsid setpriv --reuid="$(sed -n s/^User=//p $unit)" --regid="$(sed -n s/^Group=//p $unit)" --clear-groups \\
  --no-new-privs --inh-caps=-all --bounding-set=-all env -i PATH=/usr/bin:/bin HOME=/ \\
  $(sed -n s/^ExecStart=//p $unit) </dev/null >>/aws/server.log 2>&1 &
echo $! >/aws/pid
"""
# an overlay over the root of the test, which stays as it is, held by a process that does nothing; swap is the whole
# machine's, so it is left alone
HOLD = """
set -eu
mount -t tmpfs tmpfs "$DIR/over"
mkdir "$DIR/over/upper" "$DIR/over/work" "$DIR/over/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$DIR/over/upper,workdir=$DIR/over/work" "$DIR/over/root"
root=$DIR/over/root
for d in /dev /proc /tmp; do mount --rbind $d "$root$d"; done
mkdir "$root/aws"
mount --bind "$DIR/aws" "$root/aws"
for name in aws systemctl; do install -m 0755 "$DIR/$name.program" "$root/usr/local/bin/$name"; done
ln -sf /usr/bin/true "$root/usr/local/bin/swapoff"
mkdir -p "$root/etc/systemd/system" "$root/etc/logrotate.d"
echo "$BALANCER $NAME" >> "$root/etc/hosts"
echo held
exec sleep infinity
"""


def user_data(**parameters: str) -> str:
    """The script of the template with these parameters, and the defaults for others. KeyError for an unknown name."""
    template = load_template(str(TEMPLATE))
    words = {name: str(each["Default"]) for name, each in template.parameters.items() if "Default" in each}
    words |= {"AWS::Region": "eu-central-1", "AWS::StackName": "vault", **parameters}
    text, own = template.resources["Launch"]["Properties"]["LaunchTemplateData"]["UserData"]["Fn::Base64"]["Fn::Sub"]
    assert own.keys() == {"UnsealKeyId"}
    words.setdefault("UnsealKeyId", "arn:aws:kms:eu-central-1:123456789012:key/unseal")
    return re.sub(r"\$\{([^}!]+)\}", lambda found: words[found.group(1)], text)


class Metadata:
    """EC2's metadata service for whichever machine is starting; it answers with a token only."""

    def __init__(self) -> None:
        self.about: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                life = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                self._answer("token" if life and self.path == "/latest/api/token" else "")

            def do_GET(self) -> None:
                known = self.headers.get("X-aws-ec2-metadata-token") == "token"
                name = self.path.removeprefix("/latest/meta-data/")
                self._answer(outer.about.get(name, "") if known else "")

            def _answer(self, text: str) -> None:
                self.send_response(200 if text else 401)
                self.send_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((METADATA, 80), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Machine:
    """One machine with an address of its own. ``host`` and ``port`` are where its server listens."""

    def __init__(self, directory: Path, number: int, ca: Path, balancer: str) -> None:
        self.directory = directory / f"machine{number}"
        self.instance = f"i-{number:017x}"
        self.host = f"10.99.2.{number}"
        self.port = PORT
        self._balancer = balancer
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._holder: subprocess.Popen[str] | None = None
        (self.directory / "over").mkdir(parents=True)
        self.aws = self.directory / "aws"
        self.aws.mkdir()
        for name, text in (("aws", AWS), ("systemctl", SYSTEMCTL)):
            (self.directory / f"{name}.program").write_text(text)

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", HOLD],
            env={"PATH": os.environ["PATH"], "DIR": str(self.directory), "BALANCER": self._balancer, "NAME": NAME},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "held\n"
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        if self._holder is not None:
            self._holder.kill()
            self._holder.communicate()

    def boot(self, script: str, metadata: Metadata) -> tuple[int, str]:
        """Run UserData as cloud-init does, root's and without a terminal: its exit status, and what it said."""
        metadata.about |= {"instance-id": self.instance, "local-ipv4": self.host}
        (self.aws / "user-data").write_text(script)
        return self.run("/bin/bash", "/aws/user-data")

    def restart(self) -> None:
        """Start the server again with the disk that it had."""
        code, said = self.run("systemctl", "restart", "vault.service")
        assert code == 0, said

    def run(self, *argv: str) -> tuple[int, str]:
        """A command in the machine's root: its exit status, and what it said."""
        assert self._holder is not None
        # a file and no pipe: the server outlives the script, and would hold a pipe open
        with (self.directory / "said").open("w+") as said:
            done = subprocess.run(
                [
                    "nsenter",
                    "-t",
                    str(self._holder.pid),
                    "-m",
                    "-r",
                    "chroot",
                    str(self.directory / "over/root"),
                    *argv,
                ],
                env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=400,
                check=False,
            )
            said.seek(0)
            return done.returncode, said.read()

    def signals(self) -> list[str]:
        """What it told CloudFormation, as ``UNIQUE-ID STATUS``."""
        file = self.aws / "signals"
        lines = file.read_text().splitlines() if file.exists() else []
        return [re.sub(r".*--unique-id (\S+) --status (\S+)$", r"\1 \2", line) for line in lines]

    def pid(self) -> int:
        """The server's process; 0 if there is none."""
        file = self.aws / "pid"
        return int(file.read_text()) if file.exists() else 0

    def kill(self) -> None:
        """As a machine that fails."""
        if pid := self.pid():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            while Path(f"/proc/{pid}/exe").exists():
                time.sleep(0.05)

    def health(self) -> int:
        """The status of sys/health; 0 if it does not answer."""
        try:
            return self.ask("GET", "sys/health")[0]
        except OSError:
            return 0

    def ask(self, method: str, path: str, body: object = None, token: str = "") -> tuple[int, Any]:
        """One request to this very machine, whose certificate must carry the common name."""
        return ask((self.host, self.port), self._tls, method, path, body=body, token=token)


def ask(
    where: tuple[str, int], tls: ssl.SSLContext, method: str, path: str, *, body: object = None, token: str = ""
) -> tuple[int, Any]:
    """Status and JSON of one request to Vault's interface at an address, by the name that all have."""
    text = json.dumps(body).encode() if body is not None else b""
    head = (
        f"{method} /v1/{path} HTTP/1.0\r\nHost: {NAME}\r\nX-Vault-Token: {token}\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    with (
        # what only reads is asked again by whoever waits for something
        socket.create_connection(where, timeout=30 if method == "GET" else 120) as raw,
        tls.wrap_socket(raw, server_hostname=NAME) as connection,
    ):
        connection.sendall(head.encode() + text)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    top, _, rest = answer.partition(b"\r\n\r\n")
    if not top:
        raise ConnectionError("no answer")
    return int(top.split()[1]), json.loads(rest) if rest.strip() else {}
