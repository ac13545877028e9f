"""Programs of release 2.0 run: its README's Python block, its script, and the arguments of `TrainingArguments`."""

from __future__ import annotations

import configparser
import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from prompt_transfer import Prompt, PromptHub, PromptTrainingArguments, UserError

ROOT = Path(__file__).resolve().parent.parent
RELEASE = ROOT / "release2"
# The options of train.sh and of the README's command.
SCRIPT = """\
python example/train.py \\
        --output_dir outputs \\
        --dataset sst2 \\
        --learning_rate 1e-2 \\
        --num_train_epochs 3 \\
        --save_total_limit 1 \\
        --evaluation_strategy epoch \\
        --save_strategy epoch \\
        --load_best_model_at_end true \\
        --metric_for_best_model combined_score"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    # An installed package has `prompt_hub`; a bare checkout does not.
    monkeypatch.syspath_prepend(str(RELEASE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(RELEASE), str(ROOT))))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write sst2 and rotten_tomatoes, 16 / 10 / 10 rows each, and work in the folder above."""
    for task, column in (("sst2", "sentence"), ("rotten_tomatoes", "text")):
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True)
        for split, count in (("train", 16), ("validation", 10), ("test", 10)):
            texts = [f"a {('dull', 'fine')[i % 2]} film of {split} number {i}" for i in range(count)]
            pd.DataFrame({column: texts, "label": [i % 2 for i in range(count)]}).to_csv(folder / f"{split}.csv")
    monkeypatch.setenv("PROMPT_TRANSFER_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**options: Any) -> PromptTrainingArguments:
    return PromptTrainingArguments("outputs", "builtin_movies", "roberta-nano", **options)


def config(**options: Any) -> dict[str, Any]:
    return settings(**options).prompt_config("roberta-nano", "builtin_movies")


def test_the_python_block_of_the_readme(data: Path) -> None:
    from prompt_hub.hub import PromptHub
    from prompt_hub.training_args import PromptTrainingArguments

    # Training config
    args = PromptTrainingArguments(output_dir="outputs", dataset="sst2", backbone="roberta-nano", learning_rate=1e-2)
    trainer = PromptHub(args=args)
    # Prompt training and evaluation
    trainer.train_prompt()
    eval_results = trainer.eval_prompt()
    # Cross-task evaluation
    cross_task_eval_results = trainer.cross_task_eval("roberta-nano", "sst2", "rotten_tomatoes")
    # Activated neuron
    before, after = trainer.activated_neuron(args.backbone, args.dataset)

    prompt = Prompt.load(next((data / "outputs").rglob("prompt.safetensors")))
    # Three epochs of two batches.
    assert prompt.metadata["task"] == "sst2"
    assert (prompt.metadata["seed"], prompt.metadata["learning_rate"]) == ("42", "0.01")
    assert 1 <= int(prompt.metadata["steps"]) <= 6
    assert prompt.embeddings.shape == (100, 256)
    assert dict(eval_results)["n"] == 10
    assert f"{cross_task_eval_results:.3f}" == f"{cross_task_eval_results.value:.3f}"
    assert (cross_task_eval_results.source, cross_task_eval_results.task) == ("sst2", "rotten_tomatoes")
    assert before.shape == after.shape == (4, 1024)
    # The example script gives model and target only.
    assert float(trainer.cross_task_eval("roberta-nano", "rotten_tomatoes")) == float(cross_task_eval_results)


def test_train_sh(data: Path) -> None:
    (data / "example").symlink_to(RELEASE / "example")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-c", f"{SCRIPT} --backbone roberta-nano --max_source_length 32"]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ignored" not in done.stderr
    for line in ("sst2, test (official): accuracy", "rotten_tomatoes, test (official): accuracy", "neurons per layer"):
        assert line in done.stdout
    # The shipped script gives the same options.
    script = (RELEASE / "example" / "train.sh").read_text()
    assert [word for word in SCRIPT.split() if word.startswith("--")] == [
        word for word in script.split() if word.startswith("--") and word[2:]
    ]


def test_the_script_reports_mistakes_in_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prompt_hub.train import main

    assert main(["--optim", "lion", "--backbone", "roberta-nano"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["sst2"]) == 2
    assert "give --name value" in capsys.readouterr().err
    # A JSON file of gen_config.py; its budget and folder come from the file.
    options = {"output_dir": "out", "dataset": "sst9", "max_steps": 500_000, "save_steps": 1000, "eval_steps": 1000,
               "lr_scheduler_type": "constant", "predict_with_generate": True, "do_test": True}  # fmt: skip
    Path("options.json").write_text(json.dumps(options))
    assert main(["options.json"]) == 2
    assert "unknown task 'sst9'" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "rotten_tomatoes" in capsys.readouterr().out


def test_the_installed_package_has_the_names() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "prompt_hub" in setup["options"]["packages"].split()
    places = dict(
        line.replace(" ", "").split("=") for line in setup["options"]["package_dir"].split("\n") if "=" in line
    )
    assert {path.name for path in (ROOT / places["prompt_hub"]).glob("*.py")} == {
        "__init__.py", "hub.py", "training_args.py", "train.py",
    }  # fmt: skip


def test_arguments_of_training_arguments_are_translated() -> None:
    found = config(
        num_train_epochs=3.0, evaluation_strategy="epoch", per_device_train_batch_size=4, gradient_accumulation_steps=2,
        per_device_eval_batch_size=64, learning_rate=0.01, weight_decay=0.1, warmup_steps=5, lr_scheduler_type="cosine",
        logging_steps=7, max_grad_norm=1.0, max_source_length=96, use_cpu=True, disable_tqdm=True, bf16=True,
        data_seed=3, report_to=["wandb"], seed=42,
    )  # fmt: skip
    assert found["trainer"] == {
        "max_steps": -1, "max_epochs": 3, "val_check_interval": 1.0, "check_val_every_n_epoch": 1, "accelerator": "cpu",
        "enable_progress_bar": False, "log_every_n_steps": 7, "gradient_clip_val": 1.0, "precision": "bf16-mixed",
    }  # fmt: skip
    assert found["data"] == {
        "task": "builtin_movies", "source": "builtin", "root": None, "batch_size": 8, "max_length": 96,
        "limit_train": None, "limit_eval": None, "eval_batch_size": 64, "seed": 3,
    }  # fmt: skip
    adamw = {"lr": 0.01, "weight_decay": 0.1, "betas": [0.9, 0.999], "eps": 1e-8}
    assert found["model"] == {
        "backbone": "roberta-nano", "prompt_length": 100, "learning_rate": None, "warmup_steps": 5,
        "schedule": "cosine", "optimizer": {"class_path": "torch.optim.AdamW", "init_args": adamw},
    }  # fmt: skip
    assert (found["seed_everything"], found["logger"]) == (42, "wandb")


def test_loggers_and_devices() -> None:
    for name in ("wandb", "tensorboard", "mlflow"):
        assert config(report_to=name)["logger"] == name
    assert config(report_to=["mlflow"])["logger"] == "mlflow"
    assert "logger" not in config(report_to="none")
    assert config(no_cuda=True, accelerator="auto")["trainer"]["accelerator"] == "cpu"
    assert config(logging_steps=5.0, do_train=True)["trainer"]["log_every_n_steps"] == 5


def test_budgets() -> None:
    def budget(**options: Any) -> dict[str, Any]:
        trainer = config(**options)["trainer"]
        return {key: value for key, value in trainer.items() if key not in ("accelerator", "enable_progress_bar")}

    each = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}
    assert budget() == {"max_steps": 1000, "val_check_interval": 100}
    assert budget(num_train_epochs=2) == {"max_steps": -1, "max_epochs": 2, **each}
    # As in transformers, steps take precedence, and -1 stands for none.
    assert budget(num_train_epochs=2, max_steps=50) == {"max_steps": 50, "val_check_interval": 5}
    assert budget(num_train_epochs=2, max_steps=-1) == budget(num_train_epochs=2)
    assert budget(max_steps=50, eval_strategy="epoch") == {"max_steps": 50, **each}
    assert budget(num_train_epochs=2, eval_strategy="steps", logging_steps=9)["val_check_interval"] == 9
    assert config(warmup_ratio=0.06, max_steps=50)["model"]["warmup_steps"] == 3
    with pytest.raises(UserError, match="give warmup_steps"):
        settings(warmup_ratio=0.06, num_train_epochs=3)


def test_a_translated_run_trains(tmp_path: Path, toy: Path, tiny_roberta: Path) -> None:
    args = PromptTrainingArguments(
        str(tmp_path / "out"), str(toy), str(tiny_roberta), prompt_len=3, num_train_epochs=2, weight_decay=0.5,
        learning_rate=0.02, per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True, max_length=20,
    )  # fmt: skip
    trained = PromptHub(args).train_prompt()
    # 40 rows in batches of 8, evaluated after each of two epochs.
    steps = pd.read_csv(trained.path.parent / "logs" / "metrics.csv")["step"]
    assert trained.best_step in (5, 10)
    assert steps.max() <= 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optim": "adafactor"}, '"optimizer"'),
        ({"metric_for_best_model": "eval_loss"}, "the task's own metric"),
        ({"greater_is_better": False}, "maximized"),
        ({"label_smoothing_factor": 0.1}, "no equivalent"),
        ({"gradient_accumulation_steps": 4}, "batch_size"),
        ({"checkpoint": "a.bin"}, "FromPrompt"),
        ({"model_parallel": True}, "fsdp"),
        ({"per_device_train_batch_size": 4, "batch_size": 4}, "exclude each other"),
        ({"max_source_length": 4, "max_length": 5}, "give one of them"),
        ({"eval_strategy": "sometimes"}, "choose epoch or steps"),
        ({"num_train_epochs": 0.5}, "num_train_epochs is 0.5"),
        ({"fp16": True, "bf16": True}, "exclude each other"),
        ({"no_cuda": True, "accelerator": "cuda"}, "contradicts"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size is 0: give a whole number, 1 or more"),
        ({"logging_steps": 0.1}, "logging_steps is 0.1"),
        ({"data_seed": -1}, "0 or more"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
        ({"per_device_train_batch_size": "8"}, "whole number"),
        ({"prompt_length": 5}, r"did you mean prompt_len\?"),
        ({"num_train_epoch": 5}, r"did you mean num_train_epochs\?"),
    ],
)  # fmt: skip
def test_other_arguments_are_refused_with_their_equivalent(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        settings(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"save_total_limit": 5}, "best prompt and the last checkpoint"),
        ({"load_best_model_at_end": False}, "best prompt is always"),
        ({"metric_for_best_model": "f1"}, "the task's own metric"),
        ({"evaluation_strategy": "no"}, "select the prompt"),
        ({"save_strategy": "no"}, "checkpoint"),
        ({"overwrite_output_dir": True}, r"overwrite=True"),
        ({"run_name": "a"}, "named after"),
        ({"push_to_hub": True}, "prompts push"),
        ({"do_train": False}, "train_prompt always trains"),
        ({"report_to": "all"}, "give one of wandb, tensorboard, mlflow"),
        ({"report_to": ["tensorboard", "wandb"]}, "report_to=wandb is ignored: the run is logged to tensorboard"),
        ({"ddp_backend": "gloo"}, '"trainer"'),
    ],
)  # fmt: skip
def test_harmless_arguments_are_answered_with_one_warning(options: dict[str, Any], words: str) -> None:
    with pytest.warns(UserWarning, match=words) as caught:
        settings(**options)
    assert len(caught) == 1


