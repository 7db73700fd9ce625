"""Finding a pretrained model by hub name or local folder, and loading it so that no weight is silently random; and the
note that lies in place of a fine-tuned encoder while fine-tuning is off.

The stages that encode depend on the folder of the fine-tuned encoder, so it is always there. No heavy imports: with
fine-tuning off, its command must cost nothing.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.encoders.architectures import Architecture, Modality, check_supported
from pipeline.errors import EncoderError, refuse_pipe
from pipeline.params import Mix
from pipeline.settings import load_transformers

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

NOTE = "README.md"
OFF = "Fine-tuning is off"


def write_note(folder: Path, modality: str) -> None:
    """Write the note of `modality` (audio or text) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTE).write_text(
        f"{OFF}, so no encoder is here. To have one, set {modality}.finetune.epochs above 0 in params.yaml and run "
        f"dvc repro, or pipeline-finetune --modality {modality}.\n",
        encoding="utf-8",
    )


def read_note(folder: Path) -> str | None:
    """What the note in `folder` says; None where there is none."""
    try:
        note = (folder / NOTE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return note if note.startswith(OFF) else None


FINGERPRINT = "fingerprint"  # file of a fine-tuned encoder: of all that decided its weights; then, of what it holds


LEARNED = "learned.txt"  # of the same: a line for each recording or text whose label it learned, `learned_key`


def read_learned(folder: str) -> frozenset[str]:
    """Whose labels the encoder in `folder` has learned, by `pipeline.manifest.learned_key`; none unless it is ours."""
    file = Path(folder) / LEARNED
    if not file.is_file() and (Path(folder) / FINGERPRINT).is_file():
        log.warning(
            "%s: was fine-tuned by an earlier version, which did not list whose labels it learned, so nothing stops a "
            "test on them; fine-tune it again",
            folder,
        )
    return frozenset(file.read_text(encoding="utf-8").split()) if file.is_file() else frozenset()


def hash_files(folder: Path, *without: str) -> str:
    """Hash (hex) of the names and bytes of the files in `folder`, but for hidden ones and those `without`."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in without and not path.name.startswith("."):  # such as .DS_Store
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether a folder that `pipeline-finetune` wrote is as it was written; its card may be edited."""
    mark = folder / FINGERPRINT
    known = mark.read_text(encoding="utf-8", errors="replace").splitlines()[1:] if mark.is_file() else []
    return not known or known == [hash_files(folder, NOTE, FINGERPRINT)]


ADAPTER = "adapter_config.json"  # transformers applies it in silence where peft is installed, else not
UNUSED = ("pooler.", "masked_spec_embed", "adapter.")  # of a base model: for training, and for tasks that are not ours
BUFFERS = (  # that older checkpoints hold
    *(".position_ids", ".token_type_ids", ".inv_freq", ".num_batches_tracked"),
    *(".masked_bias", ".attn.bias", ".attention.bias"),  # triangles that hide what follows
)


LFS = b"version https://git-lfs"
MOST_LAYERS = 1_000  # many times what any encoder has
AT_ONCE = 1 << 22  # numbers whose hash is taken
LONGEST_HEADER = 100_000_000  # bytes of a safetensors file, as its library has it


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    location: str  # folder or hub name, for from_pretrained
    name: str  # for the identity: the folder's own name, or the hub name; never an absolute path
    revision: str | None  # commit on the hub; None for a folder


def find_model(name: str, revision: str | None, builtin: dict[str, Path]) -> Source:
    """Settle whether `name` is a built-in, a local folder or a model on the hub.

    Raises:
        EncoderError: there is no such folder, or the hub does not know the model or cannot be reached.
    """
    folder = Path(name)
    if revision is not None and (name in builtin or folder.is_dir()):
        raise EncoderError(f"revision '{revision}' is for models of the hub, and {name} is not; leave it null")
    if name in builtin:
        return Source(str(builtin[name]), name, None)
    if folder.is_dir():
        if (folder / ADAPTER).is_file():
            raise EncoderError(
                f"encoder folder {folder} holds a LoRA or PEFT adapter ({ADAPTER}), not a model of its own; merge it "
                "into its base (peft's merge_and_unload, then save_pretrained) and name that folder"
            )
        if not (folder / "config.json").is_file():
            reason = read_note(folder) or f"expected a Hugging Face model folder{_did_you_mean(folder)}"
            raise EncoderError(f"encoder folder {folder} has no config.json; {reason}")
        for path in folder.iterdir():
            refuse_pipe(path)
        if not is_whole(folder):
            raise EncoderError(
                f"encoder folder {folder} is damaged, or was edited since it was fine-tuned; run pipeline-finetune "
                f"again, or delete its file '{FINGERPRINT}' to keep your edit"
            )
        return Source(str(folder), folder.resolve().name, None)
    if name.count("/") > 1 or name.startswith(("/", ".", "~")) or not name.strip("/"):
        raise EncoderError(f"no such encoder folder: {name}; fix the path, or give a Hugging Face name")
    return Source(name, name, _commit(name, revision))


def _did_you_mean(folder: Path) -> str:
    """The model inside a folder of sentence-transformers, or of the hub's cache."""
    inside = sorted((*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")))
    models = [
        path.parent for path in inside if any(path.parent.glob("*.safetensors")) or any(path.parent.glob("*.bin"))
    ]
    return f"; did you mean {models[0]}?" if models else ""


def _commit(name: str, revision: str | None) -> str:
    """The full commit hash that `revision` of a hub model stands for, from the local cache or the hub."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        commit = HfApi().model_info(name, revision=revision, timeout=20).sha
    except HFValidationError:
        raise EncoderError(f"no encoder folder '{name}', nor is it the form of a Hugging Face name") from None
    except Exception as error:  # the client raises httpx, OS and its own errors, depending on its version
        reason = str(error).strip().split("\n")[0]
        at = f" at revision {revision}" if revision else ""
        raise EncoderError(
            f"no encoder folder '{name}', and it cannot be had from the Hugging Face hub{at} "
            f"({type(error).__name__}: {reason}); fix the name, or download it where there is a network and give "
            "the folder"
        ) from None
    return commit or revision or "main"


@dataclass(frozen=True)
class Supported:
    """A model that can be loaded."""

    config: Any
    architecture: Architecture


def load_config(source: Source, modality: Modality, who: str, others: str = "") -> Supported:
    """The model's configuration, without its weights, and what is known of its architecture.

    Raises:
        EncoderError: it cannot be read, is of an architecture that is not supported, or its weights are quantised.
    """
    load_transformers()
    from transformers import AutoConfig, PretrainedConfig

    place = {"revision": source.revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source.location, **place)
    except Exception as error:  # whatever a damaged file makes the library raise
        stated = None
        with suppress(Exception):
            stated = PretrainedConfig.get_config_dict(source.location, **place)[0]["model_type"]
        if isinstance(stated, str):  # it may be of an architecture that the library does not know
            check_supported(modality, stated, who, others)
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(f"encoder {source.location}: its config.json cannot be read: {reason}") from None
    layers = getattr(config, "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > MOST_LAYERS:  # they are laid out before weights are read
        raise EncoderError(f"encoder {source.location}: its config.json says {str(layers)[:20]} layers; fix it")
    architecture = check_supported(modality, config.model_type, who, others)
    if quantisation := getattr(config, "quantization_config", None):
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        raise EncoderError(
            f"encoder {source.location}: its weights are quantised{f' ({method})' if method else ''}, which is not "
            "supported; name the model without quantisation"
        )
    return Supported(config, architecture)


def load_pretrained(
    loader: Any, source: Source, *, trainable: bool = False, cut: Callable[[Any], None] | None = None, **options: Any
) -> Any:
    """`loader.from_pretrained(source)`, safely, and refusing a checkpoint that does not fit the model.

    What matters are the weights of the encoder that are left by `cut`: whether one is missing or of another shape.
    Weights of heads may be in the checkpoint and not in the model; a model that is to be trained may begin with a head
    of random weights.

    Raises:
        EncoderError: files are missing or damaged, or weights of the encoder are missing, unknown or of another shape.
    """
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)  # its load report is judged below, in our words
    try:
        with _shapes_alone():
            model, report = loader.from_pretrained(
                source.location,
                revision=source.revision,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # judged below
                **options,
            )
    except Exception as error:  # whatever a damaged folder makes the libraries raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if pointer := _pointer_of_lfs(Path(source.location)):
            reason = f"{pointer.name} is a pointer of Git LFS, not the weights; run git lfs pull in the folder"
        raise EncoderError(f"encoder {source.location} cannot be loaded: {reason}") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise EncoderError(
            f"encoder {source.location} has an adapter ({ADAPTER}) beside its weights; merge it into them"
        )
    if cut:
        cut(model)
    _refuse_misfits(source, model, report)
    return model.train(trainable).requires_grad_(trainable)


def _pointer_of_lfs(folder: Path) -> Path | None:
    """A file of weights that was cloned without Git LFS."""
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                return path
    return None


def _shapes_alone() -> Any:
    """Inside, no numbers are made up for tensors on the meta device, which hold none.

    There transformers lays a model out before it reads the weights, and to make them up torch loads sympy: a second.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class ShapesAlone(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs, name = kwargs or {}, getattr(function, "__name__", "")
            first = args[0] if args else kwargs.get("tensor")
            if getattr(first, "is_meta", False):
                if name in ("normal_", "uniform_"):
                    return first
                if name == "norm_except_dim":  # of weight norm
                    dim = args[2] % first.dim()
                    return first.new_empty([size if axis == dim else 1 for axis, size in enumerate(first.shape)])
                if name == "empty_like":
                    return torch.empty(first.shape, **{"dtype": first.dtype, "device": "meta"} | kwargs)
            if name == "arange" and str(kwargs.get("device")) == "meta":
                return function(*args, **kwargs | {"device": "cpu"}).to("meta")
            return function(*args, **kwargs)

    return ShapesAlone()


def load_preprocessor(loader: Any, source: Source) -> Any:
    """A feature extractor of transformers as it lies beside a model; None in a folder that has none.

    Raises:
        EncoderError: it cannot be read.
    """
    pinned = {"revision": source.revision} if source.revision else {}
    who = f"encoder {source.location}: preprocessor_config.json"
    try:
        extractor = loader.from_pretrained(source.location, **pinned)
        sample_rate = int(extractor.sampling_rate)
    except Exception as error:  # whatever a missing or a damaged file makes the library raise
        if Path(source.location).is_dir() and not (Path(source.location) / "preprocessor_config.json").exists():
            return None
        raise EncoderError(f"{who} cannot be read: {' '.join(str(error).split())[:300]}") from None
    if not 1_000 <= sample_rate <= 768_000:
        raise EncoderError(f"{who}: sampling_rate is {sample_rate} Hz")
    return extractor


def encoder_of(model: Any) -> Any:
    """The encoder in a model of transformers; Whisper's is a part beside others."""
    return model.encoder if model.config.model_type == "whisper" else model.base_model


def stored_precision(source: Source) -> "torch.dtype":
    """float16 or bfloat16 where every weight of a safetensors checkpoint is stored so; else float32."""
    import torch

    index, kinds = _file(source, "model.safetensors.index.json"), {"unknown"}
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):  # loading says what is damaged
        names = set(json.loads(index.read_bytes())["weight_map"].values()) if index else {"model.safetensors"}
        kinds = {kind for name in names for kind in _kinds(_file(source, name))}
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(kinds.pop() if len(kinds) == 1 else "", torch.float32)


def _file(source: Source, name: str) -> Path | None:
    """A file of the checkpoint, from the hub where it is of there; None where it has none of this name."""
    from huggingface_hub import hf_hub_download

    if source.revision is None:
        path = Path(source.location) / name
        return path if path.is_file() else None
    with suppress(Exception):  # whatever the client raises; loading says what is wrong
        return Path(hf_hub_download(source.location, name, revision=source.revision))
    return None


def _kinds(path: Path | None) -> set[str]:
    """The types of the numbers in a safetensors file, by its header."""
    if path is None:
        return {"unknown"}
    with path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), LONGEST_HEADER)))
    return {weight["dtype"] for name, weight in header.items() if name != "__metadata__"}


