"""The same weights in the references of fusion/models and in public code of their authors: how far apart are they?

    git clone https://github.com/Justin1904/TensorFusionNetworks clones/TensorFusionNetworks
    git clone https://github.com/Justin1904/Low-rank-Multimodal-Fusion clones/Low-rank-Multimodal-Fusion
    git clone https://github.com/declare-lab/conv-emotion clones/conv-emotion
    git clone https://github.com/yaohungt/Multimodal-Transformer clones/Multimodal-Transformer
    git clone https://github.com/declare-lab/MISA clones/MISA
    python scripts/compare_references.py clones

Prints a line for each clone that is there: the largest difference between numbers that should be the same, ours in
float32, without dropout. Ends with status 1 where one is above 1e-4. Their code is run as it is; nothing of it is kept
here. What their models have and ours lack is taken out of theirs: docs/models.md says what.
"""

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fusion.batch import Batch
from fusion.layers import KeyMask
from fusion.models import Sizes, build_model, find_model
from fusion.models.misa import moment_discrepancy, overlap
from fusion.models.mult import Transformer

TOLERANCE = 1e-4
DIM, CLASSES = 24, 5
TURNS = [6, 2, 9]
SPEAKERS = torch.tensor([0, 1, 0, 2, 1, 0, 0, 0, 0, 1, 1, 0, 2, 2, 0, 1, 3])


def load(path: Path) -> ModuleType:
    """The module in that file."""
    spec = importlib.util.spec_from_file_location(f"compared_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name: str, **own: Any) -> Any:
    """Our model called `name`, whose features are as they come, with weights so large that its answers differ."""
    params = {"dim": DIM, "standardise": False, "linear_path": False} | own
    model = build_model(name, find_model(name).Params(**params), Sizes(20, 16, classes=CLASSES)).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
    return model


def conversations() -> Batch:
    """Some, of several speakers, whose utterances have two frames and three tokens."""
    count = sum(TURNS)
    return Batch.padded(
        audio=torch.randn(count, 2, 20),
        audio_mask=torch.ones(count, 2, dtype=torch.bool),
        text=torch.randn(count, 3, 16),
        text_mask=torch.ones(count, 3, dtype=torch.bool),
        labels=torch.zeros(count, dtype=torch.int64),
        scores=torch.zeros(count),
        turn_mask=torch.arange(max(TURNS)) < torch.tensor(TURNS)[:, None],
        speakers=SPEAKERS,
    )


def copy(target: nn.Module, source: nn.Module) -> None:
    """The weights and biases of all linear maps in `source` to those of `target`, in their order."""
    pairs = [[part for part in module.modules() if isinstance(part, nn.Linear)] for module in (target, source)]
    for to, of in zip(*pairs, strict=True):
        to.load_state_dict(of.state_dict())


def own_network(module: ModuleType, source: nn.Module, width: int) -> Any:
    """Their network for one modality with the weights of ours, whose batch norm changes nothing."""
    network = module.SubNet(DIM, width, 0.0)
    network.norm.running_var.fill_(1 - network.norm.eps)
    copy(network, source)
    return network


Pair = tuple[Tensor, Tensor]  # what ours gives, and theirs


def compare_tfn(clone: Path) -> Pair:
    """Logits of TFN; theirs is a score between -3 and 3, of which the sigmoid is taken back, hence in float64."""
    module, model, batch, width = load(clone / "model.py"), build("tfn", width=8), conversations(), 8
    theirs = module.TFN((DIM, 1, DIM), (width, 0, width), width, (0.0,) * 4, DIM)
    theirs.audio_subnet, theirs.text_subnet = (own_network(module, one, width) for one in (model.audio, model.text))
    theirs.post_fusion_layer_3 = nn.Linear(DIM, CLASSES)
    after = nn.ModuleList([theirs.post_fusion_layer_1, theirs.post_fusion_layer_2, theirs.post_fusion_layer_3])
    copy(after, nn.ModuleList([model.infer, model.decide]))
    audio, text = model.vectors(batch)
    found = theirs.eval().double()(audio.double(), torch.zeros(len(audio), 1).double(), text.double())
    return model(batch).logits, ((found + 3) / 6).logit()


def compare_lmf(clone: Path) -> Pair:
    """Logits of LMF."""
    module, model, batch, width = load(clone / "model.py"), build("lmf", width=8, rank=3), conversations(), 8
    nn.init.normal_(model.fuse.bias)
    theirs = module.LMF((DIM, 1, DIM), (width, 0, width), width, (0.0,) * 4, CLASSES, 3)
    theirs.audio_subnet, theirs.text_subnet = (own_network(module, one, width) for one in (model.audio, model.text))
    theirs.video_factor.data.fill_(1.0)
    theirs.audio_factor, theirs.text_factor = model.fuse.audio, model.fuse.text
    theirs.fusion_weights, theirs.fusion_bias = model.fuse.weights, model.fuse.bias
    audio, text = model.vectors(batch)
    return model(batch).logits, theirs.eval()(audio, torch.zeros(len(audio), 1), text)


def compare_dialoguernn(clone: Path) -> Pair:
    """Log posteriors of BiDialogueRNN + Att."""
    module, model, batch = load(clone / "DialogueRNN" / "model.py"), build("dialoguernn"), conversations()
    half = DIM // 2
    theirs = module.BiModel(2 * DIM, DIM, DIM, half, half, n_classes=CLASSES, context_attention="general").eval()
    for way, network in enumerate((theirs.dialog_rnn_f, theirs.dialog_rnn_r)):
        cell = network.dialogue_cell
        cell.g_cell.load_state_dict(model.states.conversation.cells[way].state_dict())
        cell.p_cell.load_state_dict(model.states.party.cells[way].state_dict())
        cell.attention.transform.load_state_dict(model.states.ask[way].state_dict())
        emotion = model.emotion[way].grus[0].state_dict()
        cell.e_cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in emotion.items()})
    copy(theirs.matchatt, model.match)
    copy(nn.ModuleList([theirs.linear, theirs.smax_fc]), nn.ModuleList([model.hidden, model.classifier]))
    turns = batch.turns
    u = turns.to_grid(torch.cat(model.vectors(batch), dim=-1)).transpose(0, 1)  # (turns, conversations, features)
    people = turns.to_grid(nn.functional.one_hot(SPEAKERS).float()).transpose(0, 1)
    found = theirs(u, people, turns.mask.float())[0]
    return model(batch).logits.log_softmax(dim=-1), turns.to_flat(found.transpose(0, 1))


