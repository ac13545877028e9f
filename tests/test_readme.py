"""README and tour: commands run, figures match the results, and paths exist.

The quick start runs with few steps here, and in full among the slow tests.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fake_hub import connected
from own_rows import write_reviews
from tiny_models import prompt_facts
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.commands.arguments import find_configs
from prompt_transfer.commands.sweep import GROUPS
from prompt_transfer.commands.table import COMMANDS
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task, task_names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FINDINGS = (ROOT / "docs/pages/findings.md").read_text(encoding="utf-8")
NANO = (ROOT / "docs/pages/findings_nano.md").read_text(encoding="utf-8")
# The tour continues the README and uses its runs.
SHOWN = README + (ROOT / "docs/pages/tour.md").read_text(encoding="utf-8")
# Options that shorten commands which would train for minutes.
SHORT = {
    "fit": ["--trainer.max_steps", "6", "--trainer.val_check_interval", "3", "--data.limit_eval", "100"],
    "test": ["--data.limit_eval", "100"],
    "prompts recommend": ["--steps", "2"],
    "transfer": ["--data.limit_eval", "40", "--random_prompts", "1"],
}
SHORT_VERBS = {"mask": ["--data.limit_eval", "20", "--random_seeds", "1", "--ratios", "[0.2]"]}
QUICKSTART = ["quickstart", "--output", "runs/quickstart"]


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", SHOWN, flags=re.M | re.S)
    return [text for kind, text in found if kind == language]


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("prompt-transfer ")]


def stand_in(command: list[str], backbone: Path, root: Path) -> list[str]:
    """Replace hub models and data in a command by a tiny model and local rows."""
    if "FacebookAI/roberta-base" not in command:
        return command
    local = ["--data.source", "local", "--data.root", str(root)]
    return [str(backbone) if word == "FacebookAI/roberta-base" else word for word in command] + local


def replaced(command: list[str], options: list[str]) -> list[str]:
    """Return the command with these options instead of its own: giving an option twice is an error."""
    kept = list(command)
    for option in options[::2]:
        if option in kept:
            place = kept.index(option)
            del kept[place : place + 2]
    return [*kept, *options]


def write_rows(folder: Path, text: str, classes: int) -> None:
    folder.mkdir(parents=True)
    rows = [f"the film {number} is {number % classes},{number % classes}" for number in range(60)]
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text("\n".join([f"{text},label", *rows]))


def test_the_shell_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_roberta: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    write_rows(tmp_path / "data" / "sst2", "sentence", 2)
    # The user's own task: the README's YAML and the folder it names.
    (text,) = blocks("yaml")
    (tmp_path / "trec.yaml").write_text(text)
    write_rows(tmp_path / "trec_folder", "text", 3)
    found = commands()
    assert {"fit", "test", "prompts"} <= {command[0] for command in found}
    assert ["fit", "--data.task", "trec.yaml", "--data.source", "local"] in found
    for command in found:
        command = stand_in(command, tiny_roberta, tmp_path / "data")
        short = SHORT.get(" ".join(command[:2]), SHORT.get(command[0], SHORT_VERBS.get(command[1], [])))
        assert main(replaced(command, short)) == 0, command
    for run in ("films", "sst2", "trec-roberta-nano-seed0"):
        assert (tmp_path / "runs" / run / "prompt.safetensors").is_file()


def shown_alone() -> list[list[str]]:
    """Return the commands that need more than the reader has at that point: published prompts, a hub, real data."""
    lines = [line for block in blocks("") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("prompt-transfer ")]


def save_prompts(folder: Path, backbone: FrozenBackbone, runs: Mapping[str, str]) -> None:
    """Save a random prompt for the task of each run."""
    for number, (run, task) in enumerate(runs.items()):
        rows = torch.randn(20, backbone.hidden_size, generator=torch.Generator().manual_seed(number))
        facts = prompt_facts(backbone, head="lm", task=task)
        Prompt(0.1 * rows, facts).save(folder / run / "prompt.safetensors")


def save_wide(tiny: Path, folder: Path) -> Path:
    """Save a model that fits the published prompts of RoBERTa-base and their label words, which are ids."""
    config = AutoConfig.from_pretrained(tiny)
    config.update({"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12})
    config.update({"max_position_embeddings": 256, "vocab_size": 13000})
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens([f"w{number}" for number in range(13000 - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    return folder


def test_the_other_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_roberta: Path) -> None:
    """Run them with random prompts, a locally made published prompt, a local hub, and local rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    tasks = ("imdb", "laptop", "mnli", "sst2", "snli")
    for name in tasks:
        task = get_task(name)
        folder = tmp_path / "DATA" / name
        texts = [column for column in (task.text_a, task.text_b) if column]
        folder.mkdir(parents=True)
        labels = task.labels or range(len(task.label_words))
        for split in ("train", "validation", "test"):
            rows = [[*(f"{split} {row}" for _ in texts), str(labels[row % len(labels)])] for row in range(24)]
            lines = [[*texts, str(task.label_column)], *rows]
            (folder / f"{split}.csv").write_text("\n".join(",".join(line) for line in lines))
    save_prompts(tmp_path / "runs", FrozenBackbone("roberta-nano"), {"films": "builtin_movies"})
    published = tmp_path / "path/to/task_prompt_emb/MNLIPromptRoberta/task_prompt"
    published.parent.mkdir(parents=True)
    torch.save(torch.randn(100, 768), published)
    wide = save_wide(tiny_roberta, tmp_path / "wide")
    more = {
        "fit": ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1"],
        "test": ["--data.limit_eval", "10"],
        "analyze": ["--random_prompts", "1", "--shuffles", "1", "--data.limit_eval", "10"],
    }
    done = []
    with connected(monkeypatch, tmp_path / "hub") as hub:
        for command in shown_alone():
            extra = list(more.get(command[0], []))
            if "prompts/published/MNLIPromptRoberta.safetensors" in command:
                extra += ["--model.backbone", str(wide), "--data.source", "local", "--data.root", "DATA"]
            assert main(replaced(command, extra)) == 0, command
            done.append(" ".join(command[:2]))
        assert list(hub.repos) == ["USER/film-prompts"]
    expected = {"prompts fit-projector", "prompts project", "fit --model", "analyze projection", "prompts pull"}
    assert expected <= set(done)
    for path in ("runs/projection/projection.csv", "adapters/films/adapter_model.safetensors"):
        assert (tmp_path / path).is_file()
    assert list((tmp_path / "prompts/films").rglob("*.safetensors"))


