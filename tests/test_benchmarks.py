"""Benchmarks at tiny sizes: they run, and their counts are right."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from prompt_transfer.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
TEXTS = ["a good film", "a bad film that goes on and on", "fine"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a benchmark script; the scripts share a folder but belong to no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder of a tiny random model by (kind, dtype)."""
    made: dict[tuple[str, str], Path] = {}

    def folder(common: ModuleType, kind: str, dtype: str) -> Path:
        if (kind, dtype) not in made:
            made[kind, dtype] = tmp_path_factory.mktemp(f"{kind}-{dtype}")
            common.save_random(kind, "tiny", dtype, made[kind, dtype])
        return made[kind, dtype]

    return folder


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "t5"])
@pytest.mark.parametrize("name", ["old", "plain", "peft_autocast", "peft", "full", "shared"])
def test_every_way_takes_a_step(benchmark: Any, folders: Any, kind: str, name: str) -> None:
    if name.startswith("peft"):
        pytest.importorskip("peft", reason="PEFT is not installed (pip install -e .[bench])")
    ways, steps = benchmark("ways"), benchmark("training_step")
    way = {"dtype": "bfloat16", **steps.WAYS[name]}
    spec = {**way, "model": str(folders(benchmark("common"), kind, way["dtype"])), "prompt_length": 4}
    make = {"peft": ways.peft, "plain": ways.plain}.get(way["way"], ways.ours)
    step = make(spec, "cpu")
    width = step(TEXTS)
    assert width == (128 if name == "old" else step(TEXTS))
    assert width > step(TEXTS[2:]) or name == "old"


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_peft_and_this_project_train_the_same_function(benchmark: Any, folders: Any, kind: str) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed (pip install -e .[bench])")
    race = benchmark("time_to_accuracy")
    model = str(folders(benchmark("common"), kind, "float32"))
    start = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * 0.02
    rows, labels = [[40, 50, 60], [70, 80, 90, 100, 110]], torch.tensor([0, 1])
    found = []
    # The modes are the same function for a causal model; so is `full` for a T5.
    ours = race.with_ours(model, "float32", start, "shared" if kind == "gpt2" else "full")
    for way in (race.with_peft(model, "float32", start), ours):
        logits = way.logits(rows)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        assert way.prompt.grad is not None
        found.append((logits.detach(), way.prompt.grad))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_the_race_is_judged_by_the_mean_over_seeds(benchmark: Any) -> None:
    race = benchmark("time_to_accuracy")

    def one(way: str, rate: float, *seeds: list[float]) -> Any:
        steps = np.arange(1, 1 + len(seeds[0]))
        curves = [race.Curve(steps, steps * rate, np.array(accuracies)) for accuracies in seeds]
        return race.row("gpt2-nano", way, rate, curves)

    # Means 0.6, 0.7, 0.65 and 0.5, 0.6, 0.7: the second ends best, the first reached it sooner.
    peft = [one("peft", 10.0, [0.5, 0.6, 0.7], [0.7, 0.8, 0.6]), one("peft", 20.0, [0.5, 0.6, 0.7])]
    mark = race.judge(peft, None)
    assert mark == pytest.approx(0.7)
    assert [(said["mark_steps"], said["mark_seconds"], said.get("best")) for said, _ in peft] == [
        (2, 20.0, None), (3, 60.0, True)]  # fmt: skip
    ours = [one("shared", 1.0, [0.6, 0.65, 0.69]), one("shared", 2.0, [0.5, 0.71, 0.6])]
    assert race.judge(ours, mark) == mark
    assert [(said["mark_steps"], said["mark_seconds"], said.get("best")) for said, _ in ours] == [
        (None, None, None), (2, 4.0, True)]  # fmt: skip
    shown = benchmark("table").race(
        {"what": "a race", "seeds": "0,1", "machine": {"gpu": None, "cpu": "A", "cores": 2}, "versions": {"torch": "2"},
         "rows": [said for said, _ in peft + ours]}
    )  # fmt: skip
    assert "mean of 2 seeds" in shown
    assert "| gpt2-nano | `shared` | 2.0 | 0.6 | 2 | 4 | 15 |" in shown


