"""Tiny random models of every family, with tokenizers that know the tests' words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_transfer.backbones.frozen import FrozenBackbone

# Each is a single token of the tiny tokenizers: " great" for byte-level BPE, "great" for WordPiece.
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

# `initializer_range` is ten times the default: attention is far from uniform, which exposes wrong masks.
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


def byte_level_tokenizer(kind: str) -> Any:
    """Build a byte-level BPE tokenizer whose merges grow words of WORDS letter by letter from the leading space."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import GPT2Tokenizer, RobertaTokenizer

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if kind == "roberta" else ["<|endoftext|>"]
    pieces = [*specials, *sorted(ByteLevel.alphabet())]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        spaced = f"Ġ{word}"
        for end in range(1, len(spaced)):
            merges[spaced[:end], spaced[end]] = None
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return (RobertaTokenizer if kind == "roberta" else GPT2Tokenizer)(vocab=vocabulary, merges=list(merges))


def word_piece_tokenizer() -> Any:
    """Build a WordPiece tokenizer over WORDS, with single letters for all other words."""
    from transformers import BertTokenizer

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [piece for piece in [*letters, *(f"##{letter}" for letter in letters)] if piece not in WORDS]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})


def unigram_tokenizer() -> Any:
    """Build a unigram tokenizer as in T5: pieces over WORDS and single letters, and a few sentinels."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -8.0) for letter in letters]
    pieces += [(f"<extra_id_{index}>", 0.0) for index in (1, 0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=["<extra_id_1>", "<extra_id_0>"],
    )  # fmt: skip


def _configuration(family: str) -> tuple[Any, str, dict[str, Any]]:
    """Return tokenizer, the model's transformers class, and the options of its configuration."""
    if family in ("bert", "electra", "albert", "distilbert", "deberta-v2"):
        tokenizer = word_piece_tokenizer()
        facts: dict[str, Any] = {**_BERT, "max_position_embeddings": 64, "pad_token_id": 0}
        if family == "electra":
            facts["embedding_size"] = 24
        if family == "albert":
            facts |= {"embedding_size": 24, "hidden_dropout_prob": 0.1}
        if family == "deberta-v2":
            facts |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
        if family == "distilbert":
            facts = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "initializer_range": 0.2,
                     "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
        else:
            facts["type_vocab_size"] = 2
        name = {"bert": "Bert", "electra": "Electra", "albert": "Albert", "distilbert": "DistilBert",
                "deberta-v2": "DebertaV2"}[family]  # fmt: skip
        return tokenizer, f"{name}ForMaskedLM", facts
    if family in ("modernbert", "mpnet", *_ROBERTAS):
        facts = {**_BERT, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        if family == "mpnet":
            return byte_level_tokenizer("roberta"), "MPNetForMaskedLM", facts | {"max_position_embeddings": 66}
        if family in _ROBERTAS:
            facts |= {"max_position_embeddings": 66, "type_vocab_size": 1}
            return byte_level_tokenizer("roberta"), f"{_ROBERTAS[family]}ForMaskedLM", facts
        facts |= {"max_position_embeddings": 64, "num_hidden_layers": 3, "local_attention": 8, "cls_token_id": 0,
                  "sep_token_id": 2, "global_attn_every_n_layers": 2}  # fmt: skip
        return byte_level_tokenizer("roberta"), "ModernBertForMaskedLM", facts
    if family in SEQ2SEQ:
        facts = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
                 "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
        if family == "t5_v1_1":
            # The heads together are narrower than the model, as in small v1.1.
            facts |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_heads": 3}
        if family == "mt5":
            facts["num_heads"] = 6  # and wider, as in t5-nano
        name = "MT5" if family == "mt5" else "T5"
        return unigram_tokenizer(), f"{name}ForConditionalGeneration", facts
    tokenizer = byte_level_tokenizer("gpt2")
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 64, "initializer_range": 0.2}
        return tokenizer, "GPT2LMHeadModel", {**sizes, **ends}
    facts = {**_BERT, "max_position_embeddings": 64, **ends, "pad_token_id": None}
    if family == "opt":
        facts.pop("intermediate_size"), facts.pop("initializer_range")
        return tokenizer, "OPTForCausalLM", {**facts, "ffn_dim": 64, "word_embed_proj_dim": 24, "init_std": 0.2}
    if family == "gpt_neox":
        return tokenizer, "GPTNeoXForCausalLM", facts
    if family == "gpt_neo":
        heads = {"num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4}
        return tokenizer, "GPTNeoForCausalLM", {**facts, **heads}
    if family == "gptj":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 64, "initializer_range": 0.2}
        return tokenizer, "GPTJForCausalLM", {**sizes, **ends, "rotary_dim": 4}
    if family == "bloom":
        return tokenizer, "BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2,
                                               **ends}  # fmt: skip
    if family == "falcon":
        return tokenizer, "FalconForCausalLM", {**facts, "ffn_hidden_size": 64, "parallel_attn": True}
    name = _DECODERS[family]
    facts |= {"num_key_value_heads": 2, "head_dim": 8}
    if family in _SLIDING:
        # Shorter than the tests' prompts and texts.
        facts |= {"sliding_window": 4}
    if family == "granite":
        facts |= {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5,
                  "logits_scaling": 2.0}  # fmt: skip
    if family == "smollm3":
        facts |= {"no_rope_layers": [1, 0]}
    if family in ("mistral", "phi3"):
        # All layers use sliding windows: together they must reach from the answer slot back to the prompt.
        facts |= {"sliding_window": 6, "num_hidden_layers": 3}
    if family == "gemma3_text":
        facts |= {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                  "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}  # fmt: skip
    if family == "gemma2":
        # Low enough to matter: the tiny model's scores are small.
        facts |= {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 3.0}
    if family == "qwen2":
        facts |= {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    return tokenizer, f"{name}ForCausalLM", facts


_ROBERTAS = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
PLAIN_ENCODERS = ("mpnet", "deberta-v2")
MASKED = ("bert", *_ROBERTAS, "electra", "albert", "distilbert", "modernbert", *PLAIN_ENCODERS)
_DECODERS = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "phi3": "Phi3",
    "olmo2": "Olmo2",
    "smollm3": "SmolLM3",
    "granite": "Granite",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
}
"""Causal families that are configured as Llama is, and the first part of the names of their classes."""
_SLIDING = ("mistral", "gemma2", "gemma3_text")
CAUSAL = ("gpt2", "opt", "gpt_neox", "gpt_neo", "gptj", "falcon", "bloom", *_DECODERS)
PLAIN = ("gemma2", "gpt_neo", "gptj", "falcon", "bloom", *PLAIN_ENCODERS)
"""Families that run through the library's own forward."""
SEQ2SEQ = ("t5", "t5_v1_1", "mt5")


def prompt_facts(backbone: FrozenBackbone, **more: str) -> dict[str, str]:
    """Return the metadata that marks a prompt as belonging to `backbone`."""
    return {
        "backbone": backbone.id, "fingerprint": backbone.fingerprint, "family": backbone.family.name,
        "layout": backbone.layout.name, "attention": backbone.attention, "dtype": "float32", **more,
    }  # fmt: skip


def save_tiny(family: str, folder: Path) -> Path:
    """Save a random model of the family and its tokenizer, as `save_pretrained` does."""
    import torch
    import transformers

    tokenizer, class_name, facts = _configuration(family)
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(vocab_size=len(tokenizer), **facts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        if family in ("t5_v1_1", "mt5"):
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        # Biases and norms start at 0 and 1, which would hide a head or layer that drops them.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
