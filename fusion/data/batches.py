"""Which conversations go into a batch together, and which of its utterances into a group.

All of it is decided on the CPU from lengths alone, and an epoch's decisions move to the training device at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

WINDOW = 8  # batches, among whose conversations those of like length are put together


@dataclass(frozen=True)
class Grouping:
    """When utterances are parted into groups; rows are frames and tokens, with their padding."""

    rows: int  # in a group, about at most
    spared: int  # padding for which one group more is worth its operations


# measured on a CPU; on a GPU, which pads faster than it launches, an estimate
GROUPING = {"cpu": Grouping(4096, 250), "cuda": Grouping(16_384, 8192)}


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


def make_plan(conversations: Tensor, offsets: Tensor, frames: Tensor, tokens: Tensor, grouping: Grouping) -> Plan:
    """The batch of these conversations, in the order given.

    Args:
        conversations: (conversations,) of the split.
        offsets: (conversations of the split + 1,): conversation i owns utterances offsets[i] .. offsets[i + 1].
        frames, tokens: (utterances of the split,) lengths.
    """
    turns = offsets[conversations + 1] - offsets[conversations]
    longest = int(turns.max())
    places = (torch.arange(longest) < turns[:, None]).flatten().nonzero().squeeze(1)
    utterances = offsets[conversations][places // longest] + places % longest
    lengths = torch.stack([frames[utterances], tokens[utterances]]).numpy()
    groups = group_by_length(lengths, grouping, np.arange(len(utterances)))
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


def group_by_length(lengths: np.ndarray, grouping: Grouping, members: np.ndarray) -> list[np.ndarray]:
    """`members`, utterances (n,), in groups whose frames and whose tokens are alike; within a group in their order.

    They are cut in two, by frames or by tokens, where that spares most padding, and so are both parts, as long as it is
    worth it. What is too large then is cut into equal parts.

    Args:
        lengths: (2, utterances), frames and tokens.
    """
    own = lengths[:, members]
    orders = [np.lexsort(own[::-1]), np.lexsort(own)]  # by frames, by tokens
    rows, padded = len(members) * own.max(1).sum(), [_rows_when_cut(own[:, order]) for order in orders]
    best = min(range(2), key=lambda axis: padded[axis].min(initial=rows))
    if rows - padded[best].min(initial=rows) > grouping.spared:
        parts = np.split(orders[best], [padded[best].argmin() + 1])
        return [group for part in parts for group in group_by_length(lengths, grouping, members[np.sort(part)])]
    parts = np.array_split(orders[0], min(len(members), max(1, round(rows / grouping.rows))))
    return [members[np.sort(part)] for part in parts]


def _rows_when_cut(lengths: np.ndarray) -> np.ndarray:
    """(n - 1,), the rows of both parts where the first 1, 2 .. of `lengths` (2, n) are one."""
    count = np.arange(1, lengths.shape[1])
    first = np.maximum.accumulate(lengths, axis=1)[:, :-1].sum(0)
    last = np.maximum.accumulate(lengths[:, ::-1], axis=1)[:, -2::-1].sum(0)
    return count * first + count[::-1] * last


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