def test_every_command_in_the_text_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    inline = [
        " ".join(code.split())
        for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", SHOWN + FINDINGS, flags=re.S))
    ]
    named = [code.removeprefix("prompt-transfer ") for code in inline]
    found = [code.split() for code in named if code.split()[0] in COMMANDS]
    assert {words[0] for words in found} >= {
        "fit",
        "validate",
        "test",
        "predict",
        "prompts",
        "tasks",
        "data",
        "pretrain",
    }
    helps = {}
    for words in found:
        own = words[:2] if words[0] in ("prompts", "tasks", "data", "neurons") else words[:1]
        for option in (word for word in words if word.startswith("--")):
            # A sweep passes on the options of fit.
            verb = ["fit"] if own == ["sweep"] and option.startswith(GROUPS) else own
            if str(verb) not in helps:
                with contextlib.suppress(SystemExit):
                    main([*verb, "--help"])
                helps[str(verb)] = capsys.readouterr().out
            assert option in helps[str(verb)], (words, option)


def test_the_figures_are_those_of_the_results() -> None:
    quick = pd.read_csv(ROOT / "results/quickstart/quickstart.csv")
    for row in quick.to_dict("records"):
        values = (f"{row[key]:.3f}" for key in ("trained prompt", "random prompt", "majority"))
        assert f"| {row['task']} | {row['use']} | {' | '.join(values)} |" in README
    section = FINDINGS
    assert f"{pd.read_csv(ROOT / 'results/sst2/results.csv').iloc[0]['value']:.3f}" in README
    sst2 = pd.read_csv(ROOT / "results/sst2/results.csv").iloc[0]
    probe = json.loads((ROOT / "results/sst2/linear_probe.json").read_text())
    grid = pd.read_csv(ROOT / "results/sst2_grid.csv")
    base = grid[(grid["learning_rate"] == 0.003) & (grid["prompt_length"] == 20)]
    base = base[(base["reparameterization"] == "Plain") & (base["init"] == "Vocabulary")]
    shared = base[base["attention"] == "shared"]["value"].iloc[0]
    layouts = base[base["attention"] == "full"].set_index("layout")["value"]
    assert f"**{sst2['value']:.3f}**" in section
    assert f"{layouts['mask_first']:.3f} / {layouts['prefix']:.3f}" in section
    assert f"attention | {shared:.3f} |" in section
    assert f"majority class | {sst2['majority']:.3f} |" in section
    assert (
        f"{probe['training_examples']:,} training sentences | {max(probe['logistic_regression'].values()):.3f} |"
        in section
    )


def interval(row: Any, digits: int = 2) -> str:
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


