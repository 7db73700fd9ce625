"""The architectures that can encode: one table each of speech and text, which loading, tests and docs/encoders.md read;
and the hidden states of a text model, by the numbers that transformers gives them.

An architecture is supported if its features are exact (a text's do not depend on the texts that share its batch) and
its layers are those that transformers calls `hidden_states[n]`; tests go over every one. All others are refused by
name.

Axes: texts, tokens, dim.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor


Modality = Literal["audio", "text"]


@dataclass(frozen=True)
class Architecture:
    """What has to be known of an architecture beyond its configuration."""

    blocks: str = "encoder.layer"  # where its transformer blocks are; "": they cannot be watched
    whole: bool = False  # what enters a block is not the hidden state, so the model runs whole and returns them all
    alone: bool = False  # padding shows in its features or its classifier, so each text is encoded by itself
    causal: bool = False  # a language model: no token sees those behind it
    ready_mask: bool = False  # takes masks as attention uses them, (texts, 1, tokens, tokens)
    learns: bool = True  # transformers has a classifier for it that reads the encoder alone
    loader: str = "AutoModel"  # class of transformers that loads the encoder
    version: int = 1  # raise it when a change alters the features


SPEECH = {
    "wav2vec2": Architecture("encoder.layers"),
    "hubert": Architecture("encoder.layers"),
    "wavlm": Architecture("encoder.layers"),
    "wav2vec2-conformer": Architecture("encoder.layers"),
    "data2vec-audio": Architecture("encoder.layers"),
    "unispeech": Architecture("encoder.layers"),
    "unispeech-sat": Architecture("encoder.layers"),
    "whisper": Architecture("encoder.layers", loader="AutoModelForAudioClassification"),  # without the decoder
}

TEXT = {
    "albert": Architecture("encoder.albert_layer_groups"),
    "bert": Architecture(ready_mask=True),
    "bert-generation": Architecture(learns=False),
    "big_bird": Architecture(alone=True, version=2),
    "camembert": Architecture(ready_mask=True),
    "convbert": Architecture(alone=True, version=2),
    "data2vec-text": Architecture(ready_mask=True),
    "deberta": Architecture(),
    "deberta-v2": Architecture(),
    "distilbert": Architecture("transformer.layer"),
    "electra": Architecture(ready_mask=True),
    "ernie": Architecture(),
    "esm": Architecture(version=2),
    "eurobert": Architecture("layers"),
    "flaubert": Architecture("attentions", whole=True),
    "fnet": Architecture(alone=True, version=2),
    "gte": Architecture("layers"),
    "ibert": Architecture(),
    "jina_embeddings_v3": Architecture("layers"),
    "longformer": Architecture(),
    "luke": Architecture(),
    "megatron-bert": Architecture(version=2),
    "mobilebert": Architecture(alone=True, version=2),
    "modernbert": Architecture("layers"),
    "mpnet": Architecture(),
    "mt5": Architecture("encoder.block", learns=False, loader="AutoModelForTextEncoding"),
    "nomic_bert": Architecture("layers"),
    "nystromformer": Architecture(alone=True, version=2),
    "rembert": Architecture(),
    "roberta": Architecture(ready_mask=True),
    "roberta-prelayernorm": Architecture(version=2),
    "roformer": Architecture(),
    "splinter": Architecture(learns=False),
    "squeezebert": Architecture("", whole=True),
    "t5": Architecture("encoder.block", learns=False, loader="AutoModelForTextEncoding"),
    "umt5": Architecture("encoder.block", learns=False, loader="AutoModelForTextEncoding"),
    "xlm": Architecture("attentions", whole=True),
    "xlm-roberta": Architecture(ready_mask=True),
    "xlm-roberta-xl": Architecture(version=2),
    "xlnet": Architecture("layer", whole=True, alone=True),
    "xmod": Architecture(),
    "yoso": Architecture(alone=True, version=2),
    # language models: no token sees those behind it
    "bloom": Architecture("h", causal=True, learns=False),
    "cohere2": Architecture("layers", causal=True, learns=False),
    "falcon": Architecture("h", causal=True, learns=False),
    "gemma": Architecture("layers", causal=True, learns=False),
    "gemma2": Architecture("layers", causal=True, learns=False),
    "gemma3_text": Architecture("layers", causal=True, learns=False),
    "gpt2": Architecture("h", causal=True, learns=False),
    "gpt_neo": Architecture("h", causal=True, learns=False),
    "gpt_neox": Architecture("layers", causal=True, learns=False),
    "gptj": Architecture("h", causal=True, learns=False),
    "granite": Architecture("layers", causal=True, learns=False),
    "llama": Architecture("layers", causal=True, learns=False),
    "mistral": Architecture("layers", causal=True, learns=False),
    "mpt": Architecture("blocks", causal=True, learns=False),
    "olmo": Architecture("layers", causal=True, learns=False),
    "olmo2": Architecture("layers", causal=True, learns=False),
    "olmo3": Architecture("layers", causal=True, learns=False),
    "opt": Architecture("decoder.layers", causal=True, learns=False),
    "phi": Architecture("layers", causal=True, learns=False),
    "phi3": Architecture("layers", causal=True, learns=False),
    "qwen2": Architecture("layers", causal=True, learns=False),
    "qwen3": Architecture("layers", causal=True, learns=False),
    "smollm3": Architecture("layers", causal=True, learns=False),
    "stablelm": Architecture("layers", causal=True, learns=False),
    "starcoder2": Architecture("layers", causal=True, learns=False),
}

ROUTED = "it sends each token to the experts that score highest, and rounding in a batch can change which these are"
SCANNED = "it carries a state from token to token, which no test here covers"
SEEING = "it reads images beside the text; name a folder with its language model alone, if there is one"

REFUSED = {  # some that people ask for, with the reason
    "bamba": SCANNED,
    "canine": "it pools characters, so that its hidden states differ in length",
    "deepseek_v3": ROUTED,
    "falcon_h1": SCANNED,
    "falcon_mamba": SCANNED,
    "funnel": "it pools tokens, so that its hidden states differ in length",
    "gemma3": SEEING,
    "gemma3n": SEEING,
    "gpt_oss": ROUTED,
    "jamba": SCANNED,
    "layoutlm": "it reads the layout of a page beside the text",
    "layoutlmv2": "it reads the layout of a page beside the text",
    "layoutlmv3": "it reads the layout of a page beside the text",
    "lilt": "it reads the layout of a page beside the text",
    "llama4": SEEING,
    "mamba": SCANNED,
    "mamba2": SCANNED,
    "markuplm": "it reads markup beside the text",
    "mistral3": SEEING,
    "mixtral": ROUTED,
    "mllama": SEEING,
    "mra": "its attention exists as a GPU kernel only, and is left out elsewhere",
    "olmoe": ROUTED,
    "perceiver": "its hidden states are of latents, not of tokens",
    "phimoe": ROUTED,
    "qwen2_5_vl": SEEING,
    "qwen2_moe": ROUTED,
    "qwen2_vl": SEEING,
    "qwen3_moe": ROUTED,
    "qwen3_next": SCANNED,
    "qwen3_vl": SEEING,
    "recurrent_gemma": SCANNED,
    "reformer": "its attention hashes at random, so that no two runs agree",
    "roc_bert": "it reads the shape and the sound of characters beside the text",
    "rwkv": SCANNED,
    "sew": "it joins neighbouring frames, across the end of a clip",
    "sew-d": "it joins neighbouring frames, across the end of a clip",
    "tapas": "it reads tables",
    "visual_bert": "it reads images beside the text",
    "wav2vec2-bert": "it takes filter banks from a different extractor, which is not supported",
}

TABLES: Mapping[Modality, Mapping[str, Architecture]] = {"audio": SPEECH, "text": TEXT}


def check_supported(modality: Modality, model_type: str, who: str, others: str = "") -> Architecture:
    """What is known of `model_type`.

    Raises:
        EncoderError: it is not supported; the message names those that are, and `others`.
    """
    table = TABLES[modality]
    if model_type in table:
        return table[model_type]
    reason = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
    raise EncoderError(f"{who} is a '{model_type}' model{reason}; expected one of {', '.join(table)}{others}")


class _Enough(Exception):  # noqa: N818 - no error: the states that were asked for are there
    """Ends a forward pass."""


def _blocks(model: Any, architecture: Architecture) -> Any:
    found = model
    for name in architecture.blocks.split("."):
        found = getattr(found, name, ())
    return found


def cut(model: Any, architecture: Architecture, depth: int) -> None:
    """Take away what hidden states up to `depth` do not need: weights of later blocks, and the pooler.

    One block more than `depth` is left, without its weights, as the place where a forward pass ends.
    """
    from torch import nn

    model.pooler = nn.Identity() if architecture.whole else None  # it reads [CLS] for tasks that are not ours
    blocks = _blocks(model, architecture)
    if architecture.whole or len(blocks) < model.config.num_hidden_layers:  # fewer: several layers share one
        return
    del blocks[depth + 1 :]
    for part in (part for block in blocks[depth:] for part in block.modules()):
        part._parameters.clear()
        part._buffers.clear()


def ready_for_a_text(model: Any) -> None:
    """Forget earlier texts: BigBird looks at all texts behind a short one as it looked at that one."""
    if hasattr(model, "set_attention_type"):
        model.set_attention_type(model.config.attention_type)


def hidden_states(
    model: Any, architecture: Architecture, wanted: Collection[int], numbers: "Tensor", mask: "Tensor | None"
) -> dict[int, "Tensor"]:
    """Token numbers (texts, tokens) -> the hidden states (texts, tokens, dim) that are wanted, by their number.

    State n is what enters block n + 1, and the last one is the model's own output: a norm behind the last block is in
    that one alone. The model runs no further than it must; with none wanted, to its first block.
    """
    ready_for_a_text(model)
    model.config.use_cache = False  # nothing is generated, so no key or value is kept
    model.config.return_dict = True  # some were saved with false
    if architecture.whole and wanted:
        states = model(input_ids=numbers, attention_mask=mask, output_hidden_states=True).hidden_states
        return {number: states[number] for number in wanted}
    seen: dict[int, Tensor] = {}
    entered, last = 0, max(wanted, default=0)

    def enter(block: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal entered
        if entered in wanted:
            seen[entered] = args[0] if args else named["hidden_states"]
        if entered == last:
            raise _Enough
        entered += 1

    hooks = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in _blocks(model, architecture)]
    try:
        seen[model.config.num_hidden_layers] = model(input_ids=numbers, attention_mask=mask).last_hidden_state
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return seen