def _refuse_misfits(source: Source, model: Any, report: dict[str, Any]) -> None:
    encoder, prefix = encoder_of(model), f"{model.base_model_prefix}."
    beside = "" if encoder is model.base_model else "encoder."  # what its own names begin with, and no others
    parts, weights = dict(encoder.named_children()), encoder.state_dict().keys()
    with_head = type(encoder).__name__ not in (encoder.config.architectures or [type(encoder).__name__])

    def of_encoder(kind: str, name: str) -> bool:
        bare = name.removeprefix(prefix)
        if bare.startswith(UNUSED) or bare.endswith(BUFFERS) or not bare.startswith(beside):
            return False
        bare = bare.removeprefix(beside)
        if kind == "unexpected_keys":  # named as in the checkpoint, where weights of a head have no prefix
            return bare.partition(".")[0] in parts and (not with_head or bare != name)
        return bare in weights and (encoder is model or bare != name)

    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = (str(key[0] if isinstance(key, tuple | list) else key) for key in report.get(kind, ()))
        wrong = sorted(name.removeprefix(prefix) for name in names if of_encoder(kind, name))
        if wrong:
            wrapped = [name for name in report.get("unexpected_keys", ()) if name.endswith(f".{wrong[0]}")]
            if kind == "unexpected_keys":
                advice = (
                    "config.json describes another model, such as one of fewer layers: restore it, and choose hidden "
                    "states with audio.layers or text.layers"
                )
            elif wrapped:
                advice = (
                    "its features would be partly random. "
                    f"The checkpoint calls it '{wrapped[0]}': save the wrapped module itself"
                )
            else:
                advice = "its features would be partly random. Expected a checkpoint of this very architecture"
            raise EncoderError(
                f"encoder {source.location}: {len(wrong)} weights are {kind.removesuffix('_keys')}, such as "
                f"'{wrong[0]}'; {advice}"
            )


