"""A quick identity of large networks: names, shapes, dtypes, and a few values of every tensor."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

_VALUES = 64


def network_sketch(networks: Mapping[str, nn.Module]) -> str:
    """16 hex digits over the weights of networks, by name: some values of each, so that gigabytes take a moment.

    The same whether a network is compiled, on which device it is, or whether accelerate offloads its weights; of those
    that are nowhere (the meta device), only the names and shapes count.
    """
    digest = hashlib.sha256()
    for name, network in sorted(networks.items()):
        for key, tensor in sorted(network.state_dict().items()):
            if isinstance(tensor, torch.Tensor):
                digest.update(f"{name} {key.replace('_orig_mod.', '')} {tuple(tensor.shape)} {tensor.dtype}".encode())
                for part in _plain(_kept(network, key, tensor)):
                    digest.update(_some_values(part))
    return digest.hexdigest()[:16]


def _kept(network: nn.Module, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or what accelerate keeps in another place for it until its module runs."""
    path, _, name = key.rpartition(".")
    weights = getattr(getattr(network.get_submodule(path), "_hf_hook", None), "weights_map", None)
    kept: torch.Tensor = weights[name] if tensor.is_meta and weights is not None else tensor
    return kept


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that a quantized one is made of, or the tensor itself."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor


def _some_values(tensor: torch.Tensor) -> bytes:
    if tensor.is_meta or not tensor.numel():
        return b""
    flat = tensor.detach().reshape(-1)
    chosen = flat[:: max(1, len(flat) // _VALUES)][:_VALUES].cpu().contiguous()
    return chosen.view(torch.uint8).numpy().tobytes()
