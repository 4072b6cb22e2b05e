from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from conf.errors import ConfigError
from conf.site import DEFAULT_PATH, Site, for_node, load_site

Write = Callable[..., str]
SHIPPED = Path(__file__).parents[3] / "conf" / "secure-slurm.yaml"


def mistakes(path: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_site(path)
    assert caught.value.advice
    lines = str(caught.value).split("\n")
    assert all(line.isprintable() for line in lines)
    return [line.removeprefix(path) for line in lines]


# what is added to, or replaced in, a file that is right; the line and column, and a part of the message
REPLACED = [
    ("version: 1", "version: 2", ":1:10: ", "version must be 1, not the number 2"),
    ("version: 1", "version: '1'", ":1:10: ", "version must be 1, not the text '1'"),
    ("version: 1\n", "# none\n", ":1:1: ", "'version' is missing"),
    ("cluster: {name: test, head_nodes: [head]}", "cluster: test", ":2:10: ", "must be a mapping with 'name'"),
    ("name: test", "name: Test", ":2:17: ", "cluster.name must be a ClusterName"),
    ("name: test", "name: 5", ":2:17: ", "not the number 5"),
    ("name: test", 'name: "te\\nst"', ":2:17: ", r"'te\nst' holds a control"),
    ("name: test", 'name: "Größe"', ":2:17: ", "not 'Größe'"),
    ("head_nodes: [head]", "head_nodes: []", ":2:35: ", "must not be an empty list"),
    ("head_nodes: [head]", "head_nodes: head", ":2:35: ", "must be a list, not the text 'head'"),
    ("head_nodes: [head]", "head_nodes: [head, head]", ":2:35: ", "names 'head' twice"),
    ("head_nodes: [head]", "head_nodes: [h_1]", ":2:36: ", "cluster.head_nodes[0] must be a host name"),
    ("head_nodes: [head]", "head_nodes: [{a: 1}]", ":2:36: ", "not a mapping"),
    ("head_nodes: [head]", "head_node: [head]", ":2:23: ", "unknown key 'head_node' (did you mean 'head_nodes'?)"),
    (
        "head_nodes: [head]",
        "head_nodes: [head], zzz: 1",
        ":2:43: ",
        "unknown key 'zzz'; known here: 'head_nodes', 'name'",
    ),
    ("head_nodes: [head]", "head_nodes: [head], sha256: x", ":2:43: ", "unknown key 'sha256'"),
    (", head_nodes: [head]", "", ":2:1: ", "'head_nodes' is missing in cluster"),
    ("ca_file: /etc/secure-slurm/ca.crt}", "ca_file: /ca, node: {method: jwt}}", ":3:77: ", "jwt needs enrol.listen"),
    ("ca_file: /etc/secure-slurm/ca.crt}", "ca_file: /ca, node: {aws_role: a b}}", ":3:79: ", "name of a Vault role"),
    ("https://vault.example:8200", "http://vault.example:8200", ":3:18: ", "vault.address must be an https://"),
    ("https://vault.example:8200", "https://user:secret@vault.example", ":3:18: ", "https://"),
    ("https://vault.example:8200", "https://vault.example/v1", ":3:18: ", "https://"),
    ("ldaps://ldap.example", "ldap://ldap.example", ":6:10: ", "ldap.uris[0] must be an ldaps://"),
    ("ldaps://ldap.example", "'ldaps://ldap.example ldap://other'", ":6:10: ", "ldaps://"),
    ("flavour: openldap", "flavour: openldpa", ":5:12: ", "must be one of 'openldap' or 'active-directory'"),
    ("flavour: openldap", "flavour: openldpa", ":5:12: ", "did you mean 'openldap'?"),
    ("flavour: openldap", "flavour: [openldap]", ":5:12: ", "must be one of"),
    ("base: dc=example,dc=org", "base: example", ":10:9: ", "ldap.base must be a distinguished name"),
    ("base: dc=example,dc=org", "base:", ":10:8: ", "a value is missing here"),
    ("base: dc=example,dc=org", "bsae: dc=example", ":10:3: ", "unknown key 'bsae' (did you mean 'base'?)"),
    ("ca_file: /etc/secure-slurm/ca.crt}", "ca_file: ca.crt}", ":3:57: ", "must be an absolute path"),
    ("ca_file: /etc/secure-slurm/ca.crt}", "ca_file: /etc/../x}", ":3:57: ", "without '.' and '..'"),
    ("ca_file: /etc/secure-slurm/ca.crt}", "ca_file: '/etc/a b'}", ":3:57: ", "must be an absolute path"),
    ("ca_file: /etc/secure-slurm/ca.crt}", "ca_file: /etc/node-%n}", ":3:57: ", "must be an absolute path"),
]
ADDED = [
    ("controller: {deadline: 1001ms}", ":11:24: ", "controller.deadline must be at most 1s"),
    ("controller: {deadline: 0s}", ":11:24: ", "longer than zero"),
    ("controller: {deadline: 200}", ":11:24: ", "200 has no unit"),
    ("controller: {deadline: soon}", ":11:24: ", "controller.deadline 'soon' is not a duration"),
    (
        "controller: {untagged_when_down: accept}",
        ":11:34: ",
        "must be one of 'refuse' or 'allow', not the text 'accept'",
    ),
    ("controller: {socket: 'a;b'}", ":11:22: ", "absolute path"),
    ("controller: []", ":11:13: ", "controller must be a mapping"),
    ("contoller: {}", ":11:1: ", "did you mean 'controller'?"),
    ("sha256: abc", ":11:1: ", "unknown key 'sha256'"),
    ("node: {prolog_deadline: 60s}", ":11:25: ", "must be below 60s"),
    ("node: {prolog_deadline: 1m}", ":11:25: ", "must be below 60s"),
    ("node: {run_dir: /run/%j}", ":11:17: ", "absolute path"),
    ("node: {prolog_deadline: 4s}", ":11:25: ", "vault.timeout must be shorter"),
    ("node: {proof: yes}", ":11:15: ", "must be one of 'none', 'file', 'manifest' or 'ec2'"),
    ("node: {proof: ec3}", ":11:15: ", "did you mean 'ec2'?"),
    ("node: {proof_lifetime: 61m}", ":11:24: ", "must be at most 1h"),
    ("node: {proof_lifetime: 0s}", ":11:24: ", "longer than zero"),
    ("node: {ec2: {account: 123456789012}}", ":11:23: ", "12 digits, in quotes"),
    ("node: {ec2: {account: '12345'}}", ":11:23: ", "12 digits, in quotes"),
    ("node: {ec2: {endpoint: 'https://169.254.169.254'}}", ":11:24: ", "http://169.254.169.254 or"),
    ("node: {ec2: {endpoint: 'http://example.org'}}", ":11:24: ", "http://169.254.169.254 or"),
    ("node: {ec2: {endpoint: 'http://127.0.0.1.example.org'}}", ":11:24: ", "http://169.254.169.254 or"),
    ("node: {ec2: {endpoint: 'http://user@127.0.0.1'}}", ":11:24: ", "http://169.254.169.254 or"),
    ("node: {ec2: {certificates: certs}}", ":11:28: ", "absolute path"),
    ("node: {ec2: {cert: /x}}", ":11:14: ", "unknown key 'cert'"),
    ("node: {manifest: {key: /x}}", ":11:19: ", "unknown key 'key'"),
    ("node: {metadata_users: [a b]}", ":11:25: ", "system account"),
    ("node: {metadata_users: []}", ":11:24: ", "empty"),
    ("scratch: {backing: files}", ":11:20: ", "did you mean 'file'?"),
    ("scratch: {backing: lvm}", ":11:20: ", "'lvm' needs 'volume_group'"),
    ("scratch: {backing: block, device: ''}", ":11:35: ", "'block' needs 'device'"),
    ("scratch: {backing: file, directory: ''}", ":11:37: ", "'file' needs 'directory'"),
    ("scratch: {backing: lvm, volume_group: vg, overcommit: true}", ":11:55: ", "for scratch.backing 'file' only"),
    ("scratch: {backing: memory}", ":11:20: ", "needs scratch.limit"),
    ("scratch: {backing: memory, limit: 5}", ":11:35: ", "has no unit"),
    ("scratch: {backing: memory, limit: 0M}", ":11:35: ", "a size of zero says nothing"),
    ("scratch: {backing: memory, limit: 5G, overcommit: true}", ":11:51: ", "for scratch.backing 'file' only"),
    ("scratch: {backing: auto}", ":11:20: ", "'auto' needs 'volume_group' or 'volume'"),
    ("scratch: {backing: auto, volume_group: vg, diskless: memory}", ":11:54: ", "needs scratch.limit"),
    ("scratch: {diskless: memory, limit: 5G}", ":11:21: ", "is for scratch.backing 'auto'"),
    ("scratch: {backing: lvm, volume_group: vg, limit: 5G}", ":11:50: ", "the store has a size"),
    ("scratch: {take_over: lv_ephemeral}", ":11:22: ", "is for scratch.backing 'lvm'"),
    ("scratch: {take_over: lv_home, backing: lvm, volume_group: vg}", ":11:22: ", "must be one of"),
    ("scratch: {volume: /data}", ":11:19: ", "must be below scratch.volume"),
    ("scratch: {volume: /data, directory: /database/x}", ":11:37: ", "must be below scratch.volume"),
    ("scratch: {volume: data}", ":11:19: ", "absolute path"),
    ("scratch: {backing: lvm, volume_group: vg, volume: /data}", ":11:51: ", "'file' and 'auto' only"),
    ("scratch: {overcommit: yes}", ":11:23: ", "must be true or false, not the text 'yes'"),
    ("scratch: {overcommit: 1}", ":11:23: ", "must be true or false, not the number 1"),
    ("scratch: {filesystem: btrfs}", ":11:23: ", "must be one of 'ext4' or 'xfs'"),
    ("scratch: {mount_root: /}", ":11:23: ", "a directory of its own"),
    ("scratch: {mount_root: /tmp/}", ":11:23: ", "a directory of its own"),
    ("scratch: {mount_root: /s, directory: /s}", ":11:23: ", "must be two directories"),
    ("enrol: {token_key: key}", ":11:20: ", "an absolute path"),
    ("enrol: {instance_roles: [a/b]}", ":11:26: ", "name of an IAM role"),
    ("enrol: {lifetime: 25h}", ":11:19: ", "must be from 10m to 24h"),
    ("enrol: {lifetime: 9m}", ":11:19: ", "must be from 10m to 24h"),
    ("enrol: {source: command}", ":11:17: ", "needs 'command'"),
    ("enrol: {source: dns}", ":11:17: ", "must be one of 'slurm', 'file' or 'command'"),
    ("enrol: {regions: []}", ":11:18: ", "empty"),
    ("enrol: {listen: '0.0.0.0:1'}", ":11:17: ", "needs enrol.regions"),
    ("enrol: {listen: '0.0.0.0:1', regions: [eu-central-1]}", ":11:17: ", "needs node.ec2.account"),
    ("enrol: {listen: '0.0.0.0:1'}\nlink: {listen: '0.0.0.0:1'}", ":11:17: ", "need two ports"),
    ("revocation: {role_loss: freeze}", ":11:25: ", "needs link.listen"),
    ("revocation: {role_loss: kill}", ":11:25: ", "must be one of 'none', 'freeze' or 'revoke'"),
    ("audit: {directory: 5}", ":11:20: ", "not the number 5"),
    ("  refresh: 10m", ":11:12: ", "max_age must be longer than refresh"),
    ("  refresh: 30s\n  max_age: 30s", ":12:12: ", "max_age must be longer than refresh"),
    ("  base: dc=other", ":11:3: ", "the key 'base' is already on line 10"),
    ("\tx: 1", ":11:1: ", "a tab"),
]


def test_yes_is_a_name_like_any_other(written: Write, site_text: str) -> None:
    assert load_site(written(site_text.replace("name: test", "name: yes"))).cluster.name == "yes"


@pytest.mark.parametrize(("change", "place", "part"), [((old, new), place, part) for old, new, place, part in REPLACED])
def test_a_broken_file(written: Write, site_text: str, change: tuple[str, str], place: str, part: str) -> None:
    assert site_text.count(change[0]) == 1
    (line,) = mistakes(written(site_text.replace(*change)))
    assert line.startswith(place), line
    assert part in line


@pytest.mark.parametrize(("text", "place", "part"), ADDED)
def test_a_broken_addition(written: Write, site_text: str, text: str, place: str, part: str) -> None:
    found = [line for line in mistakes(written(site_text + text + "\n")) if part in line]
    assert [line.startswith(place) for line in found] == [True], found


def test_two_mounts(written: Write, site_text: str) -> None:
    text = site_text.replace("ca.crt}", "ca.crt, transit_mount: kv, grants_mount: kv}")
    (line,) = mistakes(written(text))
    assert "must be two mounts" in line


def test_eight_mistakes_of_every_kind_in_one_report(written: Write) -> None:
    path = written(
        "version: 1\n"
        "cluster: {name: test, head_node: [head]}\n"
        "vault: {address: 'http://vault', ca_file: /ca}\n"
        "ldap:\n"
        "  flavour: openldap\n"
        "  uris: []\n"
        "  ca_file: /ca\n"
        "  bind_dn: cn=reader,dc=example\n"
        "  bind_password_file:\n"
        "  base: dc=example\n"
        "  base: dc=again\n"
        "controller: {deadline: 2s}\n"
        "node: {prolog_deadline: 45}\n"
        "scratch: {backing: lvm}\n"
    )
    lines = mistakes(path)
    assert [line.split(":")[1] for line in lines] == ["2", "3", "6", "9", "11", "12", "13", "14"]


def test_more_mistakes_than_a_terminal_holds(written: Write, site_text: str) -> None:
    lines = mistakes(written(site_text + "".join(f"x{number}: 1\n" for number in range(80))))
    assert len(lines) == 51
    assert lines[-1] == ": and 30 more"


def test_a_hostile_file_cannot_attack_the_terminal(written: Write, site_text: str) -> None:
    for word in ('"\\e[2J"', '"a\\nb"', '"\\u202e"'):
        mistakes(written(f"{site_text}{word}: 1\n"))
        mistakes(written(f"{site_text}audit: {{directory: {word}}}\n"))
        mistakes(written(f"{site_text}audit: {{{word}: 1}}\n"))
    with pytest.raises(ConfigError) as caught:
        load_site(written("version: 2", "\x1b[2J.yaml"))
    assert r"\x1b[2J.yaml':1:10" in str(caught.value)


@pytest.mark.parametrize("mode", [0o664, 0o666])
def test_an_unsafe_file(written: Write, site_text: str, mode: int) -> None:
    path = written(site_text)
    Path(path).chmod(mode)
    with pytest.raises(ConfigError, match="can be written"):
        load_site(path)


def test_a_file_that_is_too_large(written: Write, site_text: str) -> None:
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        load_site(written(site_text + "#" * 1024 * 1024))


def test_defaults_and_units(written: Write, site_text: str) -> None:
    site = load_site(written(site_text + "controller: {deadline: 1s}\nscratch: {directory: /big/}\n"))
    assert isinstance(site, Site)
    assert (site.controller.deadline, site.node.prolog_deadline, site.ldap.max_age) == (1.0, 45.0, 600.0)
    assert site.scratch.directory == "/big"
    assert (site.node.proof, site.node.metadata_users) == ("none", ())
    assert site.controller.untagged_when_down == "refuse"
    assert site.scratch.overcommit is False
    assert site.ldap.user_attribute == "uid"
    assert site.cluster.head_nodes == ("head",)
    assert len(site.sha256) == 64
    assert site.lifecycle.ended_dir == f"{site.lifecycle.state_dir}/ended"


def test_active_directory_has_its_own_attribute(written: Write, site_text: str) -> None:
    site = load_site(written(site_text.replace("openldap", "active-directory")))
    assert site.ldap.user_attribute == "sAMAccountName"


@pytest.mark.parametrize(
    "backing",
    [
        "backing: lvm, volume_group: vg.01",
        "backing: block, device: /dev/nvme1n1",
        "backing: lvm, volume_group: vg.01, take_over: lv_ephemeral",
        "backing: memory, limit: 64G",
        "backing: file, volume: /scratch, directory: /scratch/secure-slurm, limit: 1T",
        "backing: file, limit: ''",
        "backing: auto, volume_group: vg.01, diskless: memory, limit: 64G",
        "backing: auto, volume: /scratch, directory: /scratch/secure-slurm",
        "backing: auto, volume: /, directory: /x",
    ],
)
def test_other_backings(written: Write, site_text: str, backing: str) -> None:
    assert load_site(written(f"{site_text}scratch: {{{backing}}}\n"))


def test_a_login_with_the_instances_role_needs_their_names(written: Write, site_text: str) -> None:
    text = site_text.replace("ca.crt}", "ca.crt, node: {method: aws}}")
    enrol = "node: {ec2: {account: '123456789012'}}\nenrol: {listen: '0.0.0.0:1', regions: [eu-central-1]}\n"
    (line,) = mistakes(written(text + enrol))
    assert "aws needs enrol.instance_roles" in line
    assert (
        load_site(written(text + enrol.replace("regions", "instance_roles: [r], regions"))).vault.node.method == "aws"
    )


def test_enrolment_with_what_it_needs(written: Write, site_text: str) -> None:
    text = "enrol: {listen: '0.0.0.0:1', regions: [eu-central-1]}\nnode: {ec2: {account: '123456789012'}}\n"
    assert load_site(written(site_text + text)).enrol.source == "slurm"


def test_the_shipped_file_loads(written: Write) -> None:
    site = load_site(written(SHIPPED.read_bytes()))
    assert Path(DEFAULT_PATH).name == SHIPPED.name
    assert site.version == 1


def test_the_values_that_are_commented_out_are_the_defaults(written: Write) -> None:
    text = SHIPPED.read_text()
    uncommented, count = re.subn(r"(?m)^( +)# (?=[a-z_]+: )", r"\1", text)
    assert count > 10
    shipped, all_written_out = load_site(written(text)), load_site(written(uncommented))
    assert attrs.evolve(all_written_out, sha256="") == attrs.evolve(shipped, sha256="")


@pytest.mark.parametrize("node", ["", "a_b", "../x", "a/b", "-a", "n\n", "n\u00e9", "x" * 64])
def test_a_node_name_cannot_leave_its_path(node: str) -> None:
    with pytest.raises(ConfigError):
        for_node("/run/node-%n", node)


def test_for_node() -> None:
    assert for_node("/run/node-%n/x-%n", "q-dy-c5-1") == "/run/node-q-dy-c5-1/x-q-dy-c5-1"
