"""Prediction of labels with a prompt: this project compared with a loop over transformers' own forward pass.

    python benchmarks/predict.py --backbone smollm2-135m --output results/benchmarks/predict_smollm2.json

All ways get the same texts of SST-2 (built-in sentences without `--data_root`) and the same prompt, and tokenize inside
the time. `loop` prepends the prompt to the padded embeddings of a batch and takes the label words' logits at the last
token, from a head over all positions and the whole vocabulary, as the model's forward returns them. `loop_last` pads on
the left and asks for the last position's logits only. `classify` is this project's function; `transfer` is its scoring
of several prompts on the same texts, in seconds per prompt. Ways alternate in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import facts, in_turn, model_folder, sentences, weights, write
from torch import Tensor
from transformers import AutoModelForCausalLM
from ways import padded

from prompt_transfer.api.classification import classify
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.parsing import call
from prompt_transfer.data.batches import cross_prompts
from prompt_transfer.data.of_prompt import data_of_prompt, task_of_prompt
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils import results
from prompt_transfer.utils.allocation import keep_memory


def stored(backbone: FrozenBackbone, name: str, length: int, seed: int) -> Prompt:
    """Return a prompt of rows of the vocabulary with the metadata of a trained one."""
    chosen = torch.randperm(5000, generator=torch.Generator().manual_seed(seed))[:length]
    return Prompt(
        backbone.embedding_weight[chosen].float(),
        {"backbone": name, "fingerprint": backbone.fingerprint, "family": backbone.family.name,
         "layout": backbone.layout.name, "attention": backbone.attention, "dtype": backbone.dtype_name, "task": "sst2"},
    )  # fmt: skip


class Loop:
    """transformers' forward pass over batches with the prompt prepended.

    Args:
        folder: folder of a causal language model.
        dtype: name of the dtype of its weights.
        backbone: gives the token ids, so that all ways read the same input.
        prompt: the prompt.
        size: texts of a batch.
    """

    def __init__(self, folder: str, dtype: str, backbone: FrozenBackbone, prompt: Prompt, size: int) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.data = data_of_prompt(prompt, task_of_prompt(prompt), size)
        self.encoder, self.size = backbone.encoder(prompt.length), size
        self.prompt = prompt.values.to(self.model.dtype)
        (task,) = self.data.tasks
        self.task = task
        ids = [backbone.tokenizer.encode(f" {word}", add_special_tokens=False) for word in task.label_words]
        self.words = torch.tensor([row[-1] for row in ids])

    def _batches(self, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
        rows = self.encoder.encode(texts, None, 128, cue=self.task.cue)
        starts = range(0, len(rows), self.size)
        return [padded(rows[start : start + self.size], self.encoder.pad_token_id) for start in starts]

    def _embedded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.model.get_input_embeddings()(ids)
        seen = torch.cat([mask.new_ones(len(ids), len(self.prompt)), mask], dim=1)
        return torch.cat([self.prompt.expand(len(ids), -1, -1), embedded], dim=1), seen

    @torch.inference_mode()
    def whole(self, texts: list[str]) -> Tensor:
        """Return the label words' probabilities [n, C] from the logits of all positions."""
        found = []
        for ids, mask in self._batches(texts):
            x, seen = self._embedded(ids, mask)
            logits = self.model(inputs_embeds=x, attention_mask=seen).logits
            found.append(logits[torch.arange(len(ids)), seen.sum(dim=1) - 1][:, self.words])
        return torch.cat(found).float().softmax(dim=1)

    @torch.inference_mode()
    def last(self, texts: list[str]) -> Tensor:
        """Return the same from the logits of the last position, with padding on the left."""
        found = []
        for ids, mask in self._batches(texts):
            x, seen = self._embedded(ids, mask)
            order = seen.argsort(dim=1, stable=True)
            x, seen = x.gather(1, order[:, :, None].expand_as(x)), seen.gather(1, order)
            positions = (seen.cumsum(dim=1) - 1).clamp_min(0)
            logits = self.model(inputs_embeds=x, attention_mask=seen, position_ids=positions, logits_to_keep=1).logits
            found.append(logits[:, -1, self.words])
        return torch.cat(found).float().softmax(dim=1)


