"""DialogueGCN (Ghosal et al., arXiv 1908.11540): turns as nodes of a graph, whose edges know who speaks and when.

Stated, with u an utterance and g its node:

    g = BiGRU(u) along the turns                                            sequential context
    alpha_ij = softmax over j of g_i^T W g_j                                j at most so many turns before or behind i
    h_i  = relu(sum over r, j in r of i of alpha_ij W_r g_j + alpha_ii W_0 g_i)       relations r, by speaker and order
    h'_i = relu(sum over j of W' h_j + W_0' h_i)                            second layer
    z_i  = sum over j of softmax over j of (W x_i + b)^T x_j, times x_j     where x = [g; h']
    logits = MLP(z), one ReLU layer

Here the graph is attention among turns behind masks, without a graph library. Ours are: four relations instead of two
for each pair of people, by whether both turns are of one speaker and by which comes first, so that they mean the same
in every conversation; nodes of both modalities, g = LN(x + GRU(x)) with x = W [a; t]; no constant that divides a
relation's sum; widths. MMGCN (Hu et al., arXiv 2107.06779) has a node for each modality of a turn instead.

- `past_turns`, `future_turns`: the window. With both 0 no turn sees another one in the graph.
- `attention: false` leaves out the last sum, z = x.
- `direction: past` has no edge from a later turn, whatever `future_turns` says.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fusion.batch import Batch, Output, Turns
from fusion.layers import MatchingAttention, Unchanged, collect_views, masked_softmax, relu_layers, turn_keys
from fusion.models.baselines import BaselineParams, UtteranceVectors, conversation_encoder
from fusion.models.interface import HubModel
from fusion.models.shared import Sizes

RELATIONS = 4  # same or other speaker, earlier or later


class DialogueGCNParams(BaselineParams):
    """Group `model.dialoguegcn`, and the shared keys that the model takes."""

    past_turns: int = Field(10, ge=0, le=1000)  # before a turn, to which it has edges
    future_turns: int = Field(10, ge=0, le=1000)
    attention: bool = True  # to all turns of the conversation, behind the graph

    @property
    def uses_speakers(self) -> bool:
        return True


class SpeakerGraph(nn.Module):
    """Both layers of the graph.

    Shape:
        g: (utterances, dim)
        returns: (utterances, dim)
    """

    def __init__(self, dim: int, past: int, future: int) -> None:
        super().__init__()
        self.past, self.future = past, future
        self.score = nn.Linear(dim, dim, bias=False)  # W
        self.relations = nn.Linear(dim, RELATIONS * dim, bias=False)  # W_r
        self.itself = nn.Linear(dim, dim, bias=False)  # W_0
        self.neighbours = nn.Linear(dim, dim, bias=False)  # W'
        self.itself_again = nn.Linear(dim, dim)  # W_0'

    def forward(self, g: Tensor, turns: Turns) -> Tensor:
        nodes = turns.spread(g)  # (conversations, turns, dim)
        edges, weights = self._edges(nodes, turns)
        own = torch.eye(edges.shape[-1], dtype=torch.bool, device=g.device)
        earlier = turns.distances < 0
        kinds = [same & order for same in (turns.same_speaker, ~turns.same_speaker) for order in (earlier, ~earlier)]
        relations = torch.stack([kind & ~own for kind in kinds], dim=1)  # (conversations, relations, turns, turns)
        sources = self.relations(nodes).unflatten(-1, (RELATIONS, -1)).transpose(1, 2)
        gathered = ((weights[:, None] * relations) @ sources).sum(dim=1)  # (conversations, turns, dim)
        h = (gathered + weights.diagonal(dim1=1, dim2=2)[..., None] * self.itself(nodes)).relu()
        reached = (edges & ~own).to(h.dtype) @ self.neighbours(h)
        return turns.to_flat((reached + self.itself_again(h)).relu())

    def views(self, g: Tensor, turns: Turns) -> dict[str, Tensor]:
        return {"attention": turns.to_flat(self._edges(turns.spread(g), turns)[1])[:, None]}

    def _edges(self, nodes: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
        """Which there are, and alpha; (conversations, turns, turns)."""
        inside = (turns.distances >= -self.past) & (turns.distances <= self.future)
        edges = turns.mask[:, None, :] & turns.mask[:, :, None] & inside
        return edges, masked_softmax(self.score(nodes) @ nodes.transpose(1, 2), edges)


class DialogueGCN(nn.Module, HubModel, paper_url="https://arxiv.org/abs/1908.11540"):
    """A graph of speakers over the turns. `forward` takes a `Batch` and returns an `Output`.

    With `views=True` the output also shows `graph.attention` and `match.attention` (utterances, 1, turns).
    """

    Params = DialogueGCNParams

    def __init__(self, params: DialogueGCNParams, sizes: Sizes) -> None:
        super().__init__()
        dim, dropout = params.dim, params.dropout
        self.direction = params.direction
        self.vectors = UtteranceVectors(params, sizes, encodes=False)
        self.join = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * dim, dim))
        self.encoder = conversation_encoder(params)
        self.graph = SpeakerGraph(dim, params.past_turns, params.future_turns if params.direction == "both" else 0)
        self.match = MatchingAttention(2 * dim) if params.attention else Unchanged()
        self.hidden = relu_layers(2 * dim, dim, 1, 0.0)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, sizes.classes))

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        turns = batch.turns
        with collect_views(self, views) as shown:
            x = self.join(torch.cat(self.vectors(batch), dim=-1))  # (utterances, dim)
            g = self.encoder(x, turns)
            x = torch.cat([g, self.graph(g, turns)], dim=-1)
            everyone = torch.ones_like(turns.places, dtype=torch.bool)
            z = self.match(x, turn_keys(everyone, turns, self.direction), turns)
            return Output(logits=self.classifier(self.hidden(z)), views=shown)
