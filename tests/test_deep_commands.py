"""Deep prompts on the command line: runs, evaluation, studies and exports; one line for what has no meaning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_deep_prompts import P, saved
from test_distributed_generation import write as write_generation_task

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.objectives import make_objective
from prompt_transfer.neurons.capture import capture_prompts
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.tracking.artifacts import prompt_artifact

Tiny = Callable[[str], Path]
SHORT = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--model.prompt_length", str(P)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def tasks(toy: Path) -> list[str]:
    """Return the toy task, and the same texts with other label words."""
    other = toy.with_name("other.yaml")
    other.write_text(toy.read_text().replace("name: toy", "name: other").replace("terrible, great", "no, yes"))
    return [str(toy), str(other)]


def fit(task: str, backbone: Path, output: Path, *more: str) -> list[str]:
    base = ["fit", "--data.task", task, "--data.source", "local", "--model.backbone", str(backbone)]
    return [*base, *SHORT, "--model.method", "deep_prompt", "--output", str(output), *more]


def error_of(capsys: pytest.CaptureFixture[str], code: int) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert [line.startswith("error:") for line in lines] == [False] * (len(lines) - 1) + [True], lines
    return lines[-1]


def accuracy(backbone: FrozenBackbone, values: torch.Tensor, task: str, split: str = "test") -> float:
    """Return the share of right answers, one example at a time."""
    data = TaskDataModule(task, "local", eval_batch_size=1)
    objective = make_objective(backbone, data.tasks)
    right = []
    for batch in _batches(data, backbone, split):
        right.append(int(objective.logits(values, batch).argmax()) == int(batch["labels"]))
    return float(np.mean(right))


def _batches(data: TaskDataModule, backbone: FrozenBackbone, split: str) -> list[dict[str, Any]]:
    frame = pd.read_csv(Path(data.tasks[0].local or "") / f"{split}.csv")
    cue = data.tasks[0].cue
    encoded = backbone.encoder(P).encode(frame["text"].tolist(), None, 64, cue=cue)
    return [
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
         "task_ids": torch.tensor([0]), "labels": torch.tensor([label])}
        for ids, label in zip(encoded, frame["label"], strict=True)
    ]  # fmt: skip


def test_fit_resume_test_and_predict(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(fit(str(toy), tiny_roberta, run, "--model.learning_rate", "0.1")) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["model"]["method"], config["model"]["attention"]) == ("deep_prompt", "shared")
    prompt = Prompt.load(run)
    assert prompt.keys_values.shape == (2, 2, P, 4, 8)
    row = pd.read_csv(run / "results.csv").iloc[0]
    assert (row["method"], row["attention"], row["prompt_length"]) == ("deep_prompt", "shared", P)
    backbone = FrozenBackbone(str(tiny_roberta), attention="shared")
    assert row["value"] == pytest.approx(accuracy(backbone, prompt.keys_values, str(toy), "validation"))

    assert main(["test", "--prompt", str(run), "--output", str(tmp_path / "test")]) == 0
    rows = pd.read_csv(tmp_path / "test" / "results.csv").set_index("what")["value"]
    assert rows["this prompt"] == pytest.approx(accuracy(backbone, prompt.keys_values, str(toy)))
    drawn = backbone.keys_values(random_prompt(backbone, (P, 32), 1))
    assert rows["random prompt"] == pytest.approx(accuracy(backbone, drawn, str(toy)))

    texts = tmp_path / "texts.txt"
    texts.write_text("the film is good\nthe dog\n")
    predict = ["predict", "--prompt", str(run), "--input", str(texts), "--output", str(tmp_path / "predict")]
    assert main(predict) == 0
    found = pd.read_parquet(tmp_path / "predict" / "predictions.parquet")
    assert found["p_great"].tolist() == pytest.approx(
        [_probability(backbone, prompt.keys_values, str(toy), text) for text in texts.read_text().splitlines()],
        abs=1e-5,
    )
    capsys.readouterr()
    again = ["fit", "--output", str(run), "--resume", "--trainer.max_steps", "6"]
    for more, message in (
        (["--model.method", "prompt"], "--model.method was deep_prompt, not prompt"),
        (["--model.attention", "full"], "a deep prompt never sees the text: give --model.attention shared"),
    ):
        assert message in error_of(capsys, main([*again, *more]))
    assert main(again) == 0
    assert int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]) == 6


def _probability(backbone: FrozenBackbone, values: torch.Tensor, task: str, text: str) -> float:
    objective = make_objective(backbone, TaskDataModule(task, "local").tasks)
    ids = backbone.encoder(P).encode([text], None, 64)
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(1, len(ids[0]), dtype=torch.long),
             "task_ids": torch.tensor([0])}  # fmt: skip
    return float(objective.logits(values, batch).softmax(dim=1)[0, 1])


def test_what_has_no_meaning_is_one_line(
    tasks: list[str], tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = FrozenBackbone(str(tiny_roberta), attention="shared")
    facts = {"task": "toy", "data_task": json.dumps(tasks[:1]), "data_source": "local"}
    deep = str(saved(tmp_path / "deep.safetensors", backbone, **facts).path)
    full = fit(tasks[0], tiny_roberta, tmp_path / "run", "--model.attention", "full")
    assert "a deep prompt never sees the text" in error_of(capsys, main(full))
    assert not (tmp_path / "run").exists()
    assert f"{deep} is a deep_prompt: leave out --model.method prompt" in error_of(
        capsys, main(["test", "--prompt", deep, "--model.method", "prompt"])
    )
    output = str(tmp_path / "out.safetensors")
    assert "no embeddings, which this needs" in error_of(capsys, main(["prompts", "inspect", deep, "--nearest", "2"]))
    export = ["prompts", "export", deep, "--format", "peft", "--output", output]
    assert "is for a masked LM" in error_of(capsys, main(export))
    other = fit(tasks[0], tiny_roberta, tmp_path / "run", "--model.init", "FromPrompt", "--model.init.prompt", deep)
    plain = [part if part != "deep_prompt" else "prompt" for part in other]
    assert "set --model.method deep_prompt" in error_of(capsys, main(plain))
    Prompt(torch.ones(P, 32), {"backbone": backbone.id, "task": "toy"}).save(tmp_path / "both" / "plain.safetensors")
    saved(tmp_path / "both" / "deep.safetensors", backbone, task="toy")
    mixed = ["transfer", "--backbone", backbone.id, "--prompts", str(tmp_path / "both"), "--tasks", tasks[0]]
    mixed += ["--data.source", "local", "--output", str(tmp_path / "matrix")]
    assert "plain is a prompt; put them into separate folders" in error_of(capsys, main(mixed))


def test_studies(tasks: list[str], tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Transfer, neurons, indicators and a recommendation over four deep prompts of one start."""
    backbone = FrozenBackbone(str(tiny("roberta")), attention="shared")
    words = {"toy": ["terrible", "great"], "other": ["no", "yes"]}
    prompts = {}
    for number, (name, path) in enumerate(zip(words, tasks, strict=True)):
        for seed in range(2):
            facts = {"label_words": json.dumps({name: words[name]}), "data_task": json.dumps([path])}
            file = tmp_path / "prompts" / f"{name}-{seed}.safetensors"
            about = {"task": name, "seed": str(seed), "train_rows": "40", "data_source": "local", **facts}
            prompts[file.stem] = saved(file, backbone, 2 * number + seed, **about)
    base = ["--backbone", backbone.id, "--prompts", str(tmp_path / "prompts")]
    local = ["--data.source", "local", "--accelerator", "cpu"]
    names = ["--tasks", ",".join(tasks)]
    matrix = tmp_path / "matrix"
    assert main(["transfer", *base, *names, *local, "--random_prompts", "1", "--output", str(matrix)]) == 0
    table = pd.read_csv(matrix / "matrix.csv", index_col=0)
    assert set(pd.read_parquet(matrix / "results.parquet")["method"]) == {"deep_prompt"}
    for target, path in zip(words, tasks, strict=True):
        for source in words:
            alone = [accuracy(backbone, prompts[f"{source}-{seed}"].values, path) for seed in range(2)]
            assert table.loc[target, source] == pytest.approx(np.mean(alone))
        drawn = backbone.keys_values(random_prompt(backbone, (P, 32), 1, "uniform"))
        assert table.loc[target, "random_uniform"] == pytest.approx(accuracy(backbone, drawn, path))

    neurons = str(tmp_path / "neurons")
    assert main(["neurons", "capture", *base, "--output", neurons, "--accelerator", "cpu"]) == 0
    alone = capture_prompts(backbone, [prompts["toy-1"].values])["activations"][0]
    captured = load_file(Path(neurons) / "toy-1.safetensors")["activations"]
    torch.testing.assert_close(captured, alone, atol=1e-6, rtol=1e-5)
    compare = ["neurons", "compare", "--prompts", base[3], "--neurons", neurons, "--output", str(tmp_path / "on")]
    assert main(compare) == 0
    for verb in ("probe", "skill"):
        assert main(["neurons", verb, *base, *names, *local, "--output", neurons]) == 0
    assert load_file(Path(neurons) / "toy-1.safetensors")["fisher"].shape == (P, 2 * 2 * 4 * 8)
    mask = ["neurons", "mask", *base, *names, *local, "--ratios", "[0.5]", "--output", str(tmp_path / "mask")]
    assert main(mask) == 0
    masked = pd.read_csv(tmp_path / "mask" / "summary.csv")
    assert masked["drop"].abs().max() > 0
    indicators = ["analyze", "indicators", "--prompts", base[3]]
    assert main([*indicators, "--neurons", neurons, "--output", str(tmp_path / "indicators")]) == 0
    found = pd.read_parquet(tmp_path / "indicators" / "indicators.parquet")
    vectors = [prompts[name].keys_values.flatten().double() for name in ("toy-0", "other-1")]
    row = found[
        (found["indicator"] == "cosine_concat") & found["source_prompt"].str.contains("toy-0")
        & found["target_prompt"].str.contains("other-1")
    ]  # fmt: skip
    assert row["value"].item() == pytest.approx(torch.cosine_similarity(*vectors, dim=0).item(), abs=1e-6)

    command = ["prompts", "recommend", *base, "--task", tasks[0], *local, "--steps", "2", "--sample", "4"]
    command += ["--target", "tuned", "--output", str(tmp_path / "recommend"), "--use", "best", "--k", "1"]
    capsys.readouterr()
    assert main(command) == 0
    assert "--model.method deep_prompt" in capsys.readouterr().out
    tuned = Prompt.load(next((tmp_path / "recommend" / "target").glob("*.safetensors")))
    assert tuned.is_deep
    assert tuned.initial is not None
    assert torch.equal(tuned.initial, prompts["toy-0"].initial)