def test_every_argument_of_transformers_has_an_answer() -> None:
    from transformers import TrainingArguments

    skipped = {"output_dir", "include_for_metrics"}
    for one in dataclasses.fields(TrainingArguments):
        if one.name in skipped:
            continue
        # Defaults mean nothing was asked for: they never fail.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            default = {} if one.default in (None, dataclasses.MISSING) else {one.name: one.default}
            if one.name != "greater_is_better":
                settings(**default)
            answer = ""
            try:
                settings(**{one.name: "something"})
            except UserError as error:
                answer = str(error)
            assert "has no argument" not in answer


def test_missing_arguments_and_too_many() -> None:
    with pytest.raises(UserError, match=r"missing .*'backbone'.*output_dir, dataset, backbone"):
        PromptTrainingArguments("out", "sst2")  # type: ignore[call-arg]
    with pytest.raises(UserError, match="the first three are"):
        PromptTrainingArguments(*range(40))  # type: ignore[arg-type]


def test_arguments_of_the_old_hub(data: Path) -> None:
    from prompt_hub.hub import PromptHub
    from prompt_hub.training_args import PromptTrainingArguments

    args = PromptTrainingArguments(output_dir="outputs", dataset="SST2", backbone="roberta-nano")
    assert (args.dataset, args.batch_size, args.max_length, args.num_train_epochs) == ("sst2", 8, 128, 3)
    assert dataclasses.replace(args, seed=1).seed == 1
    with pytest.warns(UserWarning, match="compute_metrics is ignored"):
        trainer = PromptHub(args=args, compute_metrics=print)
    with pytest.raises(UserError, match="no argument 'train_dataset'"):
        PromptHub(args=args, train_dataset=[])
    with pytest.raises(UserError, match="test --prompt FILE"):
        trainer.eval_prompt(prompt_emb="task_prompt")
    with pytest.raises(UserError, match=r"there is no prompt of bert-nano for sst2"):
        trainer.eval_prompt(model="bert-nano", eval_dataset="sst2")
    with pytest.raises(UserError, match=r"its arguments are backbone, task"):
        trainer.activated_neuron(layers=[0])
    with pytest.raises(UserError, match="PromptTrainingArguments"):
        PromptHub()
