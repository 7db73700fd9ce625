"""Utterances laid out by conversation and back."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusion.turns
from fusion.turns import Turns

conversation_lengths = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def turns_of(lengths: list[int], padding: int = 0) -> Turns:
    return Turns.of(torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None])


@given(conversation_lengths, st.integers(0, 3), st.sampled_from([(), (3,), (2, 3)]))
def test_to_flat_is_the_exact_inverse_of_to_grid(lengths: list[int], padding: int, shape: tuple[int, ...]) -> None:
    turns = turns_of(lengths, padding)
    flat = torch.randn(sum(lengths), *shape)
    grid = turns.to_grid(flat)
    assert grid.shape == (*turns.mask.shape, *shape)
    assert torch.equal(turns.to_flat(grid), flat)


@given(conversation_lengths, st.integers(0, 3))
def test_grid_holds_zeros_where_no_turn_exists(lengths: list[int], padding: int) -> None:
    turns = turns_of(lengths, padding)
    grid = turns.to_grid(torch.randn(sum(lengths), 3))
    assert not grid[~turns.mask].any()


def test_utterances_lie_conversation_by_conversation_and_turn_by_turn() -> None:
    assert turns_of([2, 3]).to_grid(torch.arange(1, 6)).tolist() == [[1, 2, 0], [3, 4, 5]]


def test_gradients_pass_the_grid_unchanged() -> None:
    turns = turns_of([1, 3])
    flat = torch.randn(4, 2, requires_grad=True)
    weight = torch.randn(4, 2)
    (turns.to_flat(turns.to_grid(flat)) * weight).sum().backward()
    assert flat.grad is not None
    assert torch.equal(flat.grad, weight)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16])
def test_grid_keeps_the_type_of_the_values(dtype: torch.dtype) -> None:
    assert turns_of([1, 2]).to_grid(torch.ones(3, dtype=dtype)).dtype == dtype


@given(conversation_lengths, st.integers(0, 3))
def test_numbers_and_counts_are_those_of_a_loop(lengths: list[int], padding: int) -> None:
    turns = turns_of(lengths, padding)
    assert turns.number.tolist() == [turn for length in lengths for turn in range(length)]
    assert turns.count.tolist() == [length for length in lengths for _ in range(length)]


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(fusion.turns).failed == 0
