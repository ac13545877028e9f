"""Templates: the ids are those of the whole string, texts are cut and words are not, prompts remember them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_cli import error_of, fit
from transformers import AutoTokenizer

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.templates import Template
from prompt_transfer.cli import main
from prompt_transfer.data.sources import load_task
from prompt_transfer.modules.objectives import make_objective
from prompt_transfer.prompts.io.adapter_card import tasks_of
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.entries import with_formats
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.tasks.definition import format_metadata
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.tasks.verbalizers import Verbalizer
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]
CHAT = (
    "{% for m in messages %}<|endoftext|>{{ m['role'] }}\n{{ m['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|endoftext|>assistant\n{% endif %}"
)
QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def plain_ids(backbone: FrozenBackbone, text: str) -> list[int]:
    return backbone.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_parsing() -> None:
    found = Template.parse("Review: {text_a}\nSentiment:", False)
    assert (found.before, found.between, found.after, found.pairs) == ("Review: ", "", "\nSentiment:", False)
    assert found.text == "Review: {text_a}\nSentiment:"
    pair = Template.parse("{{x}} {text_b} implies {text_a}", True)
    assert (pair.before, pair.between, pair.after, pair.swapped) == ("{x} ", " implies ", "", True)
    assert pair.text == "{{x}} {text_b} implies {text_a}"
    for text, pairs in (
        ("no field", False), ("{text_a} {text_b}", False), ("{text_a}", True), ("{text_a} {text_a}", False),
        ("{other}", False), ("{text_a", False), ("{text_a!r}", False),
    ):  # fmt: skip
        with pytest.raises(UserError, match="template"):
            Template.parse(text, pairs)
    with pytest.raises(UserError, match=r"^task t: the template"):
        Task(name="t", type="x", text_a="a", label_words=("no", "yes"), template="{text_b}")


def test_the_question_of_a_task() -> None:
    asked = get_task("qnli").with_format("question")
    assert asked.format is not None
    assert asked.format.text == "Sentence: {text_b}\nQuestion: {text_a}\nDoes the sentence answer the question? Answer:"
    assert asked.label_words == get_task("qnli").label_words
    # The cue says it already.
    assert get_task("sst2").with_format("question") == get_task("sst2")
    # The paper's formats have no question.
    assert get_task("qnli").paper_variant().with_format("question").format is None
    with pytest.raises(UserError, match="must have the field"):
        Task(name="t", type="x", text_a="a", label_words=("no", "yes"), question="{text_b}")
    kept = format_metadata("question", None)
    assert kept == {"data_template": "question"}
    for name in ("qqp", "mrpc", "ethics_justice", "ethics_deontology"):
        assert get_task(name).with_format("question").format is not None


@pytest.mark.parametrize("family", ["gpt2", "llama", "roberta", "bert", "t5"])
@pytest.mark.parametrize(
    ("template", "a", "b"),
    [
        ("Review: {text_a}\nSentiment:", "the film was great", None),
        ("({text_a}). It was", "the film was great", None),
        ("{text_a} and {text_b}", "the film", "the story"),
        ("see {text_b}\n\n{text_a}?", "the film", "the story"),
    ],
)
def test_ids_are_those_of_the_whole_string(tiny: Tiny, family: str, template: str, a: str, b: str | None) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    encoder = backbone.encoder(3)
    parsed = Template.parse(template, b is not None)
    (found,) = encoder.encode([a], None if b is None else [b], 60, template=parsed)
    whole = plain_ids(backbone, template.format(text_a=a, text_b=b))
    tokenizer = backbone.tokenizer
    kind = backbone.family.kind
    start = [tokenizer.cls_token_id] if kind == "masked_lm" else list(encoder.start)
    end = {"masked_lm": [tokenizer.sep_token_id], "seq2seq_lm": [tokenizer.eos_token_id]}.get(kind, [])
    assert found == [*start, *whole, *end]


@pytest.mark.parametrize("family", ["gpt2", "roberta", "t5"])
def test_only_the_texts_are_cut(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    encoder = backbone.encoder(3)
    parsed = Template.parse("Review: {text_a} but {text_b}\nSentiment:", True)
    texts = ["the film " * 30], ["the story"]
    whole = encoder.encode(["film"], ["the story"], 60, template=parsed)[0]
    room = encoder.text_room(40, True, template=parsed)
    (cut,) = encoder.encode(*texts, 40, template=parsed)
    assert len(cut) == 40
    tail = plain_ids(backbone, "x but the story\nSentiment:")[len(plain_ids(backbone, "x")) :]
    end = len(whole) - len(encoder.encode(["film"], ["the story"], 60, template=parsed)[0])
    assert end == 0
    kept = cut[: len(cut) - (0 if family == "gpt2" else 1)]
    assert kept[-len(tail) :] == tail
    assert room < 40
    with pytest.raises(UserError, match=r"the template and special tokens .* leave"):
        encoder.text_room(len(tail), True, template=parsed)


@pytest.mark.parametrize(
    ("name", "template"), [("builtin_movies", "Film: {text_a}\n"), ("builtin_nli_people", "{text_b} {text_a}")]
)
def test_builtin_tasks_take_templates(name: str, template: str) -> None:
    task = get_task(name).with_format(template)
    assert load_task(task, "builtin").task.template == template


def test_the_cue_is_the_end_of_the_default_template(tiny: Tiny) -> None:
    backbone = FrozenBackbone(str(tiny("gpt2")))
    encoder, task = backbone.encoder(3), Task(name="t", type="x", text_a="a", label_words=("no", "yes"), cue="It was")
    text = backbone.shown_format(None, task.pairs, task.cue)
    assert text == "{text_a} It was"
    ours = encoder.encode(["the film"], None, 30, cue=task.cue)
    assert encoder.encode(["the film"], None, 30, template=Template.parse(text, False)) == ours


def test_a_word_after_a_line_feed_has_no_blank(tiny: Tiny) -> None:
    backbone = FrozenBackbone(str(tiny("gpt2")))
    encoder, tokenizer = backbone.encoder(3), backbone.tokenizer
    spaced, bare = (Template.parse(text, False) for text in ("{text_a} It was ", "{text_a}\nSentiment:\n"))
    assert encoder.is_spaced(spaced)
    assert not encoder.is_spaced(bare)
    # The blank at the end of a template belongs to the word.
    assert encoder.encode(["the film"], None, 30, template=spaced)[0] == plain_ids(backbone, "the film It was")
    first = Verbalizer.build("t", ["great", "terrible"], tokenizer, "first", spaced=False)
    assert first.class_ids[0] == (plain_ids(backbone, "great")[0],)
    for template, words in ((bare, "great"), (spaced, " great")):
        assert encoder.answer_ids(["great"], template)[0] == plain_ids(backbone, words)
    t5 = FrozenBackbone(str(tiny("t5"))).encoder(3)
    assert t5.is_spaced(bare)


def test_a_chat_template_wraps_the_texts(tiny: Tiny) -> None:
    backbone = FrozenBackbone(str(tiny("gpt2")))
    encoder = backbone.encoder(3)
    chat = Template.parse("{text_a} is", False, chat=True)
    with pytest.raises(UserError, match="no chat template"):
        encoder.resolved(chat)
    with pytest.raises(UserError, match="is for causal backbones"):
        FrozenBackbone(str(tiny("bert"))).encoder(3).resolved(chat)
    backbone.tokenizer.chat_template = CHAT
    rendered = backbone.tokenizer.apply_chat_template(
        [{"role": "user", "content": "the film is"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|endoftext|>user\nthe film is<|endoftext|>\n<|endoftext|>assistant\n"
    resolved = encoder.resolved(chat)
    assert resolved.text == "<|endoftext|>user\n{text_a} is<|endoftext|>\n<|endoftext|>assistant\n"
    assert encoder.encode(["the film"], None, 60, template=resolved)[0] == plain_ids(backbone, rendered)
    # Special tokens of the template stay when those of texts are split.
    (split,) = encoder.splitting().encode(["<|endoftext|>"], None, 60, template=resolved)
    assert split.count(0) == plain_ids(backbone, rendered).count(0) == 3
    backbone.tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(UserError, match=r"chat template fails .*no users") as caught:
        encoder.resolved(chat)
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    base = "name: t\ncolumns: {text_a: t}\nlabel_words: [bad, good]\n"
    path.write_text(base + 'template: "{text_a}\\nSentiment:"\nchat_template: true\n')
    task = get_task(path)
    assert (task.template, task.chat_template) == ("{text_a}\nSentiment:", True)
    assert task.with_format("{text_a}\\nX:", False).template == "{text_a}\nX:"
    assert task.with_format("default") == task
    for line, message in (
        ('template: "{text_b}"\n', "must have the field {text_a}"),
        ('template: "{text_a} x"\ncue: x\n', "a template replaces the cue"),
        ("chat_template: 3\n", "chat_template must be true or false"),
    ):
        path.write_text(base + line)
        with pytest.raises(UserError) as caught:
            get_task(path)
        assert message in str(caught.value)


def test_a_prompt_remembers_its_template(
    toy: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt2, output = tiny("gpt2"), tmp_path / "run"
    assert fit(toy, gpt2, output, "--data.template", "Review: {text_a}\\nSentiment:") == 0
    facts = Prompt.load(output).metadata
    assert facts["data_template"] == "Review: {text_a}\nSentiment:"
    assert json.loads(facts["templates"]) == {"toy": "Review: {text_a}\nSentiment:"}
    capsys.readouterr()

    def scores(*options: str) -> tuple[str, dict[str, float]]:
        assert main(["test", "--prompt", str(output), *QUICK, "--output", str(tmp_path / "test"), *options]) == 0
        import pandas as pd

        table = pd.read_csv(tmp_path / "test" / "results.csv")
        return capsys.readouterr().err, dict(zip(table["what"], table["value"], strict=True))

    config = tmp_path / "test" / "provenance.json"
    said, _ = scores()
    assert "template" not in said
    assert "Review: {text_a}\\nSentiment:" in config.read_text()
    said, _ = scores("--data.template", "default")
    assert (
        "trained on toy with the template 'Review: {text_a}\\nSentiment:', but is used with '{text_a} Answer:'" in said
    )
    pair = main(["test", "--prompt", str(output), *QUICK, "--data.template", "{text_b}"])
    assert "must have the field {text_a}" in error_of(capsys, pair)
    chat = main(["test", "--prompt", str(output), *QUICK, "--data.chat_template", "true"])
    assert "no chat template" in error_of(capsys, chat)


def test_a_prompt_remembers_that_the_tasks_chat_template_was_off(
    toy: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write_text(toy.read_text() + "chat_template: true\n")
    shutil.copytree(tiny("gpt2"), gpt2 := tmp_path / "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(gpt2)
    output = tmp_path / "run"
    assert fit(toy, gpt2, output, "--data.chat_template", "false", "--data.max_length", "60") == 0
    prompt = Prompt.load(output)
    assert prompt.metadata["data_chat_template"] == "false"
    (card_task,), _ = tasks_of(prompt.metadata)
    assert card_task.format is None
    assert with_formats({"a": prompt}, EvaluationData("local")).chat_template is False
    capsys.readouterr()
    assert main(["test", "--prompt", str(output), *QUICK, "--output", str(tmp_path / "test")]) == 0
    assert "template" not in capsys.readouterr().err
    assert json.loads((tmp_path / "test" / "provenance.json").read_text())["config"]["data"]["chat_template"] is False


def test_metadata_of_templates() -> None:
    assert format_metadata("{text_a}\\nX:", True) == {"data_template": "{text_a}\nX:", "data_chat_template": "true"}
    assert format_metadata("default", False) == {"data_chat_template": "false"}
    assert format_metadata(None, None) == format_metadata("", None) == {}


def test_a_transfer_study_uses_the_prompts_template(
    toy: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prompt_transfer.studies.transfer.load import load
    from prompt_transfer.studies.transfer.study import TransferStudy

    gpt2 = tiny("gpt2")
    runs = tmp_path / "runs"
    assert fit(toy, gpt2, runs / "a", "--data.template", "{text_a}\\nSentiment:") == 0
    options = {
        "backbone": str(gpt2), "prompts": str(runs), "tasks": [str(toy)], "random_prompts": 0, "accelerator": "cpu",
    }  # fmt: skip
    inputs = load(TransferStudy(**options, output=str(tmp_path / "one"), data=EvaluationData("local")))
    assert inputs.targets[0].facts["template"] == "{text_a}\nSentiment:"
    (first, *_) = (inputs.targets[0].table.values[: inputs.targets[0].table.offsets[1]],)
    assert first[-1] == inputs.backbone.tokenizer("Sentiment:")["input_ids"][-1]
    assert fit(toy, gpt2, runs / "b", "--seed_everything", "1") == 0
    with pytest.raises(UserError, match=r"differ in data_template: .*choose one with --data.template"):
        load(TransferStudy(**options, output=str(tmp_path / "two"), data=EvaluationData("local")))
    data = EvaluationData("local", template="default")
    inputs = load(TransferStudy(**options, output=str(tmp_path / "two"), data=data))
    assert "template" not in inputs.targets[0].facts
    assert torch.tensor(inputs.targets[0].table.lengths).min() > 0


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_an_adapters_card_has_template_and_words(tiny: Tiny, family: str, toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is in the extra `bench`, not in `dev`")
    from test_peft_adapter import run_card

    toy.write_text(toy.read_text().replace("[terrible, great]", "[[terrible, awful], [great, good]]"))
    backbone, output = FrozenBackbone(str(tiny(family))), tmp_path / "run"
    assert (
        fit(toy, tiny(family), output, "--data.template", "see: {text_a}\\nIt was", "--model.learning_rate", "1") == 0
    )
    prompt = Prompt.load(output)
    task = get_task(toy).with_format(prompt.metadata["data_template"])
    space, printed = run_card(tmp_path / "card", prompt, str(tiny(family)))
    (ids,) = backbone.encoder(3).encode(["the film is good"], None, 60, template=task.format)
    assert space["tokens"].tolist() == [ids]
    batch = {"input_ids": space["tokens"], "attention_mask": torch.ones_like(space["tokens"])}
    objective = make_objective(backbone, [task])
    logits = objective.logits(prompt.embeddings, {**batch, "task_ids": torch.zeros(1, dtype=torch.long)})[0]
    torch.testing.assert_close(space["scores"], logits.detach(), atol=1e-4, rtol=0)
    assert printed.strip() == task.label_words[int(logits.argmax())]
