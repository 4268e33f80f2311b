"""docs/architecture.md as a test: a module imports only from its own package or from what is below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cowengine

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cowengine"

# Lowest first; what shares a line is one layer.
LAYERS = [
    {"errors", "oserrors", "closing", "version"},
    {"core"},
    {"format"},
    {"engine"},
    {"volume", "snapshot", "reader", "extents", "names", "ranges"},
    {"store"},
    {"convert", "filesystems", "mounts"},
    {"backup"},
    {"vss"},
    {"sqlite"},
    {"writers"},
    {"nbd"},
    {"control"},
    {"mount"},
    {"capi"},
    {"cli"},
    {"__main__"},
]
RANKS = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
CIMPORT = re.compile(r"^\s*(?:from\s+(\.*[\w.]*)\s+c?import\s+\(?\s*(\w+)|c?import\s+([\w.]+))", re.MULTILINE)


def part_of(module: str) -> str:
    """The part of the package that a dotted module name belongs to; the package itself is ''."""
    return module.split(".")[1] if "." in module else ""


def home_of(imported: str) -> str:
    """The module that has what a module imports: the package itself only passes public names on."""
    package, _, name = imported.partition(".")
    if name in cowengine.__all__:
        return f"{package}.{cowengine._MODULES.get(name, 'errors')}"
    return imported


def dotted(path: Path) -> str:
    names = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports_of_python(path: Path) -> Iterator[str]:
    package = dotted(path) if path.name == "__init__.py" else dotted(path.with_name("__init__.py"))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from cowengine import store` names a part; what a part itself has is of that part anyway.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of_cython(path: Path) -> Iterator[str]:
    for module, name, absolute in CIMPORT.findall(path.read_text()):
        base = "cowengine.core." + module.lstrip(".") if module.startswith(".") else module
        yield f"{base}.{name}" if base else absolute


def all_imports() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":  # it re-exports the public names of every layer, lazily
            yield from ((dotted(path), imported) for imported in imports_of_python(path))
    for path in sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")]):
        yield from ((dotted(path), imported) for imported in imports_of_cython(path))


def test_every_module_belongs_to_a_layer() -> None:
    parts = {part_of(dotted(path)) for path in PACKAGE.rglob("*.py*") if "__pycache__" not in path.parts} - {""}
    assert parts <= set(RANKS), f"not in docs/architecture.md: {sorted(parts - set(RANKS))}"


def test_no_module_imports_from_a_layer_above_it() -> None:
    wrong = []
    for module, imported in all_imports():
        if imported.split(".")[0] != "cowengine":
            continue
        below, part = part_of(home_of(imported)), part_of(module)
        if below not in RANKS:
            wrong.append(f"{module} imports {imported}, which is neither a module nor a public name")
        elif below != part and RANKS[below] > RANKS[part]:
            wrong.append(f"{module} imports {imported}, which is above it")
    assert not wrong, "\n".join(wrong)


def test_the_layering_test_sees_imports_of_every_kind() -> None:
    """A test that reads imports proves nothing if it reads none."""
    seen = set(all_imports())
    assert any(imported.startswith("cowengine.errors.") for _, imported in seen)
    assert ("cowengine.core.checksum", "libc.stdint.uint64_t") in seen


@pytest.mark.parametrize("name", ["fsync", "fdatasync", "pwrite", "pwritev", "fallocate", "sync"])
def test_only_the_io_table_makes_data_durable(name: str) -> None:
    """The crash tests see what goes through the I/O table and nothing else."""
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == name:
                if isinstance(node.value, ast.Name) and node.value.id == "os":
                    wrong.append(f"{dotted(path)}:{node.lineno}")
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                wrong += [f"{dotted(path)}:{node.lineno}" for alias in node.names if alias.name == name]
    assert not wrong, f"os.{name} called past the I/O table: {wrong}"


def test_the_model_is_independent_of_the_core() -> None:
    for path in (ROOT / "tests" / "model").rglob("*.py"):
        reached = [module for module in imports_of_python(path) if module.startswith("cowengine.core.")]
        assert set(reached) <= {"cowengine.core.iotable.IOTable"}, f"{path.name} imports {reached}"
