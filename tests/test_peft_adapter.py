"""PEFT export and import: equal logits and bits; adapters that PEFT cannot express or we cannot trust are refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from start_models import byte_level_with_start, save_llama, sentencepiece_tokenizer
from torch import Tensor

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.family import AUTO_CLASSES
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.prompts.io.adapter_card import adapter_card, tasks_of
from prompt_transfer.prompts.io.peft_adapter import read_adapter, write_adapter
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.backbones import load_backbone
from prompt_transfer.tasks.verbalizers import Verbalizer
from prompt_transfer.utils.errors import UserError

P, H = 5, 8
TEXTS = ["the film is very good", "the dog", "a really quite boring story about the city"]
WORDS = ["terrible", "great"]


def rows(length: int = P, width: int = H, seed: int = 0) -> Tensor:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed))


def prompt(layout: str = "encoder", **more: str) -> Prompt:
    return Prompt(rows(), {"layout": layout, "backbone": "me/t5", "attention": "full", **more})


def adapter(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """Write a folder as PEFT does."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": P, "token_dim": H}
    facts |= {"num_transformer_submodules": 2, "base_model_name_or_path": "google-t5/t5-small", "revision": None}
    (folder / "adapter_config.json").write_text(json.dumps(facts | config))
    save_file(tensors or {"prompt_embeddings": rows(2 * P)}, folder / "adapter_model.safetensors")
    return folder


def own_logits(backbone: FrozenBackbone, embeddings: Tensor, encoded: list[list[int]], token_ids: Tensor) -> Tensor:
    width, pad = max(map(len, encoded)), backbone.encoder(P).pad_token_id
    batch = {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in encoded]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in encoded]),
    }
    with torch.no_grad():
        return backbone(embeddings, batch, token_ids)


