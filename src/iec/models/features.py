"""The feature network behind FD-cifar and KD-cifar: a small CIFAR-10 classifier, and the test set as it sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from iec.storage.files import write_atomically

#: The length of a feature vector.
DIMENSION = 128
EMBEDDED = Path(__file__).parent / "embedded" / "features"


class FeatureNetwork(nn.Module):
    """A residual CIFAR-10 classifier of 284 k parameters whose averaged last maps are the features.

    In evaluation mode, in which `load_feature_network` returns it, each image's features depend on that image alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            # Work starts at 16x16, to keep training without an accelerator short.
            nn.PixelUnshuffle(2),
            _convolution(12, 48),
            _Residual(48, depth=2),
            _convolution(48, 96, stride=2),
            _Residual(96, depth=1),
            _convolution(96, DIMENSION, stride=2),
        )
        self.head = nn.Linear(DIMENSION, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The features [B, 128], float32 and not negative, of images [B, 3, 32, 32] in [-1, 1]."""
        return self._maps_and_features(images)[1]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """The class scores [B, 10] of features [B, 128]."""
        scores: torch.Tensor = self.head(features)
        return scores

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """The features [B, 128] of images as they are stored; as of `look`."""
        return self.look(images)[1]

    @torch.no_grad()
    def look(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps [B, 96, 8, 8] and the features [B, 128] of images as they are stored, uint8 [B, 3, 32, 32].

        In float32 throughout. Raises ValueError for other images, and in training mode, in which features would depend
        on the other images of the batch.
        """
        if self.training:
            raise ValueError("The feature network is in training mode: call its eval() first.")
        if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32):
            found = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise ValueError(f"The images must be uint8 [B, 3, 32, 32], but are {found}.")
        device = self.head.weight.device
        with torch.autocast(device.type, enabled=False):
            return self._maps_and_features(normalize(images.to(device)))

    def _maps_and_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = len(self.body) - 1
        maps: torch.Tensor = self.body[:last](images)
        averaged: torch.Tensor = self.body[last](maps).float().mean(dim=(2, 3))
        return maps, averaged


@dataclass(frozen=True)
class Reference:
    """The real images that generated ones are compared with, as features.

    features: [n, d], float32. mean: [d] and covariance (unbiased): [d, d], both float64.
    """

    features: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> "Reference":
        """The reference that features [n, d] make, n at least 2."""
        if features.dim() != 2 or len(features) < 2:
            raise ValueError(f"A reference needs features [n, d] of at least 2 images, not {list(features.shape)}.")
        exact = features.double()
        return cls(features.float(), exact.mean(0), torch.cov(exact.T))

    @property
    def n(self) -> int:
        """How many images the reference has."""
        return len(self.features)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Images uint8 [..., 3, H, W] as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def save_feature_network(network: FeatureNetwork, path: str | Path) -> None:
    """Write the network's weights as safetensors: convolutions and the head in float16, the rest as it is."""
    tensors = {name: _narrow(tensor) for name, tensor in network.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_feature_network(path: str | Path | None = None) -> FeatureNetwork:
    """Load what `save_feature_network` wrote, in float32 and evaluation mode; None: the embedded network.

    Raises ValueError where the file is missing or holds something else.
    """
    path = EMBEDDED / "network.safetensors" if path is None else Path(path)
    tensors = _read(path, "feature network")
    network = FeatureNetwork()
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"'{path}' holds no feature network: its tensors have other names or shapes.") from error
    return network.eval().requires_grad_(False)


def save_reference(reference: Reference, path: str | Path) -> None:
    """Write a reference as safetensors: its features in float16, its mean and covariance in float64."""
    tensors = {
        "features": reference.features.half().contiguous(),
        "mean": reference.mean.contiguous(),
        "covariance": reference.covariance.contiguous(),
    }
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_reference(path: str | Path | None = None) -> Reference:
    """Load what `save_reference` wrote; None: the CIFAR-10 test set, 10,000 images, as the embedded network sees it.

    Raises ValueError where the file is missing or holds something else.
    """
    path = EMBEDDED / "reference.safetensors" if path is None else Path(path)
    tensors = _read(path, "reference")
    missing = {"features", "mean", "covariance"} - tensors.keys()
    if missing:
        raise ValueError(f"'{path}' holds no reference: it lacks {sorted(missing)}.")
    return Reference(tensors["features"].float(), tensors["mean"].double(), tensors["covariance"].double())


class _Residual(nn.Module):
    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*[_convolution(channels, channels) for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.branch(x)
        return x + branch


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    # Vectors stay wide: a normalization's variance may lie outside of what float16 can hold.
    return (tensor.half() if tensor.dim() > 1 else tensor).contiguous()


def _read(path: Path, what: str) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(f"There is no {what} at '{path}'.")
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"Cannot read the {what} '{path}': {error}.") from error
    return tensors
