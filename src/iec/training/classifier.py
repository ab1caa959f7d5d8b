"""Fit the feature network: a few epochs of SGD on CIFAR-10, crops and flips, one cycle of the learning rate."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from iec.models.features import FeatureNetwork, Reference, normalize
from iec.training.data import ImageSet

#: How far a crop may lie off, in pixels; less than the usual four, because so short a run underfits.
PADDING = 2


@dataclass(frozen=True)
class ClassifierConfig:
    """How to train; the learning rate rises over the first `warmup` of the run and falls as a half cosine to zero."""

    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 0.1
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 3e-4
    label_smoothing: float = 0.1
    seed: int = 0
    #: bfloat16 is not faster on every processor: measure before switching it on.
    autocast: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, but is {self.epochs}.")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 for batch normalization, but is {self.batch_size}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, but is {self.learning_rate}.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is the fraction of the run that warms up, in [0, 1), but is {self.warmup}.")

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1] of the run."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True)
class Epoch:
    """What one epoch did: its number from 1, its mean training loss, and its seconds."""

    number: int
    loss: float
    seconds: float


def train_classifier(
    data: ImageSet,
    config: ClassifierConfig | None = None,
    on_epoch: Callable[[FeatureNetwork, Epoch], None] = lambda network, epoch: None,
) -> FeatureNetwork:
    """Train a feature network on labelled images of 32x32 pixels and return it in evaluation mode.

    `on_epoch(network, epoch)` is called after each epoch. Each epoch drops the images that fill no whole batch.
    Raises ValueError where labels are missing, the images do not fill one batch, or the loss becomes non-finite.
    """
    config = config or ClassifierConfig()
    _check(data, config)
    torch.manual_seed(config.seed)
    network = FeatureNetwork()
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    generator = torch.Generator().manual_seed(config.seed)
    steps = len(data) // config.batch_size
    for number in range(config.epochs):
        started, total = time.monotonic(), 0.0
        network.train()
        for step, (images, labels) in enumerate(_batches(data, config.batch_size, generator)):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at((number + (step + 1) / steps) / config.epochs)
            total += _step(network, optimizer, images, labels, config)
        loss = total / steps
        if not math.isfinite(loss):
            raise ValueError(f"The training loss became non-finite in epoch {number + 1}: lower the learning rate.")
        network.eval()
        on_epoch(network, Epoch(number + 1, loss, time.monotonic() - started))
    return network.requires_grad_(False)


def accuracy(network: FeatureNetwork, data: ImageSet, batch_size: int = 500) -> float:
    """The fraction of the labelled images that the network, in evaluation mode, classifies correctly."""
    if data.labels is None:
        raise ValueError("Accuracy needs labelled images.")
    predicted = [network.logits(network.embed(images)).argmax(1) for images in torch.split(data.images, batch_size)]
    return (torch.cat(predicted).cpu() == data.labels).double().mean().item()


def build_reference(network: FeatureNetwork, data: ImageSet, batch_size: int = 500) -> Reference:
    """The features of `data` and their moments, rounded to float16 first so that a saved reference is exact."""
    features = [network.embed(images).cpu().half() for images in torch.split(data.images, batch_size)]
    return Reference.of(torch.cat(features))


def _check(data: ImageSet, config: ClassifierConfig) -> None:
    if data.labels is None:
        raise ValueError("The classifier needs labelled images.")
    if data.images.shape[1:] != (3, 32, 32):
        raise ValueError(f"The classifier needs images of 3x32x32, not {'x'.join(map(str, data.images.shape[1:]))}.")
    if len(data) < config.batch_size:
        raise ValueError(f"There are {len(data)} images, fewer than one batch of {config.batch_size}.")


def _batches(
    data: ImageSet, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    assert data.labels is not None
    order = torch.randperm(len(data), generator=generator)
    for chosen in torch.split(order[: len(data) // batch_size * batch_size], batch_size):
        yield normalize(_augment(data.images[chosen], generator)), data.labels[chosen]


def _augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift each image [B, 3, H, W] by up to 2 pixels, its border repeated as a mirror, and flip half of them."""
    n, _, height, width = images.shape
    padded = functional.pad(images.float(), [PADDING] * 4, mode="reflect").to(images.dtype)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=generator)
    flipped = torch.rand(n, 1, generator=generator) < 0.5
    rows, columns = torch.arange(height) + top, torch.arange(width) + left
    columns = torch.where(flipped, columns.flip(1), columns)
    cropped = padded[torch.arange(n).view(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return cropped.permute(0, 3, 1, 2)


def _step(
    network: FeatureNetwork,
    optimizer: torch.optim.SGD,
    images: torch.Tensor,
    labels: torch.Tensor,
    config: ClassifierConfig,
) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.autocast):
        scores = network.logits(network(images))
    loss = functional.cross_entropy(scores.float(), labels, label_smoothing=config.label_smoothing)
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()
