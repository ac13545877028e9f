"""PromptHub: the nine methods of Su et al.'s release 2.0, for notebooks and scripts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prompt_transfer.analysis import neuron_plots, plots
from prompt_transfer.analysis.indicators import neuron_overlap, neuron_overlap_per_layer
from prompt_transfer.analysis.style import task_labels
from prompt_transfer.api.arguments import PromptTrainingArguments
from prompt_transfer.api.checked import load_projector, load_prompt, own_prompt_folder, projector_run, prompt_run
from prompt_transfer.api.names import check_backbone, check_task
from prompt_transfer.api.returns import Activations, MaskedNeurons, Picture, Score, Similarity, TrainingResult
from prompt_transfer.api.runs import quiet_session, train
from prompt_transfer.api.scores import CONTROL, have_same_mode, masked_score, score
from prompt_transfer.api.store import Store
from prompt_transfer.neurons import files
from prompt_transfer.neurons.mask import SCOPES, most_activated
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.listing import run_name
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.studies.backbones import load_backbone
from prompt_transfer.studies.neurons.capture import CaptureStudy, capture
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError

# Metadata that a random prompt of the same backbone inherits from a prompt.
SHARED = (
    *("backbone", "fingerprint", "family", "layout", "attention", "dtype", "head", "revision"),
    *("label_words_policy", "data_label_words", "data_template", "data_chat_template"),
)


class PromptHub:
    """Interface for training prompts, transferring them to tasks and backbones, and analysing their neurons.

    Every method reads its inputs from and writes its outputs to files below `args.output_dir` (layout:
    `prompt_transfer.api.store`). Methods therefore work in any process, and repeated calls reuse earlier results.
    Omitted arguments default to those of `args`. Every method prints its result and returns it.

    Args:
        args: output folder, default task and backbone, and training options.

    Raises:
        UserError: from every method: an unknown task or backbone, a missing prompt or projector (the message names the
            call that creates it), or inputs that do not fit each other.
    """

    def __init__(self, args: PromptTrainingArguments | None = None) -> None:
        if not isinstance(args, PromptTrainingArguments):
            raise UserError(f"PromptHub expects args=PromptTrainingArguments(...), not {type(args).__name__}")
        self.args = args

    def __repr__(self) -> str:
        return f"PromptHub({self.args})"

    @property
    def store(self) -> Store:
        """The files of this hub."""
        return Store(self.args.output_dir, self.args.seed)

    # Prompts ---------------------------------------------------------------------------------------------------

    def train_prompt(
        self, backbone: str | None = None, task: str | None = None, overwrite: bool = False
    ) -> TrainingResult:
        """Train a prompt with `fit`; the run is `prompts/<backbone>/<task>/`.

        A finished run with the same options is reused, an interrupted one is resumed.

        Args:
            overwrite: replace an existing run.

        Returns:
            The prompt file and its best validation score.
        """
        backbone, task = self._backbone(backbone), self._task(task)
        run = prompt_run(self.args, backbone, task)
        with quiet_session():
            return train(run.folder, "PromptTuning", run.config, run.origin, run.call, overwrite)

    def eval_prompt(self, backbone: str | None = None, task: str | None = None) -> Score:
        """Score a prompt and its baselines on the test split of its own task."""
        backbone, task = self._backbone(backbone), self._task(task)
        return self._score_on(backbone, task, task)

    def cross_task_eval(
        self, backbone: str | None = None, source_task: str | None = None, target_task: str | None = None
    ) -> Score:
        """Score one task's prompt, without training, on the test split and label words of another task.

        Returns:
            The score, with `relative` set if the target's own prompt exists.
        """
        backbone, source = self._backbone(backbone), self._task(source_task)
        if target_task is None:
            raise UserError("cross_task_eval needs a task to use the prompt on: give target_task")
        return self._score_on(backbone, source, self._task(target_task))

    # Other backbones -------------------------------------------------------------------------------------------

    def cross_model_train(
        self,
        source_model: str | None = None,
        target_model: str | None = None,
        task: str | Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> TrainingResult:
        """Train a projector between two backbones; the run is `projectors/<source>-to-<target>/<task>/`.

        The projector maps the source's prompt and is trained with the target's loss on the task's examples. Trained on
        a single prompt, it may learn a constant output: give several tasks to project other prompts too.

        Args:
            task: a task or list of tasks; each needs a prompt of the source.
            overwrite: replace an existing run.

        Returns:
            The projector file and its best validation score, averaged over tasks.
        """
        source, target = self._pair("cross_model_train", source_model, target_model)
        tasks = self._tasks(task)
        prompts = [load_prompt(self.args, source, name) for name in tasks]
        run = projector_run(self.args, source, target, tasks, prompts)
        with quiet_session():
            return train(run.folder, "CrossModelProjector", run.config, run.origin, run.call, overwrite)

    def cross_model_eval(
        self,
        source_model: str | None = None,
        target_model: str | None = None,
        task: str | None = None,
        trained_on: str | Sequence[str] | None = None,
    ) -> Score:
        """Project a prompt to another backbone and score it there on the test split of its task.

        Baselines are random prompts of the target, the target's own prompt if it exists, and projections of random
        prompts (`control`). `prompt-transfer analyze projection` has more controls, for several tasks.

        Args:
            task: the task whose prompt is projected.
            trained_on: the task or tasks that the projector was trained on; default: `task`.
        """
        source, target = self._pair("cross_model_eval", source_model, target_model)
        task = self._task(task)
        tasks = self._tasks(task if trained_on is None else trained_on)
        prompt = load_prompt(self.args, source, task)
        projector = load_projector(self.args, source, target, tasks)
        folder = self.store.projected(source, target, tasks, task)
        name = f"{get_task(task).name}-from-{self.store.projector_run(source, target, tasks).parent.name}"
        with quiet_session():
            projected = self._project(source, prompt, projector, folder, name)
            places = [folder, *own_prompt_folder(self.args, target, task, projected)]
            output = self.store.place("scores", target, name, "+".join(get_task(one).name for one in tasks))
            return score(self.args, target, task, places, name, get_task(task).name, output)

    def _project(self, source: str, prompt: Prompt, projector: ProjectorFile, folder: Path, name: str) -> Prompt:
        """Save the projections of a prompt and of random prompts of the source; return the prompt's."""
        projected = {name: projector.project(prompt)}
        # Drawing random prompts needs only the embedding table.
        backbone = load_backbone(source, {name: prompt}, accelerator="cpu")
        facts = {key: prompt.metadata[key] for key in SHARED if prompt.metadata.get(key)}
        shape = (prompt.embeddings.shape[0], prompt.embeddings.shape[1])
        for number in range(1, self.args.random_prompts + 1):
            drawn = Prompt(random_prompt(backbone, shape, number), {**facts, "random": "true"})
            projected[f"{CONTROL}-{number}"] = projector.project(drawn)
        # Controls left from an earlier call would be scored too.
        shutil.rmtree(folder, ignore_errors=True)
        for key, one in projected.items():
            one.save(folder / f"{key}.safetensors")
        return projected[name]

    # Neurons ---------------------------------------------------------------------------------------------------

    def activated_neuron(self, backbone: str | None = None, task: str | None = None) -> Activations:
        """Return a backbone's neurons for a prompt without input text, before and after the activation function."""
        backbone, task = self._backbone(backbone), self._task(task)
        load_prompt(self.args, backbone, task)
        with quiet_session():
            found = self._neurons(backbone, task)
        active = (found.after > 0).float().mean(dim=1).tolist()
        rows = [{"layer": str(layer), "share active": share} for layer, share in enumerate(active)]
        print(f"{found.after.shape[1]} neurons per layer of {backbone}, given the prompt of {task}")
        results.show(rows)
        return found

    def neuron_similarity(
        self, backbone: str | None = None, task1: str | None = None, task2: str | None = None
    ) -> Similarity:
        """Return ON, the overlap of the neurons that two tasks' prompts activate: the cosine of two 0/1 vectors."""
        backbone, first = self._backbone(backbone), self._task(task1)
        if task2 is None:
            raise UserError("neuron_similarity compares two tasks: give task2")
        second = self._task(task2)
        prompts = [load_prompt(self.args, backbone, task) for task in (first, second)]
        if not have_same_mode(*prompts):
            raise UserError(
                f"the prompts of {first} and {second} differ in layout, attention, dtype or head, so their neurons "
                "cannot be compared: train them with the same options"
            )
        with quiet_session():
            neurons = torch.stack([self._neurons(backbone, task).after for task in (first, second)])
        layers = tuple(float(matrix[0, 1]) for matrix in neuron_overlap_per_layer(neurons))
        overlap = float(neuron_overlap(neurons)[0, 1])
        found = Similarity(backbone=backbone, task1=first, task2=second, overlap=overlap, layers=layers)
        rows = [{"layers": "all", "ON": found.overlap}]
        rows += [{"layers": str(layer), "ON": value} for layer, value in enumerate(layers)]
        print(f"overlap of activated neurons, {first} and {second}, {backbone}")
        results.show(rows)
        return found

    def mask_activated_neuron(
        self, backbone: str | None = None, task: str | None = None, ratio: float = 0.2, scope: str = "layer"
    ) -> MaskedNeurons:
        """Score a prompt with its most activated neurons set to 0, and with as many random ones set to 0.

        Args:
            ratio: fraction of neurons to mask, above 0 and up to 1.
            scope: `layer` masks the same fraction of each layer; `all` that of all layers together, as release 2.0
                does, which masks more in layers with larger activations.

        Returns:
            The scores and the mask.
        """
        backbone, task = self._backbone(backbone), self._task(task)
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise UserError(f"ratio is {ratio!r}: give a fraction of neurons, above 0 and up to 1")
        if scope not in SCOPES:
            raise UserError(f"scope is {scope!r}: choose one of {', '.join(SCOPES)}")
        run, name = self.store.prompt_run(backbone, task), get_task(task).name
        load_prompt(self.args, backbone, task)
        with quiet_session():
            after = self._neurons(backbone, task).after
            own, active = most_activated(after, ratio, scope), float((after > 0).float().mean())
            if not own.any():
                raise UserError(f"ratio is {ratio!r}, less than one of {after.shape[1]} neurons per layer: give more")
            if ratio > active:
                print(
                    f"note: this prompt activates {active:.1%} of the neurons; a ratio of {ratio:g} also masks others"
                )
            neurons = self.store.place("neurons", backbone, name)
            output = self.store.place("masks", backbone, name)
            found = masked_score(self.args, backbone, task, run, neurons, float(ratio), scope, output)
        return MaskedNeurons(found, own)

    def plot_neuron(self, backbone: str | None = None, task: str | Sequence[str] | None = None) -> Picture:
        """Plot the neurons that the prompts of one or more tasks activate: `figures/<backbone>/neurons-<task>.png`.

        The neurons of each layer are sorted by the number of prompts that activate them.
        """
        backbone, tasks = self._backbone(backbone), self._tasks(task)
        names = [get_task(name).name for name in tasks]
        for name in tasks:
            load_prompt(self.args, backbone, name)
        with quiet_session():
            neurons = np.stack([self._neurons(backbone, name).after.numpy() for name in tasks])
            path = self.store.place("figures", backbone, f"neurons-{'+'.join(names)}.png")
            plots.save(neuron_plots.activation_heatmap(neurons, task_labels(names)), path)
        print(path)
        return Picture(path)

    def _neurons(self, backbone: str, task: str) -> Activations:
        """Return a prompt's neurons, capturing them if missing or outdated."""
        prompt = self.store.prompt(backbone, task)
        run = self.store.prompt_run(backbone, task)
        folder = self.store.place("neurons", backbone, get_task(task).name)
        path = folder / Path(str(prompt.path)).name
        known = _activations(path, prompt) if path.is_file() else None
        if known is None:
            path.unlink(missing_ok=True)
            capture(CaptureStudy(backbone, str(run), str(folder), accelerator=self.args.accelerator))
            known = _activations(path, prompt)
        assert known is not None
        return known

    # Arguments -------------------------------------------------------------------------------------------------

    def _backbone(self, given: str | None) -> str:
        return check_backbone(self.args.backbone if given is None else str(given))

    def _task(self, given: str | None) -> str:
        return check_task(self.args.dataset if given is None else str(given))

    def _tasks(self, given: str | Sequence[str] | None) -> list[str]:
        names = [self._task(given)] if given is None or isinstance(given, str | Path) else list(map(self._task, given))
        if not names or len({get_task(name).name for name in names}) < len(names):
            raise UserError(f"task is {list(given or ())}: give one or more different tasks")
        return names

    def _pair(self, verb: str, source: str | None, target: str | None) -> tuple[str, str]:
        if target is None:
            raise UserError(f"{verb} needs a backbone to project prompts to: give target_model")
        return self._backbone(source), self._backbone(target)

    def _score_on(self, backbone: str, source: str, target: str) -> Score:
        """Score the prompt of a source task on a target task."""
        prompt, run = load_prompt(self.args, backbone, source), self.store.prompt_run(backbone, source)
        names = [get_task(task).name for task in (target, source)]
        with quiet_session():
            places = [run] if names[0] == names[1] else [run, *own_prompt_folder(self.args, backbone, target, prompt)]
            output = self.store.place("scores", backbone, "-from-".join(names))
            return score(self.args, backbone, target, places, str(run_name(Path(str(prompt.path)))), names[1], output)


def _activations(path: Path, prompt: Prompt) -> Activations | None:
    """Read a neuron file; None if it belongs to another prompt or backbone."""
    found, facts = files.read(path)
    wanted = {"prompt": files.digest(prompt.values), "backbone": prompt.metadata.get("fingerprint") or UNKNOWN}
    if any(value not in (UNKNOWN, facts.get(key)) for key, value in wanted.items()):
        return None
    return Activations(found["before"], found["activations"])
