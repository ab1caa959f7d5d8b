"""The Frechet distance between two sets of features, each taken as a Gaussian; streamed moments for large sets.

Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule". On the features of
`iec.models.features` it is called FD-cifar: its numbers compare with one another, never with an FID.
"""

import torch

#: How negative an eigenvalue may be, relative to the largest, before it is no longer taken for rounding.
ROUNDING = 1e-6


class Moments:
    """Mean and covariance of features that arrive in batches, in float64, in memory that does not grow with them.

    Source: Chan, Golub and LeVeque 1983, the pairwise update, which does not cancel where the mean is large.
    """

    def __init__(self, dimension: int) -> None:
        self._n = 0
        self._mean = torch.zeros(dimension, dtype=torch.float64)
        self._scatter = torch.zeros(dimension, dimension, dtype=torch.float64)

    def add(self, batch: torch.Tensor) -> None:
        """Take in features [B, d]; raises ValueError where the shape differs or a value is not finite."""
        if batch.dim() != 2 or batch.shape[1] != len(self._mean):
            raise ValueError(f"The features must be [B, {len(self._mean)}], but are {list(batch.shape)}.")
        if not torch.isfinite(batch).all():
            raise ValueError("The features hold values that are not finite.")
        if len(batch) == 0:
            return
        exact = batch.detach().to("cpu", torch.float64)
        mean = exact.mean(0)
        centred, delta = exact - mean, mean - self._mean
        n = self._n + len(batch)
        self._scatter += centred.T @ centred + torch.outer(delta, delta) * (self._n * len(batch) / n)
        self._mean += delta * (len(batch) / n)
        self._n = n

    @property
    def n(self) -> int:
        """How many feature vectors were taken in."""
        return self._n

    @property
    def mean(self) -> torch.Tensor:
        """The mean [d]; raises ValueError before the first vector."""
        if self._n < 1:
            raise ValueError("A mean needs at least 1 image, but there is none.")
        return self._mean.clone()

    @property
    def covariance(self) -> torch.Tensor:
        """The unbiased covariance [d, d]; raises ValueError for fewer than two vectors."""
        if self._n < 2:
            raise ValueError(f"A covariance needs at least 2 images, but there is {self._n or 'none'}.")
        return self._scatter / (self._n - 1)


def is_rank_deficient(n: int, dimension: int) -> bool:
    """Whether n images leave the covariance of `dimension` features singular, so that a distance says little."""
    return n <= dimension


def frechet_distance(
    mean_a: torch.Tensor, covariance_a: torch.Tensor, mean_b: torch.Tensor, covariance_b: torch.Tensor
) -> float:
    """|m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), in float64, of means [d] and covariances [d, d].

    The last trace is taken from the eigenvalues of A^(1/2) B A^(1/2), which are those of A B but of a symmetric matrix.
    Raises ValueError where shapes differ, a value is not finite, or a matrix is not a covariance.
    """
    return frechet_distance_to_root(mean_a, square_root(covariance_a), mean_b, covariance_b)


def frechet_distance_to_root(
    mean_a: torch.Tensor, root_a: torch.Tensor, mean_b: torch.Tensor, covariance_b: torch.Tensor
) -> float:
    """The same where A^(1/2) = `root_a` is known, as it is for one reference compared with many sets."""
    mean_a, root_a, mean_b, b = (part.double() for part in (mean_a, root_a, mean_b, covariance_b))
    if mean_a.dim() != 1 or mean_a.shape != mean_b.shape:
        raise ValueError(f"The means must be two vectors [d], but are {list(mean_a.shape)} and {list(mean_b.shape)}.")
    if not (torch.isfinite(mean_a).all() and torch.isfinite(mean_b).all()):
        raise ValueError("A mean holds values that are not finite.")
    if not root_a.shape == b.shape == (len(mean_a), len(mean_a)):
        raise ValueError(
            f"The covariances must be [{len(mean_a)}, {len(mean_a)}] to match the means, "
            f"but are {list(root_a.shape)} and {list(b.shape)}."
        )
    _check_covariance(b)
    product = root_a @ b @ root_a
    cross = _not_negative(torch.linalg.eigvalsh((product + product.T) / 2)).sqrt().sum()
    # The trace of A is the squared Frobenius norm of its symmetric root.
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + b.trace() - 2 * cross
    return max(0.0, distance.item())


def frechet_influence(
    features: torch.Tensor, mean_a: torch.Tensor, root_a: torch.Tensor, mean_b: torch.Tensor, covariance_b: torch.Tensor
) -> torch.Tensor:
    """How the distance from (m_a, A) to (m_b, B) moves, float64 [n], with the weight of each of `features` [n, d] in B.

    With u = x - m_b it is 2 (m_b - m_a) . u + u' (I - T) u less its mean, where T = A^(1/2) (A^(1/2) B A^(1/2))^(-1/2)
    A^(1/2) takes N(m_b, B) to N(m_a, A). Its standard deviation over sqrt(n) is the distance's standard error: the
    infinitesimal jackknife (Efron 1982), which the bootstrap approaches with many replicates.
    """
    mean_a, root, mean, b = (part.double() for part in (mean_a, root_a, mean_b, covariance_b))
    product = root @ b @ root
    values, vectors = torch.linalg.eigh((product + product.T) / 2)
    # Directions in which the images do not vary say nothing of how the distance varies.
    inverse = torch.where(values > ROUNDING * values.max(), values.abs().rsqrt(), torch.zeros_like(values))
    gradient = torch.eye(len(b), dtype=b.dtype) - root @ (vectors * inverse) @ vectors.T @ root
    centred = features.double() - mean
    influence: torch.Tensor = 2 * centred @ (mean - mean_a) + ((centred @ gradient) * centred).sum(1)
    return influence - influence.mean()


def square_root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric square root, float64 [d, d], of a covariance; raises ValueError where it is none."""
    covariance = covariance.double()
    _check_covariance(covariance)
    values, vectors = torch.linalg.eigh(covariance)
    root: torch.Tensor = (vectors * _not_negative(values).sqrt()) @ vectors.T
    return root


def _check_covariance(matrix: torch.Tensor) -> None:
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"A covariance must be a square matrix, but is {list(matrix.shape)}.")
    if not torch.isfinite(matrix).all():
        raise ValueError("A covariance holds values that are not finite.")
    if (matrix - matrix.T).abs().max() > ROUNDING * matrix.abs().max():
        raise ValueError("A covariance must be symmetric.")


def _not_negative(eigenvalues: torch.Tensor) -> torch.Tensor:
    if eigenvalues.min() < -ROUNDING * eigenvalues.abs().max():
        raise ValueError("A covariance must have no negative eigenvalue.")
    return eigenvalues.clamp(min=0)
