"""Special tokens in users' texts: kept with a warning, or split into ordinary tokens; caches are separate."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny

from prompt_transfer.backbones.encoder import TextEncoder
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.data.checks import warn_of_special_tokens
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.texts import texts_to_predict
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.targets import EvaluationData, load_target
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError

# Family -> special tokens of its tiny tokenizer; some are ordinary text for other families.
TOKENS = {
    "bert": ["[SEP]", "[MASK]", "[PAD]", "[CLS]", "[UNK]"],
    "roberta": ["<s>", "</s>", "<mask>", "<pad>", "<unk>"],
    "gpt2": ["<|endoftext|>"],
    "t5": ["</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_1>"],
}


@pytest.fixture(scope="module", params=sorted(TOKENS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TextEncoder]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, FrozenBackbone(str(save_tiny(request.param, folder))).encoder(3)


def test_split_reads_special_tokens_as_their_characters(family: tuple[str, TextEncoder]) -> None:
    name, encoder = family
    assert sorted(encoder.special_tokens) == sorted(TOKENS[name])
    tokenizer, splitting = encoder.tokenizer, encoder.splitting()
    special = set(tokenizer.convert_tokens_to_ids(list(encoder.special_tokens)))
    frame = encoder.encode(["film"], None, 64)[0]
    for token in TOKENS[name]:
        # In the middle, at both ends, adjoining a word or another; also twice, since unknown tokens may fuse.
        for text in (f"the film {token} good", f"{token}the film{token}", f"{token}{token} a", f"good{token}"):
            token_id, (kept,) = tokenizer.convert_tokens_to_ids(token), encoder.encode([text], None, 64)
            assert kept.count(token_id) > frame.count(token_id)
            (ids,) = splitting.encode([text], None, 64)
            body = [token_id for token_id in ids if token_id not in special]
            assert len(ids) - len(body) == sum(token_id in special for token_id in frame)
            spelled = tokenizer.decode(body).replace(" ", "").lower()
            assert spelled == text.replace(" ", "").lower()


def test_texts_without_special_tokens_and_frames_are_the_same_in_both_ways(family: tuple[str, TextEncoder]) -> None:
    _, encoder = family
    texts = ["the film was <very> good [really]", "a </ s> b", ""]
    assert encoder.splitting().encode(texts, None, 64) == encoder.encode(texts, None, 64)
    # Cue and frame come from the task's author: those of release 1.0 contain a sentinel.
    token = encoder.special_tokens[0]
    options: dict[str, Any] = {"cue": f"{token} it", "seq2seq_frame": (token, "and")}
    plain = encoder.encode(["the film"], ["good"], 64, **options)
    assert encoder.splitting().encode(["the film"], ["good"], 64, **options) == plain


def test_second_texts_and_targets_are_split_too(family: tuple[str, TextEncoder]) -> None:
    name, encoder = family
    token = TOKENS[name][0]
    special = set(encoder.tokenizer.convert_tokens_to_ids(list(encoder.special_tokens)))
    (plain,) = encoder.encode(["film"], ["good"], 64)
    (ids,) = encoder.splitting().encode(["film"], [f"good {token}"], 64)
    assert sum(part in special for part in ids) == sum(part in special for part in plain)
    if name in ("t5", "gpt2"):
        (target,) = encoder.splitting().encode_targets([f"a {token} b"], 64)
        assert [part for part in target if part in special] == [encoder.tokenizer.eos_token_id]


def _task(folder: Path) -> str:
    rows = {
        "train": ["a </s> b", "</s> <mask> </s>", "good", "bad", "fine <mask>", "[SEP]"],
        "validation": ["very good", "<pad>"],
        "test": ["dull", "very dull"],
    }
    (folder / "toy").mkdir()
    for split, texts in rows.items():
        lines = [json.dumps({"text": text, "label": row % 2}) for row, text in enumerate(texts)]
        (folder / "toy" / f"{split}.jsonl").write_text("\n".join(lines))
    path = folder / "toy.yaml"
    path.write_text("name: toy\ncolumns: {text_a: text}\nlabel_words: [bad, good]\nlocal: toy\n")
    return str(path)


def _warnings(work: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(one.message) for one in caught if "special tokens" in str(one.message)]


def test_one_warning_counts_rows_and_tokens(tiny_roberta: Path, tmp_path: Path) -> None:
    encoder = FrozenBackbone(str(tiny_roberta)).encoder(3)
    task = _task(tmp_path)

    def module(**options: Any) -> TaskDataModule:
        return TaskDataModule(task, "local", cache_dir=str(tmp_path), **options).connect(encoder)

    expected = (
        "task toy: 3 of 6 train rows and 1 of 2 validation rows hold special tokens of the backbone (</s> in 2, <mask> "
        "in 2, <pad> in 1), which it reads as control tokens; --data.special_tokens split reads them as text"
    )
    # Tokens come from the cache the second time.
    for _ in range(2):
        assert _warnings(lambda: module().setup("fit")) == [expected]
    assert _warnings(lambda: module().setup("test")) == []
    assert _warnings(lambda: module(special_tokens="split").setup("fit")) == []
    data = module()
    data.set_predict_texts(["good", "bad </s>", "fine"])
    assert "task toy: 1 of 3 texts hold special tokens" in _warnings(lambda: data.setup("predict"))[0]
    assert "1 of 2 validation rows" in _warnings(lambda: module(predict_split="validation").setup("predict"))[0]
    study = EvaluationData("local", cache_dir=str(tmp_path))
    assert (
        "1 of 2 validation rows"
        in _warnings(lambda: load_target(get_task(task), study, "default", "validation", encoder))[0]
    )
    with pytest.raises(UserError, match=r"--data\.special_tokens must be keep or split, not 'drop'"):
        module(special_tokens="drop")
    with pytest.raises(UserError, match=r"--data\.special_tokens must be keep or split, not 'drop'"):
        EvaluationData(special_tokens="drop").check()  # type: ignore[arg-type]


def test_many_special_tokens_are_not_all_named() -> None:
    task = get_task("sst2")
    tokens = [f"<extra_id_{number}>" for number in range(9)]
    with pytest.warns(UserWarning, match=r"1 of 1 texts hold .*<extra_id_5> in 1, \.\.\.\), which"):
        warn_of_special_tokens(task, {"texts": texts_to_predict([" ".join(tokens)])}, tokens)


@pytest.mark.filterwarnings("ignore:task toy")
def test_the_two_ways_do_not_share_a_cache_or_an_answer(tiny_roberta: Path, tmp_path: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta))
    encoder, task = backbone.encoder(3), _task(tmp_path)
    end = backbone.tokenizer.sep_token_id
    counts, facts = [], []
    for way in ("keep", "split", "keep", "split"):
        data = TaskDataModule(task, "local", cache_dir=str(tmp_path), special_tokens=way, batch_size=6)  # type: ignore[arg-type]
        data.connect(encoder).setup("fit")
        (batch,) = data.train_dataloader()
        counts.append(sum(int((part["input_ids"] == end).sum()) for part in batch["micro_batches"]))
        assert data.describe()["special_tokens"] == way
        study = EvaluationData("local", cache_dir=str(tmp_path), special_tokens=way)  # type: ignore[arg-type]
        facts.append(load_target(get_task(task), study, "default", "train", encoder).facts)
    # One end token for each of six rows; the texts of two rows add three.
    assert counts == [9, 6, 9, 6]
    assert facts[0] == facts[2] != facts[1] == facts[3]
    assert "special_tokens" not in facts[0]


def test_test_and_predict_do_as_the_prompt_was_trained(tiny_roberta: Path, tmp_path: Path) -> None:
    task, run = _task(tmp_path), tmp_path / "run"
    command = ["fit", "--model.backbone", str(tiny_roberta), "--data.task", task, "--data.source", "local"]
    command += ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--model.prompt_length", "2"]
    command += ["--data.cache_dir", str(tmp_path), "--data.special_tokens", "split", "--output", str(run)]

    def done() -> None:
        assert main(command) == 0
        assert Prompt.load(run).metadata["data_special_tokens"] == "split"
        texts = tmp_path / "new.csv"
        texts.write_text("text\na </s> b\n")
        more = ["--output", str(tmp_path / "out"), "--data.cache_dir", str(tmp_path)]
        assert main(["predict", "--prompt", str(run), "--input", str(texts), *more]) == 0

    assert _warnings(done) == []
