"""Reparameterizations: parameter counts, starts and training."""

import copy
from types import SimpleNamespace

import pytest
import torch

from prompt_transfer.prompts.reparameterizations import LowRank, Plain, ResidualMLP, Superposition
from prompt_transfer.utils.errors import UserError

P, H, V = 5, 12, 40


class FakeTokenizer:
    all_special_ids = (0, 1)

    def __len__(self):
        return V

    def convert_ids_to_tokens(self, ids):
        return [f"t{index}" for index in ids]


BACKBONE = SimpleNamespace(
    tokenizer=FakeTokenizer(), embedding_weight=torch.randn(V, H, generator=torch.Generator().manual_seed(3))
)
INITIAL = torch.randn(P, H, generator=torch.Generator().manual_seed(4))
# Class, options, number of trained parameters worked out by hand for P = 5, H = 12.
CASES = [
    (Plain, {}, 60),
    (ResidualMLP, {"bottleneck": 3}, 60 + 2 * 12 * 3),
    (ResidualMLP, {"bottleneck": 3, "layer_norm": True}, 60 + 2 * 12 * 3 + 24),
    (Superposition, {"num_embeddings": 7}, 5 * 7),
    (LowRank, {"rank": 2}, 2 * (5 + 12)),
]


def build(kind, options, seed=0, initial=INITIAL):
    return kind(**options).build(initial, BACKBONE, torch.Generator().manual_seed(seed))


def train(module, steps=30):
    """Pull the prompt towards a fixed target; return the loss before and after."""
    target = torch.randn(P, H, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        loss = (module() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize(("kind", "options", "count"), CASES)
class TestEvery:
    def test_starts_exactly_at_the_initial_prompt(self, kind, options, count):
        assert not kind(**options).is_built
        module = build(kind, options)
        assert module.is_built
        assert torch.equal(module(), INITIAL)
        assert module().dtype == torch.float32

    def test_exact_trainable_count(self, kind, options, count):
        module = build(kind, options)
        assert sum(parameter.numel() for parameter in module.parameters()) == count
        assert all(parameter.requires_grad for parameter in module.parameters())

    def test_trains_and_folds_to_what_forward_gives(self, kind, options, count):
        module = build(kind, options)
        initial = INITIAL.clone()
        before, after = train(module)
        assert after < before
        folded = module.fold()
        assert torch.equal(folded, module())
        assert not folded.requires_grad
        train(module, 1)
        assert not torch.equal(folded, module())
        assert torch.equal(INITIAL, initial)

    def test_every_parameter_moves(self, kind, options, count):
        module = build(kind, options)
        start = copy.deepcopy(module.state_dict())
        train(module)
        for name, parameter in module.named_parameters():
            assert not torch.equal(parameter, start[name]), name
        for name, constant in module.named_buffers():
            assert torch.equal(constant, start[name]), name

    def test_one_seed_one_module_and_no_global_randomness(self, kind, options, count):
        state = torch.get_rng_state()
        first, second = build(kind, options), build(kind, options)
        assert torch.equal(torch.get_rng_state(), state)
        assert list(first.state_dict()) == list(second.state_dict())
        for name, value in first.state_dict().items():
            assert torch.equal(value, second.state_dict()[name])

    def test_a_state_dict_brings_it_back(self, kind, options, count):
        module = build(kind, options)
        train(module)
        other = build(kind, options, seed=9, initial=torch.zeros(P, H))
        other.load_state_dict(module.state_dict())
        assert torch.equal(other(), module())

    def test_float32_under_autocast(self, kind, options, count):
        module = build(kind, options)
        train(module)
        expected = module.fold()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module().dtype == torch.float32
            assert torch.equal(module(), expected)


def test_superposition_moves_in_the_span_of_its_embeddings():
    module = build(Superposition, {"num_embeddings": 7})
    train(module)
    moved = module.fold() - INITIAL
    coefficients = torch.linalg.lstsq(module.embeddings.T, moved.T).solution
    assert torch.allclose(module.embeddings.T @ coefficients, moved.T, atol=1e-5)


def test_superposition_starts_at_the_mixture_nearest_to_the_prompt():
    inside = torch.randn(P, 6, generator=torch.Generator().manual_seed(0)) @ BACKBONE.embedding_weight[2:8]
    module = Superposition(num_embeddings=38).build(inside, BACKBONE, torch.Generator().manual_seed(0))
    assert torch.allclose(module.weights @ module.embeddings, inside, atol=0.02 * inside.abs().max().item())


def test_low_rank_stays_of_low_rank():
    module = build(LowRank, {"rank": 2})
    train(module)
    assert torch.linalg.matrix_rank(module.fold() - INITIAL, rtol=1e-4).item() == 2


def test_options_that_make_no_sense():
    with pytest.raises(UserError, match="bottleneck is 0"):
        ResidualMLP(bottleneck=0)
    with pytest.raises(UserError, match="only 38 tokens"):
        build(Superposition, {"num_embeddings": 39})
    with pytest.raises(UserError, match="rank 6 is above"):
        build(LowRank, {"rank": 6})


def test_describe():
    assert Plain().describe() == "Plain()"
    assert ResidualMLP(8).describe() == "ResidualMLP(bottleneck=8, layer_norm=False)"
    assert Superposition().describe() == "Superposition(num_embeddings=128, top_k=5000)"
    assert LowRank().describe() == "LowRank(rank=8)"
