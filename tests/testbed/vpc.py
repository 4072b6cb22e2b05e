"""A VPC inside the guest: bare machines on one subnet, from which no route leads away, made a cluster by our bundle.

A machine is a root of Debian 13 with Slurm and nothing of secure-slurm (bundle/root.sh ami), with mounts, processes and
network of its own. ParallelCluster's part is done by the test: /opt/slurm and the generated slurm.conf on the head
node, instances for nodes, custom actions at their moments. Vault, the directory and the metadata service answer on
the subnet's first address, as endpoints do.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import yaml

from tests.testbed import settings
from tests.testbed.imds import Imds, Region, document, pin
from tests.testbed.machine import Bare, Done
from tests.testbed.openbao import OpenBao
from tests.testbed.people import TRIES, UNDECIDED, crypt_mappings
from tests.testbed.pki import CA
from tests.testbed.slapd import Slapd

AMI, BUNDLE = Path("/run/vpc/ami"), Path("/mnt/bundle")
SOURCE = Path("/src")
SHARED = Path("/run/vpc/shared")
NET = "10.98.0"
DOOR, HEAD = f"{NET}.1", f"{NET}.10"
METADATA = "169.254.169.254"
REGION, ACCOUNT = "eu-central-1", "123456789012"
NODES = ("phi-dy-cpu-1", "phi-dy-cpu-2")
LIMIT = 600.0
"""Seconds for anything to happen on a busy machine."""

SITE = f"""\
version: 1
cluster: {{name: test, head_nodes: [head], slurm_bin: /opt/slurm/bin}}
controller: {{deadline: 900ms, untagged_when_down: refuse}}    # a user-mode kernel on a shared machine is slow
lifecycle: {{start_deadline: 60s}}
node:
  proof: ec2
  ec2: {{account: '{ACCOUNT}'}}
vault:
  address: https://{DOOR}:8200
  ca_file: /etc/secure-slurm/vault-ca.crt
  timeout: 10s
  node:
    certificate: /var/lib/secure-slurm/identity-%n/node.crt
    private_key: /var/lib/secure-slurm/identity-%n/node.key