def compare_mult(clone: Path) -> Pair:
    """What MulT's transformers make of a modality that looks at the other one, and of one that looks at itself."""
    sys.path.insert(0, str(clone))
    module = load(clone / "modules" / "transformer.py")
    ours: Any = Transformer(DIM, heads=4, layers=3, dropout=0.0).eval()
    theirs = module.TransformerEncoder(DIM, num_heads=4, layers=3).eval()
    for to, of in zip(theirs.layers, ours.layers, strict=True):
        attention, parts = of.attention, (of.attention.query, of.attention.key, of.attention.value)
        to.self_attn.in_proj_weight.data = torch.cat([part.weight for part in parts])
        to.self_attn.in_proj_bias.data = torch.cat([attention.query.bias, attention.no_bias, attention.value.bias])
        copy(nn.ModuleList([to.self_attn.out_proj, to.fc1, to.fc2]), nn.ModuleList([attention.out, of.feed_forward]))
        for norm, own in zip(to.layer_norms, (of.norm, of.feed_forward[0]), strict=True):
            norm.load_state_dict({name: torch.randn_like(weight) for name, weight in own.state_dict().items()})
            own.load_state_dict(norm.state_dict())
    x, y = torch.randn(4, 7, DIM), torch.randn(4, 5, DIM)
    everything = [KeyMask(torch.ones(one.shape[:2], dtype=torch.bool)) for one in (y, x)]
    first, other = x.transpose(0, 1), y.transpose(0, 1)
    found = torch.stack([theirs(first, other, other), theirs(first)]).transpose(1, 2)
    return torch.stack([ours(x, y, everything[0]), ours(x, None, everything[1])]), found


def compare_misa(clone: Path) -> Pair:
    """Similarity and difference of MISA's spaces."""
    module = load(clone / "src" / "utils" / "functions.py")
    x, y, everyone = torch.rand(30, DIM), torch.rand(30, DIM), torch.ones(30, dtype=torch.bool)
    ours = [moment_discrepancy(x, y, everyone), overlap(x, y, everyone)]
    return torch.stack(ours), torch.stack([module.CMD()(x, y, 5), module.DiffLoss()(x, y)])


COMPARISONS: dict[str, tuple[str, Callable[[Path], Pair]]] = {
    "TensorFusionNetworks": ("tfn, logits", compare_tfn),
    "Low-rank-Multimodal-Fusion": ("lmf, logits", compare_lmf),
    "conv-emotion": ("dialoguernn, log posteriors", compare_dialoguernn),
    "Multimodal-Transformer": ("mult, its transformers", compare_mult),
    "MISA": ("misa, losses of its spaces", compare_misa),
}


def main(folder: Path) -> int:
    """Compare with every clone in `folder`."""
    there = {name: comparison for name, comparison in COMPARISONS.items() if (folder / name).is_dir()}
    if not there:
        print(f"{folder}: holds no clone called {', '.join(COMPARISONS)}; clone one there", file=sys.stderr)
        return 2
    far = False
    for name, (what, compare) in there.items():
        torch.manual_seed(0)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers of width 0, and of names that torch has outgrown
            ours, theirs = compare(folder / name)
        largest = float((ours - theirs).abs().max())
        far |= not largest <= TOLERANCE
        print(f"{what}, {name}: {largest:.1e} at most, of numbers with a deviation of {float(ours.std()):.2g}")
    return int(far)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("clones"), help="of the clones")
    sys.exit(main(parser.parse_args().folder))
