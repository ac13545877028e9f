"""Prompts for servers: the code of the page on serving gives what `classify` and `predict` give."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scripts import load_script
from start_models import byte_level_with_start, save_llama, sentencepiece_tokenizer
from tiny_models import prompt_facts

from prompt_transfer.api.classification import classify
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.prompts.prompt import Prompt

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/pages/guide/serving.md").read_text(encoding="utf-8")
CODE, EXAMPLE = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
P = 5
TEXTS = ["the film is very good", "the dog", " a really quite boring story ", " ".join(["a good dog and"] * 20)]
SECOND = ["the story is good", "Yes", " no ", " ".join(["the city"] * 25)]
MODELS = ["gpt2", "gemma3_text", "byte level, start token", "sentencepiece, start token", "t5", "t5_v1_1"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    if "start" not in request.param:
        return tiny(request.param)
    tokenizer = byte_level_with_start() if "byte" in request.param else sentencepiece_tokenizer("prepend")
    folder = save_llama(tokenizer, tmp_path / "llama")
    tokenizer.save_pretrained(folder)
    return folder


def made(path: Path, name: Path | str, **facts: str) -> tuple[Path, FrozenBackbone]:
    """Save a random prompt whose effect is about that of a text."""
    backbone = FrozenBackbone(str(name))
    rows = torch.randn(P, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    prompt = Prompt(rows * backbone.embedding_weight.std(), prompt_facts(backbone, **facts))
    return prompt.save(path / "prompt.safetensors"), backbone


def served(prompt: Path, folder: Path) -> dict[str, Any]:
    """Export a prompt and return the names of the page's code, which reads the export with transformers alone."""
    assert main(["prompts", "export", str(prompt), "--format", "embeddings", "--output", str(folder)]) == 0
    names: dict[str, Any] = {}
    code = CODE.replace('folder = "served/films"', f"folder = {str(folder)!r}")
    assert code != CODE
    assert "prompt_transfer" not in code
    exec(code, names)
    return names


@pytest.mark.parametrize("template", [None, "Review: {text_a}\nAnswer:", "{text_a} It is"])
def test_classes_are_those_of_classify(model: Path, template: str | None, tmp_path: Path) -> None:
    given = {} if template is None else {"data_template": template}
    path, backbone = made(tmp_path, model, task="sst2", **given)
    names = served(path, tmp_path / "served")
    task = names["facts"]["tasks"]["sst2"]
    expected = classify(TEXTS, path)
    for text, prediction in zip(TEXTS, expected, strict=True):
        assert names["classify"](task, text_a=text) == pytest.approx(prediction.probabilities, abs=1e-5)
    # The random LM head of the tiny T5 1.1 gives probabilities of 0 and 1.
    assert len({round(one.probability, 4) for one in expected}) > 1 or backbone.family.name == "t5"
    names["facts"]["tasks"] = {"sst2": task}
    exec(EXAMPLE, names)


@pytest.mark.parametrize("template", [None, "{text_b} or {text_a} ?"])
def test_pairs_are_cut_as_by_classify(model: Path, template: str | None, tmp_path: Path) -> None:
    given = {"data_max_length": "30"} | ({} if template is None else {"data_template": template})
    path, backbone = made(tmp_path, model, task="mnli", **given)
    names = served(path, tmp_path / "served")
    task = names["facts"]["tasks"]["mnli"]
    for first, second, prediction in zip(TEXTS, SECOND, classify(TEXTS, path, SECOND), strict=True):
        found = names["classify"](task, text_a=first, text_b=second)
        assert list(found.values()) == pytest.approx(list(prediction.probabilities.values()), abs=1e-5)
    assert names["token_ids"](task, text_a=TEXTS[3], text_b=SECOND[3]).shape == (1, 30)
    assert task["columns"] == {"text_a": "premise", "text_b": "hypothesis"}
    assert backbone.layout.name == names["facts"]["layout"]


def test_generated_text_is_that_of_predict(model: Path, tmp_path: Path) -> None:
    path, backbone = made(tmp_path, model, task="builtin_questions")
    names = served(path, tmp_path / "served")
    task = names["facts"]["tasks"]["builtin_questions"]
    data = TaskDataModule("builtin_questions", "builtin")
    data.set_predict_texts(TEXTS, SECOND)
    data.connect(backbone.encoder(P)).setup("predict")
    (batch,) = data.predict_dataloader()
    written = backbone.decode(backbone.generate(Prompt.load(path).values, batch, task["max_new_tokens"]))
    expected = [written[int(row)] for row in batch["ids"].argsort()]
    found = [names["generate"](task, text_a=a, text_b=b) for a, b in zip(TEXTS, SECOND, strict=True)]
    assert found == expected
    assert any(expected)


