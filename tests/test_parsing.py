"""Errors for misspelt options and values, and texts that YAML would parse as another type."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import pytest
import yaml
from test_cli import error_of, fit

from prompt_transfer.cli import main
from prompt_transfer.commands.parsing import call, find_value
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


INITS = "ClassLabels, FromPrompt, Normal, Text, Vocabulary"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--model.learning_rate fast", "option --model.learning_rate: expected float or null, not fast"),
        ("--model.learning_rate 0", "learning_rate is 0.0: give a number above 0"),
        ("--model.warmup_steps -3", "warmup_steps is -3: give 0 or more"),
        ("--model.prompt_length 1.5", "option --model.prompt_length: expected int, not 1.5"),
        ("--data.source web", "option --data.source: expected hub, local, builtin or null, not web"),
        ("--model.init Txt", f"cannot make --model.init Txt: choose one of {INITS}"),
        ("--model.init Text", "--model.init Text needs text: give --model.init.text VALUE"),
        ("--model.init Text --model.init.txt x", "--model.init Text has no option txt"),
        ("--model.init.text x", f"--model.init must come before its options: choose one of {INITS}"),
        ("--model.init Normal --model.init.std x", "option --model.init.std: expected float or null, not x"),
        (
            "--model.reparameterization ResidualMLP --model.reparameterization.bottleneck x",
            "option --model.reparameterization.bottleneck: expected int, not x",
        ),
        ("--model.optimizer Adm", "option --model.optimizer: expected a name that can be imported or null, not Adm"),
        ("--model.optimizer torch.optim.AdamW --model.optimizer.lrr 3", "unknown option --model.optimizer.lrr"),
        ("--model.init Normal --model.init.std 0", "error: init Normal: std is 0.0; give a number above 0"),
        ("--model.init Text --model.init.text ''", "error: init Text: the text is empty"),
        ("--model.init FromPrompt --model.init.prompt ''", "error: init FromPrompt: an empty path"),
        ("--data.limit_train 1", "the 1 training rows that are left are of one class"),
        ("--early_stopping 0", "--early_stopping must be 1 evaluation or more"),
        ("--seed_everything -1", "--seed_everything is -1: give a number from 0"),
        ("--data.task a,b", "several tasks are a list: --data.task '[a,b]'"),
    ],
)
def test_a_mistake_names_its_option(
    options: str, expected: str, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = shlex.split(options)
    task = [] if "--data.task" in given else ["--data.task", "builtin_movies"]
    command = ["fit", "--model.backbone", str(tiny_roberta), *task, *given]
    assert expected in error_of(capsys, main(command))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["film: good or bad", "null", "[one] # two", "7", "'quoted'"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_text_to_start_from_is_taken_as_it_is(
    text: str, joined: bool, toy: Path, tiny_roberta: Path, tmp_path: Path
) -> None:
    option = [f"--model.init.text={text}"] if joined else ["--model.init.text", text]
    assert fit(toy, tiny_roberta, tmp_path / "run", "--model.init", "Text", *option) == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["model"]["init"]["init_args"]["text"] == text
    assert Prompt.load(tmp_path / "run").metadata["init"] == f"Text(text={text!r})"
    # The stored configuration reads back as the same text.
    assert main(["fit", "--output", "run", "--resume", "--trainer.max_steps", "5"]) == 0
    assert Prompt.load(tmp_path / "run").metadata["init"] == f"Text(text={text!r})"


@pytest.mark.parametrize("name", ["7", "a: b", "x,y", "[z]"])
def test_a_prompt_may_have_any_name(name: str, toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    assert fit(toy, tiny_roberta, tmp_path / name) == 0
    assert main(["test", "--prompt", name, "--random_prompts", "0"]) == 0


@pytest.mark.parametrize(("command", "option"), [("test", "test"), ("validate", "val"), ("predict", "predict")])
def test_nothing_to_evaluate(
    command: str, option: str, toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    arguments = ["--prompt", "run", "--output", "out", f"--trainer.limit_{option}_batches", "0"]
    assert "nothing was evaluated" in error_of(capsys, main([command, *arguments]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"data_task": "["}, "metadata 'data_task' is '['"),
        ({"label_words": "[1]"}, "metadata 'label_words' is '[1]'"),
        ({"data_task": "", "task": ""}, "odd.safetensors does not name the task of its training: give one with"),
        ({"backbone": "--model.trust_remote_code"}, "unknown backbone '--model.trust_remote_code'"),
    ],
)
def test_metadata_are_read_with_suspicion(
    metadata: dict[str, str],
    expected: str,
    toy: Path,
    tiny_roberta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    prompt = Prompt.load("run")
    Prompt(prompt.embeddings, prompt.metadata | metadata).save("odd.safetensors")
    assert expected in error_of(capsys, main(["test", "--prompt", "odd.safetensors"]))


@pytest.mark.parametrize("command", ["prompts recommend", "transfer", "sweep", "analyze projection"])
def test_help_says_once_what_options_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    said = capsys.readouterr().out.partition("\noptions:")[0]
    assert "Args:" not in said
    assert "output: folder" not in said


def copy(
    sources: list[str], output: str, overwrite: bool = False, dtype: str | None = None
) -> tuple[list[str], str, bool, str | None]:
    """copy files: copy FILE... --output FILE

    Args:
        sources: the files.
        output: where to.
        overwrite: replace a file.
        dtype: of the copy.
    """
    return sources, output, overwrite, dtype


def look(folder: str = "runs") -> str:
    """look around"""
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a", "b c", "--output", "o"], (["a", "b c"], "o", False, None)),
        (["--output", "o", "a: b", "7", "[z]", "null"], (["a: b", "7", "[z]", "null"], "o", False, None)),
        (["a", "--output=7", "--overwrite"], (["a"], "7", True, None)),
        (["a", "--overwrite", "false", "--output", "o"], (["a"], "o", False, None)),
        (["a", "--overwrite", "--overwrite=True", "--output", "o", "--dtype", "bf16"], (["a"], "o", True, "bfloat16")),
    ],
)
def test_positional_arguments_and_flags(arguments: list[str], expected: tuple[object, ...]) -> None:
    assert call(copy, "files copy", arguments, "FILE...") == expected


def test_an_optional_positional_argument() -> None:
    assert [call(look, "look", given, "[FOLDER]") for given in ([], ["x"], ["7"])] == ["runs", "x", "7"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], r"^files copy needs FILE\.\.\. and --output VALUE \(see prompt-transfer files copy --help\)$"),
        (["--output", "o"], r"^files copy needs FILE\.\.\. \(see"),
        (["a", "--outptu", "o"], r"^unknown option --outptu: did you mean --output\? \(see"),
    ],
)
def test_mistakes_in_positional_arguments(arguments: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        call(copy, "files copy", arguments, "FILE...")


def test_a_value_is_found_before_the_options_are_parsed() -> None:
    arguments = ["x", "--prompt", "a", "--model.seeds=[1, 2]", "--prompt=b c", "--prompts", "d"]
    assert find_value(arguments, "--prompt") == "b c"
    assert find_value(arguments, "--model.seeds") == "[1, 2]"
    assert find_value(arguments, "--output") is None
    with pytest.raises(UserError, match=r"^--prompt needs a value$"):
        find_value(["--prompt"], "--prompt")


def test_usage_shows_what_stands_without_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prompts", "push", "--help"])
    assert capsys.readouterr().out.startswith("usage: prompt-transfer prompts push PROMPT... [OPTIONS]")


def test_a_flag_may_precede_a_positional_argument() -> None:
    """A boolean option takes `true` or `false` for its value and leaves any other argument alone."""

    def copy(source: str, overwrite: bool = False, center: bool = False) -> tuple[str, bool, bool]:
        """Copy a file."""
        return source, overwrite, center

    for arguments, expected in (
        (["--overwrite", "a"], ("a", True, False)),
        (["a", "--overwrite"], ("a", True, False)),
        (["--overwrite", "false", "--center", "a"], ("a", False, True)),
        (["--overwrite=true", "a"], ("a", True, False)),
    ):
        assert call(copy, "prompts copy", arguments, "SOURCE") == expected
