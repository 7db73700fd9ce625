"""The parts that models share."""

import doctest
import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fusion.batch import Turns
from fusion.layers import (
    AttentionPooling,
    Constant,
    Gate,
    InputProjection,
    MeanPooling,
    MultiHeadAttention,
    SequenceDropout,
    SequenceGRU,
    TurnAttention,
    TurnGRU,
    Unchanged,
    WeightedMix,
    collect_views,
    feed_forward,
    gather_neighbours,
    turn_keys,
    zero_padding,
)
from fusion.layers.attention import FEW_KEYS, KeyMask, attend, masked_softmax
from fusion.layers.conversation import REACH

pytestmark = pytest.mark.arithmetic

DIM = 8
sequence_lengths = st.lists(st.integers(0, 5), min_size=1, max_size=4)
conversation_lengths = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def mask_of(lengths: list[int], padding: int = 0) -> Tensor:
    return torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(build: type[nn.Module], *arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return build(*arguments).eval()


def pad(x: Tensor, padding: int) -> Tensor:
    """Longer by positions full of noise."""
    return torch.cat([x, 100 * random(x.shape[0], padding, *x.shape[2:], seed=99)], dim=1)


@given(sequence_lengths, st.integers(0, 3))
def test_softmax_rows_sum_to_one_or_to_zero_where_nothing_is_real(lengths: list[int], padding: int) -> None:
    mask = mask_of(lengths, padding)
    weights = masked_softmax(random(*mask.shape), mask)
    assert not weights[~mask].any()
    torch.testing.assert_close(weights.sum(dim=1), (torch.tensor(lengths) > 0).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_softmax_of_nothing_real_has_a_finite_gradient(dtype: torch.dtype) -> None:
    scores = random(2, 3).to(dtype).requires_grad_()
    masked_softmax(scores, torch.zeros(2, 3, dtype=torch.bool)).sum().backward()
    assert scores.grad is not None
    assert not scores.grad.any()


@given(sequence_lengths, st.integers(0, 4))
def test_attention_ignores_padding(lengths: list[int], padding: int) -> None:
    attention = seeded(MultiHeadAttention, DIM, 2)
    queries, keys = random(len(lengths), 3, DIM), random(len(lengths), max(lengths), DIM, seed=1)
    expected = attention(queries, keys, mask_of(lengths))
    found = attention(queries, pad(keys, padding), mask_of(lengths, padding))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("keys", [1, 5, FEW_KEYS, FEW_KEYS + 1])
@pytest.mark.parametrize("heads_apart", [False, True])  # as of rows that are split into heads, or laid out by head
def test_attention_to_few_keys_and_to_many_is_its_equation(keys: int, heads_apart: bool) -> None:
    def part(positions: int, seed: int) -> Tensor:
        rows = random(2, positions, 3, 4, seed=seed).double().transpose(1, 2)
        return (rows.contiguous() if heads_apart else rows).requires_grad_()

    parts = part(FEW_KEYS + 1, 0), part(keys, 1), part(keys, 2)
    query, key, value = parts
    scores = KeyMask(torch.arange(keys) < torch.tensor([[keys], [1]])).scores.double()
    expected = (query @ key.transpose(2, 3) / 2 + scores).softmax(dim=-1) @ value
    found = attend(*parts, scores)
    torch.testing.assert_close(found, expected)
    weight = random(*expected.shape, seed=3).double()
    torch.testing.assert_close(torch.autograd.grad(found, parts, weight), torch.autograd.grad(expected, parts, weight))


@given(sequence_lengths)
def test_attention_to_nothing_is_zero_with_finite_gradients(lengths: list[int]) -> None:
    attention = seeded(MultiHeadAttention, DIM, 2)
    queries = random(len(lengths), 3, DIM).requires_grad_()
    keys = random(len(lengths), max(lengths), DIM, seed=1).requires_grad_()
    attended = attention(queries, keys, mask_of(lengths))
    attended.square().sum().backward()
    empty = torch.tensor(lengths) == 0
    assert not attended[empty].any()
    assert attended[~empty].any(dim=2).all()
    assert not queries.grad[empty].any()
    assert queries.grad.isfinite().all()
    assert keys.grad.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in attention.parameters())


def test_attention_agrees_with_its_own_weights() -> None:
    attention = seeded(MultiHeadAttention, DIM, 2)
    queries, keys, key_mask = random(2, 3, DIM), random(2, 5, DIM, seed=1), mask_of([5, 2])
    values = attention.value(keys).unflatten(2, (2, -1)).transpose(1, 2)
    attended = attention.weights(queries, keys, key_mask) @ values
    expected = attention.out(attended.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(queries, keys, key_mask), expected)


def test_attention_agrees_with_that_of_torch() -> None:
    attention = seeded(MultiHeadAttention, DIM, 2)
    reference = nn.MultiheadAttention(DIM, 2, batch_first=True)
    projections = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
        reference.in_proj_bias.copy_(torch.cat([attention.query.bias, torch.zeros(DIM), attention.value.bias]))
    reference.out_proj.load_state_dict(attention.out.state_dict())
    queries, keys, key_mask = random(2, 3, DIM), random(2, 5, DIM, seed=1), mask_of([5, 2])
    expected, weights = reference(queries, keys, keys, key_padding_mask=~key_mask, average_attn_weights=False)
    torch.testing.assert_close(attention(queries, keys, key_mask), expected)
    torch.testing.assert_close(attention.weights(queries, keys, key_mask), weights)


@given(sequence_lengths, st.integers(0, 4))
def test_pooling_ignores_padding_and_gives_zeros_for_nothing(lengths: list[int], padding: int) -> None:
    pool = seeded(AttentionPooling, DIM)
    x = random(len(lengths), max(lengths), DIM)
    expected = pool(x, mask_of(lengths))
    torch.testing.assert_close(pool(pad(x, padding), mask_of(lengths, padding)), expected, rtol=0, atol=1e-6)
    assert not expected[torch.tensor(lengths) == 0].any()


def test_pooling_one_position_returns_it() -> None:
    x = random(2, 1, DIM)
    torch.testing.assert_close(seeded(AttentionPooling, DIM)(x, mask_of([1, 1])), x[:, 0])


def test_a_gate_lies_between_zero_and_one() -> None:
    x, y = 10 * random(2, 3, DIM), 10 * random(2, 3, DIM, seed=1)
    for width in (1, DIM):
        opening = seeded(Gate, DIM, width)(x, y)
        assert opening.shape == (2, 3, width)
        assert ((opening >= 0) & (opening <= 1)).all()


def test_an_untrained_mix_is_the_mean() -> None:
    versions = random(3, 2, DIM)
    torch.testing.assert_close(WeightedMix(3)(*versions), versions.mean(dim=0))


def test_a_mix_is_weighted_by_the_softmax_of_its_scores() -> None:
    mix = WeightedMix(2)
    nn.init.constant_(mix.scores[:1], 50.0)
    versions = random(2, 3, DIM)
    torch.testing.assert_close(mix(*versions), versions[0])


@pytest.mark.parametrize("positions", [0, 4])
def test_the_projection_of_equal_layers_is_that_of_one(positions: int) -> None:
    one, several = seeded(InputProjection, 5, 1, DIM, 0.0), seeded(InputProjection, 5, 3, DIM, 0.0)
    several.load_state_dict(one.state_dict(), strict=False)
    x = random(2, positions, 5)
    expected = one(x)
    assert expected.shape == (2, positions, DIM)
    torch.testing.assert_close(several(x[:, :, None].expand(-1, -1, 3, -1)), expected)
    torch.testing.assert_close(one(x[:, :, None]), expected)


def test_feed_forward_keeps_the_shape_and_ignores_other_positions() -> None:
    torch.manual_seed(0)
    network, x = feed_forward(DIM, 0.5).eval(), random(2, 4, DIM)
    torch.testing.assert_close(network(x)[:, :2], network(x[:, :2]))


@pytest.mark.parametrize("positions", [0, 5])
def test_sequence_dropout_drops_a_dimension_at_all_positions_or_none(positions: int) -> None:
    torch.manual_seed(0)
    dropout = SequenceDropout(0.5)
    dropped = dropout(torch.ones(3, positions, 50))
    assert set(dropped.unique().tolist()) <= {0.0, 2.0}
    assert (dropped == dropped[:, :1]).all()
    assert torch.equal(dropout.eval()(dropped), dropped)


@given(conversation_lengths, st.sampled_from(["past", "both"]))
def test_a_conversation_passes_the_gru_as_if_it_were_alone(lengths: list[int], direction: str) -> None:
    gru = seeded(TurnGRU, DIM, direction)
    x = random(sum(lengths), DIM)
    together = gru(x, Turns.of(mask_of(lengths, padding=2)))
    alone = [gru(turns, Turns.of(mask_of([len(turns)]))) for turns in x.split(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)


def test_a_gru_in_both_directions_agrees_with_that_of_torch() -> None:
    gru = seeded(TurnGRU, DIM, "both")
    reference = nn.GRU(DIM, DIM // 2, batch_first=True, bidirectional=True)
    forth, back = (dict(one.state_dict()) for one in gru.gru.grus)
    reference.load_state_dict(forth | {f"{name}_reverse": value for name, value in back.items()})
    lengths = [4, 1, 3]
    turns = Turns.of(mask_of(lengths))
    x = random(sum(lengths), DIM)
    packed = nn.utils.rnn.pack_padded_sequence(
        turns.to_grid(x), torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    states, _ = nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    torch.testing.assert_close(gru(x, turns), turns.to_flat(states))


@pytest.mark.parametrize(("direction", "seen"), [("past", [True, True, False]), ("both", [True, True, True])])
def test_a_gru_of_the_past_sees_no_later_turn(direction: str, seen: list[bool]) -> None:
    x = random(3, DIM).requires_grad_()
    seeded(TurnGRU, DIM, direction)(x, Turns.of(mask_of([3])))[1].sum().backward()
    assert x.grad is not None
    assert x.grad.any(dim=1).tolist() == seen


@given(conversation_lengths, st.sets(st.integers(-6, 6), min_size=1), st.integers(0, 2))
def test_neighbours_agree_with_a_loop_over_turns(lengths: list[int], offsets: set[int], padding: int) -> None:
    steps = sorted(offsets)
    x = random(sum(lengths), 3)
    neighbours, exists = gather_neighbours(x, Turns.of(mask_of(lengths, padding)), torch.tensor(steps))
    first, utterance = 0, 0
    for length in lengths:
        for turn in range(length):
            for column, step in enumerate(steps):
                assert exists[utterance, column] == (0 <= turn + step < length)
                if exists[utterance, column]:
                    assert torch.equal(neighbours[utterance, column], x[first + turn + step])
            utterance += 1
        first += length


def test_a_stand_in_has_no_parameters() -> None:
    assert not [*Constant(0.5).parameters(), *Unchanged().parameters()]
    assert Constant(0.5)(random(2), random(2)) == 0.5
    x = random(2)
    assert Unchanged()(x, random(2, seed=1)) is x


def test_views_are_collected_only_while_asked_for() -> None:
    model = nn.ModuleDict({"pool": AttentionPooling(DIM)})
    x, mask = random(2, 3, DIM), mask_of([3, 1])
    with collect_views(model, wanted=True) as shown:
        model["pool"](x, mask)
    assert set(shown) == {"pool.weights"}
    assert not shown["pool.weights"].requires_grad
    expected = shown.pop("pool.weights")
    model["pool"](2 * x, mask)
    assert not shown
    torch.testing.assert_close(expected, model["pool"].weights(x, mask))
    with collect_views(model, wanted=False) as shown:
        model["pool"](x, mask)
    assert not shown


def test_views_of_padding_are_zero_and_constants_are_left_out() -> None:
    mask = mask_of([2, 1])
    shown = zero_padding({"gate": torch.ones(2, 2, 3), "off": 0.5}, mask[:, :, None])
    assert set(shown) == {"gate"}
    assert torch.equal(shown["gate"].any(dim=2), mask)


@pytest.mark.parametrize("name", ["attention", "conversation"])
def test_examples_in_docstrings_hold(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"fusion.layers.{name}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_attention_along_turns_can_choose_by_distance() -> None:
    layer = TurnAttention(DIM, heads=2, dropout=0.0)
    nn.init.constant_(layer.attend.distances[:, REACH - 1], 100.0)  # the turn before
    turns = Turns.of(torch.tensor([[True, True, True], [True, True, False]]))
    keys = turn_keys(torch.ones(5, dtype=torch.bool), turns, "both")
    weights = layer.views(random(5, DIM), random(5, DIM, seed=1), keys, turns)["attention"]
    assert weights.shape == (5, 2, 3)
    before = {1: 0, 2: 1, 4: 0}  # utterance: place of the turn before in its conversation
    for utterance, turn in before.items():
        torch.testing.assert_close(weights[utterance, :, turn], torch.ones(2))


def test_a_turn_attends_to_nothing_that_is_absent_or_in_another_conversation() -> None:
    layer = TurnAttention(DIM, heads=2, dropout=0.0)
    turns = Turns.of(torch.tensor([[True, True, True], [True, True, False]]))
    present = torch.tensor([False, True, False, False, False])
    keys = turn_keys(present, turns, "past")
    weights = layer.views(random(5, DIM), random(5, DIM, seed=1), keys, turns)["attention"]
    expected = torch.zeros(5, 2, 3)
    expected[1:3, :, 1] = 1.0
    torch.testing.assert_close(weights, expected)


def test_a_recurrence_along_positions_does_not_see_padding() -> None:
    layer, x, mask = SequenceGRU(DIM), random(3, 4, DIM), mask_of([4, 2, 0])
    found = layer(x, mask)
    for utterance, length in enumerate([4, 2, 0]):
        alone = layer(x[utterance : utterance + 1, :length], mask[utterance : utterance + 1, :length])
        torch.testing.assert_close(found[utterance, :length], alone[0])
    assert not found[~mask].any()


def test_mean_pooling_is_the_mean_of_what_is_real() -> None:
    x, mask = random(3, 4, DIM), mask_of([4, 1, 0])
    expected = torch.stack([x[0].mean(dim=0), x[1, 0], torch.zeros(DIM)])
    torch.testing.assert_close(MeanPooling()(x, mask), expected)
