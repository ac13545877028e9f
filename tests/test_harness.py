"""The model of the Language Model Evaluation Harness: equal to our own scores, and its errors."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from start_models import byte_level_with_start, save_llama
from tiny_models import prompt_facts
from torch import Tensor

from prompt_transfer.api import harness
from prompt_transfer.api.harness import PromptedScorer, cut, stop_sequences
from prompt_transfer.backbones.builtin import find_shipped
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.objectives import make_objective
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError

P = 5
TEXTS = ["the film is very good", "the dog", "a really quite boring story about the city, and the staff is sad"]
WORDS = [" terrible", " great", " very good"]


def made(folder: Path, backbone: FrozenBackbone, length: int = P, **facts: str) -> Path:
    """Save a random prompt that changes every score."""
    rows = torch.randn(length, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    scale = backbone.embedding_weight.std()
    return Prompt(rows * scale, prompt_facts(backbone, **facts)).save(folder / "prompt.safetensors")


def requests(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


@pytest.fixture(params=["gpt2", "gemma3_text", "start", "t5"])
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return save_llama(byte_level_with_start(), tmp_path / "llama") if request.param == "start" else tiny(request.param)


def single(backbone: FrozenBackbone, prompt: Tensor, context: list[int], target: list[int]) -> tuple[float, bool]:
    """Compute one log-likelihood token by token, from the logits of the next token over the vocabulary."""
    every = torch.arange(backbone.embedding_weight.shape[0])
    total, greedy = 0.0, True
    if backbone.family.kind == "causal_lm":
        for place, token in enumerate(target):
            ids = torch.tensor([context + target[:place]])
            logs = backbone(prompt, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, every)[0].log_softmax(0)
            total, greedy = total + float(logs[token]), greedy and int(logs.argmax()) == token
        return total, greedy
    ids = torch.tensor([context])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "target_ids": torch.tensor([target])}
    written = backbone.generate(prompt, batch, max_new_tokens=len(target))[0].tolist()
    return float(backbone.target_log_probs(prompt, batch).sum()), written == target


@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_log_likelihoods_are_those_of_single_tokens(model: Path, batch_size: Any, tmp_path: Path) -> None:
    backbone = FrozenBackbone(str(model))
    path = made(tmp_path, backbone)
    scorer = PromptedScorer(path, batch_size=batch_size)
    pairs = [scorer.encode_pair(text, word) for text in TEXTS for word in WORDS]
    found = scorer.log_likelihoods(pairs)
    end = [] if scorer.causal else [backbone.tokenizer.eos_token_id]
    prompt = Prompt.load(path).values
    with torch.no_grad():
        expected = [single(backbone, prompt, [*scorer.encoder.start, *context, *end], own) for context, own in pairs]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    # The greedy continuation is recognized, and the prompt matters.
    context = scorer.encode_pair(TEXTS[0], " a")[0]
    ids = torch.tensor([[*scorer.encoder.start, *context, *end]])
    best = backbone.generate(prompt, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 1)[0].tolist()
    assert scorer.log_likelihoods([(context, best)])[0][1]
    with torch.no_grad():
        without = single(backbone, prompt * 0, [*scorer.encoder.start, *pairs[0][0], *end], pairs[0][1])
    assert abs(without[0] - found[0][0]) > 1e-3


def test_log_likelihoods_are_those_of_the_label_words(model: Path, tmp_path: Path) -> None:
    """The policy `sequence` sums the same log-probabilities, from texts in our own format."""
    backbone = FrozenBackbone(str(model))
    task = get_task("sst2").with_policy("sequence")
    path = made(tmp_path, backbone, task="sst2")
    scorer = PromptedScorer(path)
    data = TaskDataModule("sst2", "hub")
    data.set_predict_texts(TEXTS)
    data.connect(backbone.encoder(P)).setup("predict")
    with torch.no_grad():
        objective = make_objective(backbone, [task])
        (batch,) = data.predict_dataloader()
        expected = objective.logits(Prompt.load(path).values, batch).flatten().tolist()
    cue = " It was" if scorer.causal else ""
    pairs = [scorer.encode_pair(f"{text}{cue}", f" {word}") for text in TEXTS for word in task.label_words]
    found = [value for value, _ in scorer.log_likelihoods(pairs)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_text_is_generated_as_by_the_backbone(model: Path, tmp_path: Path) -> None:
    backbone = FrozenBackbone(str(model))
    path = made(tmp_path, backbone)
    scorer = PromptedScorer(path, batch_size=2)
    encoded = backbone.encoder(P).encode(TEXTS, None, 40)
    expected = []
    for ids in encoded:
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        expected += backbone.decode(backbone.generate(Prompt.load(path).values, batch, 6))
    assert [text.strip() for text in scorer.write(TEXTS, 6)] == expected
    assert any(expected)


def test_deep_prompts_score_as_the_prompts_they_come_from(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    backbone = FrozenBackbone(str(tiny("llama")))
    path = made(tmp_path, backbone)
    keys_values = backbone.keys_values(Prompt.load(path).values)
    deep = Prompt(keys_values, prompt_facts(backbone) | {"attention": "shared"})
    scorers = PromptedScorer(path), PromptedScorer(deep)
    pairs = [scorers[0].encode_pair(text, word) for text in TEXTS for word in WORDS]
    scores = [[value for value, _ in scorer.log_likelihoods(pairs)] for scorer in scorers]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    assert scorers[1].write(TEXTS, 4) == scorers[0].write(TEXTS, 4)


def test_long_contexts_lose_their_beginning(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    scorer = PromptedScorer(made(tmp_path, FrozenBackbone(str(tiny("gpt2")))))
    context, own = scorer.encode_pair(" ".join(["the dog was a good dog and"] * 20), " great")
    assert len(context) > scorer.room == 64 - P
    with pytest.warns(UserWarning, match="more than 58 tokens lose their beginning"):
        (long,) = scorer.log_likelihoods([(context, own)])
    assert long == scorer.log_likelihoods([(context[-58:], own)])[0]
    with pytest.raises(UserError, match="max_gen_toks 59 does not fit: prompt and model leave 59 positions"):
        scorer.write(["the dog"], 59)
    with pytest.raises(UserError, match="a continuation of 59 tokens does not fit"):
        scorer.log_likelihoods([([5], [7] * 59)])
    assert len(scorer.log_likelihoods([([5], [7] * 58)])) == 1


def test_long_contexts_and_long_continuations_share_no_batch(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    scorer = PromptedScorer(made(tmp_path, FrozenBackbone(str(tiny("gpt2")))))
    pairs = [([5] * 50, [7] * 2), ([5] * 2, [7] * 50), ([5] * 49, [7])]
    alone = [scorer.log_likelihoods([pair])[0][0] for pair in pairs]
    assert [value for value, _ in scorer.log_likelihoods(pairs)] == pytest.approx(alone, abs=1e-4)
    assert list(scorer._batches([(50, 2), (2, 50), (49, 1)])) == [[0], [1], [2]]
    assert list(scorer._batches([(1, 2), (9, 2), (5, 1)])) == [[1, 2, 0]]
    scorer.batch_size = 2
    assert list(scorer._batches([(1, 2), (9, 2), (5, 1)])) == [[1, 2], [0]]


def test_requests_without_text_or_answer(model: Path, tmp_path: Path) -> None:
    scorer = PromptedScorer(made(tmp_path, FrozenBackbone(str(model))))
    (found,) = scorer.log_likelihoods([scorer.encode_pair("", "great")])
    assert math.isfinite(found[0])
    with pytest.raises(UserError, match="a continuation has no tokens"):
        scorer.log_likelihoods([([5], [])])


def test_blanks_belong_to_the_continuation(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    scorer = PromptedScorer(made(tmp_path, FrozenBackbone(str(tiny("gpt2")))))
    assert scorer.encode_pair("the dog ", "great") == scorer.encode_pair("the dog", " great")


def test_wrong_models_and_options_are_refused(tiny: Callable[[str], Path], tiny_roberta: Path, tmp_path: Path) -> None:
    path = made(tmp_path, FrozenBackbone(str(tiny("gpt2"))))
    for options, message in (
        ({"batch_size": 0}, "batch_size is 0: give a number from 1 on, or auto"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"pretrained": "gpt2"}, "unknown model argument 'pretrained'"),
        ({"backbone": str(tiny("llama"))}, "fingerprint|family|width"),
    ):
        with pytest.raises(UserError, match=message):
            PromptedScorer(path, **options)
    with pytest.raises(UserError, match="predicts one word, and the harness scores texts"):
        PromptedScorer(made(tmp_path / "roberta", FrozenBackbone(str(tiny_roberta))))
    labels = Prompt.load(path)
    labels.label_embeddings = torch.ones(2, 32)
    with pytest.raises(UserError, match="trained label embeddings"):
        PromptedScorer(labels)
    with pytest.raises(UserError, match="does not name its backbone"):
        PromptedScorer(Prompt(torch.ones(2, 32)))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert harness._device("cpu") == harness._device(None) == torch.device("cpu")
    # The harness passes cuda:0 by default.
    with pytest.warns(UserWarning, match="cpu instead of cuda:0"):
        assert harness._device("cuda:0") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert harness._device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="device is 'gpu': give cpu, cuda or cuda:N"):
        harness._device("gpu")


def test_stop_sequences() -> None:
    assert stop_sequences({"until": "\n\n", "max_gen_toks": 7}, 256) == (["\n\n"], 7, 1)
    assert stop_sequences({"until": ["", "."], "num_beams": 3, "temperature": 0.0}, 256) == (["."], 256, 3)
    with pytest.raises(UserError, match="the task samples"):
        stop_sequences({"do_sample": True}, 256)
    assert cut("one. two\nthree", ["\n", ". "]) == "one"
    assert cut("one", []) == "one"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    monkeypatch.setattr(harness, "register", harness.register.__wrapped__)
    assert harness.main() == 2
    assert "pip install 'prompt_transfer[lm_eval]'" in capsys.readouterr().err


# With the package -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    return pytest.importorskip("lm_eval", reason="lm_eval is in the extra `lm_eval`, not in `dev`")


def harness_tasks(folder: Path, rows: list[dict[str, Any]], cue: str) -> Any:
    """Write the rows and a task file of the harness with the format and label words of `builtin_movies`."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "movies.yaml").write_text(
        "task: own_movies\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        f'doc_to_text: "{{{{text}}}}{cue}"\ndoc_to_target: label\ndoc_to_choice: [terrible, great]\n'
        "metric_list: [{metric: acc}]\n"
    )
    (folder / "written.yaml").write_text(
        "task: own_written\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\n"
        f'test_split: test\noutput_type: generate_until\ndoc_to_text: "{{{{text}}}}{cue}"\ndoc_to_target: word\n'
        "generation_kwargs: {until: [.], max_gen_toks: 3}\nmetric_list: [{metric: exact_match}]\n"
    )
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backbone_name", ["gpt2-nano", "t5-nano"])
def test_the_harness_gives_our_accuracy(backbone_name: str, lm_eval: Any, tmp_path: Path) -> None:
    import datasets

    backbone = FrozenBackbone(backbone_name)
    if backbone_name == "t5-nano":
        shipped = Prompt.load(find_shipped("checkpoints/prompts/t5-nano/sst2.safetensors"))
        path = Prompt(shipped.values, shipped.metadata | {"dtype": "float32"}).save(tmp_path / "sst2.safetensors")
    else:
        path = made(tmp_path, backbone, task="sst2")
    prompt, task = Prompt.load(path), get_task("builtin_movies").with_policy("sequence")
    data = TaskDataModule("builtin_movies", "builtin", limit_eval=24)
    data.connect(backbone.encoder(prompt.length)).setup("test")
    own = sorted(data.selection.rows("test", 0), key=lambda row: row["id"])
    with torch.no_grad():
        objective = make_objective(backbone, [task])
        batches = list(data.test_dataloader())
        logits = torch.cat([objective.logits(prompt.values, batch) for batch in batches])
        labels = torch.cat([batch["labels"] for batch in batches])
        ids = torch.cat([batch["ids"] for batch in batches])
    logits, labels = logits[ids.argsort()].float(), labels[ids.argsort()]
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    assert len(own) == 24
    rows = [
        {"text": row["text_a"], "label": int(row["label"]), "word": task.label_words[int(row["label"])]} for row in own
    ]
    datasets.disable_progress_bars()
    manager = harness_tasks(tmp_path / "tasks", rows, "" if backbone_name == "t5-nano" else " It was")
    found = lm_eval.simple_evaluate(
        model="prompt_transfer" if harness.register() else "",
        model_args={"prompt": str(path), "batch_size": 8},
        tasks=["own_movies", "own_written"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert found["results"]["own_movies"]["acc,none"] == pytest.approx(accuracy, abs=1e-9)
    samples = sorted(found["samples"]["own_movies"], key=lambda sample: sample["doc_id"])
    scores = torch.tensor([[float(one[0][0]) for one in sample["resps"]] for sample in samples])
    torch.testing.assert_close(scores, logits, rtol=0, atol=1e-5)
    assert found["config"]["backbone"] == backbone_name
    texts = [sample["resps"][0][0] for sample in found["samples"]["own_written"]]
    assert len(texts) == 24
    assert all("." not in text for text in texts)


@pytest.mark.filterwarnings("ignore")
def test_whole_texts_are_scored_once_per_token(lm_eval: Any, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    lm = harness.register()(prompt=made(tmp_path, FrozenBackbone(str(tiny("gpt2")))))
    ids = lm.ids("the dog was a good dog and the story is boring")
    start = lm.encoder.without_text()
    expected = single(lm.backbone, lm.prompt.values, start, ids)[0]
    (found,) = lm.loglikelihood_rolling(requests(("the dog was a good dog and the story is boring",)))
    assert found == pytest.approx(expected, abs=1e-4)
    long = "the dog was a good dog and the story is boring " * 12
    assert len(lm.ids(long)) > 2 * lm.room
    assert math.isfinite(lm.loglikelihood_rolling(requests((long,)))[0])
    seq2seq = harness.register()(prompt=made(tmp_path / "t5", FrozenBackbone(str(tiny("t5")))))
    with pytest.raises(UserError, match="needs a causal backbone"):
        seq2seq.loglikelihood_rolling(requests(("the dog",)))


@pytest.mark.slow  # the harness reads the files of all its tasks
@pytest.mark.filterwarnings("ignore")
def test_the_command_line_of_the_harness(
    lm_eval: Any, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = made(tmp_path, FrozenBackbone(str(tiny("gpt2"))))
    harness_tasks(tmp_path / "tasks", [{"text": text, "label": 0, "word": "great"} for text in TEXTS], " It was")
    arguments = ["--model", "prompt_transfer", "--tasks", "own_movies", "--include_path", str(tmp_path / "tasks")]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, "--model_args", f"prompt={path}", "--batch_size", "2"])
    assert harness.main() == 0
    assert "own_movies" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, "--model_args", "prompt=missing.safetensors"])
    assert harness.main() == 2
    assert "missing.safetensors" in capsys.readouterr().err
