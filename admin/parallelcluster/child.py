"""ParallelCluster's own schema and validators, on a configuration and without AWS: a program for another Python.

That Python is the one of a virtual environment with ``aws-parallelcluster`` 3.13 or later. Nothing of ours is imported
here, and nothing used that Python 3.9 has not got. Standard input is the configuration, ``argv[1]`` the cluster's name;
standard output one JSON document: ``version``, ``findings`` (``level``, ``validator``, ``message``, ``where``: keys and
indices, ``about``: what the validator was given, or the keys that there are), and ``run`` and ``not_run``, names of
validators.

In between ParallelCluster asks AWS of most things. Here each answer is an :class:`Unknown`, which stands for any value:
validators are registered as ever, and one whose arguments are unknown, were worked out from what is, or that asks AWS
itself, counts as not run. An audit hook of the interpreter, which cannot be taken off, refuses each connection and each
program (sys.addaudithook, PEP 578).
"""

# what ParallelCluster has is of no type that is known here, and it is imported by who runs this as a program only
# ruff: noqa: ANN401, PLC0415

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import warnings
from typing import Any

MAX_INPUT = 1024 * 1024
UNKNOWN = "Unknown field."
"""Marshmallow's words for a key that there is not; ``about`` then has the keys that there are."""
# the keys that are not called as ParallelCluster's attributes are
RENAMED = {"settings": "SlurmSettings", "queues": "SlurmQueues"}
# by module: the events of the interpreter that are a connection or a program (docs.python.org, Audit events table)
_REFUSED = {
    "os": frozenset({"exec", "fork", "forkpty", "posix_spawn", "spawn", "system"}),
    "socket": frozenset({"bind", "connect", "getaddrinfo", "gethostbyaddr", "gethostbyname", "sendmsg", "sendto"}),
    "subprocess": frozenset({"Popen"}),
}


class _State:
    """While validators are registered an Unknown bends (and that is noted); while they run, it breaks."""

    registering = False
    bent = False
    asked = False


class Unknown:
    """An answer that only AWS has. Its attributes, its items and what it returns are unknown as well."""

    def __init__(self) -> None:
        _State.asked = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Whatever is asked."""
        return self

    def __getitem__(self, _: Any) -> Any:
        return self

    def _bend(self, value: Any) -> Any:
        if not _State.registering:
            _State.asked = True
            raise LookupError("only AWS knows")
        _State.bent = True
        return value

    def __bool__(self) -> bool:
        return bool(self._bend(True))

    def __len__(self) -> int:
        return int(self._bend(0))

    def __iter__(self) -> Any:
        return iter(self._bend(()))

    def __contains__(self, _: object) -> bool:
        return bool(self._bend(False))

    def __eq__(self, _: object) -> bool:
        return bool(self._bend(False))

    def __hash__(self) -> int:
        return int(self._bend(0))

    def __lt__(self, _: object) -> bool:
        return bool(self._bend(False))

    __gt__ = __le__ = __ge__ = __lt__

    def __add__(self, _: object) -> Any:
        return self._bend(self)

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __floordiv__ = __add__

    def __int__(self) -> int:
        return int(self._bend(0))

    __index__ = __int__

    def __str__(self) -> str:
        return str(self._bend("unknown"))

    __repr__ = __str__

    def __deepcopy__(self, _: object) -> Any:
        return self


def _refuse(event: str, __: object) -> None:
    module, _, name = event.partition(".")
    if name in _REFUSED.get(module, ()):
        _State.asked = True
        raise PermissionError(f"{event} is refused while a configuration is checked")


def _no_call(*_: object) -> None:
    _State.asked = True
    raise LookupError("only AWS knows")


def check(text: str, name: str) -> dict[str, Any]:
    """Every finding on a configuration; what the document has is at the head of this file."""
    from botocore.client import BaseClient
    from marshmallow import ValidationError
    from pcluster.aws.aws_api import AWSApi
    from pcluster.schemas.cluster_schema import ClusterSchema
    from pcluster.utils import yaml_load

    AWSApi.instance = staticmethod(Unknown)
    BaseClient._make_api_call = _no_call
    findings: list[dict[str, Any]] = []
    done: set[str] = set()
    left: set[str] = set()
    try:
        cluster = ClusterSchema(cluster_name=name).load(yaml_load(text))
    except ValidationError as error:
        for where, message in _leaves(error.messages, []):
            known = _keys(ClusterSchema(cluster_name=name), where[:-1]) if message == UNKNOWN else ()
            findings.append(_finding("ERROR", "schema", message, where, dict.fromkeys(known, "")))
    except Exception as error:  # noqa: BLE001 - the schema stumbles over some shapes instead of refusing them
        message = f"ParallelCluster cannot read this: {type(error).__name__}: {error}"
        findings.append(_finding("ERROR", "schema", message, [], {}))
    else:
        for resource, where in _walk(cluster, [], set()):
            _validate(resource, where, findings, done, left)
    version = importlib.metadata.version("aws-parallelcluster")
    return {"version": version, "findings": findings, "run": sorted(done), "not_run": sorted(left - done)}


def _finding(level: str, validator: str, message: str, where: list[Any], about: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in about.items() if isinstance(value, (str, int, bool))}
    return {"level": level, "validator": validator, "message": message, "where": where, "about": plain}


def _leaves(messages: Any, where: list[Any]) -> Any:
    """Marshmallow's nested messages, each with the way to its place."""
    if isinstance(messages, dict):
        for step, below in messages.items():
            yield from _leaves(below, where if step == "_schema" else [*where, step])
    elif isinstance(messages, list):
        for each in messages:
            yield from _leaves(each, where)
    else:
        yield where, str(messages)


