"""Load-time checks for models of families without a row: a few forward passes over a dozen tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prompt_transfer.backbones.stack import InputPart
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.backbones.frozen import FrozenBackbone

_PROMPT, _TEXTS = 3, (4, 7)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


def prove(backbone: FrozenBackbone) -> None:
    """Check that a model of a family without a row works with soft prompts.

    Raises:
        UserError: a check failed; the message names it.
    """
    types = _attention_types(backbone.model)
    _refuse_switching(backbone, any(kind == "block_sparse" for kind in types.values()))
    checks = {
        "logits from embeddings equal those from token ids": _from_ids,
        "padding and batch composition do not change logits": _alone,
        "the gradient reaches the prompt": _gradient,
    }
    if backbone.family.kind == "causal_lm":
        checks["no token sees later tokens"] = _causal
    training = backbone.model.training
    backbone.model.eval()
    try:
        for check, holds in checks.items():
            try:
                problem = holds(backbone)
            except Exception as error:  # any error here means that the model cannot be used
                lines = str(error).splitlines()
                problem = f"{type(error).__name__}: {lines[0][:150] if lines else ''}"
            if problem is not None:
                raise UserError(
                    f"{backbone.id} is of the family {backbone.family.name}, which has no row in "
                    f"prompt_transfer/backbones/families.py, and fails a check for soft prompts: {check} ({problem}); "
                    "use a backbone of another family"
                )
    finally:
        backbone.model.train(training)
    _refuse_switching(backbone, types != _attention_types(backbone.model))


def _attention_types(model: nn.Module) -> dict[str, str]:
    """Return the attention type of each module that has one, by the module's path."""
    return {
        name: module.attention_type
        for name, module in model.named_modules()
        if isinstance(getattr(module, "attention_type", None), str)
    }


def _refuse_switching(backbone: FrozenBackbone, switches: bool) -> None:
    # A short text would turn off sparse attention for all texts that follow (BigBird).
    if switches:
        raise UserError(
            f"{backbone.id} switches its attention type with the length of the text: state "
            '"attention_type": "original_full" in its config.json, or use a backbone of another family'
        )


def _prompt_and_rows(backbone: FrozenBackbone) -> tuple[Tensor, list[Tensor]]:
    """Return random ordinary token ids: [P] for a prompt, and two texts."""
    tokenizer, special = backbone.tokenizer, set(backbone.tokenizer.all_special_ids)
    size = min(len(tokenizer), backbone.model.get_input_embeddings().weight.shape[0])
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))[: 64 + len(special)].tolist()
    ids = torch.tensor([token for token in order if token not in special][: _PROMPT + sum(_TEXTS)])
    prompt, *rows = ids.split([_PROMPT, *_TEXTS])
    return prompt, list(rows)


def _answers(backbone: FrozenBackbone, prompt: Tensor, rows: list[Tensor]) -> Tensor:
    """Compute the logits [B, V] of texts conditioned on a prompt [P, H]."""
    texts = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=backbone.encoder(_PROMPT).pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(texts.shape[1]) < lengths[:, None]).long()
    return backbone._logits(backbone.answer_states(prompt, {"input_ids": texts, "attention_mask": mask}))


def _embedded(backbone: FrozenBackbone, ids: Tensor) -> Tensor:
    return backbone._answers.embed(ids).detach()


def _difference(backbone: FrozenBackbone, found: Tensor, expected: Tensor) -> str | None:
    """Describe the difference between two tensors of logits; None if within tolerance."""
    expected = expected.float()
    error = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()
    # `error > tolerance` would be False for NaN.
    return None if error <= _TOLERANCE[backbone.model.dtype] else f"they differ by {error:.1e} of the largest logit"


@torch.no_grad()
def _from_ids(backbone: FrozenBackbone) -> str | None:
    prompt, rows = _prompt_and_rows(backbone)
    model, kind = backbone.model, backbone.family.kind
    found = _answers(backbone, _embedded(backbone, prompt), [rows[1]])[0]
    if kind == "seq2seq_lm":
        start = torch.tensor([[model.config.decoder_start_token_id]])
        logits = model(input_ids=torch.cat([prompt, rows[1]])[None], decoder_input_ids=start).logits[0, 0]
    elif kind == "causal_lm":
        logits = model(input_ids=torch.cat([prompt, rows[1]])[None]).logits[0, -1]
    else:
        mask = torch.tensor([backbone.tokenizer.mask_token_id])
        logits = model(input_ids=torch.cat([prompt, mask, rows[1]])[None]).logits[0, _PROMPT]
    return _difference(backbone, found, logits)


@torch.no_grad()
def _alone(backbone: FrozenBackbone) -> str | None:
    prompt, rows = _prompt_and_rows(backbone)
    embedded = _embedded(backbone, prompt)
    together = _answers(backbone, embedded, rows)
    return _difference(backbone, together, torch.cat([_answers(backbone, embedded, [row]) for row in rows]))


@torch.no_grad()
def _causal(backbone: FrozenBackbone) -> str | None:
    prompt, rows = _prompt_and_rows(backbone)
    embedded, row = _embedded(backbone, prompt), rows[1]
    short = _answers(backbone, embedded, [row[:4]])[0]
    whole = torch.cat([embedded, _embedded(backbone, row)])[None]
    mask = torch.ones(whole.shape[:2], dtype=torch.long)
    states = backbone._answers.stack.run_alone(InputPart(whole, mask, mask, mask))
    return _difference(backbone, backbone._logits(states[:, len(prompt) + 3])[0], short)


@torch.enable_grad()
def _gradient(backbone: FrozenBackbone) -> str | None:
    prompt, rows = _prompt_and_rows(backbone)
    embedded = _embedded(backbone, prompt).float().requires_grad_()
    logits = _answers(backbone, embedded, rows)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    (logits * weights).sum().backward()
    gradient = embedded.grad
    if gradient is None or not gradient.isfinite().all():
        return "it is missing or non-finite"
    reached = (gradient != 0).any(dim=1)
    return None if reached.all() else f"{int((~reached).sum())} of {_PROMPT} prompt tokens have no gradient"
