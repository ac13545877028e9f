"""Secrets are neither printed nor stored, and code that comes with a model or file is not run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import error_of, fit

from prompt_transfer.backbones import loading
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError, without_secrets

TOKEN, KEY = "hf_averysecrettoken", "0123456789abcdefwandb"


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("SHORT_TOKEN", "true")


def test_secrets_are_left_out_of_a_text() -> None:
    told = f"GET https://me:hunter2@hub/x?token={TOKEN} with {KEY} is true"
    assert without_secrets(told) == "GET https://***@hub/x?token=<HF_TOKEN> with <WANDB_API_KEY> is true"
    assert without_secrets("https://hub/x: no a@b") == "https://hub/x: no a@b"


def test_a_run_keeps_and_tells_no_secret(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    # Even an option that contains a secret is not stored.
    assert fit(toy, tiny_roberta, output, "--data.cache_dir", str(tmp_path / TOKEN)) == 0
    assert main(["test", "--prompt", str(output), "--output", str(tmp_path / "test")]) == 0
    assert main(["--debug", "test", "--prompt", str(tmp_path / TOKEN / "none.safetensors")]) == 2
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert TOKEN not in text
        assert KEY not in text
    assert "<HF_TOKEN>" in told.err
    for path in [*output.rglob("*"), *(tmp_path / "test").rglob("*")]:
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
            assert KEY.encode() not in path.read_bytes(), path


def copied(model: Path, folder: Path, **facts: Any) -> Path:
    """Copy a model's folder with other values in its config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **facts}))
    return folder


def test_code_that_comes_with_a_model_is_not_run(tiny_roberta: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    places = {"AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Model", "AutoTokenizer": ["evil.T", "evil.T"]}
    code = f"open({str(marker)!r}, 'w')\nclass Config: ...\nclass Model: ...\nclass T: ...\n"
    for name, kind in (("known", "roberta"), ("unknown", "evil")):
        folder = copied(tiny_roberta, tmp_path / name, auto_map=places, model_type=kind)
        (folder / "evil.py").write_text(code)
        if kind == "roberta":
            assert FrozenBackbone(str(folder)).fingerprint == FrozenBackbone(str(tiny_roberta)).fingerprint
        else:
            with pytest.raises(UserError):
                FrozenBackbone(str(folder))
    assert not marker.exists()


class _Call:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def test_code_in_weights_or_in_a_checkpoint_is_not_run(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "executed"
    folder = copied(tiny_roberta, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"roberta.embeddings.word_embeddings.weight": _Call(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load the backbone"):
        FrozenBackbone(str(folder))
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "last.ckpt").write_bytes(pickle.dumps(_Call(marker)))
    told = error_of(capsys, fit(toy, tiny_roberta, tmp_path / "run", "--resume"))
    assert "is damaged" in told
    assert not marker.exists()


def test_what_the_hub_gave_is_recorded(tiny_roberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FrozenBackbone(str(tiny_roberta)).commit is None
    load = loading.load

    def downloaded(*options: Any) -> Any:
        loaded = load(*options)
        # As transformers marks the configuration of a downloaded model.
        loaded[0].config._commit_hash = "5e1f" * 10
        return loaded

    monkeypatch.setattr(loading, "load", downloaded)
    module = PromptTuning(str(tiny_roberta), prompt_length=2, revision="main")
    module.connect([get_task("sst2")])
    module.begin(0)
    facts = module.prompt().metadata
    assert (facts["revision"], facts["commit"]) == ("main", "5e1f" * 10)


def test_a_pinned_revision_goes_along_with_the_prompt(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pinned = fit(toy, tiny_roberta, tmp_path / "run", "--data.revision", "abc")
    assert "--data.revision abc is for hub repositories: use --data.source hub" in error_of(capsys, pinned)
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    path = tmp_path / "run" / "prompt.safetensors"
    prompt = Prompt.load(path)
    assert prompt.metadata["data_revision"] == ""
    Prompt(prompt.embeddings, {**prompt.metadata, "data_revision": "abc"}).save(path)
    # The prompt's own task is read at its commit; the commit does not apply to another task.
    assert "--data.revision abc" in error_of(capsys, main(["test", "--prompt", str(path)]))
    other = ["--data.task", str(toy), "--data.source", "local", "--random_prompts", "0"]
    assert main(["test", "--prompt", str(path), *other]) == 0
