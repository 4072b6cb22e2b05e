"""A CloudFormation template, read so that every value that it could ever have is seen.

A judge must not be fooled by how something is written: ``!Sub``, ``Fn::Join`` and ``!Ref`` of the same text are one
text here, both arms of ``Fn::If`` are looked at, a parameter with AllowedValues has all of them, a map all of its
values. What cannot be known before the stack is made (``Fn::ImportValue``, a free parameter) stays visible as what it
is, and no list of what is good has it.

The normal form of a text is that of ``Fn::Sub``: ``${Name}`` or ``${Name.Attribute}`` for what is put in, ``${!`` for a
``${`` that was written so, ``${?Fn::Cidr}`` for a function that is not followed. Source: the CloudFormation user
guide, intrinsic functions, pseudo parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from conf.errors import ConfigError
from conf.quote import quote
from conf.yamlmarks import MAX_PROBLEMS, Document, Mark, Where, parse

MAX_TEMPLATE = 1 << 20
"""Bytes; CloudFormation itself takes 1 MB."""
MAX_TEXTS = 64
"""So many texts of one value are told apart; more are one unknown text."""

_LONG = (
    *("And", "Base64", "Cidr", "Equals", "FindInMap", "GetAZs", "GetAtt", "If", "ImportValue", "Join", "Length", "Not"),
    *("Or", "Select", "Split", "Sub", "ToJsonString", "Transform"),
)
TAGS = {"!Ref": "Ref", "!Condition": "Condition", **{f"!{name}": f"Fn::{name}" for name in _LONG}}
NO_VALUE = "AWS::NoValue"
_REGION_SPLIT = {"Fn::Split": ["-", {"Ref": "AWS::Region"}]}
"""The names of a few buckets of AWS have the region without its dashes."""
_PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")


class Node(NamedTuple):
    """A value and its place in the file."""

    value: Any
    where: Where


class Finding(NamedTuple):
    """A way out, or what could be one. ``rule`` is in docs/rules.md, ``where`` the path in the template."""

    rule: str
    where: Where
    message: str
    advice: str


class Template:
    """What a template says. ``assumed``: what must be looked at when the stack is made, by the parameter's name."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.data = document.data
        self.parameters: dict[str, Any] = _mapping(self.data.get("Parameters"))
        self.resources: dict[str, Any] = _mapping(self.data.get("Resources"))
        self.assumed: dict[str, str] = {}

    def type_of(self, name: str) -> str:
        """The type of a resource; empty if there is none of that name."""
        return str(_mapping(self.resources.get(name)).get("Type", ""))

    def named(self, *types: str) -> Iterator[str]:
        """The resources of these types."""
        return (name for name in self.resources if self.type_of(name) in types)

    def parameter(self, name: str) -> dict[str, Any]:
        """What is said of a parameter; nothing if there is none of that name."""
        return _mapping(self.parameters.get(name))

    def parameter_type(self, name: str) -> str:
        """The type of a parameter; empty if there is none of that name."""
        return str(self.parameter(name).get("Type", ""))

    def properties(self, name: str) -> Node:
        """The properties of a resource; an empty mapping if it has none."""
        where = ("Resources", name, "Properties")
        return Node(_mapping(_mapping(self.resources.get(name)).get("Properties")), where)

    def mark(self, where: Where) -> Mark:
        """Where something is: its key, or the list's own element."""
        return self.document.keys.get(where) or self.document.value_mark(where)

    def branches(self, node: Node) -> list[Node]:
        """What a value can be: both arms of each Fn::If; nothing in an arm that is AWS::NoValue."""
        name, inner = function(node.value)
        where = (*node.where, name)
        if name == "Fn::If" and isinstance(inner, list) and len(inner) == 3:
            return [each for arm in (1, 2) for each in self.branches(Node(inner[arm], (*where, arm)))]
        if name == "Ref" and inner == NO_VALUE:
            return []
        return [node]

    def children(self, node: Node, key: str) -> list[Node]:
        """What stands under a key, in every arm."""
        return [
            child
            for arm in self.branches(node)
            if isinstance(arm.value, dict) and key in arm.value
            for child in self.branches(Node(arm.value[key], (*arm.where, key)))
        ]

    def keys(self, node: Node) -> Iterator[Node]:
        """The keys of a mapping, in every arm, each with its own place."""
        for arm in self.branches(node):
            if isinstance(arm.value, dict):
                yield from (Node(key, (*arm.where, key)) for key in arm.value)

    def lacks(self, node: Node, key: str) -> bool:
        """Whether a key is missing, or without a value, in one arm at least."""
        for arm in self.branches(node):
            if not isinstance(arm.value, dict) or key not in arm.value:
                return True
            if self._may_be_nothing(Node(arm.value[key], (*arm.where, key))):
                return True
        return not self.branches(node)

    def always(self, node: Node, path: tuple[str, ...], value: str) -> bool:
        """Whether the value at the end of a path of keys is ``value``, in every arm of everything on the way."""
        key, *rest = path
        if self.lacks(node, key):
            return False
        if rest:
            return all(self.always(child, tuple(rest), value) for child in self.children(node, key))
        return {text for text, _ in self.texts_of(node, key)} == {value}

    def conditional(self, node: Node) -> bool:
        """Whether a value stands in an arm of an Fn::If, or has one somewhere in it."""
        return "Fn::If" in node.where or any("Fn::If" in each.where for each in walk(node))

    def _may_be_nothing(self, node: Node) -> bool:
        name, inner = function(node.value)
        if name == "Fn::If" and isinstance(inner, list):
            return any(self._may_be_nothing(Node(each, node.where)) for each in inner[1:])
        return (name == "Ref" and inner == NO_VALUE) or node.value in ([], {}, "")

    def items(self, node: Node, key: str) -> list[Node]:
        """The elements of a list under a key, in every arm; what is no list counts as its one element."""
        found: list[Node] = []
        for child in self.children(node, key):
            if isinstance(child.value, list):
                for index, each in enumerate(child.value):
                    found += self.branches(Node(each, (*child.where, index)))
            else:
                found.append(child)
        return found

    def texts(self, node: Node) -> list[tuple[str, Where]]:
        """Every text that a value can be, in the normal form, with its place."""
        return [(text, arm.where) for arm in self.branches(node) for text in self._texts(arm.value)]

    def texts_of(self, node: Node, key: str) -> list[tuple[str, Where]]:
        """Every text under a key; of a list, those of its elements."""
        return [found for item in self.items(node, key) for found in self.texts(item)]

    def _texts(self, value: object) -> list[str]:
        if isinstance(value, bool | int):
            return [str(value).lower()]
        if isinstance(value, str):
            return [value.replace("${", "${!")]
        name, inner = function(value)
        if name == "Ref" and isinstance(inner, str):
            return self._of_reference(inner)
        if name == "Fn::GetAtt" and isinstance(inner, str | list):
            return [f"${{{inner if isinstance(inner, str) else '.'.join(map(str, inner))}}}"]
        if name in {"Fn::Sub", "Fn::Join", "Fn::FindInMap", "Fn::If", "Fn::Select"}:
            found = {
                "Fn::Sub": self._of_sub,
                "Fn::Join": self._of_join,
                "Fn::FindInMap": self._of_map,
                "Fn::If": self._of_if,
                "Fn::Select": self._of_select,
            }[name](inner)
            if found and len(found) <= MAX_TEXTS:
                return found
        return [f"${{?{name or 'value'}}}"]

    def _of_reference(self, name: str) -> list[str]:
        allowed = self.parameter(name).get("AllowedValues")
        if isinstance(allowed, list) and allowed:
            return [text for each in allowed for text in self._texts(each)]
        return [f"${{{name}}}"]

    def _of_if(self, inner: object) -> list[str]:
        if not isinstance(inner, list) or len(inner) != 3:
            return []
        return [text for arm in self.branches(Node({"Fn::If": inner}, ())) for text in self._texts(arm.value)]

    def _of_select(self, inner: object) -> list[str]:
        # whichever it is: every element of a list that is written out, or the whole that one is taken from
        _, given = _pair(inner)
        if isinstance(given, list):
            return [text for each in given for arm in self.branches(Node(each, ())) for text in self._texts(arm.value)]
        return self._texts(given) if function(given)[0] in {"Ref", "Fn::GetAtt"} else []

    def _of_sub(self, inner: object) -> list[str]:
        text, given = (inner, {}) if isinstance(inner, str) else _pair(inner)
        if not isinstance(text, str) or not isinstance(given, dict):
            return []
        names = list(dict.fromkeys(_PLACEHOLDER.findall(text)))
        choices = [self._texts(given[name]) if name in given else self._placed(name) for name in names]
        return [_put_in(text, dict(zip(names, found, strict=True))) for found in _first(product(*choices))]

    def _placed(self, name: str) -> list[str]:
        return [f"${{{name}}}"] if name.startswith("!") or "." in name else self._of_reference(name)

    def _of_join(self, inner: object) -> list[str]:
        between, parts = _pair(inner)
        if not between and parts == _REGION_SPLIT:
            return ["${?region without dashes}"]
        if not isinstance(between, str) or not isinstance(parts, list):
            return []
        choices = [self._texts(each) for each in parts]
        return [between.join(found) for found in _first(product(*choices))]

    def _of_map(self, inner: object) -> list[str]:
        if not isinstance(inner, list) or not inner or not isinstance(inner[0], str):
            return []
        table = _mapping(_mapping(self.data.get("Mappings")).get(inner[0]))
        return [
            text
            for row in table.values()
            if isinstance(row, dict)
            for value in row.values()
            for text in self._texts(value)
        ]


