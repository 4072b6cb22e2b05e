"""Signature Version 4: the vectors that AWS publishes, and what botocore makes of the same requests."""

from __future__ import annotations

import datetime

import pytest

from keys.sigv4 import Credentials, sign

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
BODY = b"Action=GetCallerIdentity&Version=2011-06-15"


def at(*moment: int) -> float:
    return datetime.datetime(*moment, tzinfo=datetime.UTC).timestamp()  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("method", "signature"),
    [
        ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    ],
)
def test_the_published_vectors(method: str, signature: str) -> None:
    """get-vanilla and post-vanilla of AWS's Signature Version 4 test suite."""
    found = sign(
        Credentials("AKIDEXAMPLE", SECRET), region="us-east-1", service="service", host="example.amazonaws.com",
        headers={}, body=b"", now=at(2015, 8, 30, 12, 36), method=method,
    )  # fmt: skip
    assert found["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders=host;x-amz-date, Signature={signature}"
    )


# made with botocore 1.44.5: botocore.auth.SigV4Auth(Credentials(...), "sts", region).add_auth(AWSRequest(...))
BOTOCORE = [
    ("eu-central-1", "amazonaws.com", "FwoGZXIvYXdzEXAMPLE//token+=", "vault.example.org",
     "content-type;host;x-amz-date;x-amz-security-token;x-vault-aws-iam-server-id",
     "289afe832c69474d7f8b3f75171cec1d83c1a247f7770c3bc05419dc0763d5c6"),
    ("us-gov-west-1", "amazonaws.com", "", "", "content-type;host;x-amz-date",
     "a3a5ddde29d45b160076eee38e259c97c01ce18d6c1c64feede34465dc82e849"),
    ("cn-north-1", "amazonaws.com.cn", "tok", "  two   words ",
     "content-type;host;x-amz-date;x-amz-security-token;x-vault-aws-iam-server-id",
     "cae89b229072550d4ad0940d19c3241f0e8de7bb2b263509434b2850be25705e"),
]  # fmt: skip


@pytest.mark.parametrize("vector", BOTOCORE, ids=[each[0] for each in BOTOCORE])
def test_as_botocore_does_it(vector: tuple[str, ...]) -> None:
    region, suffix, token, server, names, signature = vector
    host = f"sts.{region}.{suffix}"
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    headers |= {"X-Vault-AWS-IAM-Server-ID": server} if server else {}
    found = sign(
        Credentials("AKIDEXAMPLE", SECRET, token), region=region, service="sts", host=host, headers=headers,
        body=BODY, now=at(2026, 11, 22, 6, 30),
    )  # fmt: skip
    assert found["Authorization"] == (
        f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261122/{region}/sts/aws4_request, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    assert found["X-Amz-Date"] == "20261122T063000Z"
    assert found.get("X-Amz-Security-Token", "") == token
    assert found["Host"] == host


def test_every_part_counts() -> None:
    def signature(**changes: object) -> str:
        words = {
            "region": "eu-central-1", "service": "sts", "host": "h", "headers": {"A": "b"}, "body": b"x", "now": 1e9,
            "method": "POST", **changes,
        }  # fmt: skip
        credentials = words.pop("credentials", Credentials("A", "s"))
        return sign(credentials, **words)["Authorization"]  # type: ignore[arg-type]

    changes: list[dict[str, object]] = [
        {}, {"region": "eu-west-1"}, {"service": "iam"}, {"host": "g"}, {"headers": {"A": "c"}}, {"body": b"y"},
        {"now": 1e9 + 1}, {"method": "GET"}, {"credentials": Credentials("B", "s")},
        {"credentials": Credentials("A", "t")}, {"credentials": Credentials("A", "s", "t")},
    ]  # fmt: skip
    assert len({signature(**change) for change in changes}) == len(changes)


def test_credentials_do_not_show() -> None:
    found = Credentials("AKIDEXAMPLE", SECRET, "token")
    assert SECRET not in f"{found}{found!r}"
    assert "token" not in repr(found)
