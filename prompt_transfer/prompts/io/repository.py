"""Prompts on the Hugging Face hub: whole or not at all in both directions, nothing run, no token shown or kept.

The client of `huggingface_hub` finds the token (`HF_TOKEN`, or what `hf auth login` stored) and the hub
(`HF_ENDPOINT`) by itself.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from prompt_transfer.prompts.io import peft_adapter
from prompt_transfer.prompts.io.hub_card import MARK, Entry, hub_card, scores_of
from prompt_transfer.prompts.prompt import Prompt, run_name
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir
from prompt_transfer.utils.network import hub_reachable
from prompt_transfer.version import __version__

CARD = "README.md"
# A prompt of 100 rows of the widest models has 7 MB with its initial one; whole models must not come in by mistake.
MAX_FILE_BYTES, MAX_FILES = 2**28, 10_000
_NAME = re.compile(r"(?!\.)[\w. -]+(?:/(?!\.)[\w. -]+)*")
# A path of this machine inside a value: at least one folder, and what it leads to.
_LOCAL_PATH = re.compile(r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\",\]/\\]+[/\\])+([^\s'\",\]/\\]+)")


@dataclass(frozen=True)
class PushResult:
    """Where prompts are now: the repository's address, the commit, the files in it, and what the user should know."""

    url: str
    commit: str
    names: list[str]
    notes: list[str]


@dataclass(frozen=True)
class PullResult:
    """What came: the commit, prompts by their place here, and what was refused with the reason."""

    commit: str
    prompts: dict[Path, Prompt] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def push(
    sources: Sequence[str | Path],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    results: str | Path | None = None,
    license: str | None = None,
    backbone: str | None = None,
    builtin: frozenset[str] = frozenset(),
) -> PushResult:
    """Put prompts and a card into a repository of the hub, in one commit.

    Prompts that are there already stay, and are in the card too. Paths of this machine in the metadata are cut down to
    their last part.

    Args:
        sources: prompt files or folders of runs.
        repo: USER/NAME, made where it does not exist.
        private: it must be private; made so where it does not exist.
        revision: branch, made where it does not exist; None: the main one.
        results: table of scores and baselines (see `scores_of`).
        license: for the head of the card.
        backbone: written into the prompts as their backbone.
        builtin: names of backbones that ship with the project.

    Raises:
        UserError: a prompt cannot be read or names a backbone that nobody else has; no token, no network, or the hub
            refuses; the repository is public and must be private.
    """
    _check_repo(repo)
    entries: dict[str, Entry] = {}
    for source in sources:
        prompt = Prompt.load(source)
        assert prompt.path is not None
        name = f"{run_name(prompt.path) or prompt.path.stem}.safetensors"
        if name in entries:
            raise UserError(f"two prompts would both be {name}: rename one, or push them into two repositories")
        scores = scores_of(prompt.path, results)
        entries[name] = Entry(name, _public(prompt, backbone, builtin), scores)
    _check_online("push")
    if get_token() is None:
        raise UserError("push needs a token that may write: `hf auth login`, or the environment variable HF_TOKEN")
    api, notes = _api(), []
    with _as_user_error(repo), tempfile.TemporaryDirectory() as folder:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(f"{repo} is there already and public: nothing was pushed; make it private, or another one")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        there = {entry.file: entry for entry in _entries_there(api, repo, revision, set(entries))}
        whole = sorted({**there, **entries}.values(), key=lambda entry: entry.file)
        operations = [
            CommitOperationAdd(name, str(entry.prompt.save(Path(folder) / name))) for name, entry in entries.items()
        ]
        if _card_is_ours(api, repo, revision):
            operations.append(CommitOperationAdd(CARD, hub_card(repo, whole, license, builtin).encode()))
        else:
            notes.append(f"{repo} has a {CARD} that was written by hand: it was left as it is")
        commit = api.create_commit(
            repo, operations, commit_message=f"Add {', '.join(entries)}"[:200], revision=revision
        )
    return PushResult(str(url), commit.oid, list(entries), notes)


def pull(repo: str, output: str | Path, *, revision: str | None = None, overwrite: bool = False) -> PullResult:
    """Take all prompts of a repository: prompt files and PEFT adapters.

    They are read from the hub's cache and checked; the good ones are put into place when all have been looked at.

    Args:
        repo: USER/NAME.
        output: folder, made where it does not exist; files keep their paths in the repository, an adapter is named
            after its folder, or after the repository.
        revision: branch, tag or commit.
        overwrite: replace files that are there already.

    Raises:
        UserError: no network, no such repository or revision, nothing in it that is a prompt, or a file is there
            already.
    """
    _check_repo(repo)
    _check_online("pull")
    with _as_user_error(repo):
        folder, commit, names = _download(_api(), repo, revision)
    found = PullResult(commit)
    for name in names:
        place = PurePosixPath(name)
        is_adapter = place.name == peft_adapter.CONFIG_FILE
        if not is_adapter and (place.suffix != ".safetensors" or str(place.parent / peft_adapter.CONFIG_FILE) in names):
            continue
        try:
            prompt = peft_adapter.read_adapter((folder / name).parent) if is_adapter else Prompt.load(folder / name)
        except UserError as error:
            found.refused[name] = str(error).replace(str(folder / name), name).replace(str(folder), repo)
            continue
        if is_adapter:
            own = place.parent.name or repo.partition("/")[2]
            place = place.parent.parent / f"{own}.safetensors"
            prompt.metadata |= {"source_name": own, "source_path": name}
        prompt.metadata |= {"hub_repo": repo, "hub_revision": commit, "hub_file": name}
        target = Path(output) / place
        if target.exists() and not overwrite:
            raise UserError(f"{target} exists; --overwrite replaces it")
        found.prompts[target] = prompt
    if not found.prompts:
        why = next((f": {name}: {why}" for name, why in found.refused.items()), ": no prompt file, no PEFT adapter")
        raise UserError(f"there is no prompt in {repo} at {commit[:12]}{why}")
    check_writable_dir(output)
    for target, prompt in found.prompts.items():
        prompt.save(target)
    return found


