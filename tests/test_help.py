"""Help: readable pages that need no torch, equal to the parsers' options; typing errors answered as fast."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import error_of

from prompt_transfer.analysis.masking import KINDS
from prompt_transfer.cli import main
from prompt_transfer.commands import run_options, sources
from prompt_transfer.commands.help import first_sentence
from prompt_transfer.commands.lightning import Command
from prompt_transfer.commands.messages import options_of
from prompt_transfer.commands.parsing import build_parser
from prompt_transfer.commands.pretraining import PretrainCommand
from prompt_transfer.commands.signatures import Signature
from prompt_transfer.commands.table import COMMANDS, VERBS
from prompt_transfer.commands.values import check_values, class_names
from prompt_transfer.pretraining.backbone_pretraining import BackbonePretraining
from prompt_transfer.pretraining.corpus import CorpusDataModule
from prompt_transfer.projectors.projector import TrainedProjector
from prompt_transfer.prompts.initializers import Initializer
from prompt_transfer.prompts.reparameterizations import Reparameterization
from prompt_transfer.studies.neurons.settings import MaskStudy
from prompt_transfer.studies.projection import plan, study
from prompt_transfer.studies.transfer.study import TransferStudy

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "lightning", "datasets", "pandas", "matplotlib", "wandb", "ray")
PAGES = [
    *([command, "--help"] for command in COMMANDS),
    *(["neurons", name, "--help"] for name in ("capture", "compare", "mask", "skill", "probe")),
    *(["analyze", name, "--help"] for name in ("convergence", "indicators", "matrix", "projection", "dashboard")),
    *(["prompts", name, "--help"] for name in ("list", "import", "push", "recommend", "fit-projector")),
    *(["fit", f"--help_{group}"] for group in ("model", "data", "trainer", "wandb", "mlflow")),
    ["fit", "--model", "CrossModelProjector", "--help"],
    ["transfer", "--help_data"],
    ["backbones", "fetch", "--help"],
]
TRANSFER = ["transfer", "--backbone", "roberta-nano", "--output", "NOFOLDER"]
TYPOS = [
    (["fitt"], "did you mean 'fit'?"),
    (["neurons", "captur"], "did you mean 'capture'?"),
    (["fit", "--model.promt_length", "3"], "did you mean --model.prompt_length?"),
    (["fit", "--data.task", "sst2", "--trainer.max_stesp=3"], "did you mean --trainer.max_steps?"),
    (["fit", "--per_device_train_batch_size", "8"], "did you mean --data.batch_size? (see"),
    (["fit", "--lr", "0.1"], "did you mean --model.learning_rate? (see"),
    (["test", "--promt", "runs/x"], "did you mean --prompt?"),
    (["pretrain", "--model.vocb_size", "9"], "did you mean --model.vocab_size?"),
    (["transfer", "--promts", "x"], "did you mean --prompts?"),
    (["neurons", "mask", "--ratois", "0.1"], "did you mean --ratios?"),
    (["test", "--prompt", "setup.cfg", "--model.prompt_length", "7"], "--model.prompt_length is an option of fit"),
    (["predict", "--prompt", "setup.cfg", "--model.init.text=a"], "leave it out for predict"),
    (["sweep", "--excutor", "ray"], "did you mean --executor?"),
    (["fit", "--data.task", "sst9"], "unknown task 'sst9'"),
    (["fit", "--data.task=[sst2,builtin_bookz]"], "unknown task 'builtin_bookz'"),
    (["fit", "--model.dtype", "bf17", "--data.task", "sst2"], "'bf17': choose one of float32, bfloat16, float16"),
    (["fit", "--model.init", "Vocabluary"], "did you mean Vocabulary?"),
    (["fit", "--model.reparameterization=Plan", "--data.task", "sst2"], "did you mean Plain?"),
    ([*TRANSFER, "--prompts", ".", "--tasks", "builtin_bookz"], "unknown task 'builtin_bookz'"),
    ([*TRANSFER, "--prompts", "NOFOLDER", "--tasks", "sst2"], "no such folder: NOFOLDER"),
    ([*TRANSFER, "--prompts", ".", "--tasks", "sst2", "--dtype", "bf17"], "unknown dtype 'bf17'"),
    (["neurons", "mask", *TRANSFER[1:], "--neurons", ".", "--prompts", "NOFOLDER", "--tasks", "qqp"], "no such folder"),
    (["neurons", "capture", *TRANSFER[1:], "--prompts", ".", "--tasks", "sst2,sst9"], "unknown task 'sst9'"),
    (["analyze", "projection", "X", "--sources=.", "--own=.", "--output=X", "--tasks=sst9"], "unknown task 'sst9'"),
    (["prompts", "recommend", *TRANSFER[1:], "--prompts", ".", "--task", "sst9"], "unknown task 'sst9'"),
    (["compare", "--task", "sst9", "--backbone", "roberta-nano", "--output", "X"], "unknown task 'sst9'"),
    (["report", "NOFOLDER"], "no such folder: NOFOLDER"),
]


@pytest.fixture(scope="module")
def light() -> list[dict[str, object]]:
    """Output, exit code and heavy imports of all pages and typing errors, in one process for all."""
    commands = [*PAGES, *(command for command, _ in TYPOS)]
    script = f"""
