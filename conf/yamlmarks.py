"""YAML that remembers where everything stood, and that refuses what makes YAML dangerous.

Refused: duplicate keys, anchors and aliases (a kilobyte of them can make a gigabyte), merge keys, tags, keys that are
not text, empty values, more than one document, deep nesting, tabs, control and invisible characters.
Read as YAML 1.2's core schema does: ``no`` is Norway, not false; ``010`` and ``1:30`` are text, not numbers.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from conf.quote import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yaml._yaml import Mark as CMark

    AnyMark = yaml.Mark | CMark

MAX_DEPTH = 16
MAX_PROBLEMS = 50

Step = str | int
Where = tuple[Step, ...]


class Mark(NamedTuple):
    """A place in the file; both count from 1, columns in characters."""

    line: int
    column: int


class Problem(NamedTuple):
    """One mistake and where it is."""

    mark: Mark
    message: str


class Document(NamedTuple):
    """What a file says. ``data``: dict, list, str, int and bool; an empty dict if the file cannot be read at all.

    ``keys`` and ``values`` give the mark of each key and value by its path (``("vault", "address")``).
    ``readable`` is False when the text is so broken that ``data`` says nothing.
    """

    data: dict[str, Any]
    keys: dict[Where, Mark]
    values: dict[Where, Mark]
    problems: list[Problem]
    readable: bool

    def key_mark(self, where: Where) -> Mark:
        """The mark of the key at a path, or of the nearest thing around it."""
        return self._nearest(self.keys, where)

    def value_mark(self, where: Where) -> Mark:
        """The mark of the value at a path, or of the nearest thing around it."""
        return self.values[where] if where in self.values else self._nearest(self.keys, where)

    def _nearest(self, marks: dict[Where, Mark], where: Where) -> Mark:
        while where:
            found = marks.get(where) or self.values.get(where)
            if found:
                return found
            where = where[:-1]
        return Mark(1, 1)


def parse(data: bytes, *, tags: Mapping[str, str] | None = None, lines: bool = False) -> Document:
    """Read one document. Never raises for what is in it: ``problems`` has every mistake that could be told apart.

    ``tags``: tags that are another way to write a mapping of one key, and that key: ``{"!Ref": "Ref"}`` reads
    ``!Ref a`` as ``{"Ref": "a"}``. ``lines``: a text may have more than one line.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        mark = Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))
        return _unreadable([Problem(mark, "not UTF-8 text; save the file as UTF-8")])
    problems = _bad_characters(text)
    if problems:
        return _unreadable(problems)
    loader = MarkedLoader(text, tags or {})
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        return _unreadable([*loader.problems, _broken(error)])
    except (ValueError, OverflowError):
        # PyYAML checks neither the number in "\U99999999" nor the one in a %YAML line
        return _unreadable([*loader.problems, Problem(Mark(1, 1), "not YAML: a number in it is out of range")])
    finally:
        loader.dispose()
    return _Reader(loader.problems, lines=lines).document(node)


def _unreadable(problems: list[Problem]) -> Document:
    return Document({}, {}, {}, problems[:MAX_PROBLEMS], readable=False)


def _broken(error: yaml.MarkedYAMLError) -> Problem:
    """PyYAML's own finding, which may quote a character of the file: printable, the others were refused before."""
    mark = error.problem_mark or error.context_mark
    context = f"{error.context}: " if error.context else ""
    return Problem(_mark(mark), f"not YAML: {context}{error.problem}")


def _mark(mark: AnyMark | None) -> Mark:
    return Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)


def _is_hidden(character: str) -> bool:
    # control; invisible (bidirectional overrides); line ends that no editor shows; no-break spaces; unassigned
    return character != " " and unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp", "Zs", "Cs", "Co", "Cn"}


def _bad_characters(text: str) -> list[Problem]:
    problems = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.removesuffix("\r")
        if content.isprintable():
            continue
        for column, character in enumerate(content, start=1):
            if character == "\t":
                problems.append(Problem(Mark(number, column), "a tab; YAML is indented with spaces"))
            elif _is_hidden(character):
                problems.append(Problem(Mark(number, column), f"the invisible character U+{ord(character):04X}"))
    return problems


