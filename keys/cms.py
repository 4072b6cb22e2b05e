"""Reading a signed message of PKCS #7 (RFC 5652, SignedData) with one signer, its content inside. Nothing is verified.

Only what EC2's ``rsa2048`` signature needs is read; everything else is refused. EC2 writes BER, not DER: lengths may be
indefinite and the content may come in pieces (X.690, 8.1.3.6 and 8.7.3). Certificates inside the message are passed
over: who signed is for the caller to know, never for the message to say.
"""

from __future__ import annotations

from typing import NamedTuple

from conf.errors import UsageError

MAX_BYTES = 64 * 1024
_MAX_DEPTH = 12
_MAX_ELEMENTS = 2000

_SEQUENCE, _SET, _OID, _OCTETS = 0x30, 0x31, 0x06, 0x04
_PIECES = 0x24
_CONTEXT_0, _CONTEXT_1 = 0xA0, 0xA1
_CONSTRUCTED = 0x20
_INDEFINITE = 0x80
_END = b"\0\0"

_PKCS7_DATA = bytes.fromhex("2a864886f70d010701")
_PKCS7_SIGNED = bytes.fromhex("2a864886f70d010702")
_CONTENT_TYPE = bytes.fromhex("2a864886f70d010903")
_MESSAGE_DIGEST = bytes.fromhex("2a864886f70d010904")
_SHA256 = bytes.fromhex("608648016503040201")
_RSA = (bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a864886f70d01010b"))


class MalformedMessage(UsageError):
    """Not a message of the one form that is read here."""


class Signed(NamedTuple):
    """``signature`` is RSA (PKCS #1 v1.5, SHA-256) over ``attributes``, the DER of the signed attributes.

    ``digest`` is one of these attributes, and must be the SHA-256 of ``content``.
    """

    content: bytes
    attributes: bytes
    digest: bytes
    signature: bytes


class _Element(NamedTuple):
    tag: int
    body: bytes
    whole: bytes
    parts: tuple[_Element, ...]
    definite: bool


def read_signed(data: bytes) -> Signed:
    """Take a message apart. Raises MalformedMessage, and nothing else, whatever the bytes are."""
    if len(data) > MAX_BYTES:
        raise MalformedMessage("the message is too long")
    reader = _Reader(data)
    outer, end = reader.element(0, 0)
    if end != len(data):
        raise MalformedMessage("bytes follow the message")
    kind, wrapped = _parts(outer, _SEQUENCE, 2)
    _expect_oid(kind, _PKCS7_SIGNED)
    (signed,) = _parts(wrapped, _CONTEXT_0, 1)
    if signed.tag != _SEQUENCE or len(signed.parts) < 4:
        raise MalformedMessage("there is no signed data in it")
    _version, _digests, content, *optional, signers = signed.parts
    if any(each.tag not in (_CONTEXT_0, _CONTEXT_1) for each in optional):
        raise MalformedMessage("the signed data has fields that are not known")
    (signer,) = _parts(signers, _SET, 1)
    attributes, digest, signature = _signer(signer)
    return Signed(_content(content), attributes, digest, signature)


def _content(element: _Element) -> bytes:
    kind, wrapped = _parts(element, _SEQUENCE, 2)
    _expect_oid(kind, _PKCS7_DATA)
    (octets,) = _parts(wrapped, _CONTEXT_0, 1)
    return _octets(octets)


def _octets(element: _Element) -> bytes:
    if element.tag == _OCTETS:
        return element.body
    if element.tag == _PIECES and all(each.tag == _OCTETS for each in element.parts):
        return b"".join(each.body for each in element.parts)
    raise MalformedMessage("an octet string is expected")


def _signer(signer: _Element) -> tuple[bytes, bytes, bytes]:
    # version, issuer and serial number, digest algorithm, signed attributes, signature algorithm, signature, [1] others
    if signer.tag != _SEQUENCE or len(signer.parts) not in (6, 7):
        raise MalformedMessage("the signer is not described as expected; are the signed attributes missing?")
    _version, _who, digest_algorithm, attributes, algorithm, signature = signer.parts[:6]
    if len(signer.parts) == 7 and signer.parts[6].tag != _CONTEXT_1:
        raise MalformedMessage("the signer is not described as expected")
    if _algorithm(digest_algorithm) != _SHA256 or _algorithm(algorithm) not in _RSA:
        raise MalformedMessage("the signature is not RSA with SHA-256")
    if attributes.tag != _CONTEXT_0 or not attributes.definite or signature.tag != _OCTETS:
        raise MalformedMessage("the signed attributes are not as expected")
    # RFC 5652, 5.4: what is signed has the tag of a SET, not the one that it travels with
    return bytes([_SET]) + attributes.whole[1:], _digest_of(attributes), signature.body


def _digest_of(attributes: _Element) -> bytes:
    found: dict[bytes, _Element] = {}
    for attribute in attributes.parts:
        kind, values = _parts(attribute, _SEQUENCE, 2)
        if kind.tag != _OID or kind.body in found:
            raise MalformedMessage("a signed attribute stands twice")
        if kind.body in (_CONTENT_TYPE, _MESSAGE_DIGEST):
            (found[kind.body],) = _parts(values, _SET, 1)
    if found.keys() != {_CONTENT_TYPE, _MESSAGE_DIGEST}:
        raise MalformedMessage("content type and digest must be among the signed attributes")
    _expect_oid(found[_CONTENT_TYPE], _PKCS7_DATA)
    return _octets(found[_MESSAGE_DIGEST])


def _algorithm(element: _Element) -> bytes:
    if element.tag != _SEQUENCE or not element.parts or element.parts[0].tag != _OID:
        raise MalformedMessage("an algorithm is expected")
    return element.parts[0].body


def _parts(element: _Element, tag: int, count: int) -> tuple[_Element, ...]:
    if element.tag != tag or len(element.parts) != count:
        raise MalformedMessage("the message does not have the form of a signed one")
    return element.parts


def _expect_oid(element: _Element, oid: bytes) -> None:
    if element.tag != _OID or element.body != oid:
        raise MalformedMessage("the message has another type than signed data")


class _Reader:
    """BER, element by element; the number of elements and their nesting are bounded."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = _MAX_ELEMENTS

    def element(self, at: int, depth: int) -> tuple[_Element, int]:
        """The element at an offset, and the offset behind it."""
        data = self._data
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            raise MalformedMessage("the message is nested too deeply")
        if at + 2 > len(data) or data[at] & 0x1F == 0x1F:
            raise MalformedMessage("the message is cut short or has unknown tags")
        tag, start = data[at], at + 2
        if data[at + 1] == _INDEFINITE:
            if not tag & _CONSTRUCTED:
                raise MalformedMessage("a length is missing")
            parts = []
            here = start
            while data[here : here + 2] != _END:
                part, here = self.element(here, depth + 1)
                parts.append(part)
            return _Element(tag, data[start:here], data[at : here + 2], tuple(parts), definite=False), here + 2
        start, end = self._extent(at, start)
        inside = self._inside(start, end, depth) if tag & _CONSTRUCTED else ()
        return _Element(tag, data[start:end], data[at:end], inside, definite=True), end

    def _extent(self, at: int, start: int) -> tuple[int, int]:
        length = self._data[at + 1]
        if length > _INDEFINITE:
            digits = self._data[start : start + length - _INDEFINITE]
            if len(digits) > 3 or len(digits) != length - _INDEFINITE:
                raise MalformedMessage("a length is too long")
            start += len(digits)
            length = int.from_bytes(digits, "big")
        if start + length > len(self._data):
            raise MalformedMessage("the message is cut short")
        return start, start + length

    def _inside(self, start: int, end: int, depth: int) -> tuple[_Element, ...]:
        parts = []
        while start < end:
            part, start = self.element(start, depth + 1)
            parts.append(part)
        if start != end:
            raise MalformedMessage("an element is longer than what holds it")
        return tuple(parts)