@pytest.mark.parametrize(
    ("text", "study"),
    [(README, "smollm2"), (FINDINGS, "smollm2"), (NANO, "nano")],
    ids=["readme", "findings", "findings_nano"],
)
def test_the_main_results_are_those_of_the_results(text: str, study: str) -> None:
    text, folder = " ".join(text.split()), ROOT / "results" / study
    summary = pd.read_csv(folder / "cross_task/summary.csv").rename(columns={"mean": "value"})
    targets = "all" if study == "nano" else "learned"
    summary = summary[(summary["measure"] == "relative") & (summary["type"] == "all")]
    for kind in ("same", "different", "random"):
        assert interval(summary[(summary["targets"] == targets) & (summary["kind"] == kind)].iloc[0]) in text, kind
    correlations = pd.read_csv(folder / "neurons/correlations.csv")
    correlations = correlations[correlations["statistic"] == "spearman_per_target"].set_index("indicator")
    for indicator in ("neuron_overlap", "gradient_cosine" if study == "nano" else "label_word_overlap"):
        assert interval(correlations.loc[indicator]) in text, indicator
    if study == "nano":
        return
    contrasts = pd.read_csv(folder / "cross_task/contrasts.csv").rename(columns={"difference": "value"})
    contrasts = contrasts[contrasts["measure"] == "relative"]
    for row in contrasts.to_dict("records"):
        assert f"{row['value']:+.2f} [{row['low']:.2f}, {row['high']:.2f}]" in text, (row["targets"], row["against"])
        # On the learned targets the interval decides.
        assert row["targets"] == "all" or row["low"] > 0
    (learned,) = set(contrasts.loc[contrasts["targets"] == "learned", "n_targets"])
    assert f"the {learned} of 13 tasks" in text or f"learn {learned} of the paper's 13 tasks" in text


def test_the_speedups_are_those_of_the_results() -> None:
    speedups = pd.read_csv(ROOT / "results/nano/transfer_init/speedups.csv").set_index(["task", "measure", "unit"])
    row = speedups.loc[("all", "comparable result", "step")]
    text = " ".join(NANO.split())
    assert f"{row['value']:.1f} times [{row['low']:.1f}, {row['high']:.1f}]" in text
    assert f"{row['not_reached']} of {row['n']}" in text
    speedups = pd.read_csv(ROOT / "results/smollm2/transfer_init/speedups.csv")
    rows = speedups[speedups["task"] == "all"].set_index(["source", "measure", "unit"])
    text = " ".join(README.split())
    row = rows.loc[("same type", "comparable result", "step")]
    assert f"{'at least ' * bool(row['at_least'])}{row['value']:.1f} times" in text
    for kind in ("same type", "other types"):
        row = rows.loc[(kind, "comparable result", "step")]
        assert f"{row['not_reached']} of {row['n']}" in text
        row = rows.loc[(kind, "best score", "score")]
        assert f"{100 * row['value']:+.1f} points [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in text


def test_the_speed_of_the_readme_is_that_of_the_reports() -> None:
    folder = ROOT / "results/benchmarks"
    rows = json.loads((folder / "training_step.json").read_text())["rows"]
    seconds = {row["step"]: row["seconds"] for row in rows if row["model"] == "roberta"}
    peft = min(seconds["peft"], seconds["peft_autocast"])
    assert f"| {seconds['full']:.3g} / {seconds['shared']:.3g} s | {peft:.3g} s |" in README
    steps = {row["step"]: row for row in json.loads((folder / "training_step_smollm2.json").read_text())["rows"]}
    ours, theirs = (
        f"{steps[way]['seconds']:.3g} s, {steps[way]['peak_mib'] / 1024:.1f} GiB" for way in ("full_random", "peft")
    )
    assert f"| {ours} | {theirs} |" in README
    labels = {row["way"]: row["seconds"] for row in json.loads((folder / "predict_smollm2.json").read_text())["rows"]}
    assert f"| {labels['classify']:.2g} s | {labels['loop_last']:.3g} s (transformers) |" in README
    quantized = json.loads((folder / "quantization.json").read_text())["rows"]
    (int8,) = (row for row in quantized if row["method"] == "int8")
    assert f"| {int8['peak_mib'] / 1024:.1f} GiB |" in README


def test_the_readme_is_short() -> None:
    assert len(README.encode()) < 12_000


