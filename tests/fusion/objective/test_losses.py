"""Losses against plain double loops, and where nobody takes part."""

import math
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fusion.batch import Output
from fusion.objective import Losses, LossTerms, fusion_loss, head_masks
from fusion.objective.losses import (
    FUSED,
    LabelLoss,
    absolute_loss,
    cross_entropy,
    focal_loss,
    relative_loss,
    supervised_loss,
)
from fusion.objective.tasks import LabelTask

TEMPERATURE = 0.1
WEIGHTS = {
    "auxiliary": 0.3,
    "absolute": 0.1,
    "relative": 0.2,
    "supervised": 0.25,
    "temperature": TEMPERATURE,
    "label_aware": False,
}
HEADS = ("fused", "audio", "text")


def unit_vectors(utterances: int, seed: int, dim: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(utterances, dim, generator=generator), dim=1)


def random_output(utterances: int, classes: int = 3, seed: int = 0) -> Output:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(utterances, classes, generator=generator, requires_grad=True) for _ in range(3)]
    return Output(
        *logits,
        audio=unit_vectors(utterances, seed + 1).requires_grad_(),
        text=unit_vectors(utterances, seed + 2).requires_grad_(),
        embeddings={head: unit_vectors(utterances, seed + 3 + i).requires_grad_() for i, head in enumerate(HEADS)},
    )


def everyone(utterances: int) -> Tensor:
    return torch.ones(utterances, dtype=torch.bool)


def loss_of(
    output: Output, labels: Tensor, audio: Tensor | None = None, text: Tensor | None = None, **changes: Any
) -> Losses:
    audio = everyone(len(labels)) if audio is None else audio
    text = everyone(len(labels)) if text is None else text
    loss = partial(cross_entropy, class_weights=changes.pop("class_weights", None))
    branches = changes.pop("branches", FUSED)
    masks, terms = head_masks(labels >= 0, audio, text), LossTerms(**(WEIGHTS | changes))
    return fusion_loss(output, labels, masks, loss, terms, branches)


def gradients(output: Output) -> list[Tensor]:
    leaves = [output.logits, output.audio_logits, output.text_logits, output.audio, output.text]
    leaves += output.embeddings.values()
    return [leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None]


def plain_absolute_loss(audio: list[list[float]], text: list[list[float]], labels: list[int] | None) -> float:
    """One direction after the other, one utterance after the other."""
    size, total = len(audio), 0.0
    for queries, keys in ((audio, text), (text, audio)):
        for i in range(size):
            scores = [sum(x * y for x, y in zip(queries[i], keys[j], strict=True)) / TEMPERATURE for j in range(size)]
            log_sum = math.log(sum(math.exp(score) for score in scores))
            positives = [j for j in range(size) if (j == i if labels is None else labels[j] == labels[i])]
            total -= sum(scores[j] - log_sum for j in positives) / len(positives) / size
    return total / 2


def plain_relative_loss(audio: list[list[float]], text: list[list[float]]) -> float:
    size, total = len(audio), 0.0

    def distribution(vectors: list[list[float]], i: int) -> list[float]:
        others = [j for j in range(size) if j != i]
        scores = [sum(x * y for x, y in zip(vectors[i], vectors[j], strict=True)) / TEMPERATURE for j in others]
        normaliser = sum(math.exp(score) for score in scores)
        return [math.exp(score) / normaliser for score in scores]

    for i in range(size):
        p, q = distribution(audio, i), distribution(text, i)
        total += sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return total / size / 2


def plain_supervised_loss(vectors: list[list[float]], labels: list[int]) -> float:
    size, terms = len(vectors), []
    for i in range(size):
        scores = [sum(x * y for x, y in zip(vectors[i], vectors[j], strict=True)) / TEMPERATURE for j in range(size)]
        log_sum = math.log(sum(math.exp(scores[j]) for j in range(size) if j != i)) if size > 1 else 0.0
        positives = [j for j in range(size) if j != i and labels[j] == labels[i]]
        if positives:
            terms.append(-sum(scores[j] - log_sum for j in positives) / len(positives))
    return sum(terms) / len(terms) if terms else 0.0


