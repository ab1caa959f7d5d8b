"""One seeded generator per image, so that an image depends on its seed and index alone."""

from collections.abc import Iterable, Sequence

import torch

#: Seeds for sampling run from 0 to MAX_SEED; calibration and tuning use CALIBRATION_OFFSET + seed.
MAX_SEED = 1999
CALIBRATION_OFFSET = 2000
IMAGES_PER_SEED = 1_000_000


def image_generator(seed: int, index: int) -> torch.Generator:
    """The CPU generator of image `index` under `seed`: torch seed `seed * 1_000_000 + index`.

    Raises TypeError for anything but integers, and ValueError where either lies outside its range, since two images
    would then share their noise.
    """
    for name, value in (("seed", seed), ("The index of an image", index)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, but is {value!r}.")
    if not 0 <= seed <= MAX_SEED + CALIBRATION_OFFSET:
        raise ValueError(f"seed must lie in 0..{MAX_SEED} ({CALIBRATION_OFFSET} more for calibration), but is {seed}.")
    if not 0 <= index < IMAGES_PER_SEED:
        raise ValueError(f"The index of an image must lie in 0..{IMAGES_PER_SEED - 1}, but is {index}.")
    return torch.Generator().manual_seed(seed * IMAGES_PER_SEED + index)


def initial_noise(generators: Iterable[torch.Generator], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise [B, *shape] in float32, sample i from generator i.

    Always float32: drawing in the network's dtype would make an image depend on that dtype.
    Raises ValueError without generators.
    """
    samples = [torch.randn(tuple(shape), generator=generator, dtype=torch.float32) for generator in generators]
    if not samples:
        raise ValueError("There is nothing to sample: give one generator for each image.")
    return torch.stack(samples)