def test_needed_work_by_hand(benchmark: Any) -> None:
    floor = benchmark("floor")
    # A single layer is first and last: all products at two answer slots, which read 2 x (3 + 5) states with two heads.
    sizes = floor.Sizes(layers=1, hidden=4, ffn=8, heads=2)
    work = floor.needed(sizes, "full", 3, [5, 5])
    answers = 2
    assert work.linear[4, 8] == 2 * 4 * 8 * (2 * answers + 2 * answers)
    assert work.linear[8, 4] == 2 * 4 * 8 * 2 * answers
    assert work.linear[4, 4] == 2 * 4 * 4 * (2 * answers + 2 * answers)
    assert work.attention == 6 * 2 * (8 + 8) * 4 * 2
    assert work.elements == answers * (12 * 4 + 5 * 8)
    # A second layer adds queries, keys and values of 10 tokens and 3 prompt tokens; all else is on 16 positions.
    more = floor.needed(floor.Sizes(layers=2, hidden=4, ffn=8, heads=2), "full", 3, [5, 5])
    assert more.linear[4, 8] - work.linear[4, 8] == 2 * 4 * 8 * ((13 + 3) + 2 * 16)
    assert more.linear[4, 4] - work.linear[4, 4] == 2 * 4 * 4 * ((13 + 3) + 2 * 16)
    assert more.attention - work.attention == 6 * 2 * 2 * 8 * 8 * 4


def test_shared_work_by_hand(benchmark: Any) -> None:
    floor = benchmark("floor")
    # Keys and values of 10 tokens and 3 prompt tokens; only the prompt's have a gradient.
    work = floor.needed(floor.Sizes(layers=1, hidden=4, ffn=8, heads=2), "shared", 3, [5, 5])
    assert work.linear[4, 8] == 2 * 4 * 8 * ((13 + 3) + 2 * 2)
    assert work.attention == 6 * 2 * (8 + 8) * 4


def test_shared_work_counts_the_prompt_once(benchmark: Any) -> None:
    floor = benchmark("floor")
    sizes = floor.Sizes(layers=12, hidden=768, ffn=3072, heads=12)
    full, shared = (floor.needed(sizes, mode, 100, [25] * 32) for mode in ("full", "shared"))
    # Positions: 32 x 125 against 32 x 25 + 100.
    assert full.linear[768, 3072] / shared.linear[768, 3072] == pytest.approx(4000 / 900, rel=0.01)


def test_work_of_grouped_queries_and_gated_layers(benchmark: Any) -> None:
    floor = benchmark("floor")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    sizes = floor.Sizes.of(config)
    assert (sizes.layers, sizes.heads, sizes.keys_values, sizes.first_ffn) == (3, 4, 8, 24)
    gpt2 = floor.Sizes.of(transformers.GPT2Config(n_embd=8, n_layer=3, n_head=4))
    assert (gpt2.keys_values, gpt2.first_ffn, gpt2.ffn) == (16, 32, 32)
    work = floor.needed(sizes, "shared", 3, [5, 5], causal=True)
    # Two gated layers at all 13 positions, the last at 2; forward and backward.
    assert work.linear[8, 24] == 2 * 8 * 24 * 2 * (13 + 13 + 2)
    assert work.linear[12, 8] == 2 * 8 * 12 * 2 * (13 + 13 + 2)


def test_prediction_is_compared_on_the_same_answers(benchmark: Any, tmp_path: Path) -> None:
    output = tmp_path / "predict.json"
    benchmark("predict").run(
        str(output), backbone="gpt2-nano", data_root=str(tmp_path), texts=5, batch_size=2, prompt_length=4, prompts=2,
        repeats=1, threads=1, dtype="float32",
    )  # fmt: skip
    report = json.loads(output.read_text())
    assert [row["way"] for row in report["rows"]] == ["loop", "loop_last", "classify", "transfer"]
    assert report["largest_difference_to_loop"] < 1e-5
    assert report["largest_difference_of_the_loops"] < 1e-5
    assert report["same_label_as_loop"] == 1


def test_rates_are_positive_and_give_seconds(benchmark: Any) -> None:
    floor = benchmark("floor")
    sizes = floor.Sizes(layers=2, hidden=8, ffn=16, heads=2)
    rates = floor.Rates(sizes, 32, 4, torch.float32, "cpu", repeats=1)
    matrix, both = rates.seconds(floor.needed(sizes, "full", 4, [4] * 4))
    assert 0 < matrix < both


