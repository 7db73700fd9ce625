"""What is here, and whether float32 is float32 while encoders and models compute (TF32 is not)."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from measures.machine import describe
from torch.nn.modules.module import register_module_forward_pre_hook

from gpu_check.context import Case, Context
from gpu_check.encoders import build_encoder, clips_of, load_encoder
from gpu_check.features import load_data, made_features, recipe_of

PACKAGES = ("torch", "torchaudio", "transformers", "accelerate", "numpy", "h5py", "safetensors", "pydantic", "scipy")
CUDNN: Any = torch.backends.cudnn
MATMUL: Any = torch.backends.cuda.matmul
FLAGS: dict[str, Callable[[], Any]] = {  # a mantissa of 10 bits instead of 23 where one of them says True or tf32
    "cudnn allow_tf32": lambda: CUDNN.allow_tf32,
    "matmul allow_tf32": lambda: MATMUL.allow_tf32,
    "cudnn convolutions": lambda: CUDNN.conv.fp32_precision,
    "cudnn recurrent": lambda: CUDNN.rnn.fp32_precision,
    "matmul precision": lambda: MATMUL.fp32_precision,
    "deterministic mode": lambda: ("default", "warn", "error")[torch.get_deterministic_debug_mode()],
}


def check_machine(context: Context) -> None:
    """Versions and device, then the flags as they are inside an encoder and inside training."""
    with context.case("versions") as case:
        case.values |= {name: _version(name) for name in PACKAGES}
        case["python"] = platform.python_version()
        case.values |= {f"machine_{name}": value for name, value in asdict(describe(context.device)).items()}
        if context.has_gpu:
            case.values |= _gpu()
    with context.case("flags inside an encoder") as case:
        encoder = load_encoder(context, build_encoder(context, "wav2vec2 group norm"), "float32")
        with flags_seen() as seen:
            encoder.encode(clips_of(context)[:1])
        _judge(context, case, seen)
    with context.case("flags inside training") as case:
        features = made_features(context, context.size.small)
        recipe = recipe_of(context, "hbaf", "train.epochs=1")
        data = load_data(features, recipe, context.device)
        with flags_seen() as seen:
            data.fit(recipe)
        _judge(context, case, seen)


@contextmanager
def flags_seen() -> Iterator[dict[str, set[str]]]:
    """By name, every value that a flag has when a module is called meanwhile."""
    seen: dict[str, set[str]] = {name: set() for name in FLAGS}

    def look(module: torch.nn.Module, inputs: Any) -> None:
        for name, read in FLAGS.items():
            seen[name].add(_told(read))

    handle = register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def _told(read: Callable[[], Any]) -> str:
    try:
        return str(read())
    except (RuntimeError, AttributeError) as error:  # torch refuses the old names once the new ones were used
        return f"not readable ({type(error).__name__})"


def _judge(context: Context, case: Case, seen: dict[str, set[str]]) -> None:
    case.values |= {name: ", ".join(sorted(values)) for name, values in seen.items()}
    reduced = [name for name, values in seen.items() if values & {"True", "tf32"}]
    if context.has_gpu:
        case.require(not reduced, f"TF32 is on: {', '.join(reduced)}")
    else:
        case.needs_a_gpu = True


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not there"


def _gpu() -> dict[str, Any]:
    found = torch.cuda.get_device_properties(0)
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
    }
