"""What every model has for the Hugging Face hub: `save_pretrained`, `from_pretrained`, `push_to_hub`."""

from typing import Any

from huggingface_hub import PyTorchModelHubMixin


class HubModel(PyTorchModelHubMixin):
    """huggingface_hub's mixin, which by itself takes a weight that is missing or too many for nothing."""

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **arguments: Any) -> Any:
        return super()._from_pretrained(strict=strict, **arguments)