def test_ratios_are_against_the_faster_peft(benchmark: Any) -> None:
    steps = benchmark("training_step")
    rows = [
        {"step": "old", "seconds": 12.0, "peak_mib": 900},
        {"step": "peft", "seconds": 2.0, "peak_mib": 500},
        {"step": "peft_autocast", "seconds": 3.0, "peak_mib": 400},
        {"step": "full", "seconds": 1.0, "peak_mib": 200},
    ]
    steps.add_ratios(rows)
    assert (rows[3]["faster_than_peft"], rows[3]["faster_than_old"], rows[3]["peak_over_peft"]) == (2.0, 12.0, 0.5)


def test_tables_stand_between_the_markers(benchmark: Any, tmp_path: Path) -> None:
    table = benchmark("table")
    machine = {"gpu": None, "cpu": "a CPU", "cores": 2}
    head = {"machine": machine, "versions": {"torch": "2.13"}, "threads": 2}
    row = {"backbone": "roberta-nano", "total": 5.25, **dict.fromkeys(("import", "parse", "load"), 1.0)}
    row |= dict.fromkeys(("data", "first_step", "rest"), 0.5)
    (tmp_path / "start_up.json").write_text(json.dumps({**head, "repeats": 5, "rows": [row]}))
    step = {
        "model": "roberta",
        "step": "full",
        "dtype": "float32",
        "seconds": 1.234,
        "peak_mib": 2000,
        "faster_than_peft": 2.5,
    }
    facts = {"batch_size": 32, "prompt_length": 100, "steps": 7, "texts": "sst2", "what": "a step"}
    (tmp_path / "training_step.json").write_text(json.dumps({**head, **facts, "rows": [step]}))
    page = tmp_path / "speed.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    for _ in range(2):
        table.run(str(tmp_path), str(page))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old\n" not in text
    assert text.count("| roberta-nano | 5.25 | 1 | 1 | 1 | 0.5 | 0.5 | 0.5 |") == 1
    assert "| RoBERTa-base | `full` | float32 | 1.23 | 2.5 |  | 2000 |  |  |" in text


@pytest.mark.parametrize(
    ("page", "parts"),
    [
        (
            "docs/pages/speed.md",
            "training_step,training_step_smollm2,predict_smollm2,time_to_accuracy,many_prompts,many_prompts_smollm2,"
            "start_up",
        ),
        ("results/README.md", "cost"),
    ],
)
def test_pages_show_the_reports_that_are_kept(benchmark: Any, tmp_path: Path, page: str, parts: str) -> None:
    copy = tmp_path / "page.md"
    copy.write_text((ROOT / page).read_text())
    benchmark("table").run(str(ROOT / "results/benchmarks"), str(copy), parts)
    assert copy.read_text() == (ROOT / page).read_text()


def test_the_cost_of_shared_attention_is_paired_by_seed(benchmark: Any) -> None:
    attention = benchmark("attention")
    values = {("full", 0): 0.6, ("full", 1): 0.7, ("full", 2): 0.8, ("shared", 0): 0.5, ("shared", 1): 0.7}
    rows = [
        {"backbone": "b", "task": task, "seed": seed, "attention": mode, "value": value + more, "majority": 0.5}
        for task, more in (("one", 0.0), ("two", 0.1))
        for (mode, seed), value in {**values, ("shared", 2): 0.9}.items()
    ]
    found = attention.table(pd.DataFrame(rows)).set_index("task")
    assert found["difference"].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert found.loc["two", "full"] == pytest.approx(0.8)
    assert found.loc["one", "low"] < 0 < found.loc["one", "high"]
    assert pd.isna(found.loc["all", "low"])  # two tasks give no interval
    with pytest.raises(UserError, match="both modes are needed"):
        attention.table(pd.DataFrame(rows[1:]))


def test_help_is_timed(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = benchmark("help")
    monkeypatch.setattr(script, "COMMANDS", ("tasks --help", "tasks lst"))
    cleared: list[bool] = []
    monkeypatch.setattr(script, "clear", cleared.append)
    script.run(str(tmp_path / "help.json"), repeats=1)
    report = json.loads((tmp_path / "help.json").read_text())
    assert report["cold"] == "compiled files of the package removed"
    assert cleared == [False, False]
    assert [row["command"] for row in report["rows"]] == ["tasks --help", "tasks lst"]
    assert report["rows"][1]["lines"] == 1
    assert all(row["cold"] > 0 and row["warm"] > 0 for row in report["rows"])
