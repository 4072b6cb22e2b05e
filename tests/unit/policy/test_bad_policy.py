"""Policies that are wrong: every mistake is told with its line, and nothing of such a file is in use."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from conf.errors import ConfigError
from conf.policy import Policy, load_policy
from slurm_hooks.filters.verdict import Context
from tests.unit.policy.people import JOBS, NOW, SITE, Decide, snapshot

Write = Callable[[str], str]
TEXT = SITE.read_text()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> str:
        path = tmp_path / "policy.yaml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        return str(path)

    return to_file


def refused(path: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_policy(path)
    return str(error.value).splitlines()


# what is replaced, by what, and what is said of it
MISTAKES: list[tuple[str, str, str]] = [
    # circles
    ("includes: [phi-uk]", "includes: [board]", "goes round in a circle: board includes board"),
    (
        '{groups: ["cn=phi-uk,dc=example"],',
        '{includes: [board], groups: ["cn=phi-uk,dc=example"],',
        "board includes phi-uk, phi-uk includes board",
    ),
    (
        "{class: internal, residency: [eu, uk], roles: [staff, study]}",
        "{class: internal, residency: [eu, uk], roles: [staff], includes: [joint]}",
        "joint includes mri, mri includes joint",
    ),
    # nowhere
    (
        "includes: [genomes-shared, mri]",
        "includes: [genomes, swiss]",
        "no jurisdiction in which this and all that it includes",
    ),
    (
        "includes: [genomes-shared, mri]",
        "includes: [ukb, swiss]",
        "no jurisdiction in which this and all that it includes",
    ),
    # words that refer to nothing
    ("includes: [phi-uk]", "includes: [phi-ku]", "unknown role 'phi-ku' (did you mean 'phi-uk'?)"),
    ("roles: [phi-eu, study]", "roles: [phi-eu, studi]", "unknown role 'studi' (did you mean 'study'?)"),
    ("genomes: {class: phi,", "genomes: {class: phy,", "unknown class 'phy' (did you mean 'phi'?)"),
    ("residency: [uk], roles", "residency: [gb], roles", "unknown jurisdiction 'gb'"),
    (
        "includes: [genomes-shared, mri]",
        "includes: [genomes-shard]",
        "unknown dataset 'genomes-shard' (did you mean 'genomes-shared'?)",
    ),
    ("adequate: [uk, ch]", "adequate: [uk, cc]", "unknown jurisdiction 'cc'"),
    ("adequate: [uk, ch]", "adequate: [eu]", "need not be called adequate by itself"),
    # values
    ("until: 2027-03-31", "until: 2027-02-30", "must be a date such as 2027-03-31, not '2027-02-30'"),
    ("until: 2027-03-31", "until: 31.3.2027", "must be a date such as 2027-03-31"),
    ("until: 2027-03-31", "until: 20270331", "must be a date such as 2027-03-31"),
    ("until: 2027-03-31", "until: soon", "must be a date such as 2027-03-31"),
    ("max_nodes: 4", "max_nodes: 0", "must be a whole number from 1"),
    ("max_nodes: 4", "max_nodes: -1", "must be a whole number from 1"),
    ("max_nodes: 4", "max_nodes: all", "must be a whole number from 1"),
    ("max_nodes: 4", "max_nodes: true", "must be a whole number from 1"),
    ("max_array: 100", "max_array: 1.5", "must be a whole number from 1"),
    ("max_time: 2d", "max_time: 48", "has no unit"),
    ("max_time: 2d", "max_time: 2days", "max_time"),
    ("default_time: 1d", "default_time: 8d", "default_time is longer than max_time"),
    ("gres: [gpu, nvme]", "gres: []", "must not be an empty list"),
    ("gres: [gpu, nvme]", 'gres: ["gpu,nvme"]', "a name of Slurm's (no spaces or commas)"),
    ("work_dirs: [/data/phi]", "work_dirs: [data/phi]", "must be an absolute path"),
    ("work_dirs: [/data/phi]", "work_dirs: [/data/../phi]", "without '.' and '..'"),
    ("work_dirs: [/data/phi]", "work_dirs: /data/phi", "must be a list"),
    ("mail: owner", "mail: owners", "did you mean 'owner'?"),
    ("mail: allow", "mail: true", "must be one of"),
    ("environment: nil", "environment: nill", "did you mean 'nil'?"),
    ("transfers: adequate", "transfers: any", "must be one of"),
    ("accounts: [clinic, clinic-2]", 'accounts: ["a b"]', "a name of Slurm's"),
    ("accounts: [clinic, clinic-2]", 'accounts: ["a\\nb"]', "holds a control or invisible character"),
    ("accounts: [clinic, clinic-2]", "accounts: [a, a]", "names 'a' twice"),
    ("paths: [/data/genomes]", 'paths: ["/data/gen omes"]', "must be an absolute path"),
    ("transfers: adequate", "transfer: adequate", "unknown key 'transfer' (did you mean 'transfers'?)"),
    ("qos: [normal, long]", "QOS: [normal, long]", "unknown key 'QOS'"),
    ("  mri: {class: internal,", "  MRI: {class: internal,", "the key must be a name"),
    ("  mri: {class: internal,", "  mri: {", "'class' is missing"),
    (
        "version: 1",
        "version: 1\nshadow: {residency.constraint: 2027-01-01}",
        "'residency.constraint' is no rule that can be in shadow",
    ),
    ("version: 1", "version: 1\nshadow: {limit.tiem: 2027-01-01}", "did you mean 'limit.time'?"),
    ("version: 1", "version: 1\nshadow: {limit.time: forever}", "must be a date"),
    ("version: 1", 'version: 1\nshadow: {"../x": 2027-01-01}', "the id of a rule"),
    ("version: 1", 'version: 1\nbreak_glass: {requesters: ["cn=a,dc=b"], longest: 8h}', "'approvers' is missing"),
    (
        "version: 1",
        'version: 1\nbreak_glass: {requesters: [a], approvers: ["cn=a,dc=b"], longest: 8h}',
        "must be a distinguished name",
    ),
    ("version: 1", "version: 1\ndatasets2: {}", "unknown key 'datasets2' (did you mean 'datasets'?)"),
]


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES)
def test_a_mistake_is_told_with_its_line(old: str, new: str, said: str, write: Write) -> None:
    assert old in TEXT
    path = write(TEXT.replace(old, new))
    lines = refused(path)

    assert any(said in line or said in line.replace(f"{path}:", "line ") for line in lines), lines
    assert all(re.match(rf"{re.escape(path)}:[0-9]+:[0-9]+: ", line) for line in lines)


def test_every_mistake_at_once(write: Write) -> None:
    text = TEXT
    chosen = [MISTAKES[0], MISTAKES[3], MISTAKES[16], MISTAKES[27]]
    for old, new, _ in chosen:
        text = text.replace(old, new)
    said = "\n".join(refused(write(text)))

    assert all(each in said for _, _, each in chosen)


def test_the_site_itself_is_sound(site: Policy) -> None:
    assert len(site.datasets) == 7
    assert site.datasets["genomes"].klass == "phi"


def test_ten_megabytes_are_refused_at_once(write: Write) -> None:
    path = write(TEXT + "# " + "x" * 10 * 2**20)

    assert "bytes" in refused(path)[0]


def test_a_bomb_of_aliases(write: Write) -> None:
    bomb = "version: 1\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    )

    assert any("alias" in line or "anchor" in line for line in refused(write(bomb)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "- a\n",
        "version",
        "\0",
        "{" * 2000,
        "[" * 100_000,
        "version: 1\n\tclasses: x",
        "%YAML 9\n---\n{}",
        "!!python/object:os.system {}",
    ],
)
def test_no_policy_at_all(text: str, write: Write) -> None:
    assert refused(write(text))


def test_a_link_is_not_followed(tmp_path: Path, write: Write) -> None:
    real = write(TEXT)
    (tmp_path / "link.yaml").symlink_to(real)
    with pytest.raises(ConfigError):
        load_policy(str(tmp_path / "link.yaml"))


def test_many_entries(write: Write) -> None:
    """As many as the bench has; the indices are made once."""
    roles = "".join(
        f'  r{n}: {{groups: ["cn=g{n},dc=example"], classes: [open], jurisdictions: [eu]}}\n' for n in range(200)
    )
    datasets = "".join(f"  d{n}: {{class: open, residency: [eu], roles: [r{n % 200}]}}\n" for n in range(500))
    text = TEXT.replace("datasets:\n", f"{roles}datasets:\n{datasets}")
    policy = load_policy(write(text))

    assert (len(policy.roles), len(policy.datasets)) == (207, 507)
    assert len(policy.roles_for("open")) == 202


def test_a_chain_of_a_thousand_roles_ends(write: Write) -> None:
    roles = "".join(
        f'  c{n}: {{groups: ["cn=g{n},dc=example"], classes: [open], jurisdictions: [eu], includes: [c{n + 1}]}}\n'
        for n in range(300)
    )
    roles += '  c300: {groups: ["cn=g300,dc=example"], classes: [open], jurisdictions: [eu]}\n'
    policy = load_policy(write(TEXT.replace("datasets:\n", f"{roles}datasets:\n", 1)))

    assert len(policy.holdings("c300")) == 301


def test_a_region_that_aws_added_yesterday(site: Policy) -> None:
    assert site.jurisdiction_of_region("eu-central-9") is None
    assert site.jurisdiction_of_region("") is None
    assert site.jurisdiction_of_region("eu") is None


def test_everything_has_ended(decide: Decide, site: Policy) -> None:
    roles = {name: attrs.evolve(role, until=datetime.date(2020, 1, 1)) for name, role in site.roles.items()}
    given = Context(attrs.evolve(site, roles=roles), snapshot(), now=NOW)

    assert {decide(job, given=given).rule for job in JOBS if job != "study"} == {"role.expired"}


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a'b", "a\\nb", "ä", "a b", "-a", "A", "a" * 33, "a;b", "a=b", "../a"])
def test_a_name_that_would_have_to_be_quoted(name: str, write: Write) -> None:
    old = "  mri: {class: internal,"
    quoted = '"' + name.replace('"', '\\"') + '"'

    assert refused(write(TEXT.replace(old, f"  {quoted}: {{class: internal,")))


@pytest.mark.parametrize(
    "dn",
    [
        "cn=a\\\\,b,dc=example",
        "cn=Ünïcode,dc=example",
        "cn=a+sn=b,dc=example",
        "CN=a b,DC=example",
        'cn=\\"q\\",dc=example',
    ],
)
def test_a_group_may_have_any_name_that_ldap_has(dn: str, write: Write) -> None:
    assert load_policy(write(TEXT.replace("cn=study,dc=example", dn)))
