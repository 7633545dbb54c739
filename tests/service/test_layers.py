"""Which room may import which: the design's table, held against the imports as they are written."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import optimd
import optimd_service

SERVICE = Path(optimd_service.__file__).parent
CLIENT = Path(optimd.__file__).parent
FOUNDATION = {"errors", "types"}
ROOMS: Mapping[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "wire": FOUNDATION,
    "optim": FOUNDATION,
    "store": FOUNDATION,
    "history": FOUNDATION,
    "session": FOUNDATION | {"wire", "optim", "store", "history"},
    "api": FOUNDATION | {"wire", "session", "history"},
    "config": set(),
    "datadir": set(),
    "main": FOUNDATION | {"api", "session", "store", "history", "config", "datadir"},
    "entry": {"cli"},
    "cli": {"main", "api", "session", "history", "config", "datadir"},
}
# A type that api names in its signatures; it is what session hands out.
EXCEPTIONS = {("optimd_service.api.params", "optimd_service.store.contract.Snapshot")}


def modules(package: Path) -> dict[str, ast.Module]:
    """Module name → its syntax tree."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(file.read_text())
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    """Everything imported, wherever the statement stands: `package.module`, and `package.module.name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


TREES = modules(SERVICE)
EDGES = [
    (module, imported)
    for module, tree in TREES.items()
    for imported in imports(tree)
    if imported.split(".")[0] == "optimd_service"
]


def test_every_room_is_in_the_table() -> None:
    assert {room(module) for module in TREES} - {""} == ROOMS.keys()


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_the_table_allows(name: str) -> None:
    of_this_room = {(module, imported) for module, imported in EDGES if room(module) == name} - EXCEPTIONS
    allowed = ROOMS[name] | {name, "__version__"}
    assert {edge for edge in of_this_room if room(edge[1]) not in allowed} == set()


def test_every_exception_is_still_needed() -> None:
    assert set(EDGES) >= EXCEPTIONS


def test_the_foundation_stands_on_the_standard_library_and_torch() -> None:
    for name in FOUNDATION:
        outside = {imported.split(".")[0] for imported in imports(TREES[f"optimd_service.{name}"])}
        assert outside <= {
            "__future__",
            "collections",
            "dataclasses",
            "datetime",
            "functools",
            "math",
            "typing",
            "torch",
        }


def test_no_module_imports_itself_by_a_detour() -> None:
    for trees in (TREES, modules(CLIENT)):
        graph: dict[str, set[str]] = {}
        for module, tree in trees.items():
            targets = {name if name in trees else name.rpartition(".")[0] for name in imports(tree)}
            graph[module] = targets & trees.keys() - {module}
        assert len(list(TopologicalSorter(graph).static_order())) == len(trees)


def test_client_and_service_do_not_know_each_other() -> None:
    for package, stranger in ((SERVICE, "optimd"), (CLIENT, "optimd_service")):
        for module, tree in modules(package).items():
            assert stranger not in {name.split(".")[0] for name in imports(tree)}, module
            assert "migrations" not in {name.split(".")[0] for name in imports(tree)}, module


def test_optim_and_wire_know_neither_http_nor_clock_nor_disk() -> None:
    barred = {
        "fastapi",
        "starlette",
        "uvicorn",
        "httpx",
        "sqlalchemy",
        "time",
        "datetime",
        "pathlib",
        "os",
        "io",
        "socket",
    }
    for module, tree in TREES.items():
        if room(module) in {"optim", "wire"}:
            assert barred & {name.split(".")[0] for name in imports(tree)} == set(), module


def test_no_pickle_is_ever_loaded() -> None:
    barred = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    calls = {"torch.load", "np.load", "numpy.load", "torch.jit.load", "eval", "exec", "__import__"}
    seen = 0
    for package in (SERVICE, CLIENT):
        for module, tree in modules(package).items():
            assert barred & {name.split(".")[0] for name in imports(tree)} == set(), module
            called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            assert called & calls == set(), module
            seen += len(called)
    assert seen > 100
