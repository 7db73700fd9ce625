"""DialogueRNN (Majumder et al., arXiv 1811.00405): states of the conversation, of each speaker, and of the emotion.

Stated, with u_t the utterance of turn t and q the state of whoever speaks it, as that person's last turn left it:

    g_t = GRU_G(g_(t-1); [u_t; q])                                          global state
    c_t = sum over j < t of softmax over j of (W u_t)^T g_j, times g_j      context, zero at the first turn
    q   = GRU_P(q; [u_t; c_t])                                              the speaker's state; listeners keep theirs
    e_t = GRU_E(e_(t-1); q)                                                 emotion state
    z_t = sum over j of softmax over j of (W e_t + b)^T e_j, times e_j      BiDialogueRNN + Att
    logits = MLP(z), one ReLU layer

`direction: both` is the paper's BiDialogueRNN: all of it forth and, with weights of its own, back along the turns, the
emotion states side by side; `past` is DialogueRNN. `attention: false` leaves out the last sum, z = e.

All conversations of a batch take a step together, both directions at once. A person is known by the last turn that
they spoke, so there is no axis of people. Ours are: u = [a; t], pooled as in all baselines, one width for all states,
of which each direction of e has half, and dropout of e alone. Variants of the paper in which listeners change are left
out.
"""

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from fusion.batch import Batch, Output, Turns, take_rows
from fusion.layers import (
    MatchingAttention,
    SequenceGRU,
    Unchanged,
    collect_views,
    masked_softmax,
    relu_layers,
    turn_keys,
)
from fusion.models.baselines import BaselineParams, UtteranceVectors
from fusion.models.interface import HubModel
from fusion.models.shared import SharedParams, Sizes


class DialogueRNNParams(SharedParams):
    """Group `model.dialoguernn`, and the shared keys that the model takes."""

    attention: bool = True  # to all turns of the conversation, behind the emotion states

    @property
    def uses_speakers(self) -> bool:
        return True


