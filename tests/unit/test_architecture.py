"""The rules that hold the rooms apart, read from the source: who imports whom, and what root's hooks may cost.

Every rule looks at imports inside functions as well: one that is late is still one.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from audit.events import COMMON, EVENTS
from conf.errors import SecureSlurmError

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "conf": set(),
    "audit": {"conf"},
    "keys": {"conf", "audit"},
    "submit": {"conf"},
    "slurm_hooks": {"conf", "keys", "audit"},
    "admin": {"conf", "keys", "audit", "submit", "slurm_hooks"},
}
ROOMS = set(ALLOWED)

# what the stubs start under `python3 -IS`, and what the documentation promises to be as light
ROOT_HOOKS = [
    "slurm_hooks.prolog",
    "slurm_hooks.epilog",
    "slurm_hooks.prolog_slurmctld",
    "slurm_hooks.epilog_slurmctld",
    "slurm_hooks.reaper",
    "slurm_hooks.privatetmp",
    "audit.chain",
    "audit.events",
    "conf.errors",
    "conf.hookconf",
    "conf.tag",
    "keys.journal",
    "keys.process",
    "keys.secret",
    "slurm_hooks.wire",
    "slurm_hooks.handd",
    "slurm_hooks.hookd",
    "submit.main",
]
HEAVY = {"asyncio", "logging", "dataclasses", "pathlib", "inspect", "argparse", "http", "ssl", "unittest", "difflib"}

# the one door for each thing that is dangerous, or slow, or not always there
ONE_DOOR = {
    "hvac": {"keys.vault"},
    "ldap": {"slurm_hooks.directory"},
    "subprocess": {"keys.process"},
    "rich": {"admin.output"},
    "yaml": {"conf.yamlmarks"},
    "http": {"keys.imds"},
    "cryptography": {
        *("keys.place_ec2", "keys.place_manifest", "keys.certificate", "keys.nodecert", "keys.vault_jwt"),
        *("admin.vault_init", "admin.doctor.doors_files"),
    },
    "pickle": set(),
    "shelve": set(),
    "marshal": set(),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for room in sorted(ROOMS) for path in sorted((ROOT / room).rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(node: ast.AST, *, types_too: bool) -> Iterator[str]:
    """Every module that is imported below ``node``; without ``types_too`` not what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "import names are absolute"
            assert child.module is not None
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and not types_too and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        else:
            yield from imports(child, types_too=types_too)


def rooms_of(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree(module), types_too=True)} & ROOMS


def test_there_is_something_to_look_at() -> None:
    assert {module.partition(".")[0] for module in MODULES} == ROOMS


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_it_may(module: str) -> None:
    room = module.partition(".")[0]
    assert rooms_of(module) - {room} <= ALLOWED[room]


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_a_package_runs_nothing_when_it_is_imported(module: str) -> None:
    body = tree(module).body
    assert ast.get_docstring(tree(module))
    assert len(body) == 1


@pytest.mark.parametrize("library", ONE_DOOR)
def test_one_door(library: str) -> None:
    users = {
        module
        for module in MODULES
        if library in {name.partition(".")[0] for name in imports(tree(module), types_too=False)}
    }
    assert users <= ONE_DOOR[library]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_goes_through_a_shell(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"os.system", "os.popen", "eval", "exec", "compile"}, f"line {node.lineno}"
            assert not any(word.arg == "shell" for word in node.keywords), f"line {node.lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_every_exception_has_the_one_root(module: str) -> None:
    if not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree(module))):
        return
    loaded = importlib.import_module(module)
    own = [each for _, each in inspect.getmembers(loaded, inspect.isclass) if each.__module__ == module]
    for each in own:
        if issubclass(each, BaseException):
            assert issubclass(each, SecureSlurmError), each
            assert each.exit_code in range(1, 6)


def events_named(module: str) -> Iterator[tuple[ast.Call, str]]:
    """The calls that name an audit event, whatever helper they go through, and every direct append to a chain."""
    for call in (node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)):
        texts = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        direct = isinstance(call.func, ast.Attribute) and call.func.attr == "append"
        if direct and any(word.arg == "durable" for word in call.keywords):
            yield from ((call, text) for text in texts)
        else:
            yield from ((call, text) for text in texts if text in EVENTS and call.keywords)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "audit.events"])
def test_audit_events_are_in_the_schema(module: str) -> None:
    for call, event in events_named(module):
        assert event in EVENTS, f"line {call.lineno}"
        named = {"class" if word.arg == "klass" else word.arg for word in call.keywords if word.arg}
        allowed = EVENTS[event].required | EVENTS[event].optional | COMMON
        assert named - {"durable"} <= allowed, f"line {call.lineno}: {event}"


def reached(module: str) -> set[str]:
    """The modules of ours that are needed to run ``module``, its packages among them."""
    found: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        if name in MODULES and name not in found:
            found.add(name)
            left += [name.rpartition(".")[0], *imports(tree(name), types_too=False)]
    return found


@pytest.mark.parametrize("hook", ROOT_HOOKS)
def test_a_root_hook_needs_the_standard_library_alone(hook: str) -> None:
    for module in reached(hook):
        for name in imports(tree(module), types_too=False):
            top = name.partition(".")[0]
            assert top in ROOMS or top in sys.stdlib_module_names, f"{module} imports {name}"


@pytest.mark.parametrize("hook", ROOT_HOOKS)
def test_a_root_hook_starts_as_the_stub_starts_it_and_is_light(hook: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules); import {hook}; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-B", "-c", code], capture_output=True, text=True, check=False, timeout=60, env={}
    )
    assert done.returncode == 0, done.stderr
    assert HEAVY.isdisjoint(done.stdout.split())
