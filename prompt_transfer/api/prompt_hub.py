"""PromptHub: the nine verbs of release 2.0 of Su et al. for notebooks and scripts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prompt_transfer.analysis import neuron_plots, plots
from prompt_transfer.analysis.indicators import neuron_overlap, neuron_overlap_per_layer
from prompt_transfer.api.arguments import PromptTrainingArguments
from prompt_transfer.api.returns import Activations, MaskedNeurons, Picture, Score, Similarity, TrainingResult
from prompt_transfer.api.runs import plainly, train
from prompt_transfer.api.scores import CONTROL, compare_well, masked_score, of_one_mode, score
from prompt_transfer.api.store import Store
from prompt_transfer.neurons import files
from prompt_transfer.neurons.mask import SCOPES, most_activated
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt, run_name
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.studies.backbones import load_backbone
from prompt_transfer.studies.neurons.capture import CaptureStudy, capture
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError

# Of a prompt's metadata, what a random prompt of the same backbone shares with it.
SHARED = (
    *("backbone", "fingerprint", "family", "layout", "attention", "dtype", "head", "revision"),
    *("label_words_policy", "data_label_words"),
)


class PromptHub:
    """Train prompts, carry them to other tasks and backbones, look at the neurons that they activate.

    A verb reads what it needs from the files below `args.output_dir` and leaves what it makes there
    (`prompt_transfer.api.store` lists the places). So any verb works in a fresh process, and again: what is trained or
    scored is not trained or scored twice. Arguments that are left out are those of `args`. Each verb prints what it
    found and gives it back.

    Args:
        args: where things are kept, the usual task and backbone, and how prompts are trained.

    Raises:
        UserError: from every verb, one line: an unknown task or backbone; a prompt or projector that is missing, with
            the call that makes it; or what does not go together.
    """

    def __init__(self, args: PromptTrainingArguments) -> None:
        if not isinstance(args, PromptTrainingArguments):
            raise UserError(f"PromptHub is made with args=PromptTrainingArguments(...), not {type(args).__name__}")
        self.args = args

    def __repr__(self) -> str:
        return f"PromptHub({self.args})"

    @property
    def store(self) -> Store:
        """Where the files are."""
        return Store(self.args.output_dir)

    # Prompts ---------------------------------------------------------------------------------------------------

    def train_prompt(
        self, backbone: str | None = None, task: str | None = None, overwrite: bool = False
    ) -> TrainingResult:
        """Train a prompt: `prompts/<backbone>/<task>/`, a run of `fit`.

        A run that is done with the same options is taken as it is, one that was stopped goes on.

        Args:
            overwrite: start anew what is there.

        Returns:
            The prompt's file and its best score on validation.
        """
        backbone, task = self._backbone(backbone), self._task(task)
        call = f"train_prompt({backbone!r}, {task!r}"
        config = self.args.prompt_config(backbone, task)
        with plainly():
            return train(self.store.prompt_run(backbone, task), "PromptTuning", config, f"{call})", call, overwrite)

    def eval_prompt(self, backbone: str | None = None, task: str | None = None) -> Score:
        """Score a prompt on the test split of the task that it was trained on, beside its baselines."""
        backbone, task = self._backbone(backbone), self._task(task)
        return self._score_on(backbone, task, task)

    def cross_task_eval(
        self, backbone: str | None = None, source_task: str | None = None, target_task: str | None = None
    ) -> Score:
        """Score the prompt of one task, as it is, on the test split of another, with that task's label words.

        Returns:
            The score; `relative` to the target's own prompt where that is there too.
        """
        backbone, source = self._backbone(backbone), self._task(source_task)
        if target_task is None:
            raise UserError("cross_task_eval needs the task that the prompt is used on: give target_task")
        return self._score_on(backbone, source, self._task(target_task))

    # Other backbones -------------------------------------------------------------------------------------------

    def cross_model_train(
        self,
        source_model: str | None = None,
        target_model: str | None = None,
        task: str | Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> TrainingResult:
        """Train a projector of prompts from one backbone to another: `projectors/<source>-to-<target>/<task>/`.

        It maps the source's prompt of the task, and learns by the target's loss on the task's rows. From one prompt it
        can learn to give the same for everything: several tasks (a list) make a projector that can carry others.

        Args:
            task: or a list of tasks; each needs a prompt of the source.
            overwrite: start anew what is there.

        Returns:
            The projector's file and its best score on validation, the mean over tasks.
        """
        source, target = self._pair("cross_model_train", source_model, target_model)
        tasks = self._tasks(task)
        prompts = [self.store.prompt(source, name) for name in tasks]
        config = self.args.projector_config(
            target, tasks, [str(Path(str(prompt.path)).resolve()) for prompt in prompts]
        )
        shown = tasks[0] if len(tasks) == 1 else tasks
        call = f"cross_model_train({source!r}, {target!r}, {shown!r}"
        made_of = f"{call}), source prompts {', '.join(files.digest(prompt.embeddings) for prompt in prompts)}"
        run = self.store.projector_run(source, target, tasks)
        with plainly():
            return train(run, "CrossModelProjector", config, made_of, call, overwrite)

    def cross_model_eval(
        self,
        source_model: str | None = None,
        target_model: str | None = None,
        task: str | None = None,
        trained_on: str | Sequence[str] | None = None,
    ) -> Score:
        """Project a prompt to another backbone and score it there, on the test split of its task.

        Beside it stand random prompts of the target, the target's own prompt where it is there, and projections of
        random prompts (`control`). `prompt-transfer analyze projection` has more controls, for several tasks.

        Args:
            task: whose prompt is projected.
            trained_on: the task, or tasks, that the projector was trained on; default: this one.
        """
        source, target = self._pair("cross_model_eval", source_model, target_model)
        task = self._task(task)
        tasks = self._tasks(task if trained_on is None else trained_on)
        prompt = self.store.prompt(source, task)
        projector = self.store.projector(source, target, tasks)
        folder = self.store.projected(source, target, tasks, task)
        name = f"{get_task(task).name}-from-{self.store.projector_run(source, target, tasks).parent.name}"
        with plainly():
            made = self._project(source, prompt, projector, folder, name)
            places = [folder, *self._own(target, task, made)]
            output = self.store.place("scores", target, name, folder.parent.name)
            return score(self.args, target, task, places, name, get_task(task).name, output)

    def _project(self, source: str, prompt: Prompt, projector: ProjectorFile, folder: Path, name: str) -> Prompt:
        """The projection of a prompt, and beside it those of random prompts of the source."""
        made = {name: projector.project(prompt)}
        # To draw prompts needs its table of embeddings alone.
        backbone = load_backbone(source, {name: prompt}, accelerator="cpu")
        facts = {key: prompt.metadata[key] for key in SHARED if prompt.metadata.get(key)}
        shape = (prompt.embeddings.shape[0], prompt.embeddings.shape[1])
        for number in range(1, self.args.random_prompts + 1):
            drawn = Prompt(random_prompt(backbone, shape, number), {**facts, "random": "true"})
            made[f"{CONTROL}-{number}"] = projector.project(drawn)
        # What is left of another number of controls would be scored too.
        shutil.rmtree(folder, ignore_errors=True)
        for key, one in made.items():
            one.save(folder / f"{key}.safetensors")
        return made[name]

    # Neurons ---------------------------------------------------------------------------------------------------

    def activated_neuron(self, backbone: str | None = None, task: str | None = None) -> Activations:
        """What a backbone's neurons do behind a prompt alone, before and after the activation function."""
        backbone, task = self._backbone(backbone), self._task(task)
        with plainly():
            found = self._neurons(backbone, task)
        active = (found.after > 0).float().mean(dim=1).tolist()
        rows = [{"layer": str(layer), "share active": share} for layer, share in enumerate(active)]
        print(f"{found.after.shape[1]} neurons a layer of {backbone} behind the prompt of {task}")
        results.show(rows)
        return found

    def neuron_similarity(
        self, backbone: str | None = None, task1: str | None = None, task2: str | None = None
    ) -> Similarity:
        """ON, the overlap of the neurons that two tasks' prompts activate: cosine of two 0/1 vectors."""
        backbone, first = self._backbone(backbone), self._task(task1)
        if task2 is None:
            raise UserError("neuron_similarity compares two tasks: give task2")
        second = self._task(task2)
        prompts = [self.store.prompt(backbone, task) for task in (first, second)]
        if not of_one_mode(*prompts):
            raise UserError(
                f"the prompts of {first} and {second} differ in layout, attention, dtype or head: their neurons do not "
                "compare"
            )
        with plainly():
            neurons = torch.stack([self._neurons(backbone, task).after for task in (first, second)])
        layers = tuple(float(matrix[0, 1]) for matrix in neuron_overlap_per_layer(neurons))
        found = Similarity(backbone, first, second, float(neuron_overlap(neurons)[0, 1]), layers)
        rows = [{"layers": "all", "ON": found.overlap}]
        rows += [{"layers": str(layer), "ON": value} for layer, value in enumerate(layers)]
        print(f"activated neurons that {first} and {second} share, {backbone}")
        results.show(rows)
        return found

    def mask_activated_neuron(
        self, backbone: str | None = None, task: str | None = None, ratio: float = 0.2, scope: str = "layer"
    ) -> MaskedNeurons:
        """Score a prompt while the neurons that it activates most give 0, beside as many random ones.

        Args:
            ratio: share of the neurons, above 0, up to 1.
            scope: `layer`: the same share in each layer; `all`: of all layers together, as in release 2.0, where
                layers with larger values lose more.

        Returns:
            The scores, and the mask.
        """
        backbone, task = self._backbone(backbone), self._task(task)
        if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise UserError(f"ratio is {ratio!r}: a share of neurons above 0, up to 1")
        if scope not in SCOPES:
            raise UserError(f"scope is {scope!r}: choose one of {', '.join(SCOPES)}")
        run, name = self.store.prompt_run(backbone, task), get_task(task).name
        with plainly():
            after = self._neurons(backbone, task).after
            own, active = most_activated(after, ratio, scope), float((after > 0).float().mean())
            if ratio > active:
                print(
                    f"note: {active:.1%} of the neurons are active behind this prompt; a ratio of {ratio:g} takes more"
                )
            neurons = self.store.place("neurons", backbone, name)
            output = self.store.place("masks", backbone, name)
            found = masked_score(self.args, backbone, task, run, neurons, float(ratio), scope, output)
        return MaskedNeurons(found, own)

    def plot_neuron(self, backbone: str | None = None, task: str | Sequence[str] | None = None) -> Picture:
        """Draw which neurons the prompts of one task or several activate: `figures/<backbone>/neurons-<task>.png`.

        Each layer's neurons are sorted by how many of the prompts activate them.
        """
        backbone, tasks = self._backbone(backbone), self._tasks(task)
        names = [get_task(name).name for name in tasks]
        with plainly():
            neurons = np.stack([self._neurons(backbone, name).after.numpy() for name in tasks])
            path = self.store.place("figures", backbone, f"neurons-{'+'.join(names)}.png")
            plots.save(neuron_plots.activation_heatmap(neurons, names), path)
        print(path)
        return Picture(path)

    def _neurons(self, backbone: str, task: str) -> Activations:
        """The neurons behind a prompt, captured where they are not there, or are those of an earlier prompt."""
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
        return self.args.backbone if given is None else str(given)

    def _task(self, given: str | None) -> str:
        name = self.args.dataset if given is None else str(given)
        get_task(name)
        return name

    def _tasks(self, given: str | Sequence[str] | None) -> list[str]:
        names = [self._task(given)] if given is None or isinstance(given, str | Path) else list(map(self._task, given))
        if not names or len({get_task(name).name for name in names}) < len(names):
            raise UserError(f"give tasks, each once, not {list(given or ())}")
        return names

    def _pair(self, verb: str, source: str | None, target: str | None) -> tuple[str, str]:
        if target is None:
            raise UserError(f"{verb} needs the backbone that prompts are carried to: give target_model")
        return self._backbone(source), str(target)

    def _own(self, backbone: str, task: str, prompt: Prompt) -> list[Path]:
        """The folder of the task's own prompt, where it is there and can be scored together with `prompt`."""
        if not self.store.has_prompt(backbone, task):
            return []
        own = self.store.prompt(backbone, task)
        return [self.store.prompt_run(backbone, task)] if compare_well(prompt, own) else []

    def _score_on(self, backbone: str, source: str, target: str) -> Score:
        """The score of the prompt of a source task on a target task."""
        prompt, run = self.store.prompt(backbone, source), self.store.prompt_run(backbone, source)
        names = [get_task(task).name for task in (target, source)]
        with plainly():
            places = [run, *(place for place in self._own(backbone, target, prompt) if place != run)]
            output = self.store.place("scores", backbone, "-from-".join(names))
            return score(self.args, backbone, target, places, str(run_name(Path(str(prompt.path)))), names[1], output)


def _activations(path: Path, prompt: Prompt) -> Activations | None:
    """What a file of neurons holds; None where it is of another prompt or backbone."""
    found, facts = files.read(path)
    wanted = {"prompt": files.digest(prompt.embeddings), "backbone": prompt.metadata.get("fingerprint") or UNKNOWN}
    if any(value not in (UNKNOWN, facts.get(key)) for key, value in wanted.items()):
        return None
    return Activations(found["before"], found["activations"])
