"""A stand-in for one region's KMS with one key: DescribeKey, Encrypt and Decrypt, over TLS, for signed requests only.

It has the form of the service (AWS KMS API reference: JSON 1.1, the operation in X-Amz-Target), and keeps the key to
itself as the service does. Whether a signature is right it does not look at; whose, and for which region, it does.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.testbed.pki import CA

NAME = "kms.eu-central-1.amazonaws.com"
ACCESS = "ASIATESTTESTTESTTEST"
ROLE = {
    "iam/security-credentials/": "machines",
    "iam/security-credentials/machines": json.dumps(
        {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": ACCESS,
            "SecretAccessKey": "0" * 40,
            "Token": "token",
            "Expiration": "2099-01-01T00:00:00Z",
            "LastUpdated": "2026-01-01T00:00:00Z",
        }
    ),
}
"""What the metadata service says of the machine's role."""


class Kms:
    """The service at ``address``, port 443; ``asked`` are the operations and the keys that they named."""

    def __init__(self, address: str, key: str, ca: CA) -> None:
        self.asked: list[tuple[str, str]] = []
        secret = AESGCM(AESGCM.generate_key(256))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                operation = self.headers["X-Amz-Target"].removeprefix("TrentService.")
                outer.asked.append((operation, asked.get("KeyId", key)))
                signed = self.headers["Authorization"].startswith(f"AWS4-HMAC-SHA256 Credential={ACCESS}/")
                if not signed or "/eu-central-1/kms/aws4_request" not in self.headers["Authorization"]:
                    self._answer(403, {"__type": "AccessDeniedException"})
                elif operation == "DescribeKey":
                    self._answer(200, {"KeyMetadata": {"KeyId": key, "Arn": key, "Enabled": True}})
                elif operation == "Encrypt":
                    nonce = os.urandom(12)
                    hidden = nonce + secret.encrypt(nonce, base64.b64decode(asked["Plaintext"]), None)
                    self._answer(200, {"KeyId": key, "CiphertextBlob": base64.b64encode(hidden).decode()})
                elif operation == "Decrypt":
                    hidden = base64.b64decode(asked["CiphertextBlob"])
                    text = secret.decrypt(hidden[:12], hidden[12:], None)
                    self._answer(200, {"KeyId": key, "Plaintext": base64.b64encode(text).decode()})
                else:
                    self._answer(403, {"__type": "AccessDeniedException"})

            def _answer(self, status: int, value: Any) -> None:
                text = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        pair = ca.server("kms", [NAME])
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pair.certificate, pair.private_key)
        self._server = ThreadingHTTPServer((address, 443), Handler)
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
