"""Where the float weights of a network can be read again, so that a quantized one need not keep them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from iec.storage.fingerprint import fingerprint

#: Where a pipeline keeps its network; a network that was loaded from a pipeline's folder knows that folder only.
_SUBFOLDERS = (None, "unet", "transformer")
_VARIANTS = (None, "fp16")


@dataclass(frozen=True)
class FloatSource:
    """Weights on disk that were found to be those of a network.

    kind: the network's class. arguments: what its `from_pretrained` takes. model: the fingerprint of the weights.
    """

    kind: Any
    arguments: dict[str, Any]
    model: str

    def read(self) -> nn.Module:
        """The network, read again. Raises ValueError where the weights are gone or have changed."""
        folder = self.arguments["pretrained_model_name_or_path"]
        try:
            network: nn.Module = self.kind.from_pretrained(**self.arguments)
        except Exception as error:  # diffusers raises many kinds here, and each means the same
            raise ValueError(f"The float weights can no longer be read from '{folder}'.") from error
        if fingerprint(network) != self.model:
            raise ValueError(f"The float weights in '{folder}' have changed since the model was quantized.")
        return network


def find_float_source(network: Any, model: str) -> FloatSource:
    """The folder, or the entry of the hub's cache, from which diffusers loaded `network`, with safetensors in it.

    model: the fingerprint that its weights must have. All weights are read once, and dropped again.
    Raises ValueError, in one sentence, where the network was not loaded from one, or was changed since.
    """
    name = getattr(network, "config", {}).get("_name_or_path")
    if not name:
        raise ValueError("This model was not loaded from a folder.")
    folder = Path(name)
    found = False
    for place in _places(str(folder.resolve()) if folder.is_dir() else name):
        arguments = {**place, "dtype": network.dtype, "use_safetensors": True, "local_files_only": True}
        source = FloatSource(type(network), arguments, model)
        try:
            source.read()
            return source
        except ValueError as error:
            found = found or error.__cause__ is None
    if found:
        raise ValueError(f"The weights in '{name}' are not those of this model.")
    raise ValueError(f"There are no safetensors weights of this model in '{name}'.")


def _places(name: str) -> Iterator[dict[str, Any]]:
    for subfolder in _SUBFOLDERS:
        for variant in _VARIANTS:
            yield {"pretrained_model_name_or_path": name, "subfolder": subfolder, "variant": variant}
