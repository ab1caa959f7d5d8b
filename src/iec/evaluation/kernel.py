"""The kernel distance: the unbiased squared maximum mean discrepancy with a cubic kernel.

Source: Binkowski et al. 2018, "Demystifying MMD GANs", over all images at once instead of averaged subsets. On the
features of `iec.models.features` it is called KD-cifar: its numbers compare with one another, never with a KID.
"""

from dataclasses import dataclass

import torch

#: Rows of the kernel matrix against the reference that are held at once: 160 MB in float64 for 10,000 references.
CHUNK = 2000


@dataclass(frozen=True)
class KernelTerms:
    """What the distance of any reweighting of n images is made of, all in float64.

    within: k(x_i, x_j), [n, n], 8 n^2 bytes. cross: the mean over the reference of k(x_i, y_j), [n].
    reference: the mean of k(y_i, y_j) over the pairs i != j.
    """

    within: torch.Tensor
    cross: torch.Tensor
    reference: float

    @property
    def n(self) -> int:
        """How many images the terms describe."""
        return len(self.cross)


def polynomial_kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(a_i . b_j / d + 1)^3, [n, m], of features [n, d] and [m, d]."""
    # Multiplied out, because a general power is many times slower than two products.
    base = (a @ b.T).div_(a.shape[1]).add_(1)
    return base * base * base


def kernel_terms(features: torch.Tensor, reference: torch.Tensor, reference_term: float | None = None) -> KernelTerms:
    """The terms of features [n, d] against reference features [m, d], n and m at least 2.

    reference_term: what `mean_kernel_within(reference)` gives; handed over, it need not be computed for each set.
    Raises ValueError where shapes do not match, a set is too small, or a value is not finite.
    """
    x, y = _checked(features, "images"), _checked(reference, "reference images")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"The features have {x.shape[1]} dimensions, but those of the reference have {y.shape[1]}.")
    cross = torch.cat([polynomial_kernel(part, y).mean(1) for part in torch.split(x, CHUNK)])
    return KernelTerms(
        within=polynomial_kernel(x, x),
        cross=cross,
        reference=mean_kernel_within(reference) if reference_term is None else reference_term,
    )


def mean_kernel_within(features: torch.Tensor) -> float:
    """The mean of k(y_i, y_j) over the pairs i != j of features [m, d]."""
    y = _checked(features, "images")
    total = sum(polynomial_kernel(part, y).sum().item() for part in torch.split(y, CHUNK))
    own = (y.square().sum(1) / y.shape[1] + 1).pow(3).sum().item()
    return (total - own) / (len(y) * (len(y) - 1))


def kernel_distance(terms: KernelTerms, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The unbiased MMD^2 as a float64 scalar, or one per row of `weights` [..., n].

    sum_{i!=j} w_i w_j k_ij / sum_{i!=j} w_i w_j - 2 sum_i w_i c_i / sum_i w_i + the reference's term: an image of
    weight 2 stands for two copies, and pairs of an image with its own copy are left out, because they are not
    pairs of two independent images; this keeps resampling with replacement unbiased.
    Raises ValueError where weights are negative, not finite, or leave fewer than two images.
    """
    w = torch.ones(terms.n, dtype=torch.float64) if weights is None else weights.double()
    if w.shape[-1:] != (terms.n,):
        raise ValueError(f"The weights must be [..., {terms.n}], one per image, but are {list(w.shape)}.")
    if not (torch.isfinite(w).all() and (w >= 0).all()):
        raise ValueError("The weights must be finite and not negative.")
    if (w.count_nonzero(-1) < 2).any():
        raise ValueError("The weights must leave at least two images.")
    squares, sums = w.square(), w.sum(-1)
    pairs = ((w @ terms.within) * w).sum(-1) - squares @ terms.within.diagonal()
    return pairs / (sums.square() - squares.sum(-1)) - 2 * (w @ terms.cross) / sums + terms.reference


def _checked(features: torch.Tensor, what: str) -> torch.Tensor:
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"The kernel distance needs features [n, d] of at least 2 {what}, not {list(features.shape)}.")
    if not torch.isfinite(features).all():
        raise ValueError(f"The features of the {what} hold values that are not finite.")
    return features.double()
