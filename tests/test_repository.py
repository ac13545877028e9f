"""Pushing prompts to a local hub and pulling them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from fake_hub import TOKEN, FakeHub, connected
from torch import Tensor

from prompt_transfer.cli import main
from prompt_transfer.prompts.io.hub_card import scores_of
from prompt_transfer.prompts.io.peft_adapter import write_adapter
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.network import hub_reachable

REPO = "me/my-prompts"


def rows(seed: int = 0) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))


def save(path: Path, number: int = 0, **facts: str) -> Path:
    known = {"backbone": "FacebookAI/roberta-base", "layout": "prefix", "attention": "full", "task": "sst2"}
    return Prompt(rows(number), known | {"fingerprint": "abcdef0123456789ffff"} | facts, rows(number + 1)).save(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with connected(monkeypatch, tmp_path / "cache") as server:
        yield server


def results_of(prompt: Path) -> pd.DataFrame:
    """Write results as `test --output` does."""
    common: dict[str, Any] = {"task": "sst2", "split": "test (official)", "metric": "accuracy", "n": 100}
    return pd.DataFrame(
        [
            common | {"prompt": str(prompt), "what": "this prompt", "value": 0.91, "low": 0.85, "high": 0.95},
            common | {"prompt": "random 1", "what": "random prompt", "value": 0.5, "low": 0.4, "high": 0.6},
            common | {"prompt": "random 2", "what": "random prompt", "value": 0.6, "low": 0.5, "high": 0.7},
            common | {"what": "majority class", "value": 0.51},
            common | {"prompt": "elsewhere.safetensors", "what": "this prompt", "value": 0.1},
        ]
    )


def test_there_and_back(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(
        tmp_path / "films" / "prompt.safetensors",
        data_root="/home/me/secret/data",
        init="FromPrompt(prompt=['/home/me/secret/runs/start.safetensors'])",
        seed="7",
    )
    results_of(source).to_csv(source.parent / "results.csv", index=False)
    assert main(["prompts", "push", str(source.parent), "--repo", REPO, "--private", "--license", "mit"]) == 0
    printed = capsys.readouterr()
    assert "1 pushed to" in printed.out
    assert hub.repos[REPO]["private"]
    files = hub.files(REPO)
    assert set(files) == {".gitattributes", "README.md", "films.safetensors"}

    card = files["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "mit"
    assert head["base_model"] == ["FacebookAI/roberta-base"]
    assert "| `films.safetensors` | sst2 | FacebookAI/roberta-base | abcdef0123456789 | 4 x 8 | prefix | full |" in card
    assert "| sst2 | test (official) | accuracy | this prompt | 0.910 | 0.850 to 0.950 | 100 |" in card
    assert "| sst2 | test (official) | accuracy | 2 random prompts | 0.550 |  | 100 |" in card
    assert "| sst2 | test (official) | accuracy | majority class | 0.510 |  | 100 |" in card
    assert "0.100" not in card
    assert f"prompt-transfer prompts pull {REPO} --output prompts" in card

    output = tmp_path / "in"
    assert main(["prompts", "pull", REPO, "--output", str(output)]) == 0
    printed_too = capsys.readouterr()
    commit = hub.repos[REPO]["branches"]["main"]
    assert f"1 pulled from {REPO} at {commit}" in printed_too.out
    back = Prompt.load(output / "films.safetensors")
    assert torch.equal(back.embeddings, rows())
    assert back.initial is not None
    assert torch.equal(back.initial, rows(1))
    assert back.metadata["hub_revision"] == commit
    assert (back.metadata["hub_repo"], back.metadata["hub_file"]) == (REPO, "films.safetensors")
    # The pushed prompt contains no local path; the original keeps its own.
    assert back.metadata["data_root"] == "data"
    assert back.metadata["init"] == "FromPrompt(prompt=['start.safetensors'])"
    assert Prompt.load(source).metadata["data_root"] == "/home/me/secret/data"

    # The token is sent to the hub and stored nowhere else.
    assert {token for method, _, token in hub.seen if method == "POST"} == {f"Bearer {TOKEN}"}
    assert TOKEN not in "".join([*printed, *printed_too])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert not any(TOKEN.encode() in data for data in files.values())

    assert main(["prompts", "pull", REPO, "--output", str(output)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["prompts", "pull", REPO, "--output", str(output), "--overwrite"]) == 0


def test_revisions_and_a_second_push(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = save(tmp_path / "one.safetensors"), save(tmp_path / "two.safetensors", 5, score="0.8", metric="f1")
    assert main(["prompts", "push", str(first), "--repo", REPO]) == 0
    old = hub.repos[REPO]["branches"]["main"]
    assert main(["prompts", "push", str(second), "--repo", REPO, "--revision", "next"]) == 0
    assert hub.repos[REPO]["branches"]["main"] == old
    card = hub.files(REPO, "next")["README.md"].decode()
    # The first prompt stays in the repository and on the card.
    assert "## one.safetensors" in card
    assert "No score is known." in card
    assert "Score: f1 0.800" in card
    assert "no baselines were available" in card
    for revision, names in (("next", {"one", "two"}), (old, {"one"})):
        output = tmp_path / revision
        assert main(["prompts", "pull", REPO, "--revision", revision, "--output", str(output)]) == 0
        assert {path.stem for path in output.iterdir()} == names
        expected = hub.commit_of(REPO, revision)
        assert Prompt.load(output / "one.safetensors").metadata["hub_revision"] == expected
    capsys.readouterr()
    assert main(["prompts", "pull", REPO, "--revision", "absent", "--output", str(tmp_path / "x")]) == 2
    assert "no such --revision" in capsys.readouterr().err
    # A handwritten card is not changed.
    hub.put(REPO, {"README.md": b"my own words"})
    assert main(["prompts", "push", str(second), "--repo", REPO]) == 0
    assert "written by hand" in capsys.readouterr().out
    assert hub.files(REPO)["README.md"] == b"my own words"
    assert "two.safetensors" in hub.files(REPO)


def test_only_whole_prompts_come_in(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = save(tmp_path / "a.safetensors").read_bytes()
    adapter = write_adapter(Prompt(rows(3), {"layout": "encoder", "backbone": "me/t5"}), tmp_path / "adapter", "card")
    files = {f"peft/{path.name}": path.read_bytes() for path in adapter.iterdir()}
    hub.put(REPO, {"sub/good.safetensors": good, "bad.safetensors": good[:-4], "evil.py": b"1/0", **files})
    output = tmp_path / "in"
    assert main(["prompts", "pull", REPO, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "refused: bad.safetensors: bad.safetensors is truncated" in printed
    found = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    assert found == ["peft.safetensors", "sub/good.safetensors"]
    assert torch.equal(Prompt.load(output / "peft.safetensors").embeddings, rows(3))
    assert Prompt.load(output / "peft.safetensors").metadata["hub_file"] == "peft/adapter_config.json"

    hub.put("me/bad", {"bad.safetensors": good[:-4]})
    hub.put("me/else", {"model.bin": b"1"})
    hub.put("me/path", {"../x.safetensors": good})
    for repo, words in (
        ("me/bad", "is truncated"),
        ("me/else", "there is no prompt in me/else"),
        ("me/path", "nothing was downloaded"),
        ("me/absent", "no repository me/absent on the hub"),
        ("noslash", "give USER/NAME"),
    ):
        assert main(["prompts", "pull", repo, "--output", str(tmp_path / "no")]) == 2
        assert words in capsys.readouterr().err, repo
    assert not (tmp_path / "no").exists()


def test_a_whole_model_is_not_downloaded(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt_transfer.prompts.io.repository.MAX_FILE_BYTES", 100)
    hub.put(REPO, {"model.safetensors": bytes(101)})
    assert main(["prompts", "pull", REPO, "--output", str(tmp_path / "in")]) == 2
    assert "has 101 bytes, a prompt at most 100" in capsys.readouterr().err
    assert not any("resolve" in path for _, path, _ in hub.seen)


def test_pushes_that_must_not_be(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, folder = save(tmp_path / "a.safetensors"), tmp_path / "model"
    folder.mkdir()
    local = save(tmp_path / "local.safetensors", backbone=str(folder))
    twin = save(tmp_path / "other" / "a.safetensors")
    hub.put("me/public", {"x": b""})

    def fails(*arguments: str, repo: str = REPO) -> str:
        assert main(["prompts", "push", *arguments, "--repo", repo]) == 2
        return capsys.readouterr().err

    assert "which others do not have" in fails(str(local))
    assert "two prompts would both be a.safetensors" in fails(str(good), str(twin))
    assert "no such prompt file" in fails(str(tmp_path / "absent.safetensors"))
    assert "no results table" in fails(str(good), "--results", str(folder))
    assert not hub.seen
    assert "public; nothing was pushed" in fails(str(good), "--private", repo="me/public")
    assert set(hub.files("me/public")) == {"x"}
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    error = fails(str(good))
    assert "the hub refused (401)" in error
    assert "hf_wrong" not in error
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a token with write access" in fails(str(good))
    assert REPO not in hub.repos
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["prompts", "push", str(local), "--repo", REPO, "--backbone", "me/backbone"]) == 0
    main(["prompts", "pull", REPO, "--output", str(tmp_path / "in")])
    assert Prompt.load(tmp_path / "in" / "local.safetensors").metadata["backbone"] == "me/backbone"
    capsys.readouterr()
    hub.broken = True
    assert "the hub refused (503)" in fails(str(good))


def test_offline_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub_reachable.cache_clear()
    source = save(tmp_path / "a.safetensors")
    for command in (["push", str(source), "--repo", REPO], ["pull", REPO, "--output", str(tmp_path / "in")]):
        assert main(["prompts", *command]) == 2
        assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert not (tmp_path / "in").exists()
    hub_reachable.cache_clear()


def test_scores_of_a_run(tmp_path: Path) -> None:
    path = save(tmp_path / "prompt.safetensors")
    assert scores_of(path) == []
    row = {"task": "sst2", "split": "validation (cut)", "metric": "accuracy", "value": 0.8, "majority": 0.5, "n": 50}
    frame = pd.DataFrame([row | {"prompt": str(path)}, row | {"prompt": "other", "value": 0.1}])
    frame.to_parquet(tmp_path / "results.parquet")
    own = {"task": "sst2", "split": "validation (cut)", "metric": "accuracy", "what": "this prompt", "value": 0.8}
    own |= {"low": None, "high": None, "n": 50}
    assert scores_of(path) == [own, own | {"what": "majority class", "value": 0.5}]
    assert scores_of(path, tmp_path / "results.parquet") == scores_of(path)
    frame.drop(columns="prompt").to_csv(tmp_path / "results.csv")
    with pytest.raises(Exception, match="is not a results table"):
        scores_of(path, tmp_path / "results.csv")
