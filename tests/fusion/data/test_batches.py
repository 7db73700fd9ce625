"""Which conversations and utterances are put together."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.data.batches import Grouping, draw_batches, make_plan, move


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


def groups_of(lengths: list[tuple[int, int]], grouping: Grouping) -> list[list[int]]:
    """The groups of one conversation whose utterances have so many frames and tokens."""
    frames, tokens = torch.tensor(lengths).T
    plan = make_plan(torch.tensor([0]), torch.tensor([0, len(lengths)]), frames, tokens, grouping)
    groups = [group.tolist() for group in plan.members.split(plan.sizes)]
    assert list(plan.frames) == [max(lengths[one][0] for one in group) for group in groups]
    assert list(plan.tokens) == [max(lengths[one][1] for one in group) for group in groups]
    return groups


def padded_rows(lengths: list[tuple[int, int]], groups: list[list[int]]) -> int:
    return sum(len(group) * sum(max(lengths[one][axis] for one in group) for axis in (0, 1)) for group in groups)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(1, 200),
    st.integers(0, 100),
)
def test_every_utterance_is_in_one_group_and_none_more_is_worth_it(
    lengths: list[tuple[int, int]], rows: int, spared: int
) -> None:
    groups = groups_of(lengths, Grouping(rows, spared))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(group == sorted(group) for group in groups)
    for group in groups:
        for axis in (0, 1):
            order = sorted(group, key=lambda one: (lengths[one][axis], lengths[one][1 - axis]))
            cuts = [padded_rows(lengths, [order[:cut], order[cut:]]) for cut in range(1, len(order))]
            assert padded_rows(lengths, [group]) - min(cuts, default=10**6) <= spared


def test_utterances_alike_in_frames_are_parted_by_their_tokens() -> None:
    lengths = [(64, 5), (64, 30)] * 10
    assert sorted(groups_of(lengths, Grouping(6144, 100))) == [list(range(0, 20, 2)), list(range(1, 20, 2))]


def test_longer_utterances_share_smaller_groups() -> None:
    lengths = [(100, 0)] * 4 + [(10, 0)] * 40
    assert sorted(map(len, groups_of(lengths, Grouping(200, 10)))) == [2, 2, 20, 20]


def test_a_plan_that_was_moved_is_the_same() -> None:
    offsets, lengths = torch.tensor([0, 3, 4, 9]), torch.arange(9)
    plans = [make_plan(torch.tensor(chosen), offsets, lengths, lengths, Grouping(5, 1)) for chosen in ([2, 0], [1])]
    moved = list(move(plans, torch.device("meta")))
    assert [(one.sizes, one.frames, one.longest) for one in moved] == [
        (one.sizes, one.frames, one.longest) for one in plans
    ]
    assert [one.members.shape for one in moved] == [one.members.shape for one in plans]
    assert {one.places.device.type for one in moved} == {"meta"}