def weights_hash(module: "torch.nn.Module") -> str:
    """Hash (hex) of names, shapes and values of all weights, however they were stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        for piece in tensor.detach().flatten().split(AT_ONCE):  # not all of a large one in float32
            digest.update(piece.float().cpu().numpy().data)
    return digest.hexdigest()


def choose_device(device: str) -> str:
    """`auto` -> `cuda` if there is one, else `cpu`; raises EncoderError if the device asked for is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise EncoderError(f"device '{device}': expected auto, cpu, cuda or cuda:<n>")
    if device != "cpu" and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise EncoderError(f"device '{device}': {torch.cuda.device_count()} CUDA devices are there; use cpu")
    return device


def resolve_layers(layers: str | tuple[int, ...], available: int, name: str) -> list[int]:
    """`last`, `last-<n>`, `all` (the embeddings, layer 0, among them) or layer numbers -> sorted numbers.

    Raises:
        EncoderError: a number is above `available`, or more layers are asked for than there are.
    """
    if isinstance(layers, str):
        count = available + 1 if layers == "all" else int(layers.partition("-")[2] or 1)
        if count > available + 1:
            raise EncoderError(f"encoder {name} has layers 0 to {available}; asked for the {layers.replace('-', ' ')}")
        return list(range(available + 1 - count, available + 1))
    wrong = [layer for layer in layers if layer > available]
    if wrong:
        raise EncoderError(f"encoder {name} has layers 0 to {available}; asked for layer {wrong[0]}")
    return sorted(set(layers))


def row_shape(mix: Mix, layers: int, dim: int) -> tuple[int, ...]:
    """The shape of one frame or token."""
    return {"mean": (dim,), "sum": (dim,), "concat": (layers * dim,), "stack": (layers, dim)}[mix]


def mixed(states: "torch.Tensor", mix: Mix) -> "torch.Tensor":
    """(..., layers, dim) -> (..., *row_shape)."""
    if mix == "mean":
        return states.mean(dim=-2)
    if mix == "sum":
        return states.sum(dim=-2)
    return states.flatten(-2) if mix == "concat" else states