def test_the_tensor_for_vllm_gives_the_logits_of_our_model(model: Path, tmp_path: Path) -> None:
    """The tensor is the whole input: no mask, and positions from its first row on."""
    path, backbone = made(tmp_path, model, task="sst2")
    if backbone.family.kind != "causal_lm":
        pytest.skip("vLLM takes prompt embeddings of causal models")
    names = served(path, tmp_path / "served")
    tensor = names["input_embeddings"](names["facts"]["tasks"]["sst2"], text_a=TEXTS[0])[0]
    ids = backbone.encoder(P).encode(TEXTS[:1], None, 40, cue="It was")[0]
    assert tensor.shape == (P + len(ids), backbone.hidden_size)
    assert ids[: len(names["facts"]["start_token_ids"])] == names["facts"]["start_token_ids"]
    torch.testing.assert_close(tensor[:P], Prompt.load(path).values, rtol=0, atol=0)
    batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    with torch.no_grad():
        expected = backbone(tensor[:P], batch, torch.arange(len(backbone.embedding_weight)))[0]
        positions = torch.arange(len(tensor))[None]
        found = names["model"](inputs_embeds=tensor[None], position_ids=positions).logits[0, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert int(found.argmax()) == int(expected.argmax())


def test_the_export_describes_the_input(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, backbone = made(tmp_path, tiny("gemma3_text"), task="sst2,unheard_of")
    out = tmp_path / "out"
    arguments = ["prompts", "export", str(path), "--format", "embeddings", "--output", str(out)]
    assert main(arguments) == 0
    assert "note: unheard_of: unknown here" in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == ["prompt_embeds.safetensors", "serving.json"]
    facts = json.loads((out / "serving.json").read_text())
    # Gemma's table is scaled by sqrt(H); its embedding module does so itself.
    assert facts["table_scale"] == pytest.approx(math.sqrt(32), abs=1e-3)
    assert facts["embedding_scale"] == 1.0
    assert facts["fingerprint"] == backbone.fingerprint
    assert facts["unknown_tasks"] == ["unheard_of"]
    words = [backbone.tokenizer.encode(f" {word}") for word in ("terrible", "great")]
    assert facts["tasks"]["sst2"]["label_token_ids"] == [[word] for word in words]
    assert facts["tasks"]["sst2"]["template"] == "{text_a} It was"
    assert facts["embeddings"] == {"file": "prompt_embeds.safetensors", "tensor": "prompt_embeds", "shape": [P, 32]}
    rows = load_file(out / "prompt_embeds.safetensors")["prompt_embeds"]
    assert torch.equal(rows, Prompt.load(path).embeddings)
    # Nothing is replaced unasked.
    assert main(arguments) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_words_of_several_tokens(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path, backbone = made(tmp_path, tiny("gpt2"), task="sst2", label_words_policy="sequence")
    task = served(path, tmp_path / "served")["facts"]["tasks"]["sst2"]
    assert task["label_words_policy"] == "sequence"
    assert task["label_token_ids"] == [[backbone.tokenizer.encode(f" {word}")] for word in ("terrible", "great")]


def test_prompts_that_are_no_input_embeddings_are_refused(
    tiny: Callable[[str], Path], tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t5, backbone = FrozenBackbone(str(tiny("t5")), attention="shared"), FrozenBackbone(str(tiny("gpt2")))
    facts = prompt_facts(backbone, task="sst2")
    prompts = {
        "is a deep prompt": Prompt(torch.zeros(backbone.keys_values_shape(P)), facts | {"attention": "shared"}),
        "is for a masked LM": Prompt(torch.ones(P, 32), prompt_facts(FrozenBackbone(str(tiny_roberta)), task="sst2")),
        "attention shared": Prompt(torch.ones(P, 32), prompt_facts(t5, task="sst2")),
        "with head embedding": Prompt(torch.ones(P, 32), facts | {"head": "embedding"}),
        "trained label embeddings": Prompt(torch.ones(P, 32), facts, label_embeddings=torch.ones(2, 32)),
        "does not name its backbone": Prompt(torch.ones(P, 32)),
    }
    for message, prompt in prompts.items():
        path = prompt.save(tmp_path / "prompt.safetensors")
        code = main(["prompts", "export", str(path), "--format", "embeddings", "--output", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert code == 2, message
        assert message in error
        assert len(error.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()


# The demo -------------------------------------------------------------------------------------------------------------


def test_the_demo_classifies_without_gradio(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    demo = load_script("docs/examples/gradio_demo.py")
    path, _ = made(tmp_path, tiny("gpt2"), task="sst2", label_words='{"sst2": ["terrible", ["great", "good"]]}')
    assert demo.find_prompts([str(tmp_path)]) == [str(path)]
    found = demo.probabilities(str(path), TEXTS[0])
    assert list(found) == ["terrible", "great"]
    assert list(found.values()) == pytest.approx(list(classify(TEXTS[:1], path)[0].probabilities.values()))
    with pytest.raises(SystemExit, match=r"pip install 'prompt_transfer\[demo\]'"):
        demo.build([str(path)])
    with pytest.raises(SystemExit, match="no such file or folder: missing"):
        demo.find_prompts(["missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no prompt in"):
        demo.find_prompts([str(tmp_path / "empty")])
    assert len(demo.find_prompts([demo.DEFAULT])) == 13


def test_the_demo_has_an_interface(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio", reason="gradio is in the extra `demo`, not in `dev`")
    path, _ = made(tmp_path, tiny("gpt2"), task="sst2")
    interface = load_script("docs/examples/gradio_demo.py").build([str(path)])
    assert isinstance(interface, gradio.Interface)
    assert set(interface.fn(str(path), "a good film", "")) == {"0", "1"}
    with pytest.raises(gradio.Error, match="single texts"):
        interface.fn(str(path), "a good film", "a second text")