@given(st.integers(0, 9), st.integers(0, 99))
def test_supervised_loss_agrees_with_a_double_loop(utterances: int, seed: int) -> None:
    vectors = unit_vectors(utterances, seed).double()
    labels = torch.randint(3, (utterances,), generator=torch.Generator().manual_seed(seed))
    expected = plain_supervised_loss(vectors.tolist(), labels.tolist())
    assert supervised_loss(vectors, labels, TEMPERATURE).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_supervised_loss_falls_as_labels_come_together() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    apart, together = torch.eye(4), torch.eye(4)[labels]
    assert supervised_loss(together, labels, TEMPERATURE) < supervised_loss(apart, labels, TEMPERATURE)


@given(st.integers(1, 8), st.integers(0, 99), st.booleans())
def test_absolute_loss_agrees_with_a_double_loop(utterances: int, seed: int, label_aware: bool) -> None:
    audio, text = unit_vectors(utterances, seed).double(), unit_vectors(utterances, seed + 100).double()
    labels = torch.randint(3, (utterances,), generator=torch.Generator().manual_seed(seed)) if label_aware else None
    expected = plain_absolute_loss(audio.tolist(), text.tolist(), None if labels is None else labels.tolist())
    found = absolute_loss(audio, text, TEMPERATURE, labels)
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.integers(1, 8), st.integers(0, 99))
def test_relative_loss_agrees_with_a_double_loop(utterances: int, seed: int) -> None:
    audio, text = unit_vectors(utterances, seed).double(), unit_vectors(utterances, seed + 100).double()
    expected = plain_relative_loss(audio.tolist(), text.tolist())
    assert relative_loss(audio, text, TEMPERATURE).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_absolute_loss_is_the_logarithm_of_the_batch_when_all_pairs_are_alike() -> None:
    same = unit_vectors(1, seed=0).expand(4, -1)
    assert absolute_loss(same, same, TEMPERATURE).item() == pytest.approx(math.log(4))


def test_relative_loss_of_equal_structures_is_zero() -> None:
    audio = unit_vectors(6, seed=0)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).Q
    assert relative_loss(audio, audio @ rotation, TEMPERATURE).item() == pytest.approx(0, abs=1e-5)


def test_label_aware_absolute_loss_of_distinct_labels_is_the_plain_one() -> None:
    audio, text = unit_vectors(4, seed=0), unit_vectors(4, seed=1)
    aware = absolute_loss(audio, text, TEMPERATURE, torch.arange(4))
    assert torch.equal(aware, absolute_loss(audio, text, TEMPERATURE))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, torch.tensor([0.5, 1.0, 3.0])])
def test_cross_entropy_is_that_of_torch_over_labelled_utterances(
    smoothing: float, class_weights: Tensor | None
) -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, -1, 2, 1, -1, 2, 2])
    labelled = labels >= 0
    expected = F.cross_entropy(logits[labelled], labels[labelled], class_weights, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, labelled, class_weights, smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, torch.tensor([0.5, 1.0, 3.0])])
def test_focal_loss_is_cross_entropy_that_hardly_counts_what_is_known(
    smoothing: float, class_weights: Tensor | None
) -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.tensor([0, -1, 2, 1, -1, 2, 2])
    weights = torch.ones(3) if class_weights is None else class_weights
    shared: dict[str, Any] = {"class_weights": class_weights, "label_smoothing": smoothing}
    for gamma in (0.0, 2.0):
        total, share = 0.0, 0.0
        for told, label in zip(logits.softmax(1), labels.tolist(), strict=True):
            if label >= 0:
                share += float(weights[label])
                for one, p in enumerate(told.tolist()):
                    wanted = (1 - smoothing) * (one == label) + smoothing / 3
                    total -= wanted * float(weights[one]) * (1 - p) ** gamma * math.log(p)
        found = focal_loss(logits, labels, labels >= 0, gamma, **shared)
        assert float(found) == pytest.approx(total / share, abs=1e-5)
    torch.testing.assert_close(
        focal_loss(logits, labels, labels >= 0, 0.0, **shared), cross_entropy(logits, labels, labels >= 0, **shared)
    )
    sure = torch.tensor([[1e4, 0.0, 0.0]], requires_grad=True)
    focal_loss(sure, torch.tensor([0]), everyone(1), 0.5).backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()
    assert float(focal_loss(logits, labels, torch.zeros(7, dtype=torch.bool), 2.0)) == 0


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_no_constant_answer_has_a_smaller_loss_than_the_constant_loss(
    balanced: bool, gamma: float, smoothing: float
) -> None:
    loss = LabelLoss(balanced=balanced, gamma=gamma, smoothing=smoothing)
    task, labels = LabelTask(3), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, -1])
    smallest = task.constant_loss(labels.numpy(), loss)
    head_loss = task.head_loss(labels, loss, torch.device("cpu"))
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = head_loss(logits.expand(9, 3), labels, labels >= 0)
        value.backward()
        return value

    optimizer.step(step)
    assert step().item() == pytest.approx(smallest, abs=1e-4)


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    losses = loss_of(random_output(6), torch.tensor([0, 1, 2, 0, 1, 2]), supervised=0.0)
    expected = losses.fused + 0.3 * (losses.audio + losses.text) + 0.1 * losses.absolute + 0.2 * losses.relative
    torch.testing.assert_close(losses.total, expected)
    absent = ("supervised", "earlier", "own")
    assert all(getattr(losses, item.name) > 0 for item in fields(losses) if item.name not in absent)


