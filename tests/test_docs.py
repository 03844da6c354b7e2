"""What the documents say is true: command lines parse, the format's table is the code's, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from cgd.cli import cli
from cgd.models.load import teacher
from cgd.pipeline.recipe import read_recipe
from cgd.store.layout import LAYOUT

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
RECIPES = sorted(ROOT.glob("recipes/*.yaml"))
FILES = (  # that commands in the documents are given
    "gl18-tl-resnet101-gem-w-a4d43db.pth",
    "resnet101_dolg_pca_512d_gldv2_512x512_p3_global_randcrop.pt",
    "query.jpg",
    "other.jpg",
    "r-50-1000ep.pth.tar",
    "resnet50.pth",
)
SAMPLE = "sample.py"  # an export writes it
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page, text) of every code block in a language."""
    for page in PAGES:
        for found, text in BLOCK.findall(page.read_text()):
            if found == language:
                yield page.name, text


def command_lines(text: str) -> Iterator[list[str]]:
    """Words of every line of a shell block, continued lines joined, comments and redirections left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words[: words.index(">")] if ">" in words else words


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group, with its words."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))
    yield path, command


def parse(words: list[str]) -> None:
    """Parse `cgd …` as the command line does; the `user_folder` fixture keeps it from running."""
    result = CliRunner().invoke(cli, words[1:])
    assert result.exit_code == 0, result.output
    rows = [words[n + 1] for n, word in enumerate(words) if word == "--row"]
    assert not rows or set(rows) <= set(read_recipe(ROOT / words[2]).rows), words


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the documents' commands name; commands are parsed there and do nothing."""
    for _, command in commands(cli):
        if not isinstance(command, click.Group):
            monkeypatch.setattr(command, "callback", lambda **_: None)
    (tmp_path / "weights").mkdir()
    (tmp_path / "DIR").mkdir()
    (tmp_path / "RECIPE.yaml").write_text("")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for name in FILES:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(words: list[str]) -> None:
    """A command line of ours parses; a target of make exists; anything else stands for itself."""
    if words[0] == "cgd":
        parse(words)
    elif words[0] == "torchrun":
        parse(words[words.index("cgd") :])
    elif words[0] == "ray":
        from ray.scripts.scripts import cli as ray

        ray.commands[words[1]].make_context(words[1], words[2:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file() or Path(words[1]).name == SAMPLE, words
    else:
        raise AssertionError(f"a document shows a command that nothing checks: {' '.join(words)}")


@pytest.mark.usefixtures("user_folder")
@pytest.mark.parametrize(("page", "text"), list(blocks("sh")))
def test_shell_blocks_say_why_they_are_not_run_and_parse(page: str, text: str) -> None:
    assert "not run:" in text, f"{page}: a shell block is run by a test or says why not"
    for words in command_lines(text):
        check(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_blocks_are_of_a_kind_that_is_checked(page: Path) -> None:
    assert {language for language, _ in BLOCK.findall(page.read_text())} <= {"sh", "json", "text", "python", "yaml"}


@pytest.mark.parametrize(("page", "text"), list(blocks("json")))
def test_json_blocks_are_json(page: str, text: str) -> None:
    assert json.loads(text), page


@pytest.mark.parametrize(("page", "text"), list(blocks("yaml")))
def test_yaml_blocks_are_recipes(page: str, text: str, user_folder: Path) -> None:
    (user_folder / "recipes/of-a-page.yaml").write_text(text)
    assert read_recipe(user_folder / "recipes/of-a-page.yaml").data.train, page


@pytest.mark.parametrize(("page", "text"), list(blocks("python")))
def test_python_blocks_run(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file of the working directory; the functions it defines are teachers."""
    monkeypatch.chdir(tmp_path)
    name = f"block_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    for function in re.findall(r"^def (\w+)\(argument", text, re.MULTILINE):
        encoder = teacher(f"{name}:{function}?weights=random", None).build()
        assert encoder.embed([torch.zeros(1, 3, 64, 64)]).shape == (1, 1, encoder.embed_dim), page


@pytest.mark.usefixtures("user_folder")
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_are_valid_and_begin_with_their_command(path: Path) -> None:
    assert read_recipe(path).data.train
    head = "\n".join(line.removeprefix("#") for line in path.read_text().splitlines() if line.startswith("#"))
    ours = [words for words in command_lines(head.replace("'", "")) if words[0] == "cgd"]
    assert ours
    for words in ours:
        parse(words)


@pytest.mark.usefixtures("user_folder")
@pytest.mark.parametrize("path", [p for p, _ in commands(cli)], ids=lambda p: " ".join(p) or "cgd")
def test_examples_in_help_texts_parse(path: tuple[str, ...]) -> None:
    command = dict(commands(cli))[path]
    for line in (command.help or "").splitlines():
        words = shlex.split(re.split(r"\s{3,}", line.strip())[0], comments=True) if "cgd " in line else []
        if words and words[0] == "cgd":
            parse(words)


def test_the_formats_table_is_the_codes() -> None:
    text = (ROOT / "docs/store-format.md").read_text()
    rows: dict[str, list[tuple[str, ...]]] = {}
    kind = ""
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 5 and cells[0] not in ("kind", "---"):
            kind = cells[0].strip("`") or kind
            rows.setdefault(kind, [])
            if cells[1].startswith("`"):
                name, _, optional = cells[1].partition(" ")
                rows[kind].append((name.strip("`"), optional.strip("()"), cells[2], cells[3], cells[4]))
    fills = {"": "", "NaN": "nan", "0": "0", "false": "False"}
    found = {k: [(n, o == "optional", d, t, fills[f]) for n, o, d, t, f in v] for k, v in rows.items()}
    declared = {
        kind: [(a.name, a.optional, ", ".join(a.dims), a.dtype, str(a.fill)) for a in arrays]
        for kind, arrays in LAYOUT.items()
    }
    assert found == declared


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tree_in_the_architecture_is_the_packages() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"\b([a-z_]+)\.py\b", text))
    missing = [
        p.name
        for p in (ROOT / "cgd").rglob("*.py")
        if p.parent.name in ("cgd", "pipeline", "stages") and p.stem != "__init__" and p.stem not in named
    ]
    assert not missing
