"""From a YAML file to a checked value: every mistake is reported at once, on the admin's own lines.

The file is opened and judged by :mod:`conf.safefile`, read by :mod:`conf.yamlmarks`, given its shape by cattrs, and
then looked at as a whole by a function of the caller's (:mod:`conf.checks`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs import cols
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from conf.errors import ConfigError
from conf.forms import Form, kind
from conf.quote import did_you_mean, nearest, one_of, quote
from conf.safefile import MAX_CONFIG, check_file_safety, read_safely
from conf.yamlmarks import MAX_PROBLEMS, Document, Mark, Problem, Where, parse

__all__ = ["Finding", "check_file_safety", "load", "read_safely", "structure"]

T = TypeVar("T")
# a mistake and the path of the value that it is about, or of the key
Finding = tuple[Where, str]
CrossCheck = Callable[[dict[str, Any]], Iterator[Finding]]
Hook = Callable[[object, object], object]


def load(path: str, shape: type[T], cross_check: CrossCheck, *, owner: int | None = None) -> tuple[T, str]:
    """The file as a ``shape``, and the sha256 (hex) of its bytes.

    Raises ConfigError whose lines are ``file:line:column: message``, in the order of the file, for all that is wrong.
    """
    data = read_safely(path, owner=owner, limit=MAX_CONFIG)
    document = parse(data)
    problems = list(document.problems)
    value: T | None = None
    if document.readable:
        told = {problem.mark for problem in problems}
        value, found = structure(document, shape)
        found += [Problem(document.value_mark(where), text) for where, text in cross_check(document.data)]
        # what YAML itself got wrong (a missing value) need not be told twice
        problems += [problem for problem in dict.fromkeys(found) if problem.mark not in told]
    if problems or value is None:
        raise _report(path, problems)
    return value, hashlib.sha256(data).hexdigest()


def structure(document: Document, shape: type[T]) -> tuple[T | None, list[Problem]]:
    """``document`` as a ``shape``, or None and everything in it that does not fit."""
    try:
        return _CONVERTER.structure(document.data, shape), []
    except BaseValidationError as group:
        return None, list(_flatten(group, (), document))


def _report(path: str, problems: list[Problem]) -> ConfigError:
    name = path if path.isprintable() else quote(path)
    ordered = sorted(problems, key=lambda problem: problem.mark)
    lines = [f"{name}:{mark.line}:{mark.column}: {message}" for mark, message in ordered[:MAX_PROBLEMS]]
    if len(ordered) > MAX_PROBLEMS:
        lines.append(f"{name}: and {len(ordered) - MAX_PROBLEMS} more")
    one = "this" if len(ordered) == 1 else "these"
    return ConfigError("\n".join(lines), advice=f"correct {one} in {quote(os.fspath(path))}; nothing of it is in use")


def _flatten(error: Exception, where: Where, document: Document) -> Iterator[Problem]:
    """The leaves of cattrs' tree of exceptions, each at its place."""
    if isinstance(error, BaseValidationError):
        for each in error.exceptions:
            yield from _flatten_child(each, where, document, error)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = _keys_of(error.cl)
        for key in sorted(error.extra_fields):
            hint = did_you_mean(key, known) or f"; known here: {one_of(sorted(known))}"
            yield Problem(document.key_mark((*where, key)), f"unknown key {quote(key)}{hint}")
    else:
        yield Problem(document.value_mark(where), f"{_dotted(where)} {error}")


def _flatten_child(error: Exception, where: Where, document: Document, group: BaseValidationError) -> Iterator[Problem]:
    for note in getattr(error, "__notes__", []):
        if isinstance(note, AttributeValidationNote):
            if isinstance(error, KeyError):
                yield from _missing(_key_of(group.cl, note.name), where, document, group)
                return
            where = (*where, _key_of(group.cl, note.name))
            break
        if isinstance(note, IterableValidationNote):
            where = (*where, note.index)
            if note.startswith("Structuring mapping key"):
                yield Problem(document.key_mark(where), f"{_dotted(where)}: the key {error}")
                return
            break
    yield from _flatten(error, where, document)


def _missing(name: str, where: Where, document: Document, group: BaseValidationError) -> Iterator[Problem]:
    # a misspelt key is one mistake, and was told as such
    known = _keys_of(group.cl)
    extra = [key for each in group.exceptions if isinstance(each, ForbiddenExtraKeysError) for key in each.extra_fields]
    if name not in {nearest(key, known) for key in extra}:
        mark = document.key_mark(where) if where else Mark(1, 1)
        yield Problem(mark, f"{quote(name)} is missing{f' in {_dotted(where)}' if where else ''}")


