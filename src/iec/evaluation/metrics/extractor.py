"""What a feature extractor is to the metrics: uint8 images in, features out."""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Features:
    """What an extractor sees in B images, float32.

    pooled: [B, d]. logits: class scores [B, c], where it classifies. spatial: [B, s], features that keep their places.
    """

    pooled: torch.Tensor
    logits: torch.Tensor | None = None
    spatial: torch.Tensor | None = None


@dataclass(frozen=True)
class Titles:
    """What the figures over one extractor are called: only Inception's are FID, KID and Inception Score."""

    frechet: str
    kernel: str
    spatial: str
    score: str
    precision: str
    recall: str

    @classmethod
    def of(cls, name: str) -> "Titles":
        """The titles over an extractor called `name`, such as FD-cifar."""
        return cls(*(f"{figure}-{name}" for figure in ("FD", "KD", "sFD", "IS", "precision", "recall")))


class FeatureExtractor(Protocol):
    """Images, uint8 [B, C, H, W] in 0..255, to features that depend on each image alone."""

    @property
    def titles(self) -> Titles:
        """What its figures are called."""

    def require_shape(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError where images of this (C, H, W) cannot be taken."""

    def __call__(self, images: torch.Tensor) -> Features: ...
