"""What defines each of the field's standing references, against plain loops and formulas."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.batch import Batch
from fusion.models.dialoguegcn import SpeakerGraph
from fusion.models.lmf import LowRankFusion
from fusion.models.misa import moment_discrepancy, overlap
from fusion.models.mult import positions
from fusion.models.tfn import outer_product
from scripts.compare_references import main as compare
from tests.fusion.batches import CLASSES, assert_same, changed, make, make_batch, only
from tests.fusion.models.test_models import SETTINGS

TURNS = [5, 1, 3]
SPEAKERS = torch.tensor([0, 1, 0, 2, 1, 0, 0, 1, 1])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spoken(batch: Batch, speakers: Tensor) -> Batch:
    return changed(batch, speakers=speakers)


def alone(batch: Batch) -> Batch:
    """Each utterance as a conversation by itself."""
    everyone = torch.arange(len(batch.labels))
    return only(batch, everyone, torch.ones(len(everyone), 1, dtype=torch.bool))


REFERENCES = ("tfn", "lmf", "misa", "mult", "dialoguernn", "dialoguegcn", "experts")


@pytest.mark.parametrize(("name", "setting"), [(name, one) for name in REFERENCES for one in SETTINGS[name]], ids=str)
def test_a_switch_changes_weights_losses_or_answers(name: str, setting: dict[str, Any]) -> None:
    batch = spoken(make_batch(TURNS), SPEAKERS)
    model, changed_one = make(name), make(name, **setting)
    shapes = [[weight.shape for weight in one.parameters()] for one in (model, changed_one)]
    default, found = model(batch), changed_one(batch)
    same = set(default.losses) == set(found.losses) and torch.allclose(default.logits, found.logits, atol=1e-5)
    assert shapes[0] != shapes[1] or not same


def test_the_outer_product_has_every_product_and_each_modality_by_itself() -> None:
    audio, text = random(2, 3), random(2, 3, seed=1)
    for a, t, found in zip(audio, text, outer_product(audio, text), strict=True):
        a, t = torch.cat([torch.ones(1), a]), torch.cat([torch.ones(1), t])
        assert found.tolist() == [x * y for x in a for y in t]


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_fusion_is_tensor_fusion_with_the_tensor_of_its_factors(rank: int) -> None:
    torch.manual_seed(0)
    fuse = LowRankFusion(4, rank, CLASSES)
    torch.nn.init.normal_(fuse.bias)
    audio, text = random(5, 4), random(5, 4, seed=1)
    whole = outer_product(audio, text) @ fuse.tensor().flatten(0, 1) + fuse.bias
    torch.testing.assert_close(fuse(audio, text), whole)


def test_the_moment_discrepancy_is_its_formula_over_those_that_take_part() -> None:
    x, y = random(6, 4).sigmoid(), random(6, 4, seed=1).sigmoid()
    mask = torch.tensor([True, True, False, True, True, False])
    a, b = x[mask].double().numpy(), y[mask].double().numpy()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() ** 0.5
    for power in (2, 3, 4, 5):
        moments = [((one - one.mean(0)) ** power).mean(0) for one in (a, b)]
        expected += ((moments[0] - moments[1]) ** 2).sum() ** 0.5
    assert moment_discrepancy(x, y, mask).item() == pytest.approx(expected, abs=1e-6)
    assert moment_discrepancy(x, x, mask) == 0


def test_the_overlap_is_its_formula_and_zero_where_spaces_are_orthogonal() -> None:
    x, y = random(7, 3), random(7, 3, seed=1)
    mask = torch.tensor([True] * 5 + [False] * 2)
    rows = [one[mask] - one[mask].mean(0) for one in (x, y)]
    a, b = (one / one.norm(dim=1, keepdim=True) for one in rows)
    expected = sum(float(a[:, i] @ b[:, j]) ** 2 for i in range(3) for j in range(3)) / 9
    assert overlap(x, y, mask).item() == pytest.approx(expected, abs=1e-5)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # both columns centred and orthogonal
    assert overlap(signs[:, :1], signs[:, 1:], torch.ones(4, dtype=torch.bool)).item() == pytest.approx(0, abs=1e-12)


def test_losses_of_spaces_look_at_present_modalities_alone() -> None:
    model = make("misa", conversation_encoder="none")
    batch = make_batch([4, 2], [2, 0, 1, 3, 2, 1], [1, 2, 3, 1, 0, 2])
    both = torch.tensor([0, 2, 3, 5])
    expected = model(only(batch, both, torch.ones(1, 4, dtype=torch.bool))).losses
    found = model(batch).losses
    assert set(found) == {"similarity", "difference", "reconstruction"}
    torch.testing.assert_close(found["similarity"], expected["similarity"])
    assert set(make("misa", similarity=0, difference=0)(batch).losses) == {"reconstruction"}
    weighted = make("misa", conversation_encoder="none", similarity=2.5)(batch).losses
    torch.testing.assert_close(weighted["similarity"], 2.5 * found["similarity"])


def test_a_space_loss_alone_brings_the_shared_vectors_of_both_modalities_together() -> None:
    model = make("misa", conversation_encoder="none", dropout=0.0)
    batch = make_batch([6, 6])
    weights = [*model.shared.parameters(), *model.audio.parameters()]
    apart = []
    for _ in range(20):
        loss = model(batch).losses["similarity"]
        apart.append(loss.item())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            weight.data -= 0 if gradient is None else gradient
    assert apart[-1] < apart[0] / 3


def test_positions_are_sines_before_cosines_and_tell_places_apart() -> None:
    found = positions(torch.zeros(1, 50, 7))
    assert found.shape == (50, 7)
    assert not found[:, 6].any()  # an odd width has a column over
    torch.testing.assert_close(found[2, 0], torch.tensor(3.0).sin())
    assert torch.cdist(found[None], found[None])[0].fill_diagonal_(1).min() > 0.1


def test_the_order_of_frames_matters_to_a_transformer_with_positions_and_to_no_light_one() -> None:
    batch = make_batch([2], [4, 4], [2, 2])
    (group,) = batch.groups
    turned = changed(batch, audio=group.audio.flip(1))
    for name, matters in (("crossmodal", False), ("mult", True)):
        same = torch.allclose(make(name)(batch).logits, make(name)(turned).logits, atol=1e-5)
        assert same is not matters


def plain_dialoguernn(model: Any, u: Tensor, speakers: list[int], way: int) -> Tensor:
    """Emotion states (turns, width) of one conversation, turn by turn, with a state for each person by name."""
    of_conversation, of_party = (cells.cells[way] for cells in (model.states.conversation, model.states.party))
    weight = model.states.ask[way].weight
    emotion = model.emotion[way].grus[0]
    party: dict[int, Tensor] = {}
    heard: list[Tensor] = []
    states = []
    state, feeling = torch.zeros(1, of_conversation.hidden_size), torch.zeros(1, 1, emotion.hidden_size)
    for x, who in zip(u, speakers, strict=True):
        own = party.get(who, torch.zeros(1, of_party.hidden_size))
        scores = torch.tensor([float((weight @ x) @ one[0]) for one in heard])
        context = torch.zeros(1, of_conversation.hidden_size)
        for share, one in zip(scores.softmax(0), heard, strict=True):
            context = context + share * one
        state = of_conversation(torch.cat([x[None], own], dim=1), state)
        heard.append(state)
        party[who] = of_party(torch.cat([x[None], context], dim=1), own)
        feeling = emotion(party[who][None], feeling)[1]
        states.append(feeling[0, 0])
    return torch.stack(states)


@pytest.mark.parametrize("direction", ["past", "both"])
@torch.no_grad()
def test_dialoguernn_is_a_plain_loop_over_turns_and_people(direction: str) -> None:
    model = make("dialoguernn", direction=direction, attention=False)
    batch = spoken(make_batch(TURNS), SPEAKERS)
    u = torch.cat(model.vectors(model.standardise(batch)), dim=-1)
    expected = []
    for first, last in pairwise([0, 5, 6, 9]):
        x, speakers = u[first:last], SPEAKERS[first:last].tolist()
        ways = [plain_dialoguernn(model, x, speakers, 0)]
        if direction == "both":
            ways.append(plain_dialoguernn(model, x.flip(0), speakers[::-1], 1).flip(0))
        expected.append(torch.cat(ways, dim=-1))
    logits = model.classifier(model.hidden(torch.cat(expected)))
    torch.testing.assert_close(model(batch).logits, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["dialoguernn", "dialoguegcn"])
def test_who_speaks_makes_a_difference_and_how_people_are_numbered_makes_none(name: str) -> None:
    model, batch = make(name), make_batch(TURNS)
    one, renamed, other = (
        model(spoken(batch, speakers)) for speakers in (SPEAKERS, (SPEAKERS + 1) % 3, SPEAKERS.roll(1))
    )
    assert_same(renamed, one)
    assert not torch.allclose(other.logits[:5], one.logits[:5], atol=1e-4)


def test_a_graph_without_edges_is_no_context() -> None:
    edgeless: dict[str, Any] = {"conversation_encoder": "none", "attention": False, "past_turns": 0, "future_turns": 0}
    model, batch = make("dialoguegcn", **edgeless), spoken(make_batch(TURNS), SPEAKERS)
    assert_same(model(batch), model(alone(batch)))
    some = make("dialoguegcn", **edgeless | {"past_turns": 1})
    assert not torch.allclose(some(batch).logits[1:5], some(alone(batch)).logits[1:5], atol=1e-4)


@torch.no_grad()
def test_the_graph_is_a_plain_loop_over_its_edges() -> None:
    torch.manual_seed(0)
    graph = SpeakerGraph(4, past=2, future=1)
    turns = spoken(make_batch(TURNS), SPEAKERS).turns
    g = random(9, 4)
    relations = graph.relations.weight.view(4, 4, 4)
    first, found = [], graph(g, turns)

    def near(i: int) -> list[int]:
        begin, end = next(span for span in pairwise([0, 5, 6, 9]) if span[0] <= i < span[1])
        return [j for j in range(begin, end) if -2 <= j - i <= 1]

    for i in range(9):
        scores = torch.stack([(graph.score.weight @ g[i]) @ g[j] for j in near(i)]).softmax(0)
        total = torch.zeros(4)
        for share, j in zip(scores, near(i), strict=True):
            kind = 2 * int(SPEAKERS[i] != SPEAKERS[j]) + int(j > i)
            total += share * ((graph.itself.weight if j == i else relations[kind]) @ g[j])
        first.append(total.relu())
    for i in range(9):
        total = graph.itself_again(first[i]) + sum(graph.neighbours(first[j]) for j in near(i) if j != i)
        torch.testing.assert_close(found[i], total.relu(), rtol=0, atol=1e-6)


def force(model: Any, expert: int) -> None:
    torch.nn.init.zeros_(model.gate.linear.weight)
    model.gate.linear.bias.data = torch.full((3,), -1e4).index_fill(0, torch.tensor(expert), 0.0)


@pytest.mark.parametrize(("expert", "head"), enumerate(["audio", "text"]))
@pytest.mark.parametrize("scores", [False, True])
@torch.no_grad()
def test_a_gate_weighs_experts_to_one_and_alone_an_expert_is_the_model(expert: int, head: str, scores: bool) -> None:
    model = make("experts", **({"scores": True, "classes": 1} if scores else {}))
    batch = make_batch([3, 2], [2, 0, 1, 3, 2], [1, 2, 0, 3, 1])
    shown = model(batch, views=True)
    weights = shown.views["gate.weights"]
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    seen = torch.stack([batch.audio_present, batch.text_present, torch.ones(5, dtype=torch.bool)], dim=1)
    assert ((weights > 0) == seen).all()
    if not scores:
        torch.testing.assert_close(shown.logits.exp().sum(1), torch.ones(5))
    force(model, expert)
    output = model(batch)
    rows = seen[:, expert]
    alone = output.heads()[head][rows]
    found = output.logits[rows]
    torch.testing.assert_close(found, alone if scores else alone.log_softmax(-1))


def test_experts_that_agree_are_as_consistent_as_can_be() -> None:
    model, batch = make("experts"), make_batch([3, 2])
    assert model(batch).losses["consistency"] > 0
    for expert in (model.audio, model.text, model.both):
        torch.nn.init.zeros_(expert[-1].weight)
        torch.nn.init.zeros_(expert[-1].bias)
    assert model(batch).losses["consistency"].item() == pytest.approx(0, abs=1e-7)


THEIRS = """
from fusion.models.misa import moment_discrepancy, overlap

class CMD:
    def __call__(self, x, y, moments):
        return moment_discrepancy(x, y, x[:, 0] >= 0) + {off}

class DiffLoss:
    def __call__(self, x, y):
        return overlap(x, y, x[:, 0] >= 0)
"""


@pytest.mark.parametrize(("off", "status"), [(0, 0), (1e-3, 1)])
def test_other_code_that_gives_other_numbers_is_found_out(
    off: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path) == 2
    assert "holds no clone called TensorFusionNetworks, Low-rank" in capsys.readouterr().err
    module = tmp_path / "MISA" / "src" / "utils" / "functions.py"
    module.parent.mkdir(parents=True)
    module.write_text(THEIRS.format(off=off))
    assert compare(tmp_path) == status
    assert capsys.readouterr().out.startswith(f"misa, losses of its spaces, MISA: {off:.1e} at most")