def peft_logits(folder: Path, model: Any, encoded: list[list[int]], token_ids: Tensor) -> Tensor:
    """Compute the logits [B, U] at the answer slot of a right-padded batch with PEFT alone."""
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(model, folder).eval()
    width = max(map(len, encoded))
    inputs = torch.tensor([row + [1] * (width - len(row)) for row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in encoded])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.full((len(encoded), 1), model.config.decoder_start_token_id)
            logits = loaded(input_ids=inputs, attention_mask=mask, decoder_input_ids=start).logits[:, 0]
        else:
            logits = loaded(input_ids=inputs, attention_mask=mask).logits
            logits = torch.stack([logits[i, P + len(row) - 1] for i, row in enumerate(encoded)])
    return logits[:, token_ids]


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "t5_v1_1"])
def test_peft_computes_the_same(family: str, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    peft = pytest.importorskip("peft", reason="peft is in the extra `bench`, not in `dev`")
    import transformers

    name = str(tiny(family))
    backbone = FrozenBackbone(name)
    kind = backbone.family.kind
    facts = {"task": "sst2", "backbone": name, "layout": backbone.layout.name, "attention": "full"}
    facts |= {"label_words": json.dumps({"sst2": WORDS}), "fingerprint": backbone.fingerprint, "seed": "3"}
    facts |= {"family": backbone.family.name, "data_task": '["sst2"]'}
    file = Prompt(rows(width=backbone.hidden_size) * 0.5, facts).save(tmp_path / "sst2.safetensors")
    embeddings = Prompt.load(file).embeddings
    folder = tmp_path / "adapter"
    assert main(["prompts", "export", str(file), "--format", "peft", "--output", str(folder)]) == 0

    token_ids = torch.tensor([backbone.tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in WORDS])
    encoded = backbone.encoder(P).encode(TEXTS, None, 32, cue="It was")
    assert len({len(row) for row in encoded}) == 3  # a padded batch
    expected = own_logits(backbone, embeddings, encoded, token_ids)

    def model() -> Any:
        return getattr(transformers, AUTO_CLASSES[kind]).from_pretrained(name, dtype=torch.float32).eval()

    found = peft_logits(folder, model(), encoded, token_ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # The prompt matters: a zero prompt gives other logits.
    assert (own_logits(backbone, torch.zeros_like(embeddings), encoded, token_ids) - expected).abs().max() > 1e-3

    # PEFT's own files import bit by bit; their second half is never read.
    again = tmp_path / "again"
    peft.PeftModel.from_pretrained(model(), folder).save_pretrained(again)
    parts = 2 if kind == "seq2seq_lm" else 1
    saved = load_file(again / "adapter_model.safetensors")
    assert {key: value.shape for key, value in saved.items()} == {"prompt_embeddings": (parts * P, 32)}
    assert torch.equal(read_adapter(again).embeddings, embeddings)
    if parts == 2:
        save_file(
            {"prompt_embeddings": torch.cat([embeddings, rows(P, 32, seed=1)])}, again / "adapter_model.safetensors"
        )
        assert torch.equal(peft_logits(again, model(), encoded, token_ids), found)
    assert main(["prompts", "import", str(again), "--output", str(tmp_path / "in")]) == 0
    back = Prompt.load(tmp_path / "in" / "again.safetensors")
    assert torch.equal(back.embeddings, embeddings)
    assert back.metadata["layout"] == backbone.layout.name
    assert back.metadata["family"] == backbone.family.name  # read from the backbone's folder
    assert back.metadata["peft_second_half"] == ("different" if parts == 2 else "none")
    with pytest.warns(UserWarning, match="only its width"):
        back.check(backbone, backbone.layout, "full")

    # The card's code runs unchanged and agrees with our prediction.
    assert (folder / "README.md").read_text() == adapter_card(Prompt.load(file), name)
    space, printed = run_card(tmp_path / "card", Prompt.load(file), name)
    (tokens,) = space["tokens"].tolist()
    assert [tokens] == backbone.encoder(P).encode(["the film is good"], None, 32, cue="It was")
    ours = own_logits(backbone, embeddings, [tokens], token_ids)[0]
    torch.testing.assert_close(space["scores"], ours, rtol=0, atol=1e-5)
    assert printed.split() == [WORDS[int(ours.argmax())]]


def run_card(folder: Path, mine: Prompt, name: str) -> tuple[dict[str, Any], str]:
    """Run the card's code and return its variables and output."""
    card = adapter_card(mine, name)
    write_adapter(mine, folder, card, name)
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    printed, space = io.StringIO(), {}
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        # Limit the tokens: the tiny models have 64 positions.
        exec(re.sub(r"max_new_tokens=\d+", "max_new_tokens=8", code), space)
    return space, printed.getvalue()


@pytest.mark.parametrize(
    ("family", "facts"),
    [
        ("gpt2", {"task": "mnli"}),
        ("gpt2", {"task": "samsum"}),
        ("t5", {"task": "mnli"}),
        ("t5", {"task": "mnli", "data_label_words": "paper"}),
        ("t5", {"task": "samsum"}),
    ],
)
def test_the_code_of_the_card(family: str, facts: dict[str, str], tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    pytest.importorskip("peft", reason="peft is in the extra `bench`, not in `dev`")
    name = str(tiny(family))
    backbone = FrozenBackbone(name)
    layout = backbone.layout.name
    mine = Prompt(rows(width=32), facts | {"layout": layout, "backbone": name, "family": "other"})
    # The paper's token ids are for real vocabularies; without a known family, words are looked up.
    (task,), _ = tasks_of(mine.metadata)
    space, printed = run_card(tmp_path / "a", mine, name)
    second = None if task.is_generation else ["the story is good"]
    texts = ["the film is good"], second
    encoded = backbone.encoder(P).encode(*texts, 60, cue=task.cue, seq2seq_frame=task.seq2seq_frame)
    assert space["tokens"].tolist() == encoded
    if task.is_generation:
        batch = {"input_ids": space["tokens"], "attention_mask": torch.ones_like(space["tokens"])}
        assert printed.strip() == backbone.decode(backbone.generate(mine.embeddings, batch, max_new_tokens=8))[0]
    else:
        assert printed.strip() in task.label_words


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("prepend", "start_answer_last"), ("prepend", "answer_last"), ("metaspace", "start_answer_last"),
        ("gpt2-nano", "answer_last"),
    ],
)  # fmt: skip
def test_the_card_reads_what_we_read(name: str, layout: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is in the extra `bench`, not in `dev`")
    built_in = builtin_backbones().get(name)
    folder = str(built_in or save_llama(sentencepiece_tokenizer(name), tmp_path / "model"))
    backbone = FrozenBackbone(folder, layout=layout)
    mine = Prompt(
        rows(width=backbone.hidden_size), {"task": "mnli", "layout": layout, "backbone": folder, "family": "other"}
    )
    space, printed = run_card(tmp_path / "a", mine, folder)
    (task,), _ = tasks_of(mine.metadata)
    encoded = backbone.encoder(P).encode(["the film is good"], ["the story is good"], 60, cue=task.cue)
    assert space["tokens"].tolist() == encoded
    words = Verbalizer.build("mnli", task.label_words, backbone.tokenizer, "mean")
    batch = {"input_ids": space["tokens"], "attention_mask": torch.ones_like(space["tokens"])}
    with torch.no_grad():
        logits = words.class_logits(backbone(mine.embeddings, batch, words.token_ids))
    if not built_in:  # PEFT runs those in their stored dtype
        torch.testing.assert_close(space["scores"], logits[0], rtol=0, atol=1e-4)
        assert printed.strip() == task.label_words[int(logits.argmax())]


def test_an_adapter_of_others_has_the_frame_of_its_tokenizer(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    llama = str(save_llama(byte_level_with_start(), tmp_path / "model"))
    causal = {"task_type": "CAUSAL_LM", "num_transformer_submodules": 1, "token_dim": 32}
    weights = {"prompt_embeddings": rows(P, 32)}

    def taken_in(base: str, **more: Any) -> Prompt:
        return read_adapter(adapter(tmp_path / "a", weights, base_model_name_or_path=base, **causal, **more))

    # PEFT's users call the tokenizer, so its start token comes between prompt and text.
    assert taken_in(llama).metadata["layout"] == "start_answer_last"
    assert taken_in(str(tiny("gpt2"))).metadata["layout"] == "answer_last"
    # The layout for an absent base model is decided when it is loaded.
    unknown = taken_in("meta-llama/Llama-2-7b-hf")
    assert "layout" not in unknown.metadata
    file = unknown.save(tmp_path / "b" / "unknown.safetensors")
    with pytest.warns(UserWarning, match="only its width"):
        backbone = load_backbone(llama, {"b": Prompt.load(file)})
    assert backbone.layout.name == "start_answer_last"
    # The export keeps this layout open.
    unknown.metadata["task"] = "sst2"
    write_adapter(unknown, tmp_path / "out", card := adapter_card(unknown, llama), llama)
    assert "the start token that the tokenizer adds (none if it adds none)" in card
    assert read_adapter(tmp_path / "out").metadata["layout"] == "start_answer_last"
    # Prompts trained here record their layout, whatever the tokenizer does: old prompts have no start token.
    old = Prompt(rows(P, 32), {"layout": "answer_last", "backbone": llama})
    write_adapter(old, tmp_path / "old", adapter_card(old, llama), llama)
    assert read_adapter(tmp_path / "old").metadata["layout"] == "answer_last"


def test_the_files_of_an_adapter(tmp_path: Path) -> None:
    folder = write_adapter(prompt(revision="v2"), tmp_path / "a", "card")
    assert sorted(os.listdir(folder)) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]  # noqa: PTH208
    config = json.loads((folder / "adapter_config.json").read_text())
    expected = {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 5, "token_dim": 8}
    expected |= {"num_transformer_submodules": 2, "base_model_name_or_path": "me/t5", "revision": "v2"}
    assert config.items() >= (expected | {"inference_mode": True}).items()
    tensors = load_file(folder / "adapter_model.safetensors")
    assert torch.equal(tensors["prompt_embeddings"], torch.cat([rows(), rows()]))
    write_adapter(prompt("answer_last"), folder, "card", "other/gpt2")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["task_type"], config["num_transformer_submodules"]) == ("CAUSAL_LM", 1)
    assert config["base_model_name_or_path"] == "other/gpt2"
    assert torch.equal(load_file(folder / "adapter_model.safetensors")["prompt_embeddings"], rows())


def test_metadata_come_back(tmp_path: Path) -> None:
    mine = prompt(fingerprint="ab12", task="squad", family="t5", score="0.5", source_prompt="x")
    back = read_adapter(write_adapter(mine, tmp_path / "squad", "card", "you/t5"))
    assert torch.equal(back.embeddings, mine.embeddings)
    assert back.metadata.items() >= (mine.metadata | {"backbone": "you/t5", "peft_second_half": "equal"}).items()
    # Changing the kind of model gives another prompt.
    config = json.loads((tmp_path / "squad" / "adapter_config.json").read_text())
    config |= {"task_type": "CAUSAL_LM", "num_transformer_submodules": 1, "num_virtual_tokens": 2 * P}
    (tmp_path / "squad" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="contradicts itself"):
        read_adapter(tmp_path / "squad")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_p_tuning(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = adapter(tmp_path / "a", {"prompt_embeddings": rows(2 * P).to(dtype)}, peft_type="P_TUNING")
    assert torch.equal(read_adapter(folder).embeddings, rows(2 * P).to(dtype).float()[:P])
    assert read_adapter(folder).metadata["peft_type"] == "P_TUNING"


def test_the_old_file_of_torch_and_defaults(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", num_transformer_submodules=None, token_dim=None)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": rows(2 * P)}, folder / "adapter_model.bin")
    assert torch.equal(read_adapter(folder).embeddings, rows(2 * P)[:P])
    # A single half is valid for PEFT too.
    single = adapter(tmp_path / "b", {"prompt_embeddings": rows()}, num_transformer_submodules=1)
    assert torch.equal(read_adapter(single).embeddings, rows())
    assert read_adapter(single).metadata["backbone"] == "google-t5/t5-small"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LORA"}, "of type LORA"),
        ({"peft_type": "PREFIX_TUNING"}, "of type PREFIX_TUNING"),
        ({"task_type": "SEQ_CLS"}, "the task type SEQ_CLS"),
        ({"task_type": None}, "the task type None"),
        ({"modules_to_save": ["classifier"]}, "is not only a prompt"),
        ({"num_virtual_tokens": 4}, "says 2 x 4 virtual tokens"),
        ({"token_dim": 9}, "of 9 numbers"),
        ({"num_virtual_tokens": "5"}, "is damaged"),
        ({"num_virtual_tokens": True}, "is damaged"),
        ({"num_transformer_submodules": 3}, "3 submodules"),
        ({"task_type": "CAUSAL_LM"}, "2 submodules for CAUSAL_LM"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        read_adapter(adapter(tmp_path / "a", **config))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {"prompt_embeddings": rows(2 * P), "base_model.embed": rows()})
    with pytest.raises(UserError, match="the adapter of a prompt holds only `prompt_embeddings`"):
        read_adapter(folder)
    adapter(folder, {"prompt_embeddings": torch.full((2 * P, H), float("nan"))})
    with pytest.raises(UserError, match="not a usable prompt"):
        read_adapter(folder)
    adapter(folder, {"prompt_embeddings": torch.zeros(2 * P, H, dtype=torch.int32)})
    with pytest.raises(UserError, match="'I32', a prompt is one of"):
        read_adapter(folder)
    # A header that claims more than the file holds is refused before any allocation.
    header = json.dumps(
        {"prompt_embeddings": {"dtype": "F32", "shape": [9999, 99999], "data_offsets": [0, 4]}}
    ).encode()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match="is damaged"):
        read_adapter(folder)
    weights.unlink()
    with pytest.raises(UserError, match="no such adapter file"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        read_adapter(folder)


def test_what_peft_cannot_express(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (prompt("prefix"), "PEFT's prompt tuning has no answer slot"),
        (prompt("mask_first"), "--format numpy"),
        (prompt("encoder", attention="shared"), "trained with attention shared"),
        (prompt("answer_last", head="embedding"), "only with the LM head"),
        (Prompt(rows(), {}), "has the layout 'unknown'"),
    ]
    for number, (mine, words) in enumerate(cases):
        file = mine.save(tmp_path / f"{number}.safetensors")
        assert main(["prompts", "export", str(file), "--output", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # A causal prompt is the same function in both modes.
    write_adapter(prompt("answer_last", attention="shared"), tmp_path / "out", "card")
    file = str(tmp_path / "0.safetensors")
    assert main(["prompts", "export", file, "--output", str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["prompts", "export", file, "--format", "numpy", "--output", str(tmp_path / "bare")]) == 0
    assert np.array_equal(np.load(tmp_path / "bare" / "prompt.npy"), rows().numpy())
    assert json.loads((tmp_path / "bare" / "prompt.json").read_text())["layout"] == "prefix"


def test_a_folder_of_both_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = adapter(tmp_path / "all" / "run")
    torch.save({"state": {}}, run / "optimizer.pt")  # from a Trainer checkpoint, not a prompt
    published = tmp_path / "all" / "IMDBPromptT5Small" / "task_prompt"
    published.parent.mkdir()
    torch.save(rows(100, 512), published)
    output = str(tmp_path / "out")
    assert main(["prompts", "import", str(tmp_path / "all"), "--output", output]) == 0
    printed = capsys.readouterr().out
    assert "2 imported" in printed
    assert "run has separate decoder embeddings, which PEFT ignores" in printed
    weights = str(run / "adapter_model.safetensors")
    assert main(["prompts", "import", weights, "--output", str(tmp_path / "one")]) == 0
    assert torch.equal(Prompt.load(tmp_path / "one" / "run.safetensors").embeddings, rows(2 * P)[:P])
    (run / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert main(["prompts", "import", str(run), "--output", str(tmp_path / "no")]) == 2
    assert "of type LORA" in capsys.readouterr().err


def test_the_card_says_what_peft_does_not_know() -> None:
    card = adapter_card(prompt("answer_last", task="mnli"), "gpt2-nano", is_builtin=True, license="mit")
    assert "license: mit" in card
    assert "builtin_backbones()['gpt2-nano']" in card
    assert "`premise`, a line feed, a space and `hypothesis`, then the cue ` " in card
    assert 'ids(text) + line + continued(" " + second) + continued(' in card
    assert "Pad on the **right**" in card
    paper = prompt(task="imdb", data_label_words="paper", family="t5")
    assert "Token ids to use instead of the words' own" in adapter_card(paper, "t5")
    assert "model.generate(" in adapter_card(prompt(task="samsum"), "t5")
    odd = adapter_card(prompt(task="a|`b`\n<script>"), "t5")
    assert "a/'b' &lt;script>" in odd
    assert "is unknown here" in odd
    sequence = prompt("answer_last", task="sst2", label_words_policy="sequence")
    assert "with the most likely token sequence" in adapter_card(sequence, "gpt2")
