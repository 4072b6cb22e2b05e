"""secure-slurm policy test: the shipped cases, those of the documentation, and every way to write one wrongly."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from admin import case_words, policy_cases
from admin.main import main
from admin.policy_lint import lint
from conf.errors import ConfigError
from conf.policy import Policy, load_policy

ROOT = Path(__file__).parents[3]
EXAMPLES = dict(
    re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", (ROOT / "docs/policy.md").read_text(), re.MULTILINE | re.DOTALL)
)

GOOD = """\
version: 1
default_partition: batch
users:
  alice: [phi-eu]
cases:
  - name: in
    user: alice
    submit: {class: phi, residency: eu, partition: phi}
    expect: allow
"""


def put(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    path.chmod(0o644)
    return path


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    return put(tmp_path, "policy.yaml", (ROOT / "conf/policy.yaml").read_text())


@pytest.fixture
def policy(policy_file: Path) -> Policy:
    return load_policy(str(policy_file))


def mistakes(tmp_path: Path, policy: Policy, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        policy_cases.run(str(put(tmp_path, "cases.yaml", text)), policy)
    return str(caught.value)


def test_the_shipped_cases_pass(policy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "conf/policy-tests.yaml", policy_file.parent)
    (policy_file.parent / "policy-tests.yaml").chmod(0o644)
    assert main(["policy", "test", str(policy_file)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == f"{len(shown) - 1} passed, 0 failed"
    assert all(line.startswith("ok    ") for line in shown[:-1])


def test_the_shipped_cases_allow_and_refuse_each_role_class_and_partition(policy: Policy, tmp_path: Path) -> None:
    path = put(tmp_path, "cases.yaml", (ROOT / "conf/policy-tests.yaml").read_text())
    results = policy_cases.run(str(path), policy)
    for expect in ("allow", "refuse"):
        chosen = [each.case.submit for each in results if each.case.expect == expect]
        assert {each.name for each in policy.classes} <= {each.get("class") for each in chosen}
        assert set(policy.partitions) <= {each.get("partition") for each in chosen}
    places = {each.case.submit.get("residency") for each in results if each.case.expect == "allow"}
    assert set(policy.jurisdictions) <= places


def test_the_documentation_has_four_examples() -> None:
    assert set(EXAMPLES) == {
        f"{name}/{file}"
        for name in ("hipaa", "hospitals", "export", "open")
        for file in ("policy.yaml", "policy-tests.yaml")
    }


@pytest.mark.parametrize("name", ["hipaa", "hospitals", "export", "open"])
def test_an_example_of_the_documentation_holds(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path, "policy.yaml", EXAMPLES[f"{name}/policy.yaml"])
    put(tmp_path, "policy-tests.yaml", EXAMPLES[f"{name}/policy-tests.yaml"])
    assert main(["policy", "test", str(path)]) == 0, capsys.readouterr().out
    # a rule in shadow is told of for as long as it is
    assert [each for each in lint(load_policy(str(path))) if each.check != "rule-in-shadow"] == []


def test_the_documentation_names_every_key() -> None:
    page = (ROOT / "docs/policy.md").read_text()
    section = page.partition("\n## policy test\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([a-z_]+)`", section))
    assert set(case_words.SUBMIT) | set(case_words.SET) <= told


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("expect: allow", "expect: refuse\n    rule: rbac.role", "expected refuse rbac.role, got allow allow.tagged"),
        ("expect: allow", "expect: allow\n    rule: allow.untagged", "expected allow allow.untagged, got allow"),
        ("    user: alice\n", "", "expected allow, got refuse rbac.role: "),
        ("alice: [phi-eu]", "alice: [researchers]", "expected allow, got refuse rbac.role: "),
        ("expect: allow", "expect: allow\n    set: {constraint: us}", "expected constraint 'us', got 'eu'"),
        ("expect: allow", "expect: allow\n    set: {scratch: 9G}", "expected scratch '9G', got '10G'"),
        ("expect: allow", "expect: allow\n    set: {exclusive: false}", "expected exclusive false, got true"),
    ],
)
def test_a_case_that_fails_says_how(
    before: str, after: str, difference: str, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = put(policy_file.parent, "other.yaml", GOOD.replace(before, after))
    assert main(["policy", "test", str(policy_file), "--cases", str(cases)]) == 1
    shown = capsys.readouterr().out
    assert f"FAIL  in ({cases}:6): {difference}" in shown
    assert shown.endswith("0 passed, 1 failed\n")
    assert main(["policy", "test", str(policy_file), "--cases", str(cases), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["failed"]) == (0, 1)
    assert told["results"][0]["line"] == 6
    assert difference in told["results"][0]["differences"][0]


def test_every_mistake_is_told_at_once_with_its_line(tmp_path: Path, policy: Policy) -> None:
    text = """\
