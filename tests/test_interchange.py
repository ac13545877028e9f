"""Published prompts: correct imports and refused files."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prompt_transfer.cli import main
from prompt_transfer.prompts.io import torch_file
from prompt_transfer.prompts.io.interchange import import_sources, read_published
from prompt_transfer.prompts.io.published import BACKBONES, TASKS, parse_name
from prompt_transfer.prompts.listing import list_prompts
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils.errors import UserError

PUBLISHED = Path(__file__).parents[2] / "shared" / "published_prompts"


def values(width: int = 768, seed: int = 0) -> Tensor:
    return torch.randn(100, width, generator=torch.Generator().manual_seed(seed))


def publish(root: Path, name: str = "IMDBPromptRoberta", content: Any = None, file: str = "task_prompt") -> Path:
    path = root / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(values() if content is None else content, path)
    return path


def rezip(path: Path, compression: int = zipfile.ZIP_STORED, **replaced: bytes) -> Path:
    """Rewrite the archive; keys are the ends of member names, with `_` for a dot."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, replaced.get(name.split("/", 1)[1].replace(".", "_").replace("/", "_"), data))
    return path


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_published(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_bare_tensor_loses_its_dead_row(tmp_path: Path) -> None:
    path = publish(tmp_path)
    prompt = read_published(path)
    assert torch.equal(prompt.embeddings, values()[1:])
    assert prompt.metadata == {
        "task": "imdb",
        "backbone": "FacebookAI/roberta-base",
        "family": "roberta",
        "fingerprint": "unknown",
        "layout": "mask_first",
        "attention": "full",
        "source": "published",
        "source_name": "IMDBPromptRoberta",
        "source_path": str(path),
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "dropped_rows": "[0]",
        "label_words": '{"imdb": ["negative", "positive"]}',
        "data_label_words": "paper",
        "data_source": "hub",
        "data_max_length": "130",
        "format_version": "1",
        "prompt_length": "99",
        "hidden_size": "768",
    }


def test_a_prompt_of_t5_keeps_all_rows(tmp_path: Path) -> None:
    prompt = read_published(publish(tmp_path, "squadPromptT5Small", values(512)))
    assert torch.equal(prompt.embeddings, values(512))
    facts = prompt.metadata
    assert (facts["layout"], facts["backbone"], facts["family"]) == ("encoder", "google-t5/t5-small", "t5")
    assert (facts["dropped_rows"], facts["data_max_length"], facts["task"]) == ("[]", "386", "squad")
    assert "label_words" not in facts


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("IMDBPromptRoberta", {"task": "imdb", "backbone": "FacebookAI/roberta-base", "family": "roberta"}),
        ("SST2PromptRobertaLarge", {"task": "sst2", "backbone": "FacebookAI/roberta-large"}),
        ("snliPromptBert", {"task": "snli", "backbone": "google-bert/bert-base-uncased", "family": "bert"}),
        ("laptopPromptBertMedium", {"backbone": "google/bert_uncased_L-8_H-512_A-8", "layout": "mask_first"}),
        ("nq_openPromptT5", {"task": "nq_open", "backbone": "google-t5/t5-base", "layout": "encoder"}),
        ("multi_newsPromptT5Large", {"task": "multi_news", "backbone": "google-t5/t5-large"}),
        ("QQPPromptT5XXL", {"task": "qqp", "backbone": "google/t5-v1_1-xxl", "family": "t5"}),
        ("movierationalesPromptT5", {"task": "movie_rationales"}),
        ("tweetevalsentimentPromptBert", {"task": "tweet_eval_sentiment"}),
        ("ethicsdeontologyPromptRobertaLarge_125", {"task": "ethics_deontology", "epoch": "125"}),
        ("ethicsjusticePromptRoberta", {"task": "ethics_justice"}),
        ("recastnerPromptBert", {"task": "recastner", "label_words": None}),
        ("randomPromptRobertaLarge", {"task": None, "random": "true", "label_words": None}),
        ("MNLIPromptRoberta_proj", {"task": "mnli", "projected": "true", "source_backbone": None}),
        (
            "QNLIPrompt_cross_model_T5_to_Roberta",
            {"backbone": "FacebookAI/roberta-base", "projected": "true", "source_backbone": "google-t5/t5-base"},
        ),
        ("MNLI_base_nliPromptRoberta", {"task": "mnli", "projected": "true", "projector": "nli"}),
        ("laptop_base_emotionPromptRoberta_tanh", {"projected": "true", "projector": "emotion_tanh"}),
        ("movie_trainedPromptRoberta", {"task": "movie_rationales", "init": "projected prompt", "projected": None}),
    ],
)
def test_names(name: str, expected: dict[str, str | None]) -> None:
    facts = parse_name(name)
    assert {key: facts.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prompts", "such as IMDBPromptRoberta"),
        ("../IMDBPromptRoberta", "rename the folder"),
        ("fooPromptRoberta", "unknown task 'foo'"),
        ("RTEPromptRoberta", "unknown task 'RTE'"),
        ("IMDBPromptGPT", "unknown backbone 'GPT'"),
        ("IMDBPrompt_cross_model_GPT_to_Roberta", "unknown backbone 'GPT'"),
        # Other label words or pretraining: not the prompts of the paper.
        ("IMDBPromptRoberta_label", "'_label'"),
        ("IMDBPromptRoberta_mlm_s1", "'_mlm_s1'"),
        ("IMDBPromptRoberta_tanh", "'_tanh'"),
    ],
)
def test_names_that_say_too_little(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_name(name)
    assert words in str(caught.value)


def test_every_published_task_has_words_of_the_paper() -> None:
    tasks = set(TASKS.values()) - {"recastner"}
    assert len(tasks) == 17
    assert tasks <= set(task_names())
    assert all(get_task(task).paper is not None for task in tasks)
    assert {row.family for row in BACKBONES.values()} == {"roberta", "bert", "t5"}


def test_a_checkpoint_tells_its_epoch_and_steps(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(values(1024))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {"model": parameter, "optimizer_name": "adamw", "optimizer": optimizer.state_dict()}
    content |= {"trained_epoch": 69, "global_step": 13455}
    path = publish(tmp_path, "RobertaLarge_from_chimin/IMDBPromptRobertaLarge", content, "70.pkl")
    prompt = read_published(path)
    assert torch.equal(prompt.embeddings, parameter.detach()[1:])
    assert not prompt.embeddings.requires_grad
    facts = prompt.metadata
    assert (facts["epoch"], facts["steps"], facts["run"]) == ("69", "13455", "RobertaLarge_from_chimin")
    path = publish(tmp_path, content={"model": OrderedDict(weight=values())}, file="25_task_prompt.pkl")
    assert read_published(path).metadata["epoch"] == "25"
    assert "steps" not in read_published(path).metadata


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    prompt = read_published(publish(tmp_path, content=values().to(dtype)))
    assert torch.equal(prompt.embeddings, values().to(dtype).float()[1:])


def test_the_old_format_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "SST2PromptBert" / "task_prompt"
    path.parent.mkdir()
    torch.save({"model": values()}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_published(path).embeddings, values()[1:])
    whole = path.read_bytes()
    for size in (1, 30, 100, 300, 1000, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert any(words in error_of(path) for words in ("not a file that torch saved", "damaged", "copy it again"))


def test_a_file_may_be_named_itself(tmp_path: Path) -> None:
    prompt = read_published(publish(tmp_path, "downloads", file="QQPPromptRoberta.pt"))
    assert (prompt.metadata["task"], prompt.metadata["source_name"]) == ("qqp", "QQPPromptRoberta")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(99, 768), "99 x 768, a published prompt of FacebookAI/roberta-base is 100 x 768"),
        (values(1024), "100 x 1024"),
        (torch.zeros(768), "1 dimensions"),
        (torch.zeros(1).expand(10**6, 10**6), "at most 10000"),
        (torch.zeros(100, 768, dtype=torch.int64), "int64"),
        (values().index_fill(0, torch.tensor([0]), float("nan")), "non-finite"),
        (values().double() * 1e300, "non-finite"),
        ([values()], "no tensor"),
        ({"weights": values()}, "a dictionary of ['weights']"),
        ({"best_prompt": values(), "best_acc": 0.9}, "that layout is not supported"),
        ({"prompt_model.template.soft_embeds": values()}, "that layout is not supported"),
    ],
)
def test_what_is_no_published_prompt(tmp_path: Path, content: Any, words: str) -> None:
    assert words in error_of(publish(tmp_path, content=content))


