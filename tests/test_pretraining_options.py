"""Pretraining options: grouped in Python, flat on the command line; schedule and objectives by hand."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from lightning.pytorch.cli import LightningArgumentParser

from prompt_transfer.pretraining.architectures import ARCHITECTURES
from prompt_transfer.pretraining.backbone_pretraining import BackbonePretraining
from prompt_transfer.pretraining.options import PretrainingOptions, Schedule

SIZES: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16, "vocab_size": 50}
# A `pretraining.yaml` from before the options were grouped.
STORED = {
    "architecture": "t5", "hidden_size": 256, "num_layers": 4, "num_heads": 7, "head_size": 64,
    "intermediate_size": 512, "vocab_size": 8192, "max_positions": 512, "learning_rate": 0.001, "warmup_steps": 200,
    "final_share": 0.03, "weight_decay": 0.05, "causal_share": 0.0, "infill_share": 0.0, "prefix_only_share": 0.34,
    "budget_steps": 30000, "budget_minutes": 37.0, "informed_start": True, "grow_from": None,
    "start_from": "runs/t5-nano-reading", "reading": True, "copies": 0.15, "plain_text": 0.2, "copying_heads": False,
    "matching_heads": True, "evidence": 1.0, "autocast": True,
}  # fmt: skip


def parser() -> LightningArgumentParser:
    made = LightningArgumentParser(exit_on_error=False)
    made.add_lightning_class_args(BackbonePretraining, "model", subclass_mode=False)
    return made


def test_stored_options_are_parsed_as_they_are() -> None:
    assert parser().parse_object({"model": STORED}).model.as_dict() == STORED


def test_every_option_has_a_flag_and_help() -> None:
    names = {"architecture", *(field.name for field in fields(PretrainingOptions))}
    assert names == set(STORED)
    made = parser()
    helped = {action.dest: action.help for action in made._actions if action.dest.startswith("model.")}
    assert {name.removeprefix("model.") for name in helped} == names
    assert [name for name, text in helped.items() if not text or text.startswith("(")] == []
    assert made.parse_args(["--model.budget_steps", "7"]).model.budget_steps == 7


def test_hyperparameters_are_all_options_in_plain_values() -> None:
    module = BackbonePretraining("gpt2", **SIZES, budget_minutes=1.5)
    assert set(module.hparams) == set(STORED)
    assert module.hparams["budget_minutes"] == 1.5
    again = BackbonePretraining(**{**module.hparams, "budget_steps": 3})
    assert again.options.budget_steps == 3
    with pytest.raises(TypeError, match="hidden"):
        BackbonePretraining(hidden=3)  # an unknown option


def test_schedule_by_hand() -> None:
    schedule = Schedule(learning_rate=0.1, warmup_steps=4, final_share=0.2, budget_steps=100, budget_minutes=1.0)
    assert schedule.progress(step=50, seconds=15.0) == 0.5
    assert schedule.progress(step=50, seconds=45.0) == 0.75
    assert schedule.progress(step=500, seconds=0.0) == 1.0
    # A quarter of the peak in the first warm-up step; then 1 - 0.8 * 0.5 of it; a fifth at the end.
    assert schedule.rate(step=0, progress=0.0) == pytest.approx(0.025)
    assert schedule.rate(step=50, progress=0.5) == pytest.approx(0.06)
    assert schedule.rate(step=99, progress=1.0) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("name", "options", "steps", "expected"),
    [
        ("roberta", {"causal_share": 0.5}, [0, 49, 50, 99], ["causal", "causal", "masked", "masked"]),
        ("bert", {}, [0, 99], ["masked", "masked"]),
        ("gpt2", {"causal_share": 0.5}, [0, 99], ["causal", "causal"]),
        (
            "t5",
            {"causal_share": 0.125, "infill_share": 0.25, "prefix_only_share": 0.5},
            [0, 12, 13, 14, 15, 37, 38, 39, 49, 50],
            ["causal", "causal", "infill", "prefix", "infill", "infill", "span", *["prefix"] * 3],
        ),
        # Multiples of the golden ratio modulo 1: 0, 0.618, 0.236, 0.854; copies decrease by 1.5 times the progress.
        ("t5", {"reading": True, "copies": 0.3, "plain_text": 0.4}, [0, 1, 2, 3], ["copy", "prefix", "copy", "cloze"]),
        ("gpt2", {"reading": True, "copies": 0.3, "plain_text": 0.4}, [1, 3], ["causal", "cloze"]),
    ],
)
def test_objectives_by_hand(name: str, options: dict[str, Any], steps: list[int], expected: list[str]) -> None:
    chosen = PretrainingOptions(**options, budget_steps=100)
    found = [ARCHITECTURES[name].objective(chosen, step, chosen.progress(step, 0.0)) for step in steps]
    assert found == expected