def test_a_head_with_an_embedding_has_a_convex_mix_of_both_losses() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    random = random_output(6)
    output = Output(random.logits, embeddings={"fused": random.embeddings["fused"]})
    contrast = supervised_loss(random.embeddings["fused"], labels, TEMPERATURE)
    for share in (0.25, 1.0):
        losses = loss_of(output, labels, supervised=share)
        torch.testing.assert_close(losses.total, (1 - share) * losses.fused + share * contrast)
        torch.testing.assert_close(losses.supervised, contrast)


def test_two_views_of_a_turn_have_one_contrast_over_both_modalities() -> None:
    labels, audio = torch.tensor([0, 1, 2, 0, 1, -1]), torch.tensor([True, True, False, True, True, True])
    whole = random_output(6)
    pairs = torch.stack([unit_vectors(6, 7), unit_vectors(6, 8)], dim=1)
    here = replace(whole, audio=None, text=None, embeddings={}, pairs=pairs)
    vectors = [(pairs[n, view], int(labels[n])) for view in (0, 1) for n in range(6) if labels[n] >= 0]
    vectors = [one for one in vectors if not torch.equal(one[0], pairs[2, 0])]  # it has no audio
    kept, told = torch.stack([vector for vector, _ in vectors]), torch.tensor([label for _, label in vectors])
    contrast = supervised_loss(kept, told, TEMPERATURE)
    losses = loss_of(here, labels, audio=audio, branches=("audio", "text"), supervised=0.25)
    torch.testing.assert_close(losses.supervised, contrast)
    torch.testing.assert_close(losses.total, 0.75 * (losses.audio + losses.text) + 0.25 * contrast)
    later = replace(here, audio_logits=None, text_logits=None, earlier={"utterance": here})
    both = loss_of(later, labels, audio=audio, supervised=0.25)
    torch.testing.assert_close(both.earlier, losses.total)
    torch.testing.assert_close(both.total, 0.75 * both.fused + 0.25 * contrast + 0.3 * losses.total)


def test_branches_learn_fully_and_other_heads_as_auxiliary_ones() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    output = replace(random_output(6), audio=None, text=None, embeddings={})
    losses = loss_of(output, labels, branches=("audio",))
    torch.testing.assert_close(losses.total, losses.audio + 0.3 * losses.text)  # the fused head is no auxiliary one
    losses = loss_of(output, labels, branches=("audio", "text"))
    torch.testing.assert_close(losses.total, losses.audio + losses.text)


def test_heads_of_earlier_stages_are_auxiliary_ones() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    first = replace(random_output(6, seed=9), audio=None, text=None, embeddings={})
    losses = loss_of(Output(random_output(6).logits, earlier={"utterance": first}), labels)
    heads = loss_of(first, labels)
    torch.testing.assert_close(losses.earlier, heads.audio + heads.text)
    torch.testing.assert_close(losses.total, losses.fused + 0.3 * losses.earlier)


def test_losses_that_a_model_adds_itself_count_as_they_are() -> None:
    output, labels = random_output(4), torch.tensor([0, 1, 2, 0])
    own = {"one": torch.tensor(0.5, requires_grad=True), "other": torch.tensor(0.25)}
    found, without = loss_of(replace(output, losses=own), labels), loss_of(output, labels)
    assert (found.own.item(), without.own.item()) == (0.75, 0.0)
    torch.testing.assert_close(found.total, without.total + 0.75)
    found.total.backward()
    assert own["one"].grad == 1


