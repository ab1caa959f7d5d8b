"""LPIPS, the learned perceptual distance of two images, by the lpips package (extra `lpips`).

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", on AlexNet.
"""

from collections.abc import Callable

import torch

from iec.evaluation.metrics.extras import require_extra

#: Of image pairs float [B, 3, H, W] in [-1, 1], the distance of each, B values of any shape.
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Lpips:
    """The distance of RGB images, uint8 [B, 3, H, W], from their references: float64 [B], 0 where they are identical.

    network: None takes the lpips package's, on `device`. Raises ValueError where the extra is missing.
    """

    def __init__(self, network: Network | None = None, device: str = "cpu") -> None:
        if network is None:
            module = require_extra("lpips", "lpips", "LPIPS")
            network = module.LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)
        self.network, self.device = network, device

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """One distance per image. Raises ValueError where the shapes differ or the images are not RGB."""
        if images.shape != reference.shape or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"LPIPS compares RGB images of one shape, not {images.shape} and {reference.shape}.")
        pair = (batch.to(self.device).float() / 127.5 - 1 for batch in (images, reference))
        return self.network(*pair).flatten().double().cpu()
