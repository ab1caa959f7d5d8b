"""A fingerprint of a network's weights, so that a record says which weights it was made with."""

import hashlib

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """16 hex digits over the names, shapes, dtypes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