@pytest.mark.parametrize("size", [2, 4, 100, 1000, 200_000, -1])
def test_every_cut_is_an_error(tmp_path: Path, size: int) -> None:
    path = publish(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    assert "truncated or damaged" in error_of(path)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = publish(tmp_path)
    path.write_bytes(b"")
    assert "is empty" in error_of(path)
    path.write_text("version https://git-lfs.github.com/spec/v1")
    assert "not a file that torch saved" in error_of(path)
    path.write_bytes(pickle.dumps([1.0, 2.0]))
    assert "not one that torch saved" in error_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    assert "not from torch" in error_of(path)
    path.unlink()
    assert "no such file" in error_of(path)
    os.mkfifo(path)
    with pytest.raises(UserError, match="no prompt in"):
        import_sources([path.parent], tmp_path / "out")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "IMDBPromptRoberta").mkdir()
    path = tmp_path / "IMDBPromptRoberta" / "task_prompt"
    os.mkfifo(path)
    assert "not a regular file" in error_of(path)


class Harmful:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 4", "in a dictionary"])
def test_code_in_a_file_is_never_run(tmp_path: Path, form: str) -> None:
    mark = tmp_path / "mark"
    path = publish(tmp_path)
    content = {"model": values(), "more": Harmful(mark)} if form == "in a dictionary" else Harmful(mark)
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    message = error_of(path)
    assert "holds code (posix.mkdir), which was not run" in message
    assert not mark.exists()
    if form.startswith("pickle"):
        # The file is really harmful: plain unpickling runs its code.
        pickle.loads(path.read_bytes())
        assert mark.is_dir()


