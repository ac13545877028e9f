"""PromptEnsemble: several prompts trained at once on one frozen backbone, with the results of separate runs."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from prompt_transfer.data.batches import cross_prompts
from prompt_transfer.modules.objectives import Objective, make_objective
from prompt_transfer.modules.prompt_tuning import PromptTuning, norms
from prompt_transfer.modules.trained import Pass
from prompt_transfer.prompts.initializers import Initializer
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.reparameterizations import Reparameterization
from prompt_transfer.tasks.registry import Task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.nonfinite import FirstNonFinite, largest


class PromptEnsemble(PromptTuning):
    """One prompt for each pair of seed and learning rate, all trained on the same batches.

    A batch of texts is repeated for the N prompts with `prompt_ids` [N * B]: loading and tokenization are paid once,
    and if prompts see only themselves, their keys and values are computed once per step. The loss is the sum of the
    prompts' mean losses, gradients are clipped per prompt, and one optimizer has a parameter group for each prompt.
    This makes N prompts trained together equal to N separate runs, except for the random numbers of the backbone's
    dropout. A prompt that is stopped or has become non-finite costs nothing from then on.

    Shape letters: B batch, P prompt tokens, H hidden, N prompts.

    Args:
        seeds: one prompt each, equal to a run with that `--seed_everything`; None: the seed of the run.
        learning_rates: combined with each seed.
        prompts_at_once: most prompts in a forward pass; None: all, or as many as --data.max_tokens allows.
        options: those of `PromptTuning`.
    """

    initial_prompt: Tensor

    def __init__(
        self,
        seeds: list[int] | None = None,
        learning_rates: list[float] | None = None,
        prompts_at_once: int | None = None,
        **options: Any,
    ) -> None:
        _check(seeds, learning_rates, prompts_at_once, options)
        super().__init__(**options)
        self.save_hyperparameters(
            {"seeds": seeds, "learning_rates": learning_rates, "prompts_at_once": prompts_at_once}
        )
        own_seeds: list[int | None] = list(seeds) if seeds else [None]
        rates: list[float | None] = list(learning_rates) if learning_rates else [None]
        grid = list(itertools.product(own_seeds, rates))
        self.seeds: list[int | None] = [seed for seed, _ in grid]
        self.learning_rates: list[float | None] = [rate for _, rate in grid]
        # Names in logs; file names add the prefix `prompt-`.
        self.names = [_name(seed, rate) for seed, rate in grid]
        self.inits: list[Initializer] = [self.init] * len(grid)
        self.members = nn.ModuleList([copy.deepcopy(self.reparameterization) for _ in grid])
        self.active = list(range(len(grid)))
        # Prompts scored in the last evaluation.
        self.evaluated: list[int] = []
        self.watched, self.answered = FirstNonFinite(len(grid)), FirstNonFinite(len(grid))

    # Set-up ----------------------------------------------------------------------------------------------------

    @property
    def files(self) -> list[str]:
        """File names of the prompts, without suffix."""
        return [f"prompt-{name}" for name in self.names]

    def member(self, number: int) -> Reparameterization:
        """Return the reparameterization of prompt `number`."""
        return cast("Reparameterization", self.members[number])

    @property
    def is_built(self) -> bool:
        return self.member(0).is_built

    def connect(self, tasks: list[Task]) -> None:
        """Build the objective of `tasks`, with metrics for each prompt."""
        before = getattr(self, "objective", None)
        super().connect(tasks)
        if self.objective is before:
            return
        others = [make_objective(self.backbone, self.tasks, self.hparams.num_beams) for _ in self.names[1:]]
        self.objectives = nn.ModuleList([self.objective, *others]).to(self.device)

    def begin(self, seed: int) -> None:
        """Initialize the prompts; those without a seed of their own use `seed`."""
        self.seeds = [seed if own is None else own for own in self.seeds]
        starts = []
        for number, own in enumerate(self.seeds):
            self.inits[number] = self.init.for_seed(cast("int", own))
            starts.append(self.start(self.inits[number], cast("int", own)))
        self.build(torch.stack([initial for initial, _ in starts]), [generator for _, generator in starts])
        self._check_different()

    def build(self, initial: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> None:
        """Build the trained parameters from the vectors `initial` [N, P, W] of N prompts, with a generator for each."""
        self.prompt_length = initial.shape[1]
        self.register_buffer("initial_prompt", initial.detach().clone().float(), persistent=True)
        generators = generator if isinstance(generator, list) else [torch.Generator().manual_seed(0) for _ in initial]
        for number, own in enumerate(generators):
            self.member(number).build(initial[number].float(), self.backbone, own)
        self.members.to(self.device)

    def _check_different(self) -> None:
        """Raise UserError if two prompts would stay equal, which would make an interval over seeds meaningless."""
        if self.backbone.dropout:
            return
        for first, second in itertools.combinations(range(len(self.names)), 2):
            states = [self.member(number).state_dict() for number in (first, second)]
            same = all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
            if same and self.learning_rates[first] == self.learning_rates[second]:
                raise UserError(
                    f"the prompts {self.names[first]} and {self.names[second]} would start equal and stay equal with "
                    f"{self.init.describe()}: give one seed, or an initial prompt for each (a path with {{seed}})"
                )

    # The forward pass ------------------------------------------------------------------------------------------

    def current_prompt(self) -> Tensor:
        """Return all current prompts [N, ...], with their gradients."""
        return self.stacked(list(range(len(self.names))))

    def stacked(self, members: list[int]) -> Tensor:
        """Return the prompts with the numbers `members`, [N, ...]."""
        return torch.stack([self.shaped(self.member(number)()) for number in members])

    def trained(self) -> list[nn.Parameter]:
        return [p for number in self.active for p in self.member(number).parameters() if p.requires_grad]

    def passes(self, batches: list[dict[str, Tensor]]) -> list[Pass]:
        """Return each batch with groups of active prompts that fit in a forward pass."""
        found = []
        for batch in batches:
            size = min(self._at_once(batch), len(self.active))
            for start in range(0, len(self.active), size):
                found.append((batch, self.active[start : start + size]))
        return found

    def _at_once(self, batch: dict[str, Tensor]) -> int:
        limit = self.hparams.prompts_at_once or len(self.names)
        budget = getattr(self.trainer.datamodule, "max_tokens", None)
        if budget is None:
            return limit
        if self.backbone.is_sharded:
            # It would depend on the lengths in the batch of each process.
            raise UserError(
                "sharded layers are gathered by all processes at once, so --data.max_tokens cannot group several "
                "prompts: give --model.prompts_at_once instead"
            )
        rows, length = batch["input_ids"].shape
        target = batch["target_ids"].shape[1] if "target_ids" in batch else 0
        copies, option = batch["option_ids"].shape[1:] if "option_ids" in batch else (1, 0)
        positions = rows * copies * (length + self.encoder.extra_positions + max(target, option))
        return max(1, min(limit, budget // positions))

    def repeated(self, batch: dict[str, Tensor], times: int) -> dict[str, Tensor]:
        """Return a batch [B, ...] repeated for N = `times` prompts, [N * B, ...]; texts are not copied."""
        return cross_prompts(batch, torch.arange(times, device=batch["input_ids"].device))

    def summed_losses(self, batch: dict[str, Tensor], members: list[int]) -> Tensor:
        losses = self.objective.losses(self.stacked(members), self.repeated(batch, len(members)))
        sums = losses.view(len(members), -1).sum(dim=1)
        where = torch.tensor(members, device=sums.device)
        return sums.new_zeros(len(self.names)).index_add(0, where, sums) + self._unused()

    def _unused(self) -> Tensor:
        """Return a zero that depends on the stopped prompts, because DDP waits for the gradient of every parameter."""
        zero = torch.zeros((), device=self.device)
        if self.trainer.world_size == 1:
            return zero
        stopped = set(range(len(self.names))) - set(self.active)
        # A sum over no elements, because non-finite values would spread.
        return zero + sum(p.flatten()[:0].sum() for number in stopped for p in self.member(number).parameters())

    def on_after_backward(self) -> None:
        super().on_after_backward()
        # Momentum would move stopped prompts even with a gradient of zero.
        for number in set(range(len(self.names))) - set(self.active):
            for parameter in self.member(number).parameters():
                parameter.grad = None

    def log_losses(self, losses: Tensor, count: int) -> None:
        self.log("train/loss", losses[self.active].mean(), prog_bar=True, batch_size=count, sync_dist=True)
        if self.logs_this_step:
            own = {f"train/{self.names[number]}/loss": losses[number] for number in self.active}
            self.log_dict(own, batch_size=count, sync_dist=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logs_this_step:
            for number in self.active:
                self.log_dict(norms(f"train/{self.names[number]}", self.member(number), self.initial_prompt[number]))

    # Evaluation ------------------------------------------------------------------------------------------------

    def evaluation_step(self, batch: dict[str, Tensor], split: str) -> None:
        """Update the metrics of every active prompt."""
        references, size = self.references(batch), len(batch["ids"])
        for _, members in self.passes([batch]):
            outputs = self.objective.outputs(self.stacked(members), self.repeated(batch, len(members)))
            for place, number in enumerate(members):
                own = {name: values[place * size : (place + 1) * size] for name, values in outputs.items()}
                losses, record = self._objective(number).count(own, batch, split, references, self.keep_records)
                self.answered.observe_rows("loss", losses, batch["ids"], number)
                self._keep({**record, "prompt": self.names[number]})

    def _objective(self, number: int) -> Objective:
        return cast("Objective", self.objectives[number])

    def evaluation_end(self, split: str) -> None:
        """Log every prompt's metrics, and the best score as `<split>/score`."""
        self.check_answers(split)
        self.evaluated = list(self.active)
        scores = [
            self.log_scores(self._objective(number), split, f"{split}/{self.names[number]}") for number in self.active
        ]
        self.log(f"{split}/score", torch.stack(scores).max(), prog_bar=True)
        self.gather_records()

    # Non-finite values ------------------------------------------------------------------------------------------

    def largest_gradients(self) -> Tensor:
        found = torch.zeros(len(self.names), device=self.device)
        for number in self.active:
            found[number] = largest([p.grad for p in self.member(number).parameters() if p.grad is not None])
        return found

    def broken_prompts(self) -> list[int]:
        if not self.active:
            return []
        with torch.no_grad():
            finite = torch.isfinite(self.stacked(self.active)).flatten(1).all(dim=1).tolist()
        return [number for number, fine in zip(self.active, finite, strict=True) if not fine]

    def prompt_label(self, number: int) -> str:
        return f"prompt {self.names[number]}"

    def handle_nonfinite(self, number: int, trouble: str) -> None:
        """Stop the prompt with a warning; the others continue unaffected."""
        if number not in self.active:
            return
        if len(self.active) == 1:
            super().handle_nonfinite(number, f"{trouble}, and it was the last one")
        self.stop(number)
        if self.trainer.is_global_zero:
            warnings.warn(f"{trouble}; it is stopped, its best state so far is kept", stacklevel=2)

    def stop(self, number: int) -> None:
        """Stop training and scoring a prompt."""
        self.active.remove(number)

    def named_scores(self, logged: Mapping[str, Tensor], split: str) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for number in self.evaluated:
            prefix = f"{split}/{self.names[number]}/"
            own = {name.removeprefix(prefix): float(value) for name, value in logged.items() if name.startswith(prefix)}
            if own:
                found[self.files[number]] = own
        return found

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        raise UserError("PromptEnsemble predicts with one prompt at a time: give a prompt file of the run (--prompt)")

    # Optimizer -------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[Any]:
        groups: list[dict[str, Any]] = []
        for number, rate in enumerate(self.learning_rates):
            group: dict[str, Any] = {"params": [p for p in self.member(number).parameters() if p.requires_grad]}
            groups.append(group if rate is None else {**group, "lr": rate})
        return groups

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each prompt separately."""
        if not gradient_clip_val:
            return
        clip: Any = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
        for number in self.active:
            clip(self.member(number).parameters(), gradient_clip_val)

    # Files -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["prompts"], checkpoint["active"] = self.names, self.active

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = checkpoint.get("prompts", [])
        if trained != self.names:
            raise UserError(
                f"this checkpoint trains the prompts {', '.join(trained) or '(a single one)'}, the options name "
                f"{', '.join(self.names)}: resume with the seeds and learning rates of its training"
            )
        super().on_load_checkpoint(checkpoint)
        self.active = list(checkpoint["active"])

    def prompt(self, name: str = "prompt") -> Prompt:
        """Return a current prompt.

        Args:
            name: one of `files`.
        """
        number = self.files.index(name)
        prompt = self.packed(self.member(number), self.inits[number], self.initial_prompt[number])
        own = {"seed": str(self.seeds[number])}
        if self.learning_rates[number] is not None:
            own["learning_rate"] = repr(self.learning_rates[number])
        return Prompt(prompt.values, {**prompt.metadata, **own}, prompt.initial)


def _name(seed: int | None, rate: float | None) -> str:
    parts = [] if seed is None else [f"seed{seed}"]
    parts += [] if rate is None else [f"lr{rate:g}"]
    return "-".join(parts)


def _check(
    seeds: list[int] | None, rates: list[float] | None, prompts_at_once: int | None, options: dict[str, Any]
) -> None:
    if options.get("label_embeddings"):
        raise UserError("--model.label_embeddings trains one prompt at a time: leave out seeds and learning_rates")
    if not seeds and not rates:
        raise UserError("PromptEnsemble trains several prompts: give --model.seeds [0,1,2] or --model.learning_rates")
    if seeds is not None and (len(set(seeds)) != len(seeds) or not all(0 <= seed < 2**32 for seed in seeds)):
        raise UserError(f"--model.seeds {seeds}: give different numbers from 0 to 2**32 - 1")
    if rates is not None:
        if options.get("optimizer") is not None or options.get("learning_rate") is not None:
            raise UserError("--model.learning_rates excludes --model.learning_rate and --model.optimizer: give one")
        if len({_name(None, rate) for rate in rates}) != len(rates) or not all(rate > 0 for rate in rates):
            raise UserError(f"--model.learning_rates {rates}: give different numbers above 0")
    if prompts_at_once is not None and prompts_at_once < 1:
        raise UserError(f"--model.prompts_at_once is {prompts_at_once}: give 1 or more")
