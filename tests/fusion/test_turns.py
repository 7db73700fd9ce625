"""Utterances laid out by conversation and back."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusion.batch
from fusion.batch import Turns, take_rows

conversation_lengths = st.lists(st.integers(0, 6), min_size=1, max_size=5)
some_turns = conversation_lengths.filter(any)


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


@given(some_turns, st.integers(0, 3))
def test_what_is_spread_is_the_grid_where_turns_exist_and_comes_back(lengths: list[int], padding: int) -> None:
    turns = turns_of(lengths, padding)
    flat = torch.randn(sum(lengths), 2)
    spread = turns.spread(flat)
    assert torch.equal(spread[turns.mask], turns.to_grid(flat)[turns.mask])
    assert torch.equal(turns.to_flat(spread), flat)


@given(some_turns, st.integers(0, 3))
def test_rows_back_are_each_conversation_from_its_last_turn(lengths: list[int], padding: int) -> None:
    turns = turns_of(lengths, padding)
    numbers = torch.arange(sum(lengths)).split(lengths)
    found = [row[:length].tolist() for row, length in zip(turns.rows_back, lengths, strict=True)]
    assert found == [one.flip(0).tolist() for one in numbers]
    assert turns.rows_back.flatten()[turns.places_back].tolist() == list(range(sum(lengths)))
    assert turns.rows_back.min() >= 0


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_rows_that_are_taken_are_those_of_an_index_and_so_are_gradients(shape: tuple[int, ...]) -> None:
    x, rows = torch.randn(4, *shape, dtype=torch.float64, requires_grad=True), torch.tensor([[0, 3], [3, 3]])
    assert torch.equal(take_rows(x, rows), x[rows])
    weight = torch.randn(2, 2, *shape, dtype=torch.float64)
    ways = [torch.autograd.grad((way * weight).sum(), x)[0] for way in (take_rows(x, rows), x[rows])]
    torch.testing.assert_close(*ways)


@given(conversation_lengths, st.integers(0, 3))
def test_numbers_and_counts_are_those_of_a_loop(lengths: list[int], padding: int) -> None:
    turns = turns_of(lengths, padding)
    assert turns.number.tolist() == [turn for length in lengths for turn in range(length)]
    assert turns.count.tolist() == [length for length in lengths for _ in range(length)]


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(fusion.batch).failed == 0
