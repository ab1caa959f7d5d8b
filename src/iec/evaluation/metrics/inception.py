"""Inception-v3 of 2015 by torch-fidelity (extra `fid`), converted from the weights that every published FID uses."""

from pathlib import Path

import torch

from iec.evaluation.metrics.extractor import Features, Titles
from iec.evaluation.metrics.extras import require_extra

_SPATIAL_CHANNELS = 7


class InceptionExtractor:
    """Features of RGB images of any size, resized to 299x299 as in TensorFlow 1.

    pooled: [B, 2048], pool_3. logits: [B, 1008], without the bias, as in published scores. spatial: [B, 2023],
    the first 7 channels of `mixed_6/conv` at 17x17 places, as in sFID (Nash et al. 2021). weights: torch-fidelity's
    file; None lets it download or find its own. Raises ValueError where the extra or the weights are missing.
    """

    titles = Titles("FID", "KID", "sFID", "IS", "precision", "recall")

    def __init__(self, weights: str | Path | None = None, device: str = "cpu") -> None:
        module = require_extra("torch_fidelity.feature_extractor_inceptionv3", "fid", "The Inception network")
        try:
            network: torch.nn.Module = module.FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=None if weights is None else str(weights),
                verbose=False,
            )
        except OSError as error:  # among them what urllib raises where there is no network
            raise ValueError(f"Inception's weights could not be loaded by torch-fidelity: {error}.") from error
        self.network = network.to(device)
        self.device = device
        self._maps: list[torch.Tensor] = []
        # TensorFlow's mixed_6 is the third block at 17x17, and its `conv` the branch of one 1x1 convolution.
        block: torch.nn.Module = self.network.get_submodule("Mixed_6d.branch1x1")
        block.register_forward_hook(lambda module, inputs, output: self._maps.append(output))

    def require_shape(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError for other than RGB images."""
        if shape[0] != 3:
            raise ValueError(f"Inception sees images of 3 channels, but these have {shape[0]}.")

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Features:
        """The features of images uint8 [B, 3, H, W]; each depends on its image alone."""
        self._maps.clear()
        pooled, logits = self.network(images.to(self.device))
        spatial = self._maps.pop()[:, :_SPATIAL_CHANNELS].flatten(1)
        return Features(pooled.float().cpu(), logits.float().cpu(), spatial.float().cpu())