def _dotted(where: Where) -> str:
    """``vault.head.role_id_file`` or ``roles.phi-eu.groups[0]``; a list counts from 0."""
    text = ""
    for step in where:
        plain = str(step) if str(step).replace("-", "").replace("_", "").isalnum() else quote(step)
        text += f"[{step}]" if isinstance(step, int) else f".{plain}"
    return text.lstrip(".")


def _keys_of(shape: type) -> list[str]:
    return [_key_of(shape, field.name) for field in attrs.fields(shape) if field.metadata.get("in_file", True)]


def _key_of(shape: type, name: str) -> str:
    """An attribute's key in the file: another word where Python has taken it (``class``)."""
    key: str = getattr(attrs.fields(shape), name).metadata.get("key", name)
    return key


def _plain(expected: type, words: str) -> Hook:
    def hook(value: object, _: object) -> object:
        # exactly: True is an int to Python
        if type(value) is not expected:
            raise ValueError(f"must be {words}, not {kind(value)}")
        return value

    return hook


def _class_hook(shape: type) -> Hook:
    options: dict[str, Any] = {
        field.name: override(rename=_key_of(shape, field.name))
        if field.metadata.get("in_file", True)
        else override(omit=True)
        for field in attrs.fields(shape)
    }
    fill: Any = make_dict_structure_fn(shape, _CONVERTER, _cattrs_forbid_extra_keys=True, **options)

    def hook(value: object, _: object) -> object:
        if not isinstance(value, dict):
            raise ValueError(f"must be a mapping with {one_of(_keys_of(shape))}, not {kind(value)}")
        return fill(value, shape)

    return hook


def _form_hook(annotated: Any) -> Hook:  # noqa: ANN401 - a typing construct has no type
    form = next(each for each in annotated.__metadata__ if isinstance(each, Form))
    return lambda value, _: form.check(value)


def _literal_hook(value: object, literal: object) -> object:
    allowed = get_args(literal)
    if any(value == word and type(value) is type(word) for word in allowed):
        return value
    words = [word for word in allowed if isinstance(word, str)]
    hint = did_you_mean(value, words) if isinstance(value, str) else ""
    must = f"must be {one_of(allowed)}" if len(allowed) == 1 else f"must be one of {one_of(allowed)}"
    raise ValueError(f"{must}, not {kind(value)}{hint}")


def _list_hook(shape: Any, converter: cattrs.Converter) -> Hook:  # noqa: ANN401 - a typing construct has no type
    fill = cols.homogenous_tuple_structure_factory(shape, converter)

    def hook(value: object, _: object) -> object:
        if not isinstance(value, list):
            raise ValueError(f"must be a list, not {kind(value)}")
        if not value:
            # an empty list reads as "none" to one and as "no limit" to another
            raise ValueError(
                "must not be an empty list; leave the key out where that is allowed, or name what is meant"
            )
        filled: tuple[Any, ...] = fill(value, shape)
        twice = next((each for index, each in enumerate(value) if each in value[:index]), None)
        if twice is not None:
            raise ValueError(f"names {quote(twice)} twice")
        return filled

    return hook


def _mapping_hook(shape: Any, converter: cattrs.BaseConverter) -> Hook:  # noqa: ANN401 - a typing construct has no type
    fill = cols.mapping_structure_factory(shape, converter)

    def hook(value: object, _: object) -> object:
        if not isinstance(value, dict):
            raise ValueError(f"must be a mapping of names, not {kind(value)}")
        if not value:
            raise ValueError("must not be empty: a policy that names nothing allows nothing")
        return fill(value, shape)

    return hook


def _is(shape: object, origin: object) -> bool:
    return get_origin(shape) is origin


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook(str, _plain(str, "a text"))
    converter.register_structure_hook(int, _plain(int, "a whole number"))
    converter.register_structure_hook(bool, _plain(bool, "true or false"))
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    converter.register_structure_hook_factory(
        lambda shape: _is(shape, tuple), lambda shape: _list_hook(shape, converter)
    )
    converter.register_structure_hook_factory(cols.is_mapping, lambda shape: _mapping_hook(shape, converter))
    converter.register_structure_hook_func(lambda shape: _is(shape, Literal), _literal_hook)
    converter.register_structure_hook_factory(
        lambda shape: any(isinstance(each, Form) for each in getattr(shape, "__metadata__", ())), _form_hook
    )
    return converter


_CONVERTER = _converter()