class MarkedLoader(yaml.SafeLoader):
    """Composes nodes (which carry marks) by the core schema of YAML 1.2, and notes anchors, aliases and tags."""

    # a new table: PyYAML's own has YAML 1.1's yes/no, octal, sexagesimal numbers and dates
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML declares it

    def __init__(self, text: str, tags: Mapping[str, str]) -> None:
        super().__init__(text)
        self.problems: list[Problem] = []
        self._tags = tags
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML's, but an alias becomes an empty text, and neither anchors nor tags have any effect."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            self._note(event, f"the alias *{event.anchor}; write the value out")
            return yaml.ScalarNode("tag:yaml.org,2002:str", "", event.start_mark, event.end_mark)  # type: ignore[arg-type]
        if event.anchor is not None:
            self._note(event, f"the anchor &{event.anchor}; anchors and aliases are not allowed")
            event.anchor = None
        key = self._tags.get(event.tag) if event.tag else None
        # "!" is what a quoted or an empty plain scalar may carry; anything longer was written by hand
        if event.tag is not None and key is None:
            self._note(event, f"the tag {quote(event.tag)}; write the plain value, in quotes if it is a text")
        event.tag = None
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        try:
            node = super().compose_node(parent, index)
            return node if key is None or node is None else _under(key, node)
        finally:
            self._depth -= 1

    def _note(self, event: yaml.NodeEvent, message: str) -> None:
        self.problems.append(Problem(_mark(event.start_mark), message))


def _under(key: str, node: yaml.Node) -> yaml.Node:
    """The mapping of one key that a tag stands for, in the place of the tag."""
    name = yaml.ScalarNode("tag:yaml.org,2002:str", key, node.start_mark, node.start_mark)
    return yaml.MappingNode("tag:yaml.org,2002:map", [(name, node)], node.start_mark, node.end_mark)


MarkedLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)\Z"), list("tf"))
MarkedLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"-?(?:0|[1-9][0-9]{0,17})\Z"), list("-0123456789")
)
MarkedLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null)?\Z"), ["~", "n", ""])


class _Reader:
    """Turns nodes into plain values and a table of marks."""

    def __init__(self, problems: list[Problem], *, lines: bool) -> None:
        self._problems = problems
        self._lines = lines
        self._keys: dict[Where, Mark] = {}
        self._values: dict[Where, Mark] = {}

    def document(self, node: yaml.Node | None) -> Document:
        if not isinstance(node, yaml.MappingNode):
            what = "the file is empty" if node is None else "the file is not a mapping of keys to values"
            return _unreadable([*self._problems, Problem(_mark(node.start_mark if node else None), what)])
        data = self._mapping(node, ())
        return Document(data, self._keys, self._values, self._problems, readable=True)

    def _value(self, node: yaml.Node, where: Where) -> object:
        self._values[where] = _mark(node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(each, (*where, index)) for index, each in enumerate(node.value)]
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> object:
        if node.tag.endswith(":null"):
            self._note(node, "a value is missing here; write one, or leave the key out")
            return None
        if node.tag.endswith(":bool"):
            return node.value == "true"
        if node.tag.endswith(":int"):
            return int(node.value)
        # a quoted "\e" or a block of lines: what the look at the bare text cannot see
        text = node.value.replace("\n", "") if self._lines else node.value
        if any(_is_hidden(character) for character in text):
            self._note(node, f"the text {quote(node.value)} holds a control or invisible character")
        return node.value

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key is None:
                continue
            if key in found:
                first = self._keys[*where, key]
                self._note(key_node, f"the key {quote(key)} is already on line {first.line}")
                continue
            self._keys[*where, key] = _mark(key_node.start_mark)
            found[key] = self._value(value_node, (*where, key))
        return found

    def _key(self, node: yaml.Node) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._note(node, "a list or mapping cannot be a key")
        elif node.value == "<<":
            self._note(node, "a merge key; write the keys out")
        elif not node.tag.endswith(":str"):
            self._note(node, f"the key {node.value or '~'} is not a text; put it in quotes")
        elif any(_is_hidden(character) for character in node.value):
            self._note(node, f"the key {quote(node.value)} holds a control or invisible character")
        else:
            return str(node.value)
        return None

    def _note(self, node: yaml.Node, message: str) -> None:
        self._problems.append(Problem(_mark(node.start_mark), message))
