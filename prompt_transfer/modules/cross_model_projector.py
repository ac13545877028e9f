"""CrossModelProjector: the LightningModule that trains a projector from one backbone's prompts to another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.modules import collapse
from prompt_transfer.modules.distillation import Teacher
from prompt_transfer.modules.objectives import Classification
from prompt_transfer.modules.projection import ProjectionConfig, index_prompts
from prompt_transfer.modules.trained import TrainedModule
from prompt_transfer.projectors.file import ProjectorFile, Side
from prompt_transfer.projectors.pairs import PromptsByTask, load_by_task
from prompt_transfer.projectors.projector import MLP, AffineMap, Space, TrainedProjector
from prompt_transfer.projectors.vocabulary import fit_ridge, shared_tokens
from prompt_transfer.prompts.prompt import library_versions
from prompt_transfer.tasks.registry import Task
from prompt_transfer.utils.errors import UserError

# Options recorded in a projector file.
_SAVED = ("contrastive", "variance", "variance_floor", "distance_weight", "distill_alpha", "distill_across", "select")


class CrossModelProjector(TrainedModule):
    """A projector trained from a source to a target backbone; both backbones and the source prompts stay bit-equal.

    Each example is scored by the target backbone with the projection of a source prompt of the example's own task;
    several prompts of a task (seeds) take turns. Tasks in --data.held_out are not trained on. The score that selects is
    theirs, which favours projectors that generalize to unseen prompts.

    Shape letters: B batch, K source prompts, P prompt tokens, H hidden, C classes.

    Args:
        prompts: source prompts: files, run folders, or folders of them; prompts of tasks outside the run are ignored.
        projector: what is trained; default: the MLP of Su et al.
        objective: `task_tuning` (the target's task loss with the projected prompt), `distance` (from the target's own
            prompts of the same tasks), `both` (their sum), or `distill` (match the source's answers with its prompt,
            without labels; tasks with classes).
        target_prompts: for distance and both: the target's prompts, given like `prompts`.
        prompt_length: tokens of the projected prompt; default: as many as the source prompts have.
        distance_weight: of the distance in `both`.
        contrastive: weight of a contrastive loss between projections of different tasks, against collapse.
        temperature: of the contrastive loss.
        variance: weight of a loss on projections with too little spread, against collapse.
        variance_floor: the spread below which that loss applies: 1 minus the mean's share of the mean square.
        distill_alpha: weight in `distill` of the logit shifts (with minus without a prompt); the logits get the rest.
        distill_temperature: of the divergence in `distill`.
        distill_across: in `distill`, pair every example with the source prompts of all tasks of the run in turn,
            including those of --data.held_out, whose examples are not trained on. This needs no labels and no text of
            a prompt's own task. Otherwise examples use the prompts of their own task.
        select: keep the projector with the best `score` (on the labels of the validation split) or with the best
            `agreement` (share of examples where target and source predict the same class; needs no labels). Both are
            logged.
        source_backbone: overrides the backbone named in the source prompts; it is loaded for distill, agreement, and
            projectors that are initialized by least squares.
        options: those of `TrainedModule`, for the target backbone.
    """

    trained_name = "projector"
    source_prompts: Tensor
    wanted: Tensor
    numbers: Tensor
    counts: Tensor
    prompt_tasks: Tensor
    trained_numbers: Tensor

    def __init__(
        self,
        prompts: list[str] | str,
        projector: TrainedProjector | None = None,
        objective: str = "task_tuning",
        target_prompts: list[str] | str | None = None,
        prompt_length: int | None = None,
        distance_weight: float = 1.0,
        contrastive: float = 0.0,
        temperature: float = 0.1,
        variance: float = 0.0,
        variance_floor: float = 0.3,
        distill_alpha: float = 0.5,
        distill_temperature: float = 2.0,
        distill_across: bool = False,
        select: str = "score",
        source_backbone: str | None = None,
        **options: Any,
    ) -> None:
        config = ProjectionConfig(
            objective=objective,
            distance_weight=distance_weight,
            contrastive=contrastive,
            temperature=temperature,
            variance=variance,
            variance_floor=variance_floor,
            distill_alpha=distill_alpha,
            distill_temperature=distill_temperature,
            distill_across=distill_across,
            select=select,
        )
        given = [target_prompts] if isinstance(target_prompts, str) else list(target_prompts or ())
        if config.uses_distance and not given:
            raise UserError(
                f"objective {objective} needs the target's own prompts of the same tasks: give --model.target_prompts"
            )
        sources = load_by_task([prompts] if isinstance(prompts, str) else prompts, "--model.prompts")
        super().__init__(**options)
        self.projection = config
        self.projector = projector or MLP()
        self.sources = sources
        self.targets: PromptsByTask | None = None
        if config.uses_distance:
            self.targets = load_by_task(given, "--model.target_prompts")
        self.source_length, source_width = sources.embeddings.shape[1:]
        self.prompt_length = self.source_length if prompt_length is None else prompt_length
        if self.prompt_length < 1 or (not self.projector.whole and self.prompt_length != self.source_length):
            raise UserError(
                f"prompt_length is {self.prompt_length}: {type(self.projector).__name__} maps token by token, and "
                f"the source prompts have {self.source_length} tokens; leave it out, or use the projector MLP"
            )
        self.spaces = Space(self.source_length, source_width), Space(self.prompt_length, self.backbone.hidden_size)
        self._source_name = source_backbone
        # In a list, which hides it from `state_dict` and `parameters`.
        self._source: list[FrozenBackbone] = []
        self.teacher: Teacher | None = None
        self.register_buffer("source_prompts", sources.embeddings, persistent=False)
        self.agreement = MeanMetric()
        self.save_hyperparameters(
            {
                **asdict(config),
                "prompt_length": self.prompt_length,
                "projector": self.projector.describe(),
                "source_prompts": hashlib.sha256(sources.embeddings.numpy().tobytes()).hexdigest()[:16],
            }
        )

    @property
    def default_learning_rate(self) -> float:
        # Learning rates of prompts (0.3 for T5) are too high for a network; release 1.0 uses 5e-3.
        return 1e-3

    # Set-up ----------------------------------------------------------------------------------------------------

    def connect(self, tasks: list[Task]) -> None:
        """Build objective and metrics of `tasks`, and find the prompts of each."""
        before = getattr(self, "objective", None)
        super().connect(tasks)
        if self.objective is before:
            return
        if self.projection.uses_source and not isinstance(self.objective, Classification):
            raise UserError(
                f"{self.tasks[0].name} generates text, but distill and agreement compare classes: use objective "
                "task_tuning and select score"
            )
        names = [task.name for task in self.tasks]
        self.sources.need(names, "source")
        numbers = [self.sources.numbers[name] for name in names]
        held_out = getattr(self.trainer.datamodule, "held_out", ())
        seen = [name for name in names if self.projection.distill_across or name not in held_out]
        trained = sorted(number for name in seen for number in self.sources.numbers[name])
        for name, value in index_prompts(numbers, trained, len(self.sources.prompts)).items():
            self.register_buffer(name, value.to(self.device), persistent=False)
        if self.targets is not None:
            self.targets.need([name for name in names if name not in held_out], "target")
            self._connect_targets(trained)

    def _connect_targets(self, trained: list[int]) -> None:
        assert self.targets is not None
        partners = [self.targets.prompts[number] for number in self.sources.partners(self.targets, trained)]
        for prompt in partners:
            prompt.check(self.backbone, self.backbone.layout, self.backbone.attention)
            if len(prompt.embeddings) != self.prompt_length:
                raise UserError(
                    f"{prompt.path} has {len(prompt.embeddings)} prompt tokens and the projections have "
                    f"{self.prompt_length}, but a distance needs equal lengths: give --model.prompt_length with the "
                    "projector MLP"
                )
        wanted = torch.stack([prompt.embeddings for prompt in partners]).to(self.device)
        self.register_buffer("wanted", wanted, persistent=False)

    @property
    def is_built(self) -> bool:
        return self.projector.is_built

    def begin(self, seed: int) -> None:
        # A generator of its own makes the start depend on the seed alone.
        generator = torch.Generator().manual_seed(seed)
        seen = self.source_prompts[self.trained_numbers].cpu()
        start = self._least_squares()
        kind = type(self.projector).__name__
        initial = (
            self.sources.common_start(self.trained_numbers.tolist(), kind) if self.projector.wants_initial else None
        )
        self.projector.build(*self.spaces, generator, seen, start, initial)
        self.projector.to(self.device)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.projector.allocate(*self.spaces)
        self.projector.to(self.device)

    def _least_squares(self) -> AffineMap | None:
        if not self.projector.wants_start:
            return None
        tokens = shared_tokens(self.source(), self.backbone)
        return fit_ridge(tokens.source, tokens.target).affine

    def source(self) -> FrozenBackbone:
        """Return the source backbone; it is loaded on first use."""
        if not self._source:
            self._source.append(self.sources.backbone(self._source_name))
        return self._source[0]

    def on_fit_start(self) -> None:
        """Compute the source's answers once: they never change."""
        if not self.projection.uses_source:
            return
        assert isinstance(self.objective, Classification)
        numbers = [self.sources.numbers[task.name] for task in self.tasks]
        source = Classification(self.source().to(self.device), self.tasks).to(self.device)
        target = self.objective if self.projection.objective == "distill" else None
        across = None
        if self.projection.distill_across:
            across = {number: int(self.prompt_tasks[number]) for number in self.trained_numbers.tolist()}
        options = self.projection.distill_alpha, self.projection.distill_temperature
        data = self.trainer.datamodule
        self.teacher = Teacher(source, data, self.source_prompts, numbers, across, target, *options)

    # The forward pass ------------------------------------------------------------------------------------------

    def forward(self, prompts: Tensor) -> Tensor:
        """Return the projections [K, P', H'] of source prompts [K, P, H]."""
        return self.projector(prompts)

    def current_prompt(self) -> Tensor:
        """Return the projections [K, P', H'] of all source prompts."""
        return self.projector(self.source_prompts)

    def slots(self, batch: dict[str, Tensor], turn: int = 0) -> Tensor:
        """Return which prompt of its task each example uses in `turn`, as an index [B]."""
        return (batch["ids"] + turn) % self.counts[batch["task_ids"]]

    def trained(self) -> list[torch.nn.Parameter]:
        return list(self.projector.parameters())

    def summed_losses(self, batch: dict[str, Tensor], members: list[int]) -> Tensor:
        """Return the summed losses [1]; terms of the projections themselves count once per example."""
        turn = self.trainer.global_step
        if self.projection.distill_across:
            slots = (batch["ids"] + turn) % len(self.trained_numbers)
            which = self.trained_numbers[slots]
            batch = {**batch, "task_ids": self.prompt_tasks[which]}
        else:
            slots = self.slots(batch, turn)
            which = self.numbers[batch["task_ids"], slots]
        regularizes = self.projection.regularizes
        used = self.trained_numbers if regularizes else which.unique()
        projected = self.projector(self.source_prompts[used])
        total = torch.zeros((), device=self.device)
        if self.projection.objective != "distance":
            prompted = {**batch, "prompt_ids": torch.searchsorted(used, which)}
            if self.teacher is not None and self.projection.objective == "distill":
                assert isinstance(self.objective, Classification)
                total = self.teacher.losses(self.objective.logits(projected, prompted), batch, slots).sum()
            else:
                total = self.objective.losses(projected, prompted).sum()
        if regularizes:
            terms = self.terms(projected)
            total = total + len(which) * torch.stack(list(terms.values())).sum()
            if self.logs_this_step:
                self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=len(which))
        return total[None]

    def terms(self, projected: Tensor) -> dict[str, Tensor]:
        """Return the weighted loss terms of the trained projections [K, P', H'], by name."""
        wanted = self.wanted if self.projection.uses_distance else None
        return self.projection.terms(projected, self.prompt_tasks[self.trained_numbers], wanted)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logs_this_step:
            gradients = [p.grad.norm() for p in self.projector.parameters() if p.grad is not None]
            self.log("train/gradient_norm", torch.stack(gradients).norm())

    # Evaluation ------------------------------------------------------------------------------------------------

    @property
    def score_name(self) -> str:
        return "score" if self.projection.select == "score" else "labelled"

    def evaluation_step(self, batch: dict[str, Tensor], split: str) -> None:
        super().evaluation_step({**batch, "prompt_ids": self.numbers[batch["task_ids"], self.slots(batch)]}, split)

    def observe(self, record: dict[str, Any], batch: dict[str, Tensor], split: str) -> None:
        if self.teacher is None or split != "validation":
            return
        selecting = torch.tensor([self.selects(task) for task in self.tasks], device=self.device)
        agrees = self.teacher.agrees(record["predictions"], batch["ids"], self.slots(batch))
        agrees = agrees[selecting[batch["task_ids"]]]
        if len(agrees):
            self.agreement.update(agrees)

    def evaluation_end(self, split: str) -> None:
        super().evaluation_end(split)
        if self.teacher is not None and split == "validation":
            agreement = self.agreement.compute()
            self.agreement.reset()
            self.log(f"{split}/agreement", agreement)
            if self.projection.select == "agreement":
                self.log(f"{split}/score", agreement, prog_bar=True)
        if len(self.tasks) > 1:
            mine = self.prompt_tasks >= 0
            projected = self.projector(self.source_prompts[mine])
            self.log(f"{split}/cosine", collapse.mean_cosine(projected, self.prompt_tasks[mine]))

    def named_scores(self, logged: Mapping[str, Tensor], split: str) -> dict[str, dict[str, float]]:
        found = super().named_scores(logged, split)
        return {"projector": found["prompt"]} if found else {}

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        raise UserError("a projector makes no predictions: make a prompt file with `prompts project` and use that")

    # Files -----------------------------------------------------------------------------------------------------

    def projector_file(self) -> ProjectorFile:
        """Return the current projector with its metadata; its tensors are shared with the module."""
        whole = self.projector.whole
        source = Side.of_prompt(self.sources.prompts[0], self.source_length if whole else None)
        target = Side.of_backbone(self.backbone, self.prompt_length if whole else None)
        names = [task.name for task in self.tasks]
        held_out = [task.name for task in self.tasks if task.name in self.trainer.datamodule.held_out]
        used = [self.sources.names[number] for number in self.trained_numbers.tolist()]
        metadata = {
            "objective": self.projection.objective,
            "tasks": ",".join(name for name in names if name not in held_out),
            "held_out": ",".join(held_out),
            "source_prompts": json.dumps(used),
            "learning_rate": "" if self.optimization.optimizer else repr(self.hparams.learning_rate),
            "versions": library_versions(),
            **{key: str(self.hparams[key]) for key in _SAVED},
        }
        return ProjectorFile(self.projector, source, target, metadata)
