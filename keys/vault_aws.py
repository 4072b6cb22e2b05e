"""Logging in to Vault with the instance role's credentials (auth method ``aws``, type ``iam``), by a regional STS.

The node signs a request for ``sts:GetCallerIdentity`` and gives it to Vault, which sends it to STS and learns who has
signed. hvac signs for ``sts.amazonaws.com`` whatever the region is, and an isolated network has the regional endpoint
alone, so the request is made here. It carries the cluster's name in a signed header, so that no other Vault can use it.
Source: Vault's documentation of auth/aws, "IAM auth method"; the form of the login in its API documentation.
"""

from __future__ import annotations

import base64
import json
import re
import time
from typing import TYPE_CHECKING, Any

from conf.errors import BackendUnavailable, ConfigError
from keys import imds
from keys.place import NotProved
from keys.sigv4 import Credentials, sign

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = b"Action=GetCallerIdentity&Version=2011-06-15"
SERVER_ID = "X-Vault-AWS-IAM-Server-ID"
# botocore 1.44, partitions.json: the start of a region's id, its partition and the partition's domain
_PARTITIONS = (
    ("cn-", "aws-cn", "amazonaws.com.cn"),
    ("us-gov-", "aws-us-gov", "amazonaws.com"),
    ("eusc-", "aws-eusc", "amazonaws.eu"),
    ("us-isob-", "aws-iso-b", "sc2s.sgov.gov"),
    ("us-isof-", "aws-iso-f", "csp.hci.ic.gov"),
    ("us-iso-", "aws-iso", "c2s.ic.gov"),
    ("eu-isoe-", "aws-iso-e", "cloud.adc-e.uk"),
    ("", "aws", "amazonaws.com"),
)
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+){1,3}-[0-9]{1,2}", re.ASCII)


def server_id(cluster: str) -> str:
    """What Vault must have as ``iam_server_id_header_value``."""
    return f"secure-slurm-{cluster}"


def sts_host(region: str) -> str:
    """The regional STS. ConfigError: no region's id."""
    return f"sts.{region}.{_partition(region)[1]}"


def principal(region: str, account: str, role: str, instance: str) -> str:
    """Who an instance is to STS: its role, and the instance id as the name of the session (EC2 gives it that)."""
    return f"arn:{_partition(region)[0]}:sts::{account}:assumed-role/{role}/{instance}"


def login_body(credentials: Credentials, region: str, cluster: str, role: str, now: float) -> dict[str, str]:
    """What is sent to Vault. STS takes it for five minutes, and Vault gives it to none but ``sts_endpoint``."""
    host = sts_host(region)
    headers = {
        "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
        "Content-Length": str(len(BODY)),
        SERVER_ID: server_id(cluster),
    }
    signed = sign(credentials, region=region, service="sts", host=host, headers=headers, body=BODY, now=now)
    return {
        "role": role,
        "iam_http_request_method": "POST",
        "iam_request_url": _base64(f"https://{host}/".encode("ascii")),
        "iam_request_body": _base64(BODY),
        "iam_request_headers": _base64(json.dumps({name: [value] for name, value in signed.items()}).encode("ascii")),
    }


def login(mount: str, role: str, cluster: str, region: Callable[[], str], endpoint: str) -> Callable[[Any], Any]:
    """The login request of a node. The credentials are read anew each time: they are replaced every few hours.

    :raises BackendUnavailable: the metadata service does not answer, or has no role's credentials.
    """

    def request(client: Any) -> Any:  # noqa: ANN401 - hvac has no types
        credentials = role_credentials(endpoint)[1]
        body = login_body(credentials, region(), cluster, role, time.time())
        return client.adapter.post(f"/v1/auth/{mount}/login", json=body)

    return request


def role_credentials(endpoint: str) -> tuple[str, Credentials]:
    """The name of the instance's role, and its credentials.

    :raises BackendUnavailable: there is no answer, or the instance has no role.
    """
    try:
        name, text = imds.role_credentials(endpoint)
        found = json.loads(text)
        words = [found[key] for key in ("AccessKeyId", "SecretAccessKey", "Token")]
        if not all(isinstance(word, str) and word.isascii() and word.isprintable() and word for word in words):
            raise ValueError("words")
    except NotProved as error:
        raise BackendUnavailable(f"this instance has no role: {error}", advice=error.advice) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        # the text is not repeated: it may hold what it should
        raise BackendUnavailable(
            "the metadata service gave no credentials of a role that could be some",
            advice="does the instance profile have a role?",
        ) from None
    return name, Credentials(*words)


def _partition(region: str) -> tuple[str, str]:
    if not _REGION.fullmatch(region):
        raise ConfigError(f"{region!r:.80} is not the id of a region", advice="mend the node's place file")
    return next((partition, domain) for start, partition, domain in _PARTITIONS if region.startswith(start))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