version: 1
users:
  alice: [phi-ue]
  bob: ["cn=other,dc=example,dc=org"]
cases:
  - {name: a, user: alcie, submit: {clas: phi}, expect: allow}
  - {name: a, user: alice, groups: [phi-eu], submit: {partition: 5}, expect: refuse}
  - {name: b, submit: {scratch: big, het: maybe}, expect: refuse, rule: allow.tagged, set: {constraint: x}}
  - {name: c, submit: {script: one, env: {PATH: x}}, expect: perhaps}
  - {name: d, submit: {env: [x]}, expect: allow, set: {shared: true}, rule: rbac.role}
  - {name: e, submit: text, expect: allow, extra: 1}
  - {name: f, user: [x], submit: {from_partition: hpi}, expect: [allow], rule: rbac.role}
"""
    told = mistakes(tmp_path, policy, text).split("\n")
    for line, words in [
        (3, "no role of the policy names the group 'phi-ue' (did you mean 'phi-eu'?)"),
        (4, "names the group 'cn=other,dc=example,dc=org'"),
        (6, "unknown user 'alcie' (did you mean 'alice'?)"),
        (6, "unknown key 'clas' (did you mean 'class'?)"),
        (7, "a case 'a' is already there"),
        (7, "user and groups in one case"),
        (7, "partition must be a text, not the number 5"),
        (7, "'refuse' needs 'rule'"),
        (8, "scratch 'big' is not a size"),
        (8, "het must be true or false"),
        (8, "the rule 'allow.tagged' cannot be that of 'refuse'"),
        (8, "nothing is set on a job that is refused"),
        (9, "script must be a list"),
        (9, "env names 'PATH'"),
        (9, "must be one of 'allow' or 'refuse'"),
        (10, "env must be a mapping"),
        (10, "unknown key 'shared'"),
        (10, "the rule 'rbac.role' cannot be that of 'allow'"),
        (11, "must be a mapping, not the text 'text'"),
        (11, "unknown key 'extra'"),
        (12, "user must be a text"),
        (12, "from_partition 'hpi' is none that demands a tag, so it makes no difference (did you mean 'phi'?)"),
        (12, "expect must be one of 'allow' or 'refuse'"),
    ]:
        assert any(each.startswith(f"{tmp_path}/cases.yaml:{line}:") and words in each for each in told), (line, words)


@pytest.mark.parametrize(
    "text", ["", "[]", "version: 1\ncases: []\n", "version: 2\n", GOOD.replace("expect: allow", "expect: &a allow")]
)
def test_a_file_that_cannot_be_used_is_exit_3(text: str, policy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(policy_file.parent, "policy-tests.yaml", text)
    assert main(["policy", "test", str(policy_file)]) == 3
    assert capsys.readouterr().out == ""


def test_missing_files_are_exit_3(policy_file: Path) -> None:
    assert main(["policy", "test", str(policy_file)]) == 3
    assert main(["policy", "test", str(policy_file.with_name("none.yaml"))]) == 3


def test_a_group_by_its_first_value_must_be_the_only_one(tmp_path: Path) -> None:
    text = (ROOT / "conf/policy.yaml").read_text()
    text = text.replace('"cn=researchers,ou=groups', '"cn=phi-eu,ou=old,dc=example,dc=org", "cn=researchers,ou=groups')
    policy = load_policy(str(put(tmp_path, "policy.yaml", text)))
    assert "'phi-eu' may be" in mistakes(tmp_path, policy, GOOD)
    spelt = GOOD.replace("[phi-eu]", '["CN=phi-eu, OU=groups, DC=example, DC=org"]')
    assert not policy_cases.run(str(put(tmp_path, "cases.yaml", spelt)), policy)[0].differences