ldap:
  flavour: openldap
  uris: [ldaps://ldap.cluster.internal]
  ca_file: /etc/secure-slurm/ldap-ca.crt
  bind_dn: cn=reader,dc=example,dc=org
  bind_password_file: /etc/secure-slurm/ldap-password
  base: dc=example,dc=org
  refresh: 5s
scratch: {{backing: file, directory: /scratch/secure-slurm, volume: /scratch, mount_root: /secure-scratch}}
audit: {{directory: /var/log/secure-slurm}}
link:
  listen: 0.0.0.0:6830
  head: [head.cluster.internal:6830]
  certificate: /etc/secure-slurm/link.crt
  private_key: /etc/secure-slurm/link.key
  ca_file: /etc/secure-slurm/link-ca.crt
enrol:
  listen: 0.0.0.0:6831
  head: [head.cluster.internal:6831]
  regions: [{REGION}]
doctor: {{endpoints: ['{DOOR}:8200']}}
"""
POLICY = f"""\
version: 1
jurisdictions: {{eu: {{feature: eu, regions: [{REGION}]}}}}
classes:
  - {{private_tmp: none,
     name: phi, residency: required, scratch: required, default_scratch: 32M, max_scratch: 1G, exclusive_nodes: true}}
roles: {{phi-eu: {{groups: ["cn=phi-eu,ou=groups,dc=example,dc=org"], classes: [phi], jurisdictions: [eu]}}}}
partitions: {{phi: {{demand_tag: true, jurisdiction: eu}}}}
"""

# What ParallelCluster generates, with times that a test can wait for; the rest is conf/parallelcluster/isolated.yaml.
# No control groups: slurmd does not manage them from inside a process namespace.
GENERATED = f"""\
ClusterName=test
SlurmctldHost=head({HEAD})
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=cred_expire=70
StateSaveLocation=/var/spool/slurm.state
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
SlurmctldParameters=idle_on_node_suspend,power_save_min_interval=1,power_save_interval=1,node_reg_mem_percent=75
SlurmdParameters=config_overrides
ResumeProgram=/opt/slurm/etc/pcluster/resume
SuspendProgram=/opt/slurm/etc/pcluster/suspend
ResumeTimeout=900
SuspendTimeout=120
SuspendTime=1800
Prolog=/opt/slurm/etc/scripts/prolog.d/*
Epilog=/opt/slurm/etc/scripts/epilog.d/*
SchedulerParameters=nohold_on_prolog_fail,sched_min_interval=0,batch_sched_delay=0
BatchStartTimeout=180
MessageTimeout=60
EnforcePartLimits=ALL
ReturnToService=1
PrivateData=cloud
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReconfigFlags=KeepPartState
MinJobAge=300
"""
RESUME = f"""\
#!/bin/sh
for node in $(/opt/slurm/bin/scontrol show hostnames "$1"); do
  address={NET}.2${{node##*-}}
  /opt/slurm/bin/scontrol update nodename="$node" nodeaddr="$address" nodehostname="ip-$(echo "$address" | tr . -)"
  touch /out/asked/resume-"$node"
done
"""
SUSPEND = """\
#!/bin/sh
for node in $(/opt/slurm/bin/scontrol show hostnames "$1"); do touch /out/asked/suspend-"$node"; done
"""
VENDOR = {"prolog": "90_pcluster_health_check_manager", "epilog": "90_pcluster_noop"}
HEALTHY = "#!/bin/sh\nexit 0\n"
SICK = "#!/bin/sh\necho the health check failed; exit 1\n"

# a machine's own devices and kernel file systems, and what is shared by NFS there
BOOT = """\
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -p /opt/slurm /run/slurm /run/munge /secure-scratch /var/spool/slurm.state /var/spool/slurmd
mount --bind /out/slurm /opt/slurm
mount --bind /out/home /home
rm -rf /etc/slurm; ln -s /opt/slurm/etc /etc/slurm
useradd -u 1500 -U -M -d /home/alice -s /bin/sh alice
chown slurm: /run/slurm /var/spool/slurm.state
chown munge: /run/munge /var/lib/munge /var/log/munge /etc/munge; chmod 700 /var/log/munge
install -m 400 -o munge /out/munge.key /etc/munge/munge.key
runuser -u munge -- munged --num-threads=2
install -m 755 /src/tests/testbed/guest/nft /usr/sbin/nft
"""


def custom(example: Path) -> str:
    """CustomSlurmSettings of a shipped configuration, as they end up in slurm.conf.

    But for a job's own /tmp, which Slurm's plugin does not make below a chroot, and which has a test of its own.
    """
    slurm = yaml.safe_load(example.read_text())["Scheduling"]["SlurmSettings"]["CustomSlurmSettings"]
    pairs = {name: value for each in slurm for name, value in each.items()}
    del pairs["NamespaceType"]
    assert pairs["PrologFlags"] == "Contain,DeferBatch"
    pairs["PrologFlags"] = "Alloc,DeferBatch"
    return "".join(f"{name}={value}\n" for name, value in pairs.items())


class Bucket:
    """What an admin has uploaded: the action, the bundle and the site's archive, the last two signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (made,) = BUNDLE.glob("secure-slurm-*.tar.gz")
        shutil.copytree(BUNDLE / "actions", folder / "actions")
        shutil.copy(made, folder)
        self.bundle = folder / made.name
        self.private = folder.parent / "signing.key"
        _do("openssl", "genpkey", "-algorithm", "ed25519", "-out", self.private)
        self.public = _do(SOURCE / "bundle/sign.sh", self.private, self.bundle).strip()

    def site(self, folder: Path, serial: int) -> None:
        """The site's archive from a folder."""
        _do(SOURCE / "bundle/site.sh", self.private, folder, serial, self.folder / "site.tar.gz")

    @property
    def words(self) -> tuple[str, str, str]:
        """What the cluster's configuration says after role and stage."""
        return f"file:///out/bucket/{self.bundle.name}", self.public, "file:///out/bucket/site.tar.gz"


class Instance(Bare):
    """A machine of the VPC; it has loopback alone until it is connected."""

    def __init__(self, vpc: Vpc, address: str, name: str = "") -> None:
        self.vpc = vpc
        self.address = address
        super().__init__(AMI, SHARED, name=name or f"ip-{address.replace('.', '-')}")
        self.put(
            "/etc/hosts", f"127.0.0.1 localhost\n{DOOR} ldap.cluster.internal\n{HEAD} head head.cluster.internal\n"
        )
        self.sh(BOOT)

    def connect(self) -> None:
        """A door to the subnet, and no other route."""
        outside = f"v{self.address.rpartition('.')[2]}"
        _do("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", self.first)
        _do("ip", "link", "set", outside, "master", "vpc", "up")
        self.sh(f"ip address add {self.address}/24 dev eth0; ip link set eth0 up")

    def action(self, role: str, stage: str) -> Done:
        """The custom action, fetched from the bucket and run as ParallelCluster does."""
        path, since = "/out/bucket/actions/secure-slurm-action.sh", time.monotonic()
        done = self.run(path, role, stage, *self.vpc.bucket.words, timeout=2 * LIMIT)
        print(f"\n{role} {stage}: {done.code} after {time.monotonic() - since:.0f} s")
        return done

    def as_alice(self, *argv: str) -> Done:
        """A command of an ordinary user's."""
        return self.run(
            *("setpriv", "--reuid=1500", "--regid=1500", "--clear-groups", "env", "HOME=/home/alice", "USER=alice"),
            *("sh", "-c", 'cd; exec "$@"', "_", *argv),
        )

    def untouched(self) -> bool:
        """Nothing of secure-slurm is there."""
        ours = "/opt/secure-slurm /etc/secure-slurm /var/lib/secure-slurm /usr/local/bin/secure-sbatch"
        return self.sh(f"ls -d {ours} 2>/dev/null || true; getent passwd secure-node || true; ls -A /var/tmp") == ""


class Vpc:
    """Everything of it; ``head`` is the head node's machine, ``instances`` the nodes' by their names in Slurm.

    ``said``: what the custom actions of instances ended with, oldest first.
    """

    def __init__(self) -> None:
        self.instances: dict[str, Instance] = {}
        self.said: list[tuple[str, str, Done]] = []
        self.bao: OpenBao
        self.slapd: Slapd
        self.head: Instance
        self._services = contextlib.ExitStack()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._region = Region()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(3 * LIMIT)
        for node in list(self.instances):
            self.terminate(node)
        if hasattr(self, "head"):
            self.head.stop()
        self._services.close()
        subprocess.run(["ip", "link", "del", "vpc"], check=False, capture_output=True)
        subprocess.run(["umount", str(AMI)], check=False, capture_output=True)

    def _start(self) -> None:
        assert BUNDLE.is_dir(), "this guest has no bundle: BINDS=$(tests/testbed/offer.sh) tests/testbed/uml.sh ..."
        shutil.rmtree(SHARED, ignore_errors=True)
        for folder in (AMI, SHARED / "asked", SHARED / "home/alice", SHARED / "site/ec2"):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.chown(SHARED / "home/alice", 1500, 1500)
        (SHARED / "munge.key").write_bytes(secrets.token_bytes(128))
        (SHARED / "munge.key").chmod(0o400)
        _do("mount", "-t", "hostfs", "-o", "ro,hostfs=/mnt/ami", "none", AMI)
        _do("modprobe", "-a", "bridge", "veth")
        _do("ip", "link", "add", "vpc", "type", "bridge")
        for address in (f"{DOOR}/24", f"{METADATA}/32"):
            _do("ip", "address", "add", address, "dev", "vpc")
        _do("ip", "link", "set", "vpc", "up")
        work = Path("/run/vpc/services")
        self.ca = CA(work / "ca")
        self.metadata = self._services.enter_context(Imds(METADATA, 80))
        self.bao = self._services.enter_context(OpenBao(work / "bao", self.ca, address=DOOR, port=8200))
        self.slapd = self._services.enter_context(
            Slapd(work / "slapd", self.ca, DOOR, 636, names=["ldap.cluster.internal"], settings="loglevel 0")
        )
        self.slapd.add(settings.DIRECTORY)
        self.bucket = Bucket(SHARED / "bucket")
        self._site()
        self._slurm()
        self.head = Instance(self, HEAD, "head")
        self.head.sh("chown slurm: /out/asked")
        self._thread.start()

    def _site(self) -> None:
        """The folder of the site's files, as docs/parallelcluster.md has it."""
        site = SHARED / "site"
        (site / "secure-slurm.yaml").write_text(SITE)
        (site / "policy.yaml").write_text(POLICY)
        for name in ("vault-ca.crt", "ldap-ca.crt", "link-ca.crt"):
            shutil.copy(self.ca.certificate, site / name)
        pin(site / "ec2", REGION, self._region)
        self.bucket.site(site, 1)

    def _slurm(self) -> None:
        """``/opt/slurm`` as on a head node before the custom action: nothing of ours, the vendor's scripts."""
        slurm = SHARED / "slurm"
        for name in ("bin", "sbin"):
            slurm.mkdir(exist_ok=True)
            (slurm / name).symlink_to(f"/usr/{name}")
        scripts = {slurm / f"etc/scripts/{kind}.d/{name}": HEALTHY for kind, name in VENDOR.items()}
        scripts |= {slurm / "etc/pcluster/resume": RESUME, slurm / "etc/pcluster/suspend": SUSPEND}
        for path, text in scripts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        example = SOURCE / "conf/parallelcluster/isolated.yaml"
        queue = yaml.safe_load(example.read_text())["Scheduling"]["SlurmQueues"][0]["ComputeResources"][0]
        feature = queue["CustomSlurmSettings"]["Feature"]
        nodes = (
            f"NodeName=phi-dy-cpu-[1-2] CPUs=1 RealMemory=500 State=CLOUD Feature={feature}\n"
            "PartitionName=phi Nodes=ALL Default=YES OverSubscribe=EXCLUSIVE MaxTime=60\n"
        )
        (slurm / "etc/slurm.conf").write_text(GENERATED + custom(example) + nodes)
        (slurm / "etc/cgroup.conf").write_text("CgroupPlugin=disabled\n")

    # -- instances ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """EC2, and ParallelCluster's daemon that asks it for instances."""
        while not self._stop.wait(0.1):
            for asked in sorted((SHARED / "asked").iterdir()):
                asked.unlink()
                verb, _, node = asked.name.partition("-")
                try:
                    self.boot(node) if verb == "resume" else self.terminate(node)
                except Exception as error:  # noqa: BLE001 - whoever waits for the node is told
                    self.said.append((node, verb, Done(1, "", repr(error))))

    def boot(self, node: str) -> bool:
        """An instance for a node; False: one of its custom actions failed, and it was given up."""
        self.terminate(node)
        address = f"{NET}.2{node[-1]}"
        identity = document(
            instanceId=f"i-{uuid.uuid4().hex[:17]}", privateIp=address, accountId=ACCOUNT, region=REGION
        )
        self.metadata.answers[address] = self._region.sign(identity)
        machine = self.instances[node] = Instance(self, address)
        machine.put("/etc/parallelcluster/cfnconfig", f"cfn_region={REGION}\n")
        machine.put("/etc/parallelcluster/slurm_plugin/slurm_nodename", node)
        machine.connect()
        machine.sh(f"ip route add {METADATA} dev eth0 scope link")
        for stage in ("start", "configured"):
            if stage == "configured":
                # instance store, which ParallelCluster mounts in between
                machine.sh("mkdir /scratch; mount -t tmpfs -o mode=1777,size=512m tmpfs /scratch")
            done = machine.action("compute", stage)
            self.said.append((node, stage, done))
            if done.code:
                self.terminate(node)
                return False
        # -b: booted just now, which the kernel below does not say
        machine.sh(f"slurmd -b -N {node}")
        return True

    def terminate(self, node: str) -> None:
        """At once, and nobody on it hears of it."""
        machine = self.instances.pop(node, None)
        if machine is None:
            return
        machine.stop()
        for name in mappings(node):
            _do("dmsetup", "remove", "--retry", name)

    # -- asking ------------------------------------------------------------------------------------------------------

    def until(self, ready: Callable[[], Any], what: str, limit: float = LIMIT) -> None:
        """Poll until ``ready()`` is true."""
        end = time.monotonic() + limit
        while not ready():
            assert time.monotonic() < end, f"waited {limit:.0f} s for {what}\n{self.logs()}"
            time.sleep(0.3)

    def job(self, number: int) -> dict[str, str]:
        """``scontrol show job`` as fields."""
        text = self.head.run("scontrol", "show", "job", str(number)).out
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def submit(self, *words: str) -> int:
        """alice's job; its number."""
        for _ in range(TRIES):
            done = self.head.as_alice("secure-sbatch", *words)
            # a machine too busy to decide in time is asked again, as the user is told to
            if not any(word in done.err for word in UNDECIDED):
                break
            time.sleep(2)
        found = re.search(r"Submitted batch job (\d+)", done.out)
        assert found, f"{done}\n{self.logs()}"
        return int(found[1])

    def keys(self, job: int) -> list[str]:
        """The keys of a job in Vault."""
        status, answer = self.bao.status("LIST", "secure-slurm-transit/keys")
        assert status in (200, 404), answer
        return [each for each in answer.get("data", {}).get("keys", []) if f"_test-{job}-" in each]

    def logs(self) -> str:
        """What every machine's logs end with, for a failure's message."""
        script = "tail -n 12 /var/log/*.log /var/log/slurm/*.log 2>/dev/null || true"
        machines = {"head": self.head, **self.instances}
        said = "".join(f"{node} {stage}: {done}\n" for node, stage, done in self.said)
        return said + "".join(f"=== {name}\n{each.run('sh', '-c', script).out}" for name, each in machines.items())


def mappings(node: str) -> list[str]:
    """The dm-crypt mappings of a node's jobs, as the kernel has them."""
    return [name for name in crypt_mappings() if name.startswith(f"secure-{node}-")]


def _do(*argv: object) -> str:
    done = subprocess.run(
        [str(each) for each in argv], capture_output=True, text=True, check=False, timeout=LIMIT, cwd="/"
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
    return done.stdout
