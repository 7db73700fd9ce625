"""What every model has for the Hugging Face hub: `save_pretrained`, `from_pretrained`, `push_to_hub`."""

import copy
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin


class HubModel(PyTorchModelHubMixin):
    """huggingface_hub's mixin, which by itself takes a weight that is missing or too many for nothing.

    Nor does it save a model whose GRUs are on a GPU: cuDNN lays their weights into one storage, which safetensors takes
    for weights that are shared.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        own: Any = copy.deepcopy(self)  # every weight in a storage of its own
        PyTorchModelHubMixin._save_pretrained(own.cpu(), save_directory)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **arguments: Any) -> Any:
        return super()._from_pretrained(strict=strict, **arguments)