class Cells(nn.Module):
    """A `torch.nn.GRUCell` for each way along the turns, side by side; its input is u and what is found on the way.

    Shape:
        u: (ways, conversations, turns, features)
        found: (ways, conversations, dim)
        state: (ways, conversations, dim)
    """

    def __init__(self, features: int, dim: int, ways: int) -> None:
        super().__init__()
        self.features = features
        self.cells = nn.ModuleList(nn.GRUCell(features + dim, dim) for _ in range(ways))

    def prepare(self, u: Tensor) -> tuple[Tensor, ...]:
        """What u says to the gates at every turn (ways, conversations, turns, 3 dim), and the weights of `step`."""
        inner, recurrent, bias, offset = (
            torch.stack([getattr(cell, name) for cell in self.cells])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        of_u, of_found = inner.split([self.features, inner.shape[2] - self.features], dim=2)
        pushes = u @ of_u.transpose(1, 2)[:, None] + bias[:, None, None]
        return pushes, of_found.transpose(1, 2), recurrent.transpose(1, 2), offset[:, None]

    @staticmethod
    def step(push: Tensor, found: Tensor, state: Tensor, inner: Tensor, recurrent: Tensor, offset: Tensor) -> Tensor:
        """The next state (ways, conversations, dim); `push` is that of one turn."""
        width = state.shape[-1]
        push, pull = torch.baddbmm(push, found, inner), torch.baddbmm(offset, state, recurrent)
        reset, update = (push[..., : 2 * width] + pull[..., : 2 * width]).sigmoid().chunk(2, dim=-1)
        candidate = torch.addcmul(push[..., 2 * width :], reset, pull[..., 2 * width :]).tanh()
        return torch.lerp(candidate, state, update)


class SpeakerStates(nn.Module):
    """Global and party states along the turns, of which the latter come out.

    Shape:
        u: (ways, conversations, turns, features)
        before: (ways, conversations, turns, turns), from `turn_before`
        returns: (ways, conversations, turns, dim), the state of the speaker of each turn behind it
    """

    def __init__(self, features: int, dim: int, ways: int) -> None:
        super().__init__()
        self.conversation = Cells(features, dim, ways)
        self.party = Cells(features, dim, ways)
        self.ask = nn.ModuleList(nn.Linear(features, dim, bias=False) for _ in range(ways))

    def forward(self, u: Tensor, before: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self._scanned(u, before)
        pushes, *conversation = self.conversation.prepare(u)
        party_pushes, *party = self.party.prepare(u)
        asked = self._ask(u)
        state = nothing = torch.zeros_like(asked[:, :, 0])  # (ways, conversations, dim)
        heard, spoken = asked[:, :, :0], asked[:, :, :0]  # all g and all q so far: (ways, conversations, t, dim)
        for turn in range(u.shape[2]):
            speaker, context = nothing, nothing
            if turn:
                speaker = (before[:, :, turn, None, :turn] @ spoken).squeeze(2)
                weights = (asked[:, :, turn, None] @ heard.transpose(2, 3)).softmax(dim=-1)
                context = (weights @ heard).squeeze(2)
            state = self.conversation.step(pushes[:, :, turn], speaker, state, *conversation)
            speaker = self.party.step(party_pushes[:, :, turn], context, speaker, *party)
            heard = torch.cat([heard, state[:, :, None]], dim=2)
            spoken = torch.cat([spoken, speaker[:, :, None]], dim=2)
        return spoken

    def _scanned(self, u: Tensor, before: Tensor) -> Tensor:
        """The same as one operator over any number of turns, which a graph can hold: g and q have all their places."""
        pushes, *conversation = self.conversation.prepare(u)
        party_pushes, *party = self.party.prepare(u)
        asked, number = self._ask(u), torch.arange(u.shape[2], device=u.device)

        def take(carried: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
            state, heard, spoken = carried
            push, party_push, asking, last, turn = given
            weights = masked_softmax(asking[:, :, None] @ heard.transpose(2, 3), number < turn)
            own = (last[:, :, None] @ spoken).squeeze(2)
            state = self.conversation.step(push, own, state, *conversation)
            own = self.party.step(party_push, (weights @ heard).squeeze(2), own, *party)
            here = (number == turn).to(u.dtype)[:, None]
            return (state, heard + here * state[:, :, None], spoken + here * own[:, :, None]), own.clone()

        ways, conversations, _, dim = asked.shape
        begin = u.new_zeros(ways, conversations, dim), u.new_zeros(asked.shape), u.new_zeros(asked.shape)
        along = [x.permute(2, 0, 1, 3) for x in (pushes, party_pushes, asked, before)]  # turns first
        _, states = scan(take, begin, (*along, number))
        return states.permute(1, 2, 0, 3)

    def _ask(self, u: Tensor) -> Tensor:
        """W u, (ways, conversations, turns, dim)."""
        return u @ torch.stack([weight for ask in self.ask for weight in ask.parameters()]).transpose(1, 2)[:, None]


def turn_before(speakers: Tensor) -> Tensor:
    """1 where the column is the last turn before that of the row by the same speaker, else 0.

    Shape:
        speakers: (conversations, turns) int64
        returns: (conversations, turns, turns) float32

    >>> turn_before(torch.tensor([[0, 1, 0]])).tolist()
    [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]
    """
    number = torch.arange(1, speakers.shape[1] + 1, device=speakers.device)
    earlier = (speakers[:, :, None] == speakers[:, None]) & (number < number[:, None])
    last = (earlier * number).amax(dim=2, keepdim=True)
    return (number == last).float()


class DialogueRNN(nn.Module, HubModel, paper_url="https://arxiv.org/abs/1811.00405"):
    """Global, party and emotion states along the turns. `forward` takes a `Batch` and returns an `Output`.

    With `views=True` the output also shows `match.attention` (utterances, 1, turns).
    """

    Params = DialogueRNNParams

    def __init__(self, params: DialogueRNNParams, sizes: Sizes) -> None:
        super().__init__()
        dim, self.direction = params.dim, params.direction
        ways = 2 if params.direction == "both" else 1
        shared = BaselineParams(**params.model_dump(include={*SharedParams.model_fields}))
        self.vectors = UtteranceVectors(shared, sizes, encodes=False)
        self.states = SpeakerStates(2 * dim, dim, ways)
        self.emotion = nn.ModuleList(SequenceGRU(dim, "past", dim // ways) for _ in range(ways))
        self.dropout = nn.Dropout(params.dropout)
        self.match = MatchingAttention(dim) if params.attention else Unchanged()
        self.hidden = relu_layers(dim, dim, 1, 0.0)
        self.classifier = nn.Sequential(nn.Dropout(params.dropout), nn.Linear(dim, sizes.classes))

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        turns = batch.turns
        with collect_views(self, views) as shown:
            u = torch.cat(self.vectors(batch), dim=-1)  # (utterances, 2 dim)
            e = self.dropout(self._emotions(u, turns))  # (utterances, dim)
            everyone = torch.ones_like(turns.places, dtype=torch.bool)
            z = self.match(e, turn_keys(everyone, turns, self.direction), turns)
            return Output(logits=self.classifier(self.hidden(z)), views=shown)

    def _emotions(self, u: Tensor, turns: Turns) -> Tensor:
        """The emotion states, each way along a grid of its own, which what is real fills from the left."""
        ways = [(turns.rows, turns.places), (turns.rows_back, turns.places_back)][: len(self.emotion)]
        with torch.autocast(u.device.type, enabled=False):
            grids = torch.stack([take_rows(u.float(), rows) for rows, _ in ways])
            before = torch.stack([turn_before(take_rows(turns.speakers, rows)) for rows, _ in ways])
            states = self.states(grids, before)  # (ways, conversations, turns, dim)
            found = [gru(one, turns.mask) for gru, one in zip(self.emotion, states, strict=True)]
        pairs = zip(found, ways, strict=True)
        return torch.cat([take_rows(one.flatten(0, 1), places) for one, (_, places) in pairs], dim=-1)
