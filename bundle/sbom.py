"""The bill of materials of the offline bundle: CycloneDX 1.6 as JSON (ECMA-424), for scanners of known weaknesses.

One component for each package, with the hashes of every file of it that the bundle holds; our own files are the
application. It has no time and no random serial number: the same files give the same document.
"""

from __future__ import annotations

import email.message
import email.parser
import hashlib
import io
import json
import re
import uuid
import zipfile
from typing import Any

LUASOCKET = "3.1.0"
_NAMESPACE = uuid.UUID(
    "6ba7b812-9dad-11d1-80b4-00c04fd430c8"
)  # RFC 9562: names that are object identifiers; any fixed one would do


def document(version: str, files: dict[str, bytes]) -> bytes:
    """The document for these files of the bundle, by name."""
    application = {
        "type": "application",
        "bom-ref": f"secure-slurm@{version}",
        "name": "secure-slurm",
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": _over(files, ("wheels/", "ldap/", "lua/"))}],
    }
    parts = [*_wheels(files), *_luasocket(files)]
    refs = [part["bom-ref"] for part in parts]
    body: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": application},
        "components": parts,
        "dependencies": [{"ref": application["bom-ref"], "dependsOn": refs}, *({"ref": ref} for ref in refs)],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(body, sort_keys=True))
    return (json.dumps({"serialNumber": f"urn:uuid:{serial}", **body}, indent=1, sort_keys=True) + "\n").encode()


def _over(files: dict[str, bytes], others: tuple[str, ...]) -> str:
    """One hash over our own files: of the list of their hashes, as SHA256SUMS has it."""
    own = sorted(name for name in files if not name.startswith(others))
    return hashlib.sha256("".join(f"{_sha256(files[name])}  {name}\n" for name in own).encode()).hexdigest()


def _wheels(files: dict[str, bytes]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(files):
        if not name.endswith(".whl"):
            continue
        meta = _metadata(files[name])
        package = re.sub(r"[-_.]+", "-", str(meta["Name"])).lower()
        purl = f"pkg:pypi/{package}@{meta['Version']}"
        part = found.setdefault(
            purl,
            {
                "type": "library",
                "bom-ref": purl,
                "name": package,
                "version": str(meta["Version"]),
                "purl": purl,
                "licenses": _licence(meta),
                "components": [],
            },
        )
        part["components"].append(_file(purl, name, files[name]))
    return list(found.values())


def _luasocket(files: dict[str, bytes]) -> list[dict[str, Any]]:
    purl = f"pkg:luarocks/luasocket@{LUASOCKET}"
    inside = [_file(purl, name, files[name]) for name in sorted(files) if name.startswith("lua/")]
    return [
        {
            "type": "library",
            "bom-ref": purl,
            "name": "luasocket",
            "version": LUASOCKET,
            "purl": purl,
            "licenses": [{"license": {"id": "MIT"}}],
            "components": inside,
        }
    ]


def _file(purl: str, name: str, data: bytes) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": _sha256(data)}]
    return {"type": "file", "bom-ref": f"{purl}#{name}", "name": name, "hashes": hashes}


def _metadata(wheel: bytes) -> email.message.Message:
    with zipfile.ZipFile(io.BytesIO(wheel)) as opened:
        name = next(each for each in opened.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each))
        return email.parser.BytesParser().parsebytes(opened.read(name), headersonly=True)


def _licence(meta: email.message.Message) -> list[dict[str, Any]]:
    """What the package itself says, in the order of how exact it is; nothing when it says nothing."""
    if meta["License-Expression"]:
        return [{"expression": str(meta["License-Expression"])}]
    if meta["License"] and "\n" not in str(meta["License"]):
        return [{"license": {"name": str(meta["License"])}}]
    named = [
        each.rpartition("::")[2].strip() for each in meta.get_all("Classifier", []) if each.startswith("License ::")
    ]
    return [{"license": {"name": each}} for each in named]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
