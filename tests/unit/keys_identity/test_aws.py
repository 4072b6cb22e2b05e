"""What a node sends to Vault to log in with its role, and where it has the credentials from."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from conf.errors import BackendUnavailable, ConfigError
from keys import vault_aws
from keys.sigv4 import Credentials, sign
from tests.testbed.imds import Imds

PATH = "/latest/meta-data/iam/security-credentials/"
CREDENTIALS = Credentials("AKIDEXAMPLE", "very-secret", "session-token")
FOUND = {"Code": "Success", "AccessKeyId": "AKIDEXAMPLE", "SecretAccessKey": "very-secret", "Token": "session-token"}


@pytest.fixture
def imds() -> Iterator[Imds]:
    with Imds() as service:
        yield service


def gives(imds: Imds, found: object, role: str = "queue1-Role+x=,.@-_") -> None:
    imds.more = {PATH: f"{role}\n".encode(), PATH + role: json.dumps(found).encode()}


@pytest.mark.parametrize(
    ("region", "host", "arn"),
    [
        ("eu-central-1", "sts.eu-central-1.amazonaws.com", "arn:aws:sts::123456789012:assumed-role/R/i-1"),
        ("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com", "arn:aws-us-gov:sts::123456789012:assumed-role/R/i-1"),
        ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn", "arn:aws-cn:sts::123456789012:assumed-role/R/i-1"),
        ("eusc-de-east-1", "sts.eusc-de-east-1.amazonaws.eu", "arn:aws-eusc:sts::123456789012:assumed-role/R/i-1"),
        ("us-isob-east-1", "sts.us-isob-east-1.sc2s.sgov.gov", "arn:aws-iso-b:sts::123456789012:assumed-role/R/i-1"),
        ("us-iso-east-1", "sts.us-iso-east-1.c2s.ic.gov", "arn:aws-iso:sts::123456789012:assumed-role/R/i-1"),
    ],
)
def test_the_regional_sts_and_who_an_instance_is_to_it(region: str, host: str, arn: str) -> None:
    assert vault_aws.sts_host(region) == host
    assert vault_aws.principal(region, "123456789012", "R", "i-1") == arn


@pytest.mark.parametrize("region", ["", "eu", "eu-central-1.evil.example/", "EU-CENTRAL-1", "eu-central-1\n", "../x"])
def test_no_region(region: str) -> None:
    """The host that gets the session's token is made of it."""
    with pytest.raises(ConfigError):
        vault_aws.sts_host(region)


def test_the_login() -> None:
    body = vault_aws.login_body(CREDENTIALS, "eu-central-1", "test", "secure-slurm-node", 1.79e9)
    assert body["role"] == "secure-slurm-node"
    assert body["iam_http_request_method"] == "POST"
    assert base64.b64decode(body["iam_request_url"]) == b"https://sts.eu-central-1.amazonaws.com/"
    text = base64.b64decode(body["iam_request_body"])
    assert text == b"Action=GetCallerIdentity&Version=2011-06-15"
    headers = json.loads(base64.b64decode(body["iam_request_headers"]))
    assert all(isinstance(value, list) and len(value) == 1 for value in headers.values())
    plain = {name: value[0] for name, value in headers.items()}
    # Vault refuses a login whose server id is not among the signed headers
    names = plain["Authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "x-vault-aws-iam-server-id", "x-amz-security-token", "content-type"} <= set(names)
    assert plain["X-Vault-AWS-IAM-Server-ID"] == "secure-slurm-test"
    given = {name: plain[name] for name in ("Content-Type", "Content-Length", "X-Vault-AWS-IAM-Server-ID")}
    again = sign(
        CREDENTIALS, region="eu-central-1", service="sts", host="sts.eu-central-1.amazonaws.com", headers=given,
        body=text, now=1.79e9,
    )  # fmt: skip
    assert plain == again
    assert plain["Content-Length"] == str(len(text))
    assert b"very-secret" not in base64.b64decode(body["iam_request_headers"])


def test_the_role_and_its_credentials(imds: Imds) -> None:
    gives(imds, FOUND)
    assert vault_aws.role_credentials(imds.endpoint) == ("queue1-Role+x=,.@-_", CREDENTIALS)
    assert [each.split()[0] for each in imds.asked] == ["PUT", "GET", "GET"]


@pytest.mark.parametrize(
    "found",
    [
        [], "x", {}, {**FOUND, "Token": ""}, {**FOUND, "SecretAccessKey": None}, {**FOUND, "AccessKeyId": "a\nb"},
        {**FOUND, "Token": "\u00e9"}, {name: FOUND[name] for name in ("AccessKeyId", "Token")},
    ],
)  # fmt: skip
def test_no_credentials(imds: Imds, found: object) -> None:
    gives(imds, found)
    with pytest.raises(BackendUnavailable) as caught:
        vault_aws.role_credentials(imds.endpoint)
    assert "very-secret" not in f"{caught.value}{caught.value.advice}"


def test_no_role(imds: Imds) -> None:
    with pytest.raises(BackendUnavailable, match="no role"):
        vault_aws.role_credentials(imds.endpoint)
    gives(imds, FOUND, "a/../b")
    with pytest.raises(BackendUnavailable, match="names no role"):
        vault_aws.role_credentials(imds.endpoint)


def test_nobody_answers() -> None:
    with pytest.raises(BackendUnavailable, match="does not answer"):
        vault_aws.role_credentials("http://127.0.0.1:9")


def test_a_login_asks_for_the_credentials_each_time(imds: Imds) -> None:
    sent: list[tuple[str, dict[str, str]]] = []

    class Adapter:
        def post(self, path: str, json: dict[str, str]) -> None:
            sent.append((path, json))

    class Client:
        adapter = Adapter()

    login = vault_aws.login("aws", "node", "test", lambda: "eu-central-1", imds.endpoint)
    for token in ("one", "two"):
        gives(imds, {**FOUND, "Token": token})
        login(Client())
    assert [path for path, _ in sent] == ["/v1/auth/aws/login"] * 2
    tokens = [json.loads(base64.b64decode(body["iam_request_headers"]))["X-Amz-Security-Token"] for _, body in sent]
    assert tokens == [["one"], ["two"]]
