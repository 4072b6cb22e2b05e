"""What the root hooks read instead of YAML: hooks.json, written by ``secure-slurm conf render``.

Standard library only, and light: it runs under ``python3 -IS`` before every job. Fields: see :mod:`conf.render`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from conf.errors import ConfigError
from conf.quote import quote
from conf.safefile import read_safely
from conf.slurmnames import for_node, is_node_name

HOOKS_JSON = "/etc/secure-slurm/hooks.json"
FORMAT = 1
SECTIONS = ("cluster", "lifecycle", "node", "scratch", "audit", "regions", "sources")
_ADVICE = "run: secure-slurm conf render"

__all__ = ["FORMAT", "HOOKS_JSON", "SECTIONS", "check_sources", "for_node", "is_node_name", "read_hook_config"]


def read_hook_config(path: str = HOOKS_JSON, *, check_sources: bool = True) -> dict[str, Any]:
    """The rendered configuration.

    Refused (ConfigError): a file that :func:`conf.safefile.read_safely` refuses (as root: not root's own), anything but
    the format of this version, and, with ``check_sources``, a secure-slurm.yaml or policy.yaml that is not the one it
    was rendered from. The Epilog passes False: destroying a key must not wait for an admin who has just edited a file.
    """
    config = _parse(path, read_safely(path))
    if check_sources:
        _check_sources(path, config["sources"])
    return config


def check_sources(config: dict[str, Any], path: str = HOOKS_JSON) -> None:
    """As :func:`read_hook_config` with ``check_sources``, for what was read without. Raises ConfigError."""
    _check_sources(path, config["sources"])


def _parse(path: str, data: bytes) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError(f"{quote(path)} is not JSON", advice=_ADVICE) from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ConfigError(f"{quote(path)} was rendered by another version", advice=_ADVICE)
    for section in SECTIONS:
        if not isinstance(config.get(section), dict) or not config[section]:
            raise ConfigError(f"{quote(path)} has no {section}", advice=_ADVICE)
    return config


def _check_sources(path: str, sources: dict[str, Any]) -> None:
    for source, digest in sources.items():
        if hashlib.sha256(read_safely(source)).hexdigest() != digest:
            raise ConfigError(f"{quote(source)} has changed since {quote(path)} was rendered from it", advice=_ADVICE)
