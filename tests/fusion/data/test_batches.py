"""Which conversations and utterances are put together."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.data.batches import draw_batches, group_by_length, make_plan, move


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), min_size=1, max_size=80), st.integers(1, 6))
def test_every_conversation_is_drawn_once_and_a_batch_keeps_its_budget(
    conversations: list[tuple[int, int]], size: int
) -> None:
    turns, rows = torch.tensor(conversations).T.contiguous()
    batches = draw_batches(rows, turns, size, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(turns)))
    budget = float(rows.sum()) * size / len(rows)
    largest = max((int(rows[batch].sum()) for batch in batches), default=0)
    assert largest <= 1.5 * budget + int(rows.max()) + 1 or len(batches) == 1


def test_conversations_of_like_length_are_together() -> None:
    turns = torch.arange(1, 65)
    batches = draw_batches(10 * turns, turns, 8, torch.Generator().manual_seed(0))
    spread = [int(turns[batch].max() - turns[batch].min()) for batch in batches]
    assert max(spread) < 25
    assert max(len(batch) for batch in batches) > 2 * min(len(batch) for batch in batches)


def test_batches_of_equal_conversations_have_the_size_asked_for() -> None:
    ones = torch.ones(64, dtype=torch.int64)
    assert [len(batch) for batch in draw_batches(5 * ones, 3 * ones, 8, torch.Generator())] == [8] * 8


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=60), st.integers(1, 200))
def test_every_utterance_is_in_one_group_among_those_of_like_length(
    lengths: list[tuple[int, int]], group_rows: int
) -> None:
    frames, tokens = torch.tensor(lengths).T.numpy()
    groups = group_by_length(frames, tokens, group_rows)
    assert sorted(index for group in groups for index in group.tolist()) == list(range(len(lengths)))
    longest = 0
    for group in groups:
        assert frames[group].min() >= longest
        longest = frames[group].max()


def test_longer_utterances_share_smaller_groups() -> None:
    frames, tokens = torch.tensor([[100] * 4 + [10] * 40, [0] * 44]).numpy()
    assert [len(group) for group in group_by_length(frames, tokens, 200)] == [20, 20, 2, 2]


def test_a_plan_that_was_moved_is_the_same() -> None:
    offsets, lengths = torch.tensor([0, 3, 4, 9]), torch.arange(9)
    plans = [make_plan(torch.tensor(chosen), offsets, lengths, lengths, 5) for chosen in ([2, 0], [1])]
    moved = list(move(plans, torch.device("meta")))
    assert [(one.sizes, one.frames, one.longest) for one in moved] == [
        (one.sizes, one.frames, one.longest) for one in plans
    ]
    assert [one.members.shape for one in moved] == [one.members.shape for one in plans]
    assert {one.places.device.type for one in moved} == {"meta"}