@torch.inference_mode()
def transfer(backbone: FrozenBackbone, bank: Any, loop: Loop, texts: list[str]) -> Tensor:
    """Return the logits of all prompts of a bank on the texts, by length and as many prompts at once as `transfer`."""
    rows = sorted(loop.encoder.encode(texts, None, 128, cue=loop.task.cue), key=len)
    found = []
    for start in range(0, len(rows), loop.size):
        ids, mask = padded(rows[start : start + loop.size], loop.encoder.pad_token_id)
        batch = cross_prompts({"ids": torch.arange(len(ids)), "input_ids": ids, "attention_mask": mask},
                              torch.arange(len(bank)))  # fmt: skip
        found.append(backbone(bank, batch, loop.words))
    return torch.cat(found)


def run(
    output: str,
    backbone: str = "smollm2-135m",
    data_root: str = "../shared/data",
    texts: int = 96,
    batch_size: int = 32,
    prompt_length: int = 100,
    prompts: int = 4,
    repeats: int = 3,
    threads: int = 2,
    dtype: str | None = None,
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        backbone: a causal language model: built in, fetched, or a folder.
        data_root: folder with sst2/; built-in sentences without it.
        texts: number of texts.
        batch_size: texts of a batch.
        prompt_length: P.
        prompts: number of prompts of `transfer`.
        repeats: measurements, after a warm-up; medians are reported.
        threads: number of torch threads.
        dtype: dtype of the weights; default bfloat16 if the machine computes in it, else float32.
    """
    torch.set_num_threads(threads)
    dtype = dtype or weights("cpu")
    lines, source = sentences(data_root)
    chosen = lines[:texts]
    report = facts(
        f"labels of {texts} texts with a prompt of {backbone}", ("torch", "transformers"), texts=source,
        batch_size=batch_size, prompt_length=prompt_length, prompts=prompts, repeats=repeats, threads=threads,
        dtype=dtype, backbone=backbone,
    )  # fmt: skip
    model = FrozenBackbone(backbone, dtype=dtype)
    prompt = stored(model, backbone, prompt_length, 0)
    loop = Loop(str(model_folder(backbone)), dtype, model, prompt, batch_size)
    bank = model.record(torch.stack([stored(model, backbone, prompt_length, seed).values for seed in range(prompts)]))
    ways: dict[str, Callable[[], Any]] = {
        "loop": partial(loop.whole, chosen),
        "loop_last": partial(loop.last, chosen),
        "classify": partial(classify, chosen, prompt, batch_size=batch_size),
        "transfer": partial(transfer, model, bank, loop, chosen),
    }
    taken = in_turn(ways, repeats)
    taken["transfer"] /= prompts
    own = torch.tensor([list(found.probabilities.values()) for found in classify(chosen, prompt)])
    expected = loop.whole(chosen)
    difference = (own - expected).abs().max().item()
    agreement = (own.argmax(dim=1) == expected.argmax(dim=1)).float().mean().item()
    apart = (loop.last(chosen) - expected).abs().max().item()
    rows = [
        {"way": way, "seconds": seconds, "texts_per_second": texts / seconds,
         "faster_than_loop": taken["loop"] / seconds, "faster_than_loop_last": taken["loop_last"] / seconds}
        for way, seconds in taken.items()
    ]  # fmt: skip
    results.show(rows)
    answers = {
        "largest_difference_to_loop": difference, "largest_difference_of_the_loops": apart,
        "same_label_as_loop": agreement,
    }  # fmt: skip
    write(output, {**report, "rows": rows, **answers})


if __name__ == "__main__":
    # As in `predict`.
    keep_memory()
    call(run, "predict", sys.argv[1:])