@pytest.mark.skipif(not (ROOT / "prompt_transfer/utils").is_dir(), reason="the tree is that of the package's new rooms")
def test_the_tree_of_the_readme_is_that_of_the_repository() -> None:
    (tree,) = blocks("text")
    folders: list[tuple[int, Path]] = []
    found = 0
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        first = line.split()[0]
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        here = ROOT.joinpath(*(folder for _, folder in folders))
        # A name directly below a folder, then files of it mentioned in the text.
        names = re.findall(r"(?<![\w/])[a-z_0-9]+(?:/[a-z_0-9]+\.py|\.py|/)(?=[\s;,:)]|$)", line)
        assert names or first[0].isalpha(), line
        for name in names:
            assert (here / first / name).exists() or (here / name).exists(), f"{name} of the line {line!r}"
            found += 1
        if first.endswith("/"):
            folders.append((indent, Path(first)))
    assert found > 40


def test_the_tasks_are_counted_rightly() -> None:
    tasks = [get_task(name) for name in task_names()]
    hub, builtin = sum(task.hub is not None for task in tasks), sum(task.builtin for task in tasks)
    page = (ROOT / "docs/pages/guide/data.md").read_text(encoding="utf-8")
    assert f"{hub} tasks of the hub and {builtin} built-in ones" in page


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", "\n".join(blocks("bash")), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M)


def test_the_python_blocks_run(tmp_path: Path) -> None:
    # In one process, to import torch once: each block imports what it uses.
    code = "\n".join(blocks("python"))
    write_reviews(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([20, 256]) roberta-nano" in done.stdout
    assert (tmp_path / "runs/hub/prompts/roberta-nano/builtin_movies/prompt.safetensors").is_file()


def test_named_configurations_are_found() -> None:
    for name in re.findall(r"--config (\S+\.yaml)", SHOWN + FINDINGS):
        assert Path(find_configs(["--config", name])[1]).is_file()


def quick_start(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> pd.DataFrame:
    monkeypatch.chdir(folder)
    assert main([*QUICKSTART, *more]) == 0
    assert (folder / "runs/quickstart/prompt.safetensors").is_file()
    assert (folder / "runs/quickstart/learning_curve.png").stat().st_size > 10_000
    return pd.read_csv(folder / "runs/quickstart/quickstart.csv").set_index("task")


def test_quick_start_leaves_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = quick_start(tmp_path, monkeypatch, "--steps", "10")
    assert list(table["use"]) == ["trained on it", "zero-shot"]


@pytest.mark.slow
def test_quick_start_reaches_what_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = quick_start(tmp_path, monkeypatch)
    own, other = table.iloc[0], table.iloc[1]
    assert own["trained prompt"] >= own["majority"] + 0.15
    assert other["trained prompt"] >= other["random prompt"] + 0.05


def test_the_start_token_table_is_that_of_its_results() -> None:
    text = (ROOT / "results" / "README.md").read_text()
    scores = pd.read_csv(ROOT / "results" / "start_token" / "results.csv")
    for layout in ("start_answer_last", "answer_last"):
        rows = scores[scores["layout"] == layout].set_index("what")
        trained = rows.loc["this prompt"]
        shown = f"{trained['value']:.3f} [{trained['low']:.3f}, {trained['high']:.3f}]"
        random = ", ".join(f"{value:.3f}" for value in rows.loc["random prompt", "value"])
        line = next(line for line in text.splitlines() if line.startswith(f"| `{layout}` (prompt"))
        assert line.split(" | ")[1:] == [shown, random, f"{rows.loc['majority class', 'value']:.3f} |"]


def test_the_figures_of_smollm2_are_those_of_its_results() -> None:
    scores = pd.read_csv(ROOT / "results" / "sst2_smollm2" / "results.csv").set_index("what")
    trained = scores.loc["this prompt"]
    shown = f"{trained['value']:.3f} [{trained['low']:.3f}, {trained['high']:.3f}]"
    random = " and ".join(f"{value:.3f}" for value in scores.loc["random prompt", "value"])
    of_config = pd.read_csv(ROOT / "results" / "sst2_smollm2" / "results_experiment.csv").set_index("what")
    low, value, high = (of_config.loc["this prompt", name] for name in ("low", "value", "high"))
    assert f"test accuracy {value:.3f} [{low:.3f}, {high:.3f}] (majority" in (ROOT / "README.md").read_text()
    table = (ROOT / "results" / "README.md").read_text()
    assert f"test accuracy {shown} on 1,821 examples, random prompts {random}" in table
    assert int(trained["n"]) == 1821


def test_the_figures_of_methods_are_those_of_their_results() -> None:
    text = (ROOT / "README.md").read_text()
    table = pd.read_csv(ROOT / "results" / "compare" / "sst2_minilm_mlm" / "differences.csv").set_index("method")
    for method, name in (("deep_prompt", "deep prompt"), ("lora", "LoRA")):
        row = table.loc[method]
        assert row["seeds"] == 3
        shown = f"{name} {row['difference']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        assert shown in text
