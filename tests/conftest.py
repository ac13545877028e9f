"""What all tests share: no network, no stray files, one thread, two tiny backbones."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before any import of these libraries: they read the environment once. A cache of its own keeps the models that a
# developer happens to have downloaded out of the tests.
_SCRATCH = tempfile.TemporaryDirectory(prefix="prompt_transfer_tests_")
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)
os.environ.update(
    HF_HOME=_SCRATCH.name,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="offline",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)

from hypothesis import settings  # noqa: E402
from hypothesis.configuration import set_hypothesis_home_dir  # noqa: E402

set_hypothesis_home_dir(_SCRATCH.name)
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent
_LOOPBACK = ("127.", "::1", "localhost")
_CACHES = {".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv", "__pycache__", "build", "htmlcov"}

# Every one of these is a single token of the tiny tokenizers: " great" for RoBERTa, "great" for BERT.
WORDS = """
terrible great no yes maybe wrong right okay good bad
the a an of to in on at by for with from and or but not it is was are were be been has have had do does did
this that these those he she they we you i his her their our my your who what when where why how
movie film story plot actor actress scene music book food service staff place room price
man woman child people friend family dog cat house school city country water day night year time
very really quite so too more most less least all some any none many few one two three first last new old
see saw watch like love hate enjoy make made go went come came say said think know find give take want need feel
happy sad funny boring dull fine awful wonderful brilliant poor rich fast slow big small long short
true false acceptable unacceptable different same question answer because if then than as up down out
""".split()  # noqa: SIM905


class NetworkBlockedError(RuntimeError):
    """Not an `OSError`: a library must not take it for a network that is down and quietly go another way."""


def _is_local(address: object) -> bool:
    # AF_UNIX addresses are strings or bytes; those of all internet families are tuples that start with the host.
    return not isinstance(address, tuple) or str(address[0]).startswith(_LOOPBACK)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Connections to anything but this machine fail."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guard(original: Any) -> Any:
        def guarded(self: socket.socket, address: Any) -> Any:
            if not _is_local(address):
                raise NetworkBlockedError(f"a test tried to connect to {address}")
            return original(self, address)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard(connect))
        patch.setattr(socket.socket, "connect_ex", guard(connect_ex))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors are faster on one thread, and sums come out the same on every machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _clean_root() -> Iterator[None]:
    """A test writes to `tmp_path`, not to the repository."""
    before = set(os.listdir(ROOT))  # noqa: PTH208
    yield
    left = {
        name
        for name in set(os.listdir(ROOT)) - before - _CACHES  # noqa: PTH208
        if not name.startswith(".coverage") and not name.endswith(".egg-info")
    }
    assert not left, f"the test left {', '.join(sorted(left))} in {ROOT}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data sets beside the repository, one sub-folder a task."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: ../shared/data is absent")
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A task file with a folder of 40 / 10 / 10 rows."""
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    names = ["film", "story", "man", "woman", "dog", "cat", "house", "city", "day", "night"]
    for offset, (split, count) in enumerate((("train", 40), ("validation", 10), ("test", 10))):
        lines = [
            f"the {names[i % 10]} is {('bad', 'good')[i % 2]} {'very ' * (offset + i // 10)},{i % 2}"
            for i in range(count)
        ]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    path = tmp_path / "toy.yaml"
    path.write_text(
        "name: toy\ntype: sentiment\ncolumns: {text_a: text, text_b: null}\nlabel_column: label\n"
        "label_words: [terrible, great]\nmetric: accuracy\nlocal: data/toy\n"
    )
    return path


def _roberta_tokenizer() -> Any:
    """Byte-level BPE whose merges grow every word of WORDS letter by letter from its leading space."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaTokenizer

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        spaced = f"Ġ{word}"
        for end in range(1, len(spaced)):
            merges[spaced[:end], spaced[end]] = None
    pieces += [left + right for left, right in merges]
    return RobertaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=list(merges))


def _bert_tokenizer() -> Any:
    """WordPiece over WORDS, with single letters for all other words."""
    from transformers import BertTokenizer

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [piece for piece in [*letters, *(f"##{letter}" for letter in letters)] if piece not in WORDS]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})


def _save_tiny(folder: Path, tokenizer: Any, model_class: type, config: Any) -> Path:
    """A random model and its tokenizer, as `save_pretrained` leaves them."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        # Biases and norms start at 0 and 1, which would hide a head or a layer that drops them.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# `initializer_range` is ten times the usual, so that attention is far from uniform and a wrong mask shows.
_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random RobertaForMaskedLM: 2 layers, H 32, F 64, 64 positions.

    Ids: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> 4.
    """
    from transformers import RobertaConfig, RobertaForMaskedLM

    tokenizer = _roberta_tokenizer()
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=66,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **_TINY,
    )
    return _save_tiny(tmp_path_factory.mktemp("tiny-roberta"), tokenizer, RobertaForMaskedLM, config)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BertForMaskedLM: 2 layers, H 32, F 64, 64 positions.

    Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4.
    """
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = _bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, type_vocab_size=2, pad_token_id=0, **_TINY
    )
    return _save_tiny(tmp_path_factory.mktemp("tiny-bert"), tokenizer, BertForMaskedLM, config)
