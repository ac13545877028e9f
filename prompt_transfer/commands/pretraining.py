"""`pretrain`: pretraining of a small backbone on plain text, like the built-in ones."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from prompt_transfer.callbacks.checkpoints import AtomicCheckpointIO
from prompt_transfer.callbacks.logs import LogFlush, RunLog
from prompt_transfer.commands.arguments import find_configs
from prompt_transfer.commands.lightning import as_user_error
from prompt_transfer.commands.messages import quiet
from prompt_transfer.commands.run_options import PRETRAINING_DEFAULTS, run_options
from prompt_transfer.pretraining.backbone_pretraining import READING, BackbonePretraining
from prompt_transfer.pretraining.corpus import CorpusDataModule
from prompt_transfer.pretraining.informed_init import frequencies
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import exclusive_lock, prove_writable_dir, write_text_atomic


class PretrainCommand(LightningCLI):
    """The parsed options of `pretrain`, with model, data and trainer."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for option in run_options("pretrain"):
            option.add_to(parser)

    def before_instantiate_classes(self) -> None:
        config = self.config
        config.trainer.max_steps = config.model.budget_steps
        folder = Path(config.output)
        prove_writable_dir(folder)
        if (folder / "last.ckpt").is_file() and not config.resume:
            raise UserError(f"{folder} has an unfinished run: give --resume to resume it, or another --output")
        if (folder / "model.safetensors").exists():
            raise UserError(f"{folder} already has a model, which would be overwritten: give another --output")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        folder = self.config.output
        checkpoint = ModelCheckpoint(
            dirpath=folder, filename="last", every_n_train_steps=500, enable_version_counter=False
        )
        kwargs["logger"] = RunLog(folder)
        init = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        callbacks = [LogFlush(), checkpoint]
        if init.get("enable_progress_bar") is not False:
            callbacks.append(RichProgressBar(leave=False, console_kwargs={"stderr": True}))
        trainer = self._instantiate_trainer(init, callbacks)
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer pretrain`."""
    quiet()
    arguments = [_whole_file(before, argument) for before, argument in zip(["", *arguments], arguments, strict=False)]
    with as_user_error(command):
        cli = PretrainCommand(
            BackbonePretraining,
            CorpusDataModule,
            args=find_configs(arguments),
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults=PRETRAINING_DEFAULTS,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"exit_on_error": False, "prog": "prompt-transfer pretrain"},
        )
    folder = Path(cli.config.output)
    # Only the first process writes.
    with exclusive_lock(folder) if cli.trainer.is_global_zero else nullcontext():
        last = folder / "last.ckpt"
        resume = str(last) if cli.config.resume and last.is_file() else None
        with as_user_error(command):
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=resume, weights_only=True)
        options = cli.parser.dump(cli.config, skip_unset=False, skip_validation=True)
        write_text_atomic(folder / "pretraining.yaml", options)
        finish(cli.model, cli.datamodule, folder)
        last.unlink(missing_ok=True)
    print(folder)


def _whole_file(before: str, value: str) -> str:
    """Return the JSON value of `--data.files` for a single file, used completely."""
    return json.dumps({value: [1, None]}) if before == "--data.files" and Path(value).is_file() else value


def finish(model: BackbonePretraining, data: CorpusDataModule, folder: Path) -> None:
    """Write model, tokenizer and card to `folder`."""
    facts = measure(model, data)
    model.export(folder, data.tokenizer)
    write_text_atomic(folder / "facts.json", json.dumps(facts, indent=2) + "\n")
    write_text_atomic(folder / "README.md", card(folder.name, facts))


@torch.no_grad()
def measure(model: BackbonePretraining, data: CorpusDataModule) -> dict[str, Any]:
    """Return held-out losses in nats per token, with two baselines: word frequencies and random weights."""
    batches = list(data.val_dataloader())
    model.eval()
    random = BackbonePretraining(**{**model.hparams, "informed_start": False, "grow_from": None, "start_from": None})
    random.eval()
    objectives = (*model.architecture.objectives, *(READING if model.hparams.reading else ()))

    def loss(module: BackbonePretraining, objective: str) -> float:
        return round(float(np.mean([float(module.token_loss(b, objective)) for b in batches])), 3)

    streams = [store["tokens"] for store in data.train_stores]
    logarithms = frequencies(streams, model.hparams.vocab_size).log().numpy()
    names = {"masked": "labels", "prefix": "prefix_labels"}
    labels = [
        b[names[objectives[0]]].numpy() if objectives[0] in names else b["input_ids"][b["attention_mask"] > 0].numpy()
        for b in batches
    ]
    # The token streams have no special tokens (the end of a text), so these have no frequency.
    predicted = np.concatenate([one[one >= data.tokens.ordinary] for one in labels])
    return {
        "architecture": model.hparams.architecture,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "steps": model.steps_done,
        "tokens": model.tokens_seen,
        "minutes": round(model.seconds / 60, 1),
        "threads": torch.get_num_threads(),
        "data": {Path(file).name: weight for file, (weight, _) in data.hparams.files.items()},
        "objective": objectives[0],
        "unigram_loss": round(float(-logarithms[predicted].mean()), 3),
        "held_out_loss": loss(model, objectives[0]),
        "held_out_losses": {objective: loss(model, objective) for objective in objectives},
        "random_weights_loss": loss(random, objectives[0]),
        "model": {k: model.hparams[k] for k in ("hidden_size", "num_layers", "num_heads", "intermediate_size")},
        "recipe": {k: v for k, v in model.hparams.items() if k not in ("output",)},
    }


KINDS = {
    "roberta": ("RoBERTa", "byte-level BPE", "masked token"),
    "bert": ("BERT", "WordPiece", "masked token"),
    "gpt2": ("GPT-2", "byte-level BPE", "next token"),
    "t5": ("T5 v1.1 (gated FFN, output layer of its own)", "unigram pieces", "token of a continued text"),
}


READ = {"copy": "copies of random tokens and texts", "cloze": "questions answered in the text"}


def card(name: str, facts: dict[str, Any]) -> str:
    """Return the model card."""
    shape, recipe = facts["model"], facts["recipe"]
    kind, pieces, unit = KINDS[facts["architecture"]]
    layers = f"{shape['num_layers']} layers" + (" in encoder and decoder each" if facts["architecture"] == "t5" else "")
    data = "\n".join(f"| {file} | {weight:g} |" for file, weight in facts["data"].items())
    start = "Weights were initialized from word statistics of the corpus (`pretraining/informed_init.py`)."
    if recipe.get("grow_from"):
        small = Path(recipe["grow_from"]).name
        start = f"Weights were grown from {small} (`pretraining/growth.py`), whose training is not included here."
    if recipe.get("start_from"):
        first = Path(recipe["start_from"]).name
        start = f"Training continued from an earlier {first}, whose training is not included here."
    losses = "".join(
        f"| {name}: this model | {facts['held_out_losses'][objective]:.2f} |\n"
        for objective, name in READ.items()
        if objective in facts["held_out_losses"]
    )
    count, minutes = facts["parameters"], facts["minutes"]
    size = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
    time = f"{minutes:g} minutes" if minutes else "less than a minute"
    threads = f"{facts['threads']} thread" + ("s" if facts["threads"] > 1 else "")
    return f"""# {name}

A {kind} with {size} parameters for offline experiments: {layers}, hidden
{shape["hidden_size"]}, {shape["num_heads"]} heads, FFN {shape["intermediate_size"]}, {pieces} of {recipe["vocab_size"]}
lower-cased tokens, {recipe["max_positions"]} positions; weights stored in bf16. Pretrained by
`prompt-transfer pretrain`; `pretraining.yaml` has all options.

| held-out loss, nats per {unit} | |
|---|---|
| this model | {facts["held_out_loss"]:.2f} |
| word frequencies (unigram) | {facts["unigram_loss"]:.2f} |
| the same architecture with random weights | {facts["random_weights_loss"]:.2f} |
{losses}
{facts["steps"]:,} steps, {facts["tokens"]:,} tokens, {time} on {threads}. {start}
Sequences start at sentence boundaries and vary in length.

| text | share of sequences |
|---|---|
{data}

Only for development, teaching and tests: it is too small for other uses and repeats its training text.
"""
