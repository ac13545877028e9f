"""CrossModelProjector: the LightningModule that trains a map from prompts of one backbone to prompts of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.modules import collapse
from prompt_transfer.modules.distillation import Teacher
from prompt_transfer.modules.objectives import Classification
from prompt_transfer.modules.projector_options import check_options
from prompt_transfer.modules.trained import TrainedModule
from prompt_transfer.projectors.file import ProjectorFile, Side
from prompt_transfer.projectors.pairs import PromptsByTask, load_by_task
from prompt_transfer.projectors.projector import MLP, AffineMap, Space, TrainedProjector
from prompt_transfer.projectors.vocabulary import fit_ridge, shared_tokens
from prompt_transfer.prompts.prompt import library_versions
from prompt_transfer.tasks.registry import Task
from prompt_transfer.utils.errors import UserError

# Options that a projector's file tells.
_SAVED = ("contrastive", "variance", "variance_floor", "distance_weight", "distill_alpha", "distill_across", "select")


class CrossModelProjector(TrainedModule):
    """Trains a projector alone: both backbones and the source prompts stay bit-equal.

    Each example is answered by the target backbone behind the projection of a source prompt of its own task; of several
    (seeds) they take turns. Tasks of --data.held_out are not trained on: the score that selects is theirs, so what is
    selected for is the projection of prompts that the projector has not seen.

    Shape letters: B batch, K source prompts, P prompt tokens, H hidden, C classes.

    Args:
        prompts: source prompts: files, runs or folders of them; those of tasks that the run does not have are left out.
        projector: what is trained; default: MLP, that of Su et al.
        objective: `task_tuning` (the target's loss on the task behind the projection), `distance` (from the target's
            own prompts of the same tasks), `both` (their sum), or `distill` (answer as the source does behind its
            prompt, without labels; tasks with classes).
        target_prompts: for distance and both: the target's prompts, as `prompts`.
        prompt_length: rows of the projection; default: as many as the source prompts have.
        distance_weight: of the distance in `both`.
        contrastive: weight of a contrastive loss between projections of different tasks, against collapse.
        temperature: of the contrastive loss.
        variance: weight of a loss below a spread of the projections, against collapse.
        variance_floor: that spread: the share of the projections' mean square that is not their mean's.
        distill_alpha: share of the logit shifts (what a prompt adds) in `distill`, beside the logits.
        distill_temperature: of the divergence in `distill`.
        distill_across: in `distill`, every row behind the source prompts of all tasks of the run in turn, those of
            --data.held_out too, of which no row is trained on: what the source says behind a prompt needs no label and
            no text of the prompt's own task. Else each row behind a prompt of its own task.
        select: keep the projector with the best `score` (labels of the validation rows), or with the best `agreement`:
            how often the target answers as the source does. That needs no label; both are logged.
        source_backbone: in place of the one that the source prompts name; loaded for distill, agreement, and a
            projector that starts from least squares.
        options: as of PromptTuning, for the target backbone.
    """

    what = "projector"
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
        facts = {
            "objective": objective,
            "distance_weight": distance_weight,
            "contrastive": contrastive,
            "temperature": temperature,
            "variance": variance,
            "variance_floor": variance_floor,
            "distill_alpha": distill_alpha,
            "distill_temperature": distill_temperature,
            "distill_across": distill_across,
            "select": select,
        }
        check_options(facts, target_prompts)
        sources = load_by_task([prompts] if isinstance(prompts, str) else prompts, "--model.prompts")
        super().__init__(**options)
        self.projector = projector or MLP()
        self.sources = sources
        self.aim = objective
        self.targets: PromptsByTask | None = None
        if self._uses_distance:
            given = [target_prompts] if isinstance(target_prompts, str) else list(target_prompts or ())
            self.targets = load_by_task(given, "--model.target_prompts")
        self.source_length, source_width = sources.embeddings.shape[1:]
        self.prompt_length = self.source_length if prompt_length is None else prompt_length
        if self.prompt_length < 1 or (not self.projector.whole and self.prompt_length != self.source_length):
            raise UserError(
                f"prompt_length is {self.prompt_length}: {type(self.projector).__name__} maps row by row, and the "
                f"source prompts have {self.source_length} rows; leave it out, or take the projector MLP"
            )
        self.spaces = Space(self.source_length, source_width), Space(self.prompt_length, self.backbone.hidden_size)
        self._source_name = source_backbone
        # In a list: they are not submodules, so no checkpoint and no optimizer sees them.
        self._source: list[FrozenBackbone] = []
        self.teacher: Teacher | None = None
        self.register_buffer("source_prompts", sources.embeddings, persistent=False)
        self.agreement = MeanMetric()
        self.save_hyperparameters(
            {
                **facts,
                "prompt_length": self.prompt_length,
                "projector": self.projector.describe(),
                "source_prompts": hashlib.sha256(sources.embeddings.numpy().tobytes()).hexdigest()[:16],
            }
        )

    @property
    def default_learning_rate(self) -> float:
        # A prompt's rate (0.3 for T5) would throw the weights of a network about; release 1.0 has 5e-3.
        return 1e-3

    @property
    def _uses_distance(self) -> bool:
        return self.aim in ("distance", "both")

    # Set-up ----------------------------------------------------------------------------------------------------

    def connect(self, tasks: list[Task]) -> None:
        """Build what `tasks` are trained and scored on, and find the prompts of each."""
        before = getattr(self, "objective", None)
        super().connect(tasks)
        if self.objective is before:
            return
        if self._asks_source and not isinstance(self.objective, Classification):
            raise UserError(
                f"{self.tasks[0].name} is to be answered with a text: distill and agreement compare answers of classes"
            )
        names = [task.name for task in self.tasks]
        self.sources.need(names, "source")
        of_task = [self.sources.numbers[name] for name in names]
        held_out = getattr(self.trainer.datamodule, "held_out", ())
        seen = [name for name in names if self.hparams.distill_across or name not in held_out]
        trained = sorted(number for name in seen for number in self.sources.numbers[name])
        tasks_of = {number: index for index, numbers in enumerate(of_task) for number in numbers}
        most = max(map(len, of_task))
        for name, value in (
            ("numbers", [[*numbers, *[0] * (most - len(numbers))] for numbers in of_task]),
            ("counts", [len(numbers) for numbers in of_task]),
            # -1: of a task that the run does not have.
            ("prompt_tasks", [tasks_of.get(number, -1) for number in range(len(self.sources.prompts))]),
            ("trained_numbers", trained),
        ):
            self.register_buffer(name, torch.tensor(value, device=self.device), persistent=False)
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
                    f"{prompt.path} has {len(prompt.embeddings)} rows and the projections have {self.prompt_length}: "
                    "the distance is between prompts of one length (--model.prompt_length, with the projector MLP)"
                )
        wanted = torch.stack([prompt.embeddings for prompt in partners]).to(self.device)
        self.register_buffer("wanted", wanted, persistent=False)

    @property
    def is_built(self) -> bool:
        return self.projector.is_built

    def begin(self, seed: int) -> None:
        # Its own generator: the start depends on the seed alone, not on what was drawn before.
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
        """The source backbone, loaded when first asked for."""
        if not self._source:
            self._source.append(self.sources.backbone(self._source_name))
        return self._source[0]

    @property
    def _asks_source(self) -> bool:
        """Whether the source backbone's answers are needed."""
        return self.aim == "distill" or self.hparams.select == "agreement"

    def on_fit_start(self) -> None:
        """Let the source answer all rows once: what it says behind fixed prompts never changes."""
        if not self._asks_source:
            return
        assert isinstance(self.objective, Classification)
        of_task = [self.sources.numbers[task.name] for task in self.tasks]
        its = Classification(self.source().to(self.device), self.tasks).to(self.device)
        mine = self.objective if self.aim == "distill" else None
        all_of_run = {number: int(self.prompt_tasks[number]) for number in self.trained_numbers.tolist()}
        across = all_of_run if self.hparams.distill_across else None
        options = self.hparams.distill_alpha, self.hparams.distill_temperature
        self.teacher = Teacher(its, self.trainer.datamodule, self.source_prompts, of_task, across, mine, *options)

    # The forward pass ------------------------------------------------------------------------------------------

    def forward(self, prompts: Tensor) -> Tensor:
        """Projections [K, P', H'] of source prompts [K, P, H]."""
        return self.projector(prompts)

    def current_prompt(self) -> Tensor:
        """The projections [K, P', H'] of all source prompts."""
        return self.projector(self.source_prompts)

    def slots(self, batch: dict[str, Tensor], turn: int = 0) -> Tensor:
        """Which of its task's prompts each example [B] takes; another one each turn."""
        return (batch["ids"] + turn) % self.counts[batch["task_ids"]]

    def trained(self) -> list[torch.nn.Parameter]:
        return list(self.projector.parameters())

    def summed_losses(self, batch: dict[str, Tensor], members: list[int]) -> Tensor:
        """Losses of examples, and for each of them once what is asked of the projections themselves."""
        turn = self.trainer.global_step
        if self.hparams.distill_across:
            slots = (batch["ids"] + turn) % len(self.trained_numbers)
            which = self.trained_numbers[slots]
            batch = {**batch, "task_ids": self.prompt_tasks[which]}
        else:
            slots = self.slots(batch, turn)
            which = self.numbers[batch["task_ids"], slots]
        about_all = self._uses_distance or self.hparams.contrastive or self.hparams.variance
        used = self.trained_numbers if about_all else which.unique()
        projected = self.projector(self.source_prompts[used])
        total = torch.zeros((), device=self.device)
        if self.aim != "distance":
            behind = {**batch, "prompt_ids": torch.searchsorted(used, which)}
            if self.teacher is not None and self.aim == "distill":
                assert isinstance(self.objective, Classification)
                total = self.teacher.losses(self.objective.logits(projected, behind), batch, slots).sum()
            else:
                total = self.objective.losses(projected, behind).sum()
        if about_all:
            terms = self.terms(projected)
            total = total + len(which) * torch.stack(list(terms.values())).sum()
            if self.logs_this_step:
                self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=len(which))
        return total[None]

    def terms(self, projected: Tensor) -> dict[str, Tensor]:
        """What is asked of the projections [K, P', H'] of the trained prompts themselves, each times its weight."""
        options, found = self.hparams, {}
        if self._uses_distance:
            weight = options.distance_weight if self.aim == "both" else 1.0
            found["distance"] = weight * collapse.distance(projected, self.wanted)
        tasks = self.prompt_tasks[self.trained_numbers]
        if options.contrastive:
            found["contrastive"] = options.contrastive * collapse.contrastive(projected, tasks, options.temperature)
        if options.variance:
            found["variance"] = options.variance * collapse.variance(projected, options.variance_floor)
        return found

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logs_this_step:
            gradients = [p.grad.norm() for p in self.projector.parameters() if p.grad is not None]
            self.log("train/gradient_norm", torch.stack(gradients).norm())

    # Evaluation ------------------------------------------------------------------------------------------------

    @property
    def score_name(self) -> str:
        return "score" if self.hparams.select == "score" else "labelled"

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
            if self.hparams.select == "agreement":
                self.log(f"{split}/score", agreement, prog_bar=True)
        if len(self.tasks) > 1:
            mine = self.prompt_tasks >= 0
            projected = self.projector(self.source_prompts[mine])
            self.log(f"{split}/cosine", collapse.mean_cosine(projected, self.prompt_tasks[mine]))

    def named_scores(self, logged: Mapping[str, Tensor], split: str) -> dict[str, dict[str, float]]:
        found = super().named_scores(logged, split)
        return {"projector": found["prompt"]} if found else {}

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        raise UserError("a projector predicts nothing: make a prompt file with `prompts project`, and use that")

    # Files -----------------------------------------------------------------------------------------------------

    def projector_file(self) -> ProjectorFile:
        """The projector as it is now with what the module knows; it shares its numbers with the module."""
        whole = self.projector.whole
        source = Side.of_prompt(self.sources.prompts[0], self.source_length if whole else None)
        target = Side.of_backbone(self.backbone, self.prompt_length if whole else None)
        names = [task.name for task in self.tasks]
        held_out = [task.name for task in self.tasks if task.name in self.trainer.datamodule.held_out]
        used = [self.sources.names[number] for number in self.trained_numbers.tolist()]
        metadata = {
            "objective": self.aim,
            "tasks": ",".join(name for name in names if name not in held_out),
            "held_out": ",".join(held_out),
            "source_prompts": json.dumps(used),
            "learning_rate": "" if self._optimizer else repr(self.hparams.learning_rate),
            "versions": library_versions(),
            **{key: str(self.hparams[key]) for key in _SAVED},
        }
        return ProjectorFile(self.projector, source, target, metadata)
