"""Images to features, batch by batch."""

import torch

from iec.models.features import DIMENSION, FeatureNetwork


def extract_features(network: FeatureNetwork, images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
    """The features, float32 [N, 128] on the CPU, of images uint8 [N, 3, 32, 32].

    An image's features do not depend on the others, nor on the batch size beyond float32 rounding.
    Raises ValueError where the images have another type or shape, or the network is in training mode.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"The images must be uint8, but are {str(images.dtype).removeprefix('torch.')}.")
    if images.shape[1:] != (3, 32, 32):
        raise ValueError(f"The images must be [N, 3, 32, 32], but are {list(images.shape)}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, but is {batch_size}.")
    features = [network.embed(batch).cpu() for batch in torch.split(images, batch_size) if len(batch)]
    return torch.cat(features) if features else torch.empty(0, DIMENSION)
