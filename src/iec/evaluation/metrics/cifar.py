"""The embedded CIFAR-10 network as an extractor: FD-cifar, KD-cifar and so on, always available."""

import torch

from iec.evaluation.metrics.extractor import Features, Titles
from iec.models.features import FeatureNetwork, load_feature_network

SHAPE = (3, 32, 32)
# As many channels as sFID takes of Inception (Nash et al. 2021).
_SPATIAL_CHANNELS = 7


class CifarExtractor:
    """Features of 32x32 RGB images by a small CIFAR-10 classifier; its figures compare with one another only.

    pooled: [B, 128]. logits: [B, 10]. spatial: [B, 448], the first 7 channels of the 8x8 maps.
    """

    titles = Titles.of("cifar")

    def __init__(self, network: FeatureNetwork | None = None) -> None:
        self.network = load_feature_network() if network is None else network

    def require_shape(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError for other than 32x32 RGB images."""
        if shape != SHAPE:
            channels, height, width = shape
            raise ValueError(
                f"The CIFAR network sees 32x32 images of 3 channels, but these are {width}x{height} of {channels}: "
                "use --features inception."
            )

    def __call__(self, images: torch.Tensor) -> Features:
        """The features of images uint8 [B, 3, 32, 32]; each depends on its image alone."""
        maps, pooled = self.network.look(images)
        logits = self.network.logits(pooled)
        return Features(pooled.cpu(), logits.cpu(), maps[:, :_SPATIAL_CHANNELS].flatten(1).cpu())