def _api() -> HfApi:
    return HfApi(library_name="prompt_transfer", library_version=__version__)


def _download(api: HfApi, repo: str, revision: str | None) -> tuple[Path, str, list[str]]:
    """The folder of the cache with what may be prompts, the commit, and the files in it that were wanted.

    Raises:
        UserError: a file with the name of a prompt is too large to be one, or its name leads elsewhere.
    """
    info = api.model_info(repo, revision=revision, files_metadata=True)
    wanted = {
        file.rfilename: file.size
        for file in info.siblings or []
        if file.rfilename.endswith(".safetensors")
        or PurePosixPath(file.rfilename).name in (peft_adapter.CONFIG_FILE, peft_adapter.TORCH_FILE)
    }
    for name, size in wanted.items():
        if not _NAME.fullmatch(name):
            raise UserError(f"{repo} has a file with the name {name[:80]!r}: it was not taken")
        if size is None or size > MAX_FILE_BYTES:
            raise UserError(
                f"{repo} is no repository of prompts: {name} has {size} bytes, a prompt at most {MAX_FILE_BYTES}"
            )
    if not wanted or len(wanted) > MAX_FILES or info.sha is None:
        raise UserError(f"there is no prompt in {repo}: {len(wanted)} files could be one")
    folder = snapshot_download(repo, revision=info.sha, allow_patterns=list(wanted), endpoint=api.endpoint)
    return Path(folder), info.sha, sorted(wanted)


def _entries_there(api: HfApi, repo: str, revision: str | None, replaced: set[str]) -> Iterator[Entry]:
    """The prompts that a repository has already, for its card."""
    names = [file.rfilename for file in api.model_info(repo, revision=revision).siblings or []]
    others = [name for name in names if name.endswith(".safetensors") and name not in replaced]
    if not others:
        return
    folder, _, _ = _download(api, repo, revision)
    for name in others:
        try:
            yield Entry(name, Prompt.load(folder / name))
        except UserError:  # something else that has been put there: no prompt, no line in the card
            continue


def _card_is_ours(api: HfApi, repo: str, revision: str | None) -> bool:
    """Whether the card may be written: there is none, or the empty one of a new repository, or one of ours."""
    if not api.file_exists(repo, CARD, revision=revision):
        return True
    path = api.hf_hub_download(repo, CARD, revision=revision)
    return MARK in Path(path).read_text(encoding="utf-8", errors="replace")


def _public(prompt: Prompt, backbone: str | None, builtin: frozenset[str]) -> Prompt:
    """The prompt as others shall see it: no paths of this machine."""
    facts = dict(prompt.metadata)
    name = backbone or facts.get("backbone", "")
    if backbone is None and name not in builtin:
        path = Path(name).expanduser()
        if name and (path.is_dir() or path.is_absolute() or name.startswith(("./", "../"))):
            raise UserError(
                f"{prompt.path} was trained on the folder {name}, which nobody else has: give the hub id of that "
                "backbone with --backbone"
            )
    facts = {key: _LOCAL_PATH.sub(r"\1", value) for key, value in facts.items()}
    return Prompt(prompt.embeddings, facts | ({"backbone": name} if name else {}), prompt.initial)


def _check_repo(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise UserError("the repository must be USER/NAME, letters, digits, '-', '_' and '.'")


def _check_online(verb: str) -> None:
    if not hub_reachable():
        raise UserError(
            f"prompts {verb} needs the Hugging Face hub, which cannot be reached (or HF_HUB_OFFLINE is set); go "
            "online, or copy the prompt files: nothing else belongs to them"
        )


@contextmanager
def _as_user_error(repo: str) -> Iterator[None]:
    """What the hub says, in one line and without a token; for files this small its bars say nothing."""
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{repo} is gated: ask for access on its page on the hub") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"no repository {repo} on the hub, or it is private and the token does not open it") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo} has no such --revision: give a branch, a tag or a commit") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = {401: "; log in with `hf auth login`", 403: "; the token must have the right to write"}.get(status, "")
        raise UserError(f"the hub refused ({status}): {_first_line(error)}{hint}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"the exchange with the hub failed: {_first_line(error)}; try again") from error
    finally:
        if bars:
            enable_progress_bars()


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])[:300] or type(error).__name__
    token = get_token()
    return text.replace(token, "***") if token else text