def _keys(schema: Any, where: list[Any]) -> list[str]:
    """The keys that a place of the configuration may have; none where the schema does not say."""
    for step in where:
        if isinstance(step, str):
            field = next((each for each in schema.fields.values() if each.data_key == step), None)
            schema = getattr(field, "schema", None)
            if schema is None:
                return []
    return [str(each.data_key) for each in schema.fields.values()]


def _walk(resource: Any, where: list[Any], seen: set[int]) -> Any:
    """A resource of the configuration and everything in it, each with the way to it."""
    from pcluster.config.common import Resource
    from pcluster.utils import to_pascal_case

    if id(resource) in seen:
        return
    seen.add(id(resource))
    yield resource, where
    for attribute, value in list(vars(resource).items()):
        step = RENAMED.get(attribute) or to_pascal_case(attribute)
        if isinstance(value, Resource):
            yield from _walk(value, [*where, step], seen)
        elif isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, Resource):
                    yield from _walk(each, [*where, step, index], seen)


def _validate(resource: Any, where: list[Any], findings: list[Any], done: set[str], left: set[str]) -> None:
    registered: list[tuple[Any, dict[str, Any], bool]] = []

    def register(kind: Any, **arguments: Any) -> None:
        registered.append((kind, arguments, _State.bent))
        _State.bent = False

    _State.registering, _State.bent = True, False
    resource._register_validator = register
    try:
        resource._register_validators(None)
    except Exception:  # noqa: BLE001 - an Unknown where it cannot be bent; those registered so far are run
        left.add(f"the others of {type(resource).__name__}")
    _State.registering = False
    for kind, arguments, bent in registered:
        found = None if bent else _run(kind, arguments)
        (left if found is None else done).add(kind.__name__)
        for failure in found or ():
            level, validator = failure.level.name, failure.validator_type
            findings.append(_finding(level, validator, str(failure.message), where, arguments))


def _run(kind: Any, arguments: dict[str, Any]) -> Any:
    """What a validator finds, or None: it cannot say without AWS."""
    # what is asynchronous looks at addresses, and remembers from one to the next
    if hasattr(kind, "_validate_async") or any(isinstance(value, Unknown) for value in arguments.values()):
        return None
    _State.asked = False
    try:
        found = kind().execute(**arguments)
    except Exception:
        if _State.asked:
            return None
        raise
    return None if _State.asked else found


def main() -> int:
    """Read, check, print. Ends with 2 for what is no configuration at all."""
    warnings.simplefilter("ignore")
    data = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        sys.stderr.write("the configuration is larger than 1 MiB\n")
        return 2
    # what it needs of the machine while it is imported comes before the door is shut
    importlib.import_module("pcluster.schemas.cluster_schema")
    sys.addaudithook(_refuse)
    json.dump(check(data.decode("utf-8"), sys.argv[1]), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
