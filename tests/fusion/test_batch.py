"""Utterances laid out by conversation and back."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusion.batch
from fusion.batch import Batch, Output, to_flat, to_grid

conversation_lengths = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def turn_mask_of(lengths: list[int], padding: int = 0) -> torch.Tensor:
    return torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None]


@given(conversation_lengths, st.integers(0, 3), st.sampled_from([(), (3,), (2, 3)]))
def test_to_flat_is_the_exact_inverse_of_to_grid(lengths: list[int], padding: int, shape: tuple[int, ...]) -> None:
    turn_mask = turn_mask_of(lengths, padding)
    flat = torch.randn(sum(lengths), *shape)
    grid = to_grid(flat, turn_mask)
    assert grid.shape == (*turn_mask.shape, *shape)
    assert torch.equal(to_flat(grid, turn_mask), flat)


@given(conversation_lengths, st.integers(0, 3))
def test_grid_holds_zeros_where_no_turn_exists(lengths: list[int], padding: int) -> None:
    turn_mask = turn_mask_of(lengths, padding)
    grid = to_grid(torch.randn(sum(lengths), 3), turn_mask)
    assert not grid[~turn_mask].any()


def test_utterances_lie_conversation_by_conversation_and_turn_by_turn() -> None:
    turn_mask = turn_mask_of([2, 3])
    assert to_grid(torch.arange(1, 6), turn_mask).tolist() == [[1, 2, 0], [3, 4, 5]]


def test_gradients_pass_the_grid_unchanged() -> None:
    turn_mask = turn_mask_of([1, 3])
    flat = torch.randn(4, 2, requires_grad=True)
    weight = torch.randn(4, 2)
    (to_flat(to_grid(flat, turn_mask), turn_mask) * weight).sum().backward()
    assert flat.grad is not None
    assert torch.equal(flat.grad, weight)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16])
def test_grid_keeps_the_type_of_the_values(dtype: torch.dtype) -> None:
    assert to_grid(torch.ones(3, dtype=dtype), turn_mask_of([1, 2])).dtype == dtype


def test_a_batch_moves_as_a_whole() -> None:
    tensors = {"audio", "audio_mask", "text", "text_mask", "labels", "scores", "turn_mask"}
    batch = Batch(**{name: torch.zeros(1) for name in tensors}).to("meta")
    assert {name for name in tensors if getattr(batch, name).device.type == "meta"} == tensors


def test_an_output_needs_only_logits() -> None:
    output = Output(logits=torch.zeros(1, 2))
    assert output.audio is None
    assert output.views == {}


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(fusion.batch).failed == 0
