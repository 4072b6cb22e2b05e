"""What tells one machine from another: fingerprints that a manifest is bound to, and the instance id in the firmware.

Standard library only: the Prolog, which is root, compares what the node daemon may not read.
"""

from __future__ import annotations

import hashlib
import hmac
import re

SOURCES = {
    # systemd, machine-id(5): made at the first boot; an image that was cloned with it gives two machines the same one
    "machine-id": "/etc/machine-id",
    # the firmware's own (SMBIOS type 1); sysfs gives it to root alone
    "product-uuid": "/sys/class/dmi/id/product_uuid",
}
ASSET_TAG = "/sys/class/dmi/id/board_asset_tag"
"""On EC2's Nitro instances the firmware says the instance id here, to everybody (identify_ec2_instances, EC2 guide)."""

_PURPOSE = b"secure-slurm place manifest"
_VALUE = re.compile(r"[0-9A-Fa-f-]{32,36}", re.ASCII)
_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}", re.ASCII)
_LIMIT = 256


def fingerprint(kind: str) -> str | None:
    """``kind:<64 hex>`` of this machine; None when it has none or this user may not read it. KeyError: no such kind.

    machine-id(5) asks that the id itself be kept on the machine, so a keyed hash of it is used, as it recommends.
    """
    value = _read(SOURCES[kind]).lower()
    if not _VALUE.fullmatch(value) or not set(value) - {"0", "-"}:
        return None
    return f"{kind}:{hmac.new(_PURPOSE, value.encode('ascii'), hashlib.sha256).hexdigest()}"


def matches(expected: str) -> bool | None:
    """Whether this machine has that fingerprint; None when this user cannot tell."""
    kind = expected.partition(":")[0]
    found = fingerprint(kind) if kind in SOURCES else None
    return None if found is None else hmac.compare_digest(found, expected)


def firmware_instance() -> str:
    """The EC2 instance id that the firmware names; empty when it names none (Xen, elsewhere)."""
    tag = _read(ASSET_TAG)
    return tag if _INSTANCE.fullmatch(tag) else ""


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - no pathlib in root hooks
            return file.read(_LIMIT).decode("ascii", "replace").strip()
    except OSError:
        return ""
