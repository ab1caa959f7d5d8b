"""The class conditioning of LDM-4-G: one learned token per class."""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn


class ClassEmbedder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The context that a class-conditional UNet attends to; the last class means none (spec section 5)."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_classes: int = 1001, embedding_dim: int = 512) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embedding_dim)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """labels: int64 [B]. Returns one token per label, [B, 1, embedding_dim]."""
        tokens: torch.Tensor = self.embedding(labels)
        return tokens[:, None]
