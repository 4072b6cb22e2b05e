"""A stand-in for EC2's instance metadata service, and a "region" that signs identity documents as EC2 does.

The message has the form of EC2's ``rsa2048``: BER with indefinite lengths, the content in a constructed octet string,
no certificate inside. The signature itself is made by the cryptography library.
"""

from __future__ import annotations

import base64
import datetime
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

IDENTITY = "/latest/dynamic/instance-identity/rsa2048"
TOKEN = "QVdTLXRva2VuLW9mLXRoZS1zdGFuZC1pbg=="


def document(**changes: Any) -> dict[str, Any]:
    """What EC2 writes into a document, launched a minute ago; ``changes`` replaces fields, ``...`` removes one."""
    launched = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)
    fields = {
        "accountId": "123456789012",
        "architecture": "x86_64",
        "availabilityZone": "eu-central-1a",
        "billingProducts": None,
        "devpayProductCodes": None,
        "marketplaceProductCodes": None,
        "imageId": "ami-0123456789abcdef0",
        "instanceId": "i-0123456789abcdef0",
        "instanceType": "c7i.large",
        "kernelId": None,
        "pendingTime": launched.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "privateIp": "10.0.0.10",
        "ramdiskId": None,
        "region": "eu-central-1",
        "version": "2017-09-30",
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


class Region:
    """A key and its certificate, which an admin would pin. ``bits``, ``start`` and ``days`` for what must not pass."""

    def __init__(self, name: str = "test region", *, bits: int = 2048, start: float = -1, days: float = 365) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=start))
            .not_valid_after(now + datetime.timedelta(days=days))
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def der(self, content: bytes, *, embed: bool = False, digest: hashes.SHA256 | hashes.SHA512 | None = None) -> bytes:
        """The signed message as DER. ``embed``: with the signer's own certificate inside."""
        options = [pkcs7.PKCS7Options.Binary] + ([] if embed else [pkcs7.PKCS7Options.NoCerts])
        builder = pkcs7.PKCS7SignatureBuilder().set_data(content)
        return builder.add_signer(self.certificate, self.key, digest or hashes.SHA256()).sign(
            serialization.Encoding.DER, options
        )

    def sign(self, content: bytes | dict[str, Any], **more: Any) -> bytes:
        """What the metadata service answers: base64 of the message as EC2 writes it."""
        text = content if isinstance(content, bytes) else json.dumps(content, indent=2).encode()
        return base64.encodebytes(as_ec2_writes_it(self.der(text, **more)))


def as_ec2_writes_it(der: bytes) -> bytes:
    """The same message in BER: indefinite lengths outside, the content cut into pieces."""
    kind, wrapped = _children(der)
    (signed,) = _children(wrapped)
    version, digests, content, *rest = _children(signed)
    data, inside = _children(content)
    (octets,) = _children(inside)
    text = _body(octets)
    pieces = b"".join(_definite(0x04, text[at : at + 200]) for at in range(0, len(text), 200))
    content = _indefinite(0x30, data + _indefinite(0xA0, _indefinite(0x24, pieces)))
    return _indefinite(0x30, kind + _indefinite(0xA0, _indefinite(0x30, version + digests + content + b"".join(rest))))


def _definite(tag: int, body: bytes) -> bytes:
    length = bytes([len(body)]) if len(body) < 128 else b"\x82" + len(body).to_bytes(2, "big")
    return bytes([tag]) + length + body


def _indefinite(tag: int, body: bytes) -> bytes:
    return bytes([tag, 0x80]) + body + b"\0\0"


def _body(element: bytes) -> bytes:
    extra = element[1] & 0x7F if element[1] & 0x80 else 0
    return element[2 + extra :]


def _children(element: bytes) -> list[bytes]:
    body, found = _body(element), []
    while body:
        extra = body[1] & 0x7F if body[1] & 0x80 else 0
        length = int.from_bytes(body[2 : 2 + extra], "big") if extra else body[1]
        end = 2 + extra + length
        found.append(body[:end])
        body = body[end:]
    return found


class Imds:
    """The service on an address; ``answer`` is what it gives for the identity document, ``asked`` what it was asked.

    ``more``: other paths and what it gives there. ``answers``: by the address of who asks, before ``answer``.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.answer = b""
        self.status = 200
        self.asked: list[str] = []
        self.more: dict[str, bytes] = {}
        self.answers: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                outer.asked.append(f"PUT {self.path}")
                lives = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                known = self.path == "/latest/api/token" and lives.isdigit()
                self._say(200 if known else 400, TOKEN.encode() if known else b"")

            def do_GET(self) -> None:
                outer.asked.append(f"GET {self.path}")
                if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
                    self._say(401, b"")
                elif self.path in outer.more:
                    self._say(200, outer.more[self.path])
                elif self.path != IDENTITY:
                    self._say(404, b"")
                else:
                    self._say(outer.status, outer.answers.get(self.client_address[0], outer.answer))

            def _say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://{self._server.server_address[0]!s}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def pin(folder: Path, name: str, region: Region) -> None:
    """Put a region's certificate where ``node.ec2.certificates`` looks for it."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = folder / f"{name}.pem"
    path.write_bytes(region.pem)
    path.chmod(0o644)