def test_unlabelled_utterances_take_no_part_in_any_term() -> None:
    labels = torch.tensor([0, -1, 1, 2, -1, 0])
    output = random_output(6)
    loss_of(output, labels).total.backward()
    for gradient in gradients(output):
        assert not gradient[labels < 0].any()
        assert gradient[labels >= 0].any(dim=1).all()


def test_other_utterances_lose_nothing_by_unlabelled_ones() -> None:
    output, labels = random_output(6), torch.tensor([0, -1, 1, 2, -1, 0])
    labelled = labels >= 0
    names = ("logits", "audio_logits", "text_logits", "audio", "text")
    embeddings = {head: embedding[labelled] for head, embedding in output.embeddings.items()}
    alone = Output(**{name: getattr(output, name)[labelled] for name in names}, embeddings=embeddings)
    torch.testing.assert_close(loss_of(output, labels).total, loss_of(alone, labels[labelled]).total)


def test_an_utterance_without_a_modality_takes_no_part_in_its_terms() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1])
    audio, text = torch.tensor([1, 0, 1, 1, 1]).bool(), torch.tensor([1, 1, 0, 1, 1]).bool()
    output = random_output(5)
    loss_of(output, labels, audio, text).total.backward()
    assert output.logits.grad.any(dim=1).tolist() == [True] * 5
    assert output.audio_logits.grad.any(dim=1).tolist() == audio.tolist()
    assert output.text_logits.grad.any(dim=1).tolist() == text.tolist()
    assert output.audio.grad.any(dim=1).tolist() == (audio & text).tolist()
    assert output.text.grad.any(dim=1).tolist() == (audio & text).tolist()
    for head, present in (("fused", everyone(5)), ("audio", audio), ("text", text)):
        takes_part = output.embeddings[head].grad.any(dim=1)
        assert not takes_part[~present].any()
        assert takes_part.any()


@pytest.mark.parametrize("label_aware", [False, True])
@pytest.mark.parametrize(
    "labels",
    [[], [1], [-1], [1, -1], [-1, -1, -1], [2, 2, 2, 2], [0, 1]],
    ids=["nobody", "one", "one unlabelled", "one labelled of two", "all unlabelled", "one class", "two classes"],
)
def test_losses_and_gradients_are_finite_however_few_take_part(labels: list[int], label_aware: bool) -> None:
    output = random_output(len(labels))
    losses = loss_of(output, torch.tensor(labels, dtype=torch.long), label_aware=label_aware)
    losses.total.backward()
    assert all(getattr(losses, item.name).isfinite() for item in fields(losses))
    assert all(gradient.isfinite().all() for gradient in gradients(output))


def test_a_batch_without_labels_has_loss_zero_and_gradient_zero() -> None:
    output = random_output(3)
    losses = loss_of(output, torch.tensor([-1, -1, -1]))
    losses.total.backward()
    assert losses.total == 0
    assert output.logits.grad is not None
    assert not any(gradient.any() for gradient in gradients(output))


def test_two_utterances_have_no_relative_structure() -> None:
    assert relative_loss(unit_vectors(2, seed=0), unit_vectors(2, seed=1), TEMPERATURE) == 0


def test_identical_embeddings_have_finite_gradients() -> None:
    same = unit_vectors(1, seed=0).repeat(4, 1)
    output = replace(random_output(4), audio=same.clone().requires_grad_(), text=same.clone().requires_grad_())
    loss_of(output, torch.tensor([0, 1, 2, 0])).total.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(output))


def test_a_model_without_heads_or_embeddings_is_trained_by_classification_alone() -> None:
    output = Output(logits=random_output(3).logits)
    losses = loss_of(output, torch.tensor([0, 1, 2]))
    assert losses.total == losses.fused
    assert losses.audio == losses.text == losses.absolute == losses.relative == 0


def test_losses_are_float32_and_exact_under_autocast() -> None:
    output, labels = random_output(6), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = loss_of(output, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(output, labels)
    for item in fields(Losses):
        assert getattr(found, item.name).dtype == torch.float32
        assert torch.equal(getattr(found, item.name), getattr(expected, item.name))


def test_losses_of_bfloat16_outputs_are_float32() -> None:
    output = random_output(6)
    names = ("logits", "audio_logits", "text_logits", "audio", "text")
    halved = Output(**{name: getattr(output, name).bfloat16() for name in names})
    losses = loss_of(halved, torch.tensor([0, 1, 2, 0, 1, 2]), class_weights=torch.ones(3).bfloat16())
    assert all(getattr(losses, item.name).dtype == torch.float32 for item in fields(losses))