def test_files_on_the_command_line(toy: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """List, inspect, arithmetic, export, import, transfer by initialization, and the artifact."""
    pytest.importorskip("wandb")
    folder = tiny("llama")
    backbone = FrozenBackbone(str(folder))
    places = [tmp_path / "prompts" / f"{seed}.safetensors" for seed in range(2)]
    prompts = [saved(place, backbone, seed, seed=str(seed)) for seed, place in enumerate(places)]
    assert main(["prompts", "list", str(tmp_path / "prompts")]) == 0
    assert f"rows {P}, mode answer_last shared deep" in " ".join(capsys.readouterr().out.replace("|", " ").split())
    assert main(["prompts", "inspect", str(places[0]), "--json"]) == 0
    facts = {row["key"]: row["value"] for row in json.loads(capsys.readouterr().out)["tables"][0]["rows"]}
    assert (facts["method"], facts["kv_heads"], facts["hidden_size"]) == ("deep_prompt", "2", None)
    assert main(["prompts", "add", *map(str, places), "--output", str(tmp_path / "sum.safetensors")]) == 0
    total = Prompt.load(tmp_path / "sum.safetensors")
    start = prompts[0].initial
    assert start is not None
    torch.testing.assert_close(total.values, prompts[0].values + prompts[1].values - start, atol=1e-5, rtol=0)

    export = ["prompts", "export", str(places[0]), "--format", "peft", "--output", str(tmp_path / "adapter")]
    assert main(export) == 0
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "4 virtual tokens with keys and values in 2 layers (2 heads of width 8)" in card
    assert "include the positions of the virtual tokens" not in card
    assert main(["prompts", "import", str(tmp_path / "adapter"), "--output", str(tmp_path / "imported")]) == 0
    assert torch.equal(Prompt.load(tmp_path / "imported" / "adapter.safetensors").values, prompts[0].values)

    again = fit(str(toy), folder, tmp_path / "run", "--model.init", "FromPrompt")
    assert main([*again, "--model.init.prompt", str(places[0])]) == 0
    run = Prompt.load(tmp_path / "run")
    assert run.initial is not None
    assert torch.equal(run.initial, prompts[0].values)
    assert not torch.equal(run.values, prompts[0].values)
    artifact = prompt_artifact(tmp_path / "run" / "prompt.safetensors")
    assert "prompt of 2 x 2 x 4 x 2 x 8 for" in artifact.description
    assert artifact.metadata["method"] == "deep_prompt"


@pytest.mark.filterwarnings("ignore:.*have texts that are in train too")
@pytest.mark.parametrize("family", ["gemma3_text", "t5"])
def test_tasks_that_write_text(tiny: Tiny, tmp_path: Path, family: str) -> None:
    task = write_generation_task(tmp_path, [["good", "bad day"][row % 2] for row in range(9)])
    assert main(fit(task, tiny(family), tmp_path / "run", "--model.learning_rate", "0.05")) == 0
    out = tmp_path / "out"
    assert main(["predict", "--prompt", str(tmp_path / "run"), "--output", str(out)]) == 0
    texts = pd.read_parquet(out / "predictions.parquet")
    backbone, prompt = FrozenBackbone(str(tiny(family)), attention="shared"), Prompt.load(tmp_path / "run")
    objective = make_objective(backbone, TaskDataModule(task, "local").tasks)
    ids = backbone.encoder(P).encode(texts["text_a"].tolist(), None, 64, cue=objective.tasks[0].cue)
    for number, row in enumerate(ids):
        batch = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long),
                 "ids": torch.tensor([0]), "task_ids": torch.tensor([0])}  # fmt: skip
        assert objective.predict(prompt.keys_values, batch)["texts"] == [texts["text"][number]]
