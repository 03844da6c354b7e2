"""The rules of docs/architecture.md, read from the code: who imports whom, and what stays out of light processes."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cgd"
LEVELS = {
    "cli": 4,
    "pipeline": 3,
    "stages": 2,
    **dict.fromkeys(("engines", "models", "fusion", "methods", "data", "retrieval", "store"), 1),
    **dict.fromkeys(("config", "types", "registry", "progress", "launch", "errors"), 0),
}
ONLY_IN = {"click": "cli", "yaml": "pipeline", "zarr": "store"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether it happens at import) of every import in a file, those for types only left out."""
    tree = ast.parse(path.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        above, at_import, typing_only = node, True, False
        while above in parents:
            above = parents[above]
            at_import &= not isinstance(above, ast.FunctionDef)
            typing_only |= isinstance(above, ast.If) and ast.unparse(above.test) == "TYPE_CHECKING"
        if not typing_only:
            yield from ((name, node.lineno, at_import) for name in names)


def part(module: str) -> str:
    """`cgd.store.keys` belongs to `store`."""
    return module.split(".")[1] if module.count(".") else ""


def of_file(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    own = of_file(path)
    if own == "__init__":
        return
    for module, line, _ in imports(path):
        if module.split(".")[0] != "cgd" or not part(module):
            continue
        other = part(module)
        where = f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        assert LEVELS[other] <= LEVELS[own], where
        if other != own and LEVELS[other] == LEVELS[own] == 1:
            assert "store" not in (own, other), where


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stay_in_their_place(path: Path) -> None:
    for module, line, _ in imports(path):
        place = ONLY_IN.get(module.split(".")[0])
        assert place in (None, of_file(path)), f"{path.relative_to(PACKAGE)}:{line} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_opens_with_a_sentence(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, path
    assert text.split("\n\n")[0].rstrip().endswith("."), path


def test_the_levels_name_every_part_of_the_package() -> None:
    parts = {of_file(p) for p in FILES} - {"__init__"}
    assert parts == set(LEVELS)


def test_no_unsafe_loading() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert call not in ("pickle.load", "pickle.loads", "yaml.load", "eval", "exec"), (path, node.lineno)
                assert call != "torch.load" or given.get("weights_only") == "True", (path, node.lineno)
                assert given.get("strict") != "False" or call == "zip", (path, node.lineno)
                assert given.get("allow_pickle") != "True", (path, node.lineno)


def test_no_broad_except() -> None:
    """Three are allowed: a hostile pickle may raise anything, and so may others' code and what fetches URLs."""
    found = [
        f"{path.name}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or "Exception" in ast.unparse(node.type).strip("()").split(", "))
    ]
    assert [f.split(":")[0] for f in found] == ["pickles.py", "registry.py", "remote.py"]


def test_public_names() -> None:
    """What `import cgd` offers is a promise: this list grows with an entry in the changelog."""
    import cgd

    assert sorted(cgd.__all__) == ["CgdError", "FeatureStore", "load_student"]
    assert all(hasattr(cgd, name) for name in cgd.__all__)


def test_a_built_package_holds_every_file_that_is_no_code() -> None:
    declared = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "cgd"
    ]
    files = (p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc"))
    assert sorted(declared) == sorted(p.relative_to(PACKAGE).as_posix() for p in files)
