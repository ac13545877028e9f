"""Documentation: commands, options, names and links are valid."""

from __future__ import annotations

import configparser
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from scripts import load_script

from prompt_transfer.analysis import correlation
from prompt_transfer.analysis.indicators import INDICATORS
from prompt_transfer.callbacks import convergence
from prompt_transfer.cli import main
from prompt_transfer.commands import evaluation
from prompt_transfer.commands.lightning import Command
from prompt_transfer.commands.pretraining import PretrainCommand
from prompt_transfer.commands.table import COMMANDS
from prompt_transfer.prompts import initializers
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.recommendation import FACTS
from prompt_transfer.utils import results

ROOT = Path(__file__).resolve().parent.parent
PAGES = {str(path.relative_to(ROOT / "docs/pages")): path for path in sorted((ROOT / "docs/pages").rglob("*.md"))}
# Folders and files that the pages' commands name and option parsing requires.
FOLDERS = ("path/to/model",)
FILES = ("texts.jsonl",)


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), flags=re.M | re.S)


def commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("prompt-transfer ")]


class ParsedError(Exception):
    """Raised once all options are parsed, to skip the command itself."""


def stop(*_: Any, **__: Any) -> None:
    raise ParsedError


@pytest.fixture
def parses_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_roberta: Path) -> None:
    """Stop every command after option parsing."""
    import jsonargparse
    import torch

    facts = {"backbone": str(tiny_roberta), "task": "builtin_movies"}
    monkeypatch.setattr(evaluation.Prompt, "load", lambda path: Prompt(torch.zeros(2, 32), facts))
    monkeypatch.setattr(jsonargparse.ArgumentParser, "instantiate", stop)
    monkeypatch.setattr(Command, "before_instantiate_classes", stop)
    monkeypatch.setattr(PretrainCommand, "before_instantiate_classes", stop)
    monkeypatch.chdir(tmp_path)
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    for file in FILES:
        (tmp_path / file).touch()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
@pytest.mark.usefixtures("parses_only")
def test_the_commands_of_a_page_are_understood(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page):
        assert command[0] in COMMANDS or command[0].startswith("--"), command
        if {"--help", "--version", "--resume", "--print_config", "completion", "hub"} & set(command):
            continue  # these parse no options, or need a file that is absent
        try:
            code = main(command)
        except ParsedError:
            continue
        pytest.fail(f"{shlex.join(command)}: ended with {code}: {capsys.readouterr().err}")


@pytest.mark.usefixtures("parses_only")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_yaml_of_a_page_can_be_read(page: str) -> None:
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block) is not None


def test_a_wrong_option_would_be_seen() -> None:
    assert main(["transfer", "--backbone", "roberta-nano", "--promts", "x", "--tasks", "a", "--output", "o"]) == 2
    assert main(["fit", "--data.tsk", "builtin_movies"]) == 2


def test_options_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every `--option` named in the text belongs to some command."""
    from prompt_transfer.commands.completion import tree

    known = {option for options in tree().values() for option in options}
    known |= {
        "--help",
        "--version",
        "--json",
        "--debug",
        "--figures",
        "--print_config",
        "--input",
        "--config",
        "--model",
        "--data",
    }
    # Options of classes that an option selects.
    for initializer in (initializers.FromPrompt, initializers.Text):
        known |= {f"--model.init.{name}" for name in inspect.signature(initializer).parameters}
    of_projectors = {
        "prompts",
        "target_prompts",
        "projector",
        "objective",
        "contrastive",
        "variance",
        "select",
        "distill_across",
    }
    known |= {f"--model.{name}" for name in of_projectors}
    unknown: set[tuple[str, str]] = set()
    for page in PAGES:
        text = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
        named = set(re.findall(r"`(?:[\w ]+ )?(--[\w.]+)[^`]*`", text))
        unknown |= {(page, option) for option in named - known}
    assert not unknown


def test_every_page_is_in_the_navigation() -> None:
    content = (ROOT / "docs/mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w/]+\.md)$", content, flags=re.M))
    hooks = (ROOT / "docs/hooks.py").read_text(encoding="utf-8")
    generated = set(re.findall(r'^    "(\w+\.md)": ', hooks, flags=re.M))
    assert named == set(PAGES) | generated
    assert yaml.safe_load(content)["site_dir"] == "../site"
    assert "/site/" in (ROOT / ".gitignore").read_text().split()


def test_the_columns_are_those_of_the_tables() -> None:
    page = text_of("files.md")
    for column in (*results.COLUMNS, *convergence.COLUMNS, *correlation.COLUMNS, *FACTS):
        assert f"`{column}`" in page, column
    for tensor in ("activations", "before", "gate", "mean", "active", "predictivity", "fisher", "gradient"):
        assert f"`{tensor}`" in page
    neurons = text_of("guide/analyze.md")
    assert all(f"`{name}`" in neurons for name in INDICATORS)


def test_the_page_of_the_overview_is_the_readme() -> None:
    hooks = load_hooks()
    text, pictures = hooks.page_of("README.md")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^##? .+$", readme, flags=re.M)
    assert headings
    assert re.findall(r"^##? .+$", text, flags=re.M) == headings
    assert all((ROOT / picture).is_file() for picture in pictures)
    assert "(docs/design.md)" not in text


def test_links_of_the_repository_become_links_of_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = load_hooks()
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    for name in ("docs/design.md", "results/a.png", "setup.cfg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    kept = "[w](https://x.org/a) [t](#top)\n```\n[code](none.md)\n```\n"
    (tmp_path / "README.md").write_text(
        f"[why](docs/design.md#rooms) ![curve](results/a.png) [pins](setup.cfg)\n{kept}"
    )
    text, pictures = hooks.page_of("README.md")
    assert text == f"[why](design.md#rooms) ![curve](results/a.png) pins (`setup.cfg`)\n{kept}"
    assert pictures == ["results/a.png"]
    # Pages link by their paths in the repository; the site has other paths.
    page = tmp_path / "docs/pages/notes/page.md"
    page.parent.mkdir(parents=True)
    links = "[up](../../../README.md) [here](page.md#x) ![curve](../../../results/a.png) [why](../../design.md)"
    page.write_text(links)
    text, pictures = hooks.page_of("docs/pages/notes/page.md")
    assert text == "[up](../index.md) [here](page.md#x) ![curve](../results/a.png) [why](../design.md)"
    assert pictures == ["results/a.png"]
    (tmp_path / "README.md").write_text("[gone](gone.md)")
    with pytest.raises(Exception, match=r"README\.md links to gone\.md"):
        hooks.page_of("README.md")


def load_hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="mkdocs is missing: pip install -e .[docs]")
    return load_script("docs/hooks.py")


def test_the_site_loads_nothing_from_the_network() -> None:
    """Without a script of its own, the plugin `offline` loads one from the network, and the search fails."""
    site = yaml.safe_load((ROOT / "docs/mkdocs.yml").read_text(encoding="utf-8"))
    assert "offline" in site["plugins"]
    own = [*site["extra"]["polyfills"], *site["extra_css"]]
    assert any("iframe-worker" in name for name in own)
    for name in own:
        assert (ROOT / "docs/pages" / name).is_file(), name


def test_every_extra_is_explained() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", text_of("start.md"), flags=re.M))
    assert rows == set(setup["options.extras_require"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install -e .[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml", "-d", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "Soft prompts for frozen language models" in (tmp_path / "index.html").read_text()
    assert 'id="prompt_transfer.prompts.prompt.Prompt"' in (tmp_path / "reference.html").read_text()