import contextlib, io, json, sys
from prompt_transfer.cli import main
for command in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(command, own_process=True)
        except SystemExit as end:
            code = end.code
    heavy = sorted(set(sys.modules) & set({HEAVY!r}))
    print(json.dumps({{"out": out.getvalue(), "err": err.getvalue(), "code": code, "heavy": heavy}}))
"""
    command = [sys.executable, "-c", script, json.dumps(commands)]
    environment = {"COLUMNS": "80", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(PAGES)), ids=[" ".join(command) for command in PAGES])
def test_help_is_short_and_needs_no_torch(number: int, light: list[dict[str, object]]) -> None:
    page = light[number]
    lines = str(page["out"]).splitlines()
    assert page["heavy"] == []
    assert not page["code"]
    assert lines
    if "--help_trainer" not in PAGES[number]:
        assert len(lines) < 120
    if PAGES[number][0] != "completion":
        assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("number", range(len(TYPOS)), ids=[" ".join(command) for command, _ in TYPOS])
def test_a_typing_error_is_answered_without_torch(number: int, light: list[dict[str, object]]) -> None:
    answer = light[len(PAGES) + number]
    assert answer["heavy"] == []
    assert answer["code"] == 2
    assert TYPOS[number][1] in str(answer["err"])
    assert str(answer["err"]).count("\n") == 1


def test_names_read_from_source_files_are_those_of_the_parser() -> None:
    bases = {"init": Initializer, "reparameterization": Reparameterization, "projector": TrainedProjector}
    for option, base in bases.items():
        own = [kind for kind in base.__subclasses__() if kind.__module__.startswith("prompt_transfer.")]
        assert class_names(f"--model.{option}") == sorted(kind.__name__ for kind in own)


def test_values_that_only_the_command_can_judge_are_left_to_it() -> None:
    for arguments in (
        ["--data.task", "trec.yaml"],
        ["--data.task", "reviews.csv"],
        ["--data.task", "mine", "--model.init", "my_module.Init"],
        ["--model.init", '{"class_path": "Text"}', "--model.init.text", "Vocabluary"],
        ["--model.dtype", "bf16+int8", "--model.projector", "projector/mlp.yaml"],
        ["--model.dtype", "null"],
    ):
        check_values("fit", arguments)
    # The task may be one that the prompt file defines.
    check_values("test", ["--data.task", "mine"])


def page(light: list[dict[str, object]], *command: str) -> str:
    return str(light[PAGES.index(list(command))]["out"])


def test_the_first_screen_of_fit(light: list[dict[str, object]]) -> None:
    text = page(light, "fit", "--help")
    assert text.startswith("usage: prompt-transfer fit --data.task TASK [OPTIONS]\n")
    heads = [line for line in text.splitlines() if line and line[0] != " "]
    assert [head.partition(" ")[0] for head in heads[2:]] == ["options:", "model", "data", "trainer", "W&B", "MLflow"]
    # The command's own options come first, those of its parts follow, and the Trainer's rest is elsewhere.
    order = ["--output", "--resume", "--model.backbone", "--data.source", "--trainer.max_steps", "--help_wandb"]
    places = [text.index(name) for name in order]
    assert places == sorted(places)
    for name in ("(all: --help_trainer)", "--model.compile", "--data.held_out", "default: 1000", "{hub,local,builtin}"):
        assert name in text
    assert "--trainer.sync_batchnorm" not in text
    assert "--trainer.sync_batchnorm {true,false}" in page(light, "fit", "--help_trainer")
    assert "gated" not in text
    assert "--model.contrastive" in page(light, "fit", "--model", "CrossModelProjector", "--help")


def test_the_first_screen_of_a_study(light: list[dict[str, object]]) -> None:
    text = page(light, "transfer", "--help")
    assert text.startswith("usage: prompt-transfer transfer --backbone TEXT --prompts TEXT --tasks TEXT")
    assert "score every prompt of a folder on every task" in text
    assert text.index("--devices") < text.index("data options, or --data FILE.yaml (all: --help_data)")
    assert re.search(r"--data.source \{hub,local,builtin\}", text)
    assert "--data.cache_dir TEXT" in page(light, "transfer", "--help_data")


def test_the_first_screen_of_test(light: list[dict[str, object]]) -> None:
    text = page(light, "test", "--help")
    assert text.startswith("usage: prompt-transfer test --prompt FILE [OPTIONS]")
    assert "data options; default: those of the prompt (all: --help_data):" in text
    assert "(required)" not in text


def names(parser: object) -> set[str]:
    """Return a parser's options without its technical ones: lists' `+`, help of classes, files of groups."""
    found = {option for option in options_of(parser) if not option.endswith((".help", "+"))}  # type: ignore[arg-type]
    return found - {"--help", "--print_shtab", "--model", "--data", "--trainer", "--wandb", "--mlflow"}


@pytest.mark.parametrize(
    ("verb", "model"),
    [
        *((verb, "PromptTuning") for verb in ("fit", "validate", "test", "predict")),
        ("fit", "PromptEnsemble"),
        ("fit", "CrossModelProjector"),
    ],
)
def test_pages_read_from_source_equal_the_parsers(verb: str, model: str, tmp_path: Path) -> None:
    class Parsed(Command):
        def instantiate_classes(self) -> None:
            pass

        def before_instantiate_classes(self) -> None:
            pass

    arguments = ["--model", model, "--data.task", "builtin_movies", "--output", str(tmp_path)]
    arguments += ["--model.prompts", "x"] if model == "CrossModelProjector" else []
    parsed = Parsed(verb, arguments)
    found = run_options.page(verb, model)
    if verb == "fit" and model == "PromptTuning":
        # The help of fit includes the options of several prompts.
        parsed = Parsed(verb, ["--model", "PromptEnsemble", *arguments[2:]])
    assert {entry.name for entry in found.entries} == names(parsed.parser)
    assert all(entry.text for entry in found.entries)
    defaults = parsed.parser.get_defaults()
    for entry in found.entries:
        if entry.default and entry.name not in ("--config", "--print_config"):
            value = defaults[entry.name[2:]]
            assert entry.default in (str(value), str(value).lower()), entry


def test_the_page_of_pretrain_equals_its_parser() -> None:
    class Parsed(PretrainCommand):
        def instantiate_classes(self) -> None:
            pass

        def before_instantiate_classes(self) -> None:
            pass

    parsed = Parsed(
        BackbonePretraining, CorpusDataModule, args=["--data.files", '{"a": [1, 2]}'], run=False,
        auto_configure_optimizers=False, seed_everything_default=0, trainer_defaults=run_options.PRETRAINING_DEFAULTS,
    )  # fmt: skip
    assert {entry.name for entry in run_options.page("pretrain").entries} == names(parsed.parser)


def test_a_parameter_passed_on_is_read_where_it_is_declared() -> None:
    found = {one.name: one for one in sources.of_class("modules.prompt_tuning.PromptTuning")}
    assert found["backbone"].default == "'roberta-nano'"
    assert found["dtype"].kind == "TEXT"  # a field of BackboneConfig
    assert "dropout" not in found  # passed as `backbone_dropout`
    assert {one.name for one in sources.of_class("data.datamodule.TaskDataModule") if one.default is None} == {"task"}
    special = next(one for one in sources.of_class("data.datamodule.TaskDataModule") if one.name == "special_tokens")
    assert special.kind == "{keep,split}"


@pytest.mark.parametrize("verb", VERBS)
def test_options_of_classes_are_left_to_the_parser(verb: str) -> None:
    given = ["--seed_everything=3", "--trainer.callbacks+", "x", "--trainer.max_time.minutes", "1", "--data", "f.yaml"]
    if verb != "pretrain":
        given += ["--model.contrastive", "0.1"]
        given += ["--data.task+", "b", "--model.seeds", "[1, 2]"]
    if verb == "fit":
        given += ["--model.init.text", "--begins with dashes", "--model.optimizer.lr=3"]
    assert run_options.answer(verb, [*given, "--out", "x"]) is None  # short for --output


def test_an_unknown_group_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown option --help_modle" in error_of(capsys, main(["fit", "--help_modle"]))


def test_a_study_has_the_options_of_its_dataclass() -> None:
    def study_of(study: TransferStudy, extra: int = 3) -> tuple[TransferStudy, int]:
        """score

        Args:
            extra: a number.
        """
        return study, extra

    signature = Signature(study_of)
    values = {one.name: one.default for one in signature.parameters}
    values |= {"backbone": "b", "prompts": "p", "tasks": "x, y", "output": "o", "extra": 4}
    made, extra = signature.call(values)
    assert (made, extra) == (TransferStudy("b", "p", ["x", "y"], "o"), 4)
    assert signature.helps["extra"] == "a number."
    parser = build_parser(Signature(study_of), "transfer")
    assert {"--tasks", "--data.limit_eval", "--extra"} <= names(parser)


def test_choices_are_stated_once() -> None:
    assert tuple(plan.CLOSED_FORMS) == study.CLOSED_FORMS
    assert MaskStudy("b", "p", ["t"], "o").masks == KINDS


def test_the_first_sentence_of_a_text() -> None:
    assert first_sentence("full (as in the paper. Slow) or not. More.") == "full (as in the paper. Slow) or not"
    assert first_sentence("one; two") == "one"
    assert first_sentence("a file, as x.yaml") == "a file, as x.yaml"