def test_calls_that_torch_allows_and_a_prompt_does_not_need(tmp_path: Path) -> None:
    bomb = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R."
    assert "builtins.bytearray" in error_of(rezip(publish(tmp_path), data_pkl=bomb))


def test_an_archive_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    path = publish(tmp_path)
    data = bytearray(path.read_bytes())
    # The sizes are in the central directory, 20 and 24 bytes after its signature.
    entry = data.rindex(b"data/0")
    start = data.rindex(b"PK\x01\x02", 0, entry)
    struct.pack_into("<II", data, start + 20, 2**31, 2**31)
    path.write_bytes(data)
    message = error_of(path)
    assert f"claims to hold {2**31 + 210} bytes, but has only {len(data)}" in message
    assert "not loaded" in message


def test_a_member_that_lies_beyond_all_files(tmp_path: Path) -> None:
    """A case found by `benchmarks/fuzz_importers.py`: an offset beyond the range of seek."""
    path = rezip(publish(tmp_path))
    data = bytearray(path.read_bytes())
    name = data.rindex(b"data.pkl")
    start, end = data.rindex(b"PK\x01\x02", 0, name), data.rindex(b"PK\x05\x06")
    # The offset is in a 64-bit field after the name; the central directory grows by it.
    struct.pack_into("<I", data, start + 42, 0xFFFFFFFF)
    struct.pack_into("<H", data, start + 30, 12)
    struct.pack_into("<I", data, end + 12, struct.unpack_from("<I", data, end + 12)[0] + 12)
    data[name + 8 : name + 8] = struct.pack("<HHQ", 1, 8, 2**63)
    path.write_bytes(data)
    assert "its archive cannot be read" in error_of(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = rezip(publish(tmp_path), zipfile.ZIP_DEFLATED, data_0=bytes(50_000_000))
    assert path.stat().st_size < 100_000
    assert "claims to hold 50000" in error_of(path)
    # Incompressible data is not smaller, so only the method gives it away.
    noise = np.random.default_rng(0).bytes(307_200)
    assert "is compressed" in error_of(rezip(publish(tmp_path), zipfile.ZIP_DEFLATED, data_0=noise))


def test_a_pickle_that_claims_more_numbers_than_there_are(tmp_path: Path) -> None:
    path = publish(tmp_path)
    with zipfile.ZipFile(path) as archive:
        honest = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    count = b"J" + struct.pack("<i", 76800)
    assert honest.count(count) == 1
    lying = honest.replace(count, b"J" + struct.pack("<i", 2**30))
    assert "claims to hold 1073741824 numbers" in error_of(rezip(path, data_pkl=lying))
    # More than the storage holds, but not more than the file: torch compares them.
    lying = honest.replace(count, b"J" + struct.pack("<i", 100_000))
    assert "damaged" in error_of(rezip(path, data_pkl=lying))
    lying = honest.replace(count, b"J" + struct.pack("<i", -1))
    assert "unlike torch" in error_of(rezip(path, data_pkl=lying))
    # A size elsewhere in the pickle cannot be checked.
    lying = honest.replace(count, b"h\x00")
    assert "unlike torch" in error_of(rezip(path, data_pkl=lying))


def test_the_old_format_cannot_claim_memory(tmp_path: Path) -> None:
    path = publish(tmp_path)
    torch.save(values(), path, _use_new_zipfile_serialization=False)
    count = b"J" + struct.pack("<i", 76800)
    whole = path.read_bytes()
    assert whole.count(count) == 1
    path.write_bytes(whole.replace(count, b"J" + struct.pack("<i", 2**31 - 1)))
    assert "claims to hold 2147483647 numbers" in error_of(path)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(tmp_path)
    monkeypatch.setattr(torch_file, "MAX_OPCODES", 10)
    assert "too large for a prompt" in error_of(path)
    monkeypatch.setattr(torch_file, "MAX_MEMBERS", 2)
    assert "members" in error_of(path)
    monkeypatch.setattr(torch_file, "MAX_FILE_BYTES", 1000)
    assert "larger than 1000 bytes" in error_of(path)


def test_random_damage_never_gives_anything_but_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "IMDBPromptRoberta" / "task_prompt"
    path.parent.mkdir()
    random = np.random.default_rng(0)
    for new_format in (True, False):
        buffer = io.BytesIO()
        torch.save({"model": values()}, buffer, _use_new_zipfile_serialization=new_format)
        whole = buffer.getvalue()
        # Nearly all bytes are numbers; both ends hold the structure.
        places = np.r_[0:1200, len(whole) - 1200 : len(whole)]
        for _ in range(300):
            damaged = bytearray(whole)
            for place in random.choice(places, 3):
                damaged[place] = random.integers(0, 256)
            path.write_bytes(damaged)
            with suppress(UserError):
                read_published(path)


def test_import_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "published", tmp_path / "out"
    publish(source, "IMDBPromptRoberta")
    publish(source, "randomPromptRoberta", torch.rand(100, 768))
    publish(source, "snliPromptT5", values(seed=1))
    publish(source, "mysteryPromptRoberta")
    publish(source, "MNLI_trainedPromptRoberta", values(seed=2))
    publish(source, "movierationales_trainedPromptRoberta", values(seed=2))
    (source / "README").write_text("not a prompt")
    assert main(["prompts", "import", str(source), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"5 imported into {output}, 1 refused"
    assert (
        "note: movierationales_trainedPromptRoberta and MNLI_trainedPromptRoberta have the same embeddings" in printed
    )
    assert "mystery" in printed
    names = ["IMDBPromptRoberta", "MNLI_trainedPromptRoberta", "movierationales_trainedPromptRoberta"]
    assert sorted(path.stem for path in output.iterdir()) == sorted([*names, "randomPromptRoberta", "snliPromptT5"])
    assert torch.equal(Prompt.load(output / "IMDBPromptRoberta.safetensors").embeddings, values()[1:])
    rows = {Path(row["path"]).stem: row for row in list_prompts(output)}
    assert all(row["error"] is None and row["source"] == "published" for row in rows.values())
    assert (rows["randomPromptRoberta"]["task"], rows["randomPromptRoberta"]["random"]) == ("", "true")
    assert (rows["snliPromptT5"]["prompt_length"], rows["snliPromptT5"]["layout"]) == (100, "encoder")


def test_list_and_inspect_show_imported_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    publish(tmp_path, "IMDBPromptRoberta_proj")
    publish(tmp_path, "randomPromptBert")
    output = str(tmp_path / "out")
    assert main(["prompts", "import", str(tmp_path), "--output", output]) == 0
    capsys.readouterr()
    assert main(["prompts", "list", output]) == 0
    lines = capsys.readouterr().out.splitlines()
    projected, random = (next(line for line in lines if name in line) for name in ("_proj", "randomPromptBert"))
    assert lines[0].strip() == "all: rows 99, mode mask_first full"
    assert all(word in projected for word in ("imdb", "roberta-base", "published projected"))
    assert all(word in random for word in ("bert-base-uncased", "published random"))
    assert main(["prompts", "inspect", f"{output}/IMDBPromptRoberta_proj.safetensors"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("IMDBPromptRoberta_proj", "source_sha256", "data_label_words", "paper"))


def test_nothing_is_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = publish(tmp_path), tmp_path / "out"
    import_sources([source], output)
    target = output / "IMDBPromptRoberta.safetensors"
    before = target.read_bytes()
    publish(tmp_path, content=values(seed=1))
    assert main(["prompts", "import", "--output", str(output), str(source)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert main(["prompts", "import", "--overwrite", str(source), "--output", str(output)]) == 0
    assert torch.equal(Prompt.load(target).embeddings, values(seed=1)[1:])


def test_when_nothing_can_be_imported_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command = ["prompts", "import", "--output", str(output)]
    publish(tmp_path / "a", "IMDBPromptRoberta", torch.zeros(5, 5))
    publish(tmp_path / "a", "SST2PromptRoberta", torch.zeros(5, 5))
    assert main([*command, str(tmp_path / "a")]) == 2
    assert "nothing was imported" in (error := capsys.readouterr().err)
    assert "1 more were refused, see above" in error
    (tmp_path / "empty").mkdir()
    for source, words in (("empty", "no prompt in"), ("absent", "no such file or folder")):
        assert main([*command, str(tmp_path / source)]) == 2
        assert words in capsys.readouterr().err
    assert main(command) == 2
    assert main([*command, "--unknown", "1", str(tmp_path / "a")]) == 2
    assert not output.exists()


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    publish(tmp_path, "IMDBPromptRobertaLarge", values(1024))
    second = publish(tmp_path, "RobertaLarge_from_chimin/IMDBPromptRobertaLarge", values(1024, seed=1))
    publish(tmp_path, "RobertaLarge_from_chimin/IMDBPromptRobertaLarge", {"model": values(1024, seed=1)}, "69.pkl")
    outcomes = import_sources([tmp_path, second], tmp_path / "out")
    assert [outcome.name for outcome in outcomes] == [
        "IMDBPromptRobertaLarge",
        "RobertaLarge_from_chimin-IMDBPromptRobertaLarge",
    ]
    loaded = Prompt.load(tmp_path / "out" / "RobertaLarge_from_chimin-IMDBPromptRobertaLarge.safetensors")
    assert torch.equal(loaded.embeddings, values(1024, seed=1)[1:])
    assert loaded.metadata["run"] == "RobertaLarge_from_chimin"
    # Imported alone it needs no other name.
    assert [outcome.name for outcome in import_sources([second], tmp_path / "own")] == ["IMDBPromptRobertaLarge"]


def test_of_several_checkpoints_one_must_be_chosen(tmp_path: Path) -> None:
    for epoch in (1, 2):
        last = publish(tmp_path, content={"model": values()}, file=f"{epoch}_task_prompt.pkl")
    (outcome,) = import_sources([tmp_path], tmp_path / "out")
    assert outcome.prompt is None
    assert "holds 2 checkpoints" in (outcome.error or "")
    (outcome,) = import_sources([last], tmp_path / "out")
    assert outcome.prompt is not None
    assert outcome.prompt.metadata["epoch"] == "2"


def test_an_imported_prompt_is_used_with_the_words_of_the_paper(tmp_path: Path) -> None:
    from prompt_transfer.commands.evaluation import _with_prompt

    arguments = _with_prompt([], read_published(publish(tmp_path, "MNLIPromptRoberta")), "p.safetensors")
    # Values from the file follow "=", so none is parsed as an option.
    joined = [part for argument in arguments for part in argument.split("=", 1)]
    options = dict(zip(joined[::2], joined[1::2], strict=True))
    assert options["--data.task"] == "mnli"
    assert options["--data.label_words"] == "paper"
    assert options["--data.source"] == "hub"
    assert options["--model.layout"] == "mask_first"
    assert options["--model.prompt_length"] == "99"
    assert options["--model.backbone"] == "FacebookAI/roberta-base"


@pytest.mark.real_data
def test_all_published_prompts(tmp_path: Path) -> None:
    if not PUBLISHED.is_dir():
        pytest.skip("no published prompts: ../shared/published_prompts is absent")
    outcomes = import_sources([PUBLISHED], tmp_path)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert len(outcomes) == 44
    assert {outcome.name for outcome in outcomes} == {path.name for path in PUBLISHED.iterdir() if path.is_dir()}
    prompts = {outcome.name: Prompt.load(tmp_path / f"{outcome.name}.safetensors") for outcome in outcomes}
    trained = {name: prompt for name, prompt in prompts.items() if "random" not in prompt.metadata}
    assert set(prompts) - set(trained) == {"randomPromptRoberta"}
    by_family: dict[str, set[str]] = {}
    for name, prompt in trained.items():
        facts = prompt.metadata
        by_family.setdefault(facts["family"], set()).add(facts["task"])
        original = torch.load(PUBLISHED / name / "task_prompt", map_location="cpu", weights_only=True)
        encoder_only = facts["family"] != "t5"
        assert facts["layout"] == ("mask_first" if encoder_only else "encoder")
        assert prompt.embeddings.shape == (99 if encoder_only else 100, 768)
        assert torch.equal(prompt.embeddings, original[1:] if encoder_only else original)
    assert {family: len(tasks) for family, tasks in by_family.items()} == {"roberta": 13, "bert": 13, "t5": 17}
    assert by_family["roberta"] == by_family["bert"] < by_family["t5"]
    # The dropped row is the one that drifted (section 2.2 of the facts on release 1.0: 399 against 28.9).
    norms = torch.load(PUBLISHED / "MNLIPromptRoberta" / "task_prompt", weights_only=True).norm(dim=1)
    assert norms[0] == pytest.approx(399, abs=0.5)
    assert norms.median() == pytest.approx(28.9, abs=0.05)
    assert prompts["MNLIPromptRoberta"].embeddings.norm(dim=1).max() < 31
    # The published random prompt is uniform on [0, 1), not drawn from the initial distribution.
    assert prompts["randomPromptRoberta"].embeddings.min() >= 0
    assert prompts["randomPromptRoberta"].embeddings.max() < 1