def load_template(path: str) -> Template:
    """Read a template. Raises ConfigError with every line that cannot be read; then nothing of it was judged."""
    document = parse(_read(path), tags=TAGS, lines=True)
    lines = [f"{path}:{mark.line}:{mark.column}: {message}" for mark, message in document.problems[:MAX_PROBLEMS]]
    if not lines and not isinstance(document.data.get("Resources"), dict):
        lines = [f"{path}:1:1: no CloudFormation template: 'Resources' is missing"]
    if lines:
        raise ConfigError("\n".join(lines), advice=f"correct {quote(path)}; nothing of it was judged")
    return Template(document)


def _read(path: str) -> bytes:
    # no question of trust: nothing is done with a template but to judge it
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_TEMPLATE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise ConfigError(f"{quote(path)} cannot be read: {reason}", advice="name a CloudFormation template") from None
    if len(data) > MAX_TEMPLATE:
        raise ConfigError(f"{quote(path)} is larger than {MAX_TEMPLATE} bytes", advice="is this the right file?")
    return data


def function(value: object) -> tuple[str, Any]:
    """The name and the argument of an intrinsic function; an empty name for anything else."""
    if isinstance(value, dict) and len(value) == 1:
        name = next(iter(value))
        if name in {"Ref", "Condition"} or name.startswith("Fn::"):
            return name, value[name]
    return "", None


def walk(node: Node) -> Iterator[Node]:
    """A value and everything in it."""
    yield node
    if isinstance(node.value, dict):
        for key, value in node.value.items():
            yield from walk(Node(value, (*node.where, key)))
    elif isinstance(node.value, list):
        for index, value in enumerate(node.value):
            yield from walk(Node(value, (*node.where, index)))


def referred(text: str) -> str:
    """The one thing that a text in the normal form consists of: ``${Vpc}`` is ``Vpc``; empty if there is more."""
    found = _PLACEHOLDER.fullmatch(text)
    return found.group(1) if found else ""


def _first(combinations: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    # one too many shows that there are too many
    return islice(combinations, MAX_TEXTS + 1)


def _put_in(text: str, words: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: words[found.group(1)], text)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _pair(value: object) -> tuple[object, object]:
    return (value[0], value[1]) if isinstance(value, list) and len(value) == 2 else (None, None)
