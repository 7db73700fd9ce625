"""Groups of a batch, apart and joined."""

import torch

from fusion.batch import Output
from tests.fusion.batches import make_batch, regrouped, tensors_in


def test_joined_groups_are_the_batch_padded_to_the_longest() -> None:
    batch = make_batch([2, 3], [4, 1, 0, 3, 4], [1, 2, 3, 0, 2])
    expected, found = tensors_in(batch), tensors_in(regrouped(batch, [[3, 2], [4, 0], [1]]))
    for modality in ("audio", "text"):
        mask = expected.pop(f"{modality}_mask")
        assert torch.equal(found.pop(f"{modality}_mask"), mask)
        assert torch.equal(found.pop(modality)[mask], expected.pop(modality)[mask])
    assert all(torch.equal(found[name], expected[name]) for name in ("labels", "turn_mask"))


def test_what_is_made_of_groups_comes_back_in_the_order_of_the_batch() -> None:
    batch = regrouped(make_batch([2, 3]), [[4, 1], [0, 3, 2]])
    assert batch.each(lambda group: 10 * group.utterances).tolist() == [0, 10, 20, 30, 40]


def test_who_has_a_modality_is_known_whatever_the_groups() -> None:
    batch = regrouped(make_batch([2, 3], [4, 1, 0, 3, 4], [1, 2, 3, 0, 2]), [[3, 2], [4, 0], [1]])
    assert batch.audio_present.tolist() == [True, True, False, True, True]
    assert batch.text_present.tolist() == [True, True, True, False, True]


def test_a_batch_moves_as_a_whole() -> None:
    batch = regrouped(make_batch([2, 3]), [[4, 1], [0, 3, 2]]).to("meta")
    tensors = [batch.order, batch.labels, batch.scores, batch.turns.mask, batch.turns.places, batch.turns.speakers]
    tensors += [tensor for group in batch.groups for tensor in vars(group).values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_an_output_needs_only_logits() -> None:
    output = Output(logits=torch.zeros(1, 2))
    assert output.audio is None
    assert output.views == {}
