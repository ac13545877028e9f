"""Push and pull of prompts on the Hugging Face hub: atomic, without running code, showing or storing a token.

`huggingface_hub` finds the token (`HF_TOKEN` or the one that `hf auth login` stored) and the hub (`HF_ENDPOINT`).
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
from prompt_transfer.prompts.listing import run_name
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir
from prompt_transfer.utils.network import hub_reachable
from prompt_transfer.version import __version__

CARD = "README.md"
# Guards against downloading whole models: 100 prompt tokens of the widest models have 7 MB with the initial prompt.
MAX_FILE_BYTES, MAX_FILES = 2**28, 10_000
_NAME = re.compile(r"(?!\.)[\w. -]+(?:/(?!\.)[\w. -]+)*")
# A local path inside a value: at least one folder, and the last part, which is kept.
_LOCAL_PATH = re.compile(r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\",\]/\\]+[/\\])+([^\s'\",\]/\\]+)")


@dataclass(frozen=True)
class PushResult:
    """The repository's URL, the commit, the pushed files, and notes for the user."""

    url: str
    commit: str
    names: list[str]
    notes: list[str]


@dataclass(frozen=True)
class PullResult:
    """The commit, the prompts by local path, and the reason for every refused file."""

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
    """Push prompts and a card to a hub repository in one commit.

    Prompts that the repository already has are kept and listed in the card. Local paths in the metadata are reduced to
    their last part.

    Args:
        sources: prompt files or run folders.
        repo: USER/NAME, created if missing.
        private: require a private repository; a new one is created private.
        revision: branch, created if missing; None means the main branch.
        results: table of scores and baselines (see `scores_of`).
        license: license to record in the card.
        backbone: backbone to record in the prompts.
        builtin: names of the backbones that ship with the project.

    Raises:
        UserError: a prompt cannot be read or its backbone is a local folder; no token or network, or the hub refuses;
            the repository is public although `private` is set.
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
        raise UserError("push needs a token with write access: run `hf auth login` or set HF_TOKEN")
    api, notes = _api(), []
    with _as_user_error(repo), tempfile.TemporaryDirectory() as folder:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(f"{repo} exists and is public; nothing was pushed: make it private or choose another one")
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
            notes.append(f"{repo} has a {CARD} written by hand: it was not changed")
        commit = api.create_commit(
            repo, operations, commit_message=f"Add {', '.join(entries)}"[:200], revision=revision
        )
    return PushResult(str(url), commit.oid, list(entries), notes)


def pull(repo: str, output: str | Path, *, revision: str | None = None, overwrite: bool = False) -> PullResult:
    """Pull all prompts of a repository: prompt files and PEFT adapters.

    Files are read from the hub's cache; valid ones are written only after all have been checked.

    Args:
        repo: USER/NAME.
        output: folder, created if missing; files keep their paths in the repository, an adapter is named after its
            folder or the repository.
        revision: branch, tag or commit.
        overwrite: replace existing files.

    Raises:
        UserError: no network, no such repository or revision, no prompt in it, or a file exists already.
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
    """Download the files that may be prompts; return the cache folder, the commit and the file names.

    Raises:
        UserError: a file is too large for a prompt, its name is unsafe, or there are no such files.
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
            raise UserError(f"{repo} has a file with the unsafe name {name[:80]!r}: nothing was downloaded")
        if size is None or size > MAX_FILE_BYTES:
            raise UserError(
                f"{repo} is not a repository of prompts: {name} has {size} bytes, a prompt at most {MAX_FILE_BYTES}"
            )
    if not wanted or info.sha is None:
        raise UserError(f"there is no prompt in {repo}: it has neither safetensors files nor a PEFT adapter")
    if len(wanted) > MAX_FILES:
        raise UserError(f"{repo} is not a repository of prompts: {len(wanted)} files, the limit is {MAX_FILES}")
    folder = snapshot_download(repo, revision=info.sha, allow_patterns=list(wanted), endpoint=api.endpoint)
    return Path(folder), info.sha, sorted(wanted)


def _entries_there(api: HfApi, repo: str, revision: str | None, replaced: set[str]) -> Iterator[Entry]:
    """Yield the prompts that a repository already has, for its card."""
    names = [file.rfilename for file in api.model_info(repo, revision=revision).siblings or []]
    others = [name for name in names if name.endswith(".safetensors") and name not in replaced]
    if not others:
        return
    folder, _, _ = _download(api, repo, revision)
    for name in others:
        try:
            yield Entry(name, Prompt.load(folder / name))
        except UserError:  # not a prompt: no entry in the card
            continue


def _card_is_ours(api: HfApi, repo: str, revision: str | None) -> bool:
    """Return whether the card may be written: it is missing, or was written by this project."""
    if not api.file_exists(repo, CARD, revision=revision):
        return True
    path = api.hf_hub_download(repo, CARD, revision=revision)
    return MARK in Path(path).read_text(encoding="utf-8", errors="replace")


def _public(prompt: Prompt, backbone: str | None, builtin: frozenset[str]) -> Prompt:
    """Return the prompt without local paths in its metadata."""
    facts = dict(prompt.metadata)
    name = backbone or facts.get("backbone", "")
    if backbone is None and name not in builtin:
        path = Path(name).expanduser()
        if name and (path.is_dir() or path.is_absolute() or name.startswith(("./", "../"))):
            raise UserError(
                f"{prompt.path} was trained on the local folder {name}, which others do not have: give the hub id of "
                "that backbone with --backbone"
            )
    facts = {key: _LOCAL_PATH.sub(r"\1", value) for key, value in facts.items()}
    facts = facts | ({"backbone": name} if name else {})
    return Prompt(prompt.values, facts, prompt.initial, label_embeddings=prompt.label_embeddings)


def _check_repo(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise UserError("invalid repository: give USER/NAME of letters, digits, '-', '_' and '.'")


def _check_online(verb: str) -> None:
    if not hub_reachable():
        raise UserError(
            f"prompts {verb} needs the Hugging Face hub, which cannot be reached (or HF_HUB_OFFLINE is set); go "
            "online, or copy the prompt files: they are self-contained"
        )


@contextmanager
def _as_user_error(repo: str) -> Iterator[None]:
    """Convert the hub's errors to one-line UserErrors without the token, and hide its progress bars."""
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{repo} is gated: request access on its hub page") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"no repository {repo} on the hub, or it is private and the token has no access") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo} has no such --revision: give a branch, a tag or a commit") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = {401: "; log in with `hf auth login`", 403: "; the token needs write access"}.get(status, "")
        raise UserError(f"the hub refused ({status}): {_first_line(error)}{hint}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"the transfer from or to the hub failed: {_first_line(error)}; try again") from error
    finally:
        if bars:
            enable_progress_bars()


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])[:300] or type(error).__name__
    token = get_token()
    return text.replace(token, "***") if token else text
