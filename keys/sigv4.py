"""AWS Signature Version 4 for one request to ``/`` without a query. Pure, standard library.

Source: AWS General Reference, "Create a signed AWS API request". Only what a call of STS needs; the tests compare with
botocore and with the vectors that AWS publishes.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

ALGORITHM = "AWS4-HMAC-SHA256"


class Credentials(NamedTuple):
    """Of a role for some hours, or without ``token`` of a user for ever. The text of this shows none of it."""

    access_key: str
    secret_key: str
    token: str = ""

    def __repr__(self) -> str:
        return f"<Credentials {self.access_key[:4]}...>"


def sign(
    credentials: Credentials,
    *,
    region: str,
    service: str,
    host: str,
    headers: Mapping[str, str],
    body: bytes,
    now: float,
    method: str = "POST",
) -> dict[str, str]:
    """``headers`` with Host, X-Amz-Date, the session's token and Authorization added; all of them are signed.

    ``now``: Unix seconds; AWS takes a request for five minutes.
    """
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    signed = {**headers, "Host": host, "X-Amz-Date": moment}
    if credentials.token:
        signed["X-Amz-Security-Token"] = credentials.token
    # names in lower case and in order, values without the space around them, one space for several
    lines = sorted((name.lower(), " ".join(value.split())) for name, value in signed.items())
    names = ";".join(name for name, _ in lines)
    request = "\n".join([method, "/", "", *(f"{name}:{value}" for name, value in lines), "", names, _hash(body)])
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    text = "\n".join([ALGORITHM, moment, scope, _hash(request.encode("utf-8"))])
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (moment[:8], region, service, "aws4_request"):
        key = _hmac(key, part)
    signature = _hmac(key, text).hex()
    credential = f"Credential={credentials.access_key}/{scope}"
    signed["Authorization"] = f"{ALGORITHM} {credential}, SignedHeaders={names}, Signature={signature}"
    return signed


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode("utf-8"), hashlib.sha256).digest()
