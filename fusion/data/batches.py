"""Which conversations go into a batch together, and which of its utterances into a group.

All of it is decided on the CPU from lengths alone, and an epoch's decisions move to the training device at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

WINDOW = 8  # batches, among whose conversations those of like length are put together
# frames and tokens in a group: on a CPU so few that they stay in its caches, on a GPU so many that launching the work
# of a further group does not take longer than padding; the latter is not measured
GROUP_ROWS = {"cpu": 3072, "cuda": 16_384}


@dataclass(frozen=True, eq=False)
class Plan:
    """One batch.

    Shape:
        utterances: (utterances,) int64, of the split, conversation by conversation
        members: (utterances,) int64, of the batch, group by group
        order: (utterances,) int64, where each utterance is in `members`
        places: (utterances,) int64, where each is in the grid of conversations and turns, laid flat
        turns: (conversations,) int64, how many there are
    """

    utterances: Tensor
    members: Tensor
    order: Tensor
    places: Tensor
    turns: Tensor
    longest: int  # conversation, in turns
    sizes: tuple[int, ...]  # of each group
    frames: tuple[int, ...]  # of its longest utterance
    tokens: tuple[int, ...]


TENSORS = [item.name for item in fields(Plan) if item.type is Tensor]


def draw_batches(rows: Tensor, turns: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Every conversation once, in shuffled batches of about as many rows as `size` conversations have on average.

    Conversations of like length are together: `WINDOW` batches' worth of them, drawn at random, are sorted by their
    turns and cut into batches of equal rows, as many as come nearest to what was asked for. So where there are few
    conversations, a batch may have half as many more; one long conversation may be a batch of its own.

    Args:
        rows: (conversations,) frames and tokens of each.
        turns: (conversations,) of each.
        size: conversations in a batch, on average.
        generator: decides.
    """
    budget = float(rows.sum()) * size / len(rows)
    batches = []
    for window in torch.randperm(len(rows), generator=generator).split(WINDOW * size):
        ordered = window[turns[window].argsort(stable=True)]
        middle = rows[ordered].cumsum(0) - rows[ordered] / 2
        count = max(1, round(float(rows[ordered].sum()) / budget)) if budget else 1
        number = (middle * count / rows[ordered].sum().clamp_min(1)).long().clamp(max=count - 1)
        batches += ordered.split(number.unique_consecutive(return_counts=True)[1].tolist())
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def make_plan(conversations: Tensor, offsets: Tensor, frames: Tensor, tokens: Tensor, group_rows: int) -> Plan:
    """The batch of these conversations, in the order given.

    Args:
        conversations: (conversations,) of the split.
        offsets: (conversations of the split + 1,): conversation i owns utterances offsets[i] .. offsets[i + 1].
        frames, tokens: (utterances of the split,) lengths.
        group_rows: see `GROUP_ROWS`.
    """
    turns = offsets[conversations + 1] - offsets[conversations]
    longest = int(turns.max())
    places = (torch.arange(longest) < turns[:, None]).flatten().nonzero().squeeze(1)
    utterances = offsets[conversations][places // longest] + places % longest
    groups = group_by_length(frames[utterances].numpy(), tokens[utterances].numpy(), group_rows)
    members = torch.from_numpy(np.concatenate(groups))
    return Plan(
        utterances=utterances,
        members=members,
        order=members.argsort(),
        places=places,
        turns=turns,
        longest=longest,
        sizes=tuple(len(group) for group in groups),
        frames=tuple(int(frames[utterances[group]].max()) for group in groups),
        tokens=tuple(int(tokens[utterances[group]].max()) for group in groups),
    )


def group_by_length(frames: np.ndarray, tokens: np.ndarray, group_rows: int) -> list[np.ndarray]:
    """Utterances (of all n) of like length, about so many rows a group; within a group in their order."""
    order = np.lexsort((tokens, frames))
    rows = (frames + tokens)[order].cumsum()
    count = max(1, round(int(rows[-1]) / group_rows))
    cuts = np.searchsorted(rows, rows[-1] * np.arange(1, count) / count, side="left") + 1
    return [np.sort(group) for group in np.split(order, np.unique(cuts)) if len(group)]


def move(plans: Sequence[Plan], device: torch.device) -> Iterator[Plan]:
    """The same with their tensors on `device`, in one transfer."""
    if device.type == "cpu":
        yield from plans
        return
    sizes = [len(getattr(plan, name)) for plan in plans for name in TENSORS]
    together = torch.cat([getattr(plan, name) for plan in plans for name in TENSORS])
    moved = iter(together.to(device).split(sizes))
    for plan in plans:
        yield replace(plan, **{name: next(moved) for name in TENSORS})
