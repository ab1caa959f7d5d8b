"""The Inception Score of class probabilities: exp of the mean divergence of each image's from their average.

Source: Salimans et al. 2016, "Improved Techniques for Training GANs", over all images at once: published scores are
means over splits of 5,000. By our CIFAR-10 classifier it is called IS-cifar.
"""

import torch

from iec.evaluation.bootstrap import Estimate, bootstrap
from iec.evaluation.metrics.feature_set import FeatureSet
from iec.evaluation.metrics.figure import Figure


def inception_score(logits: torch.Tensor) -> Estimate:
    """exp(mean KL(p(y|x) || p(y))), from 1 to the number of classes, of class scores [n, c], with its interval.

    Raises ValueError for fewer than 10 images.
    """
    log_p = torch.log_softmax(logits.double(), dim=1)
    p = log_p.exp()
    negative_entropies = (p * log_p).sum(1)
    n = len(p)

    def score(weights: torch.Tensor) -> torch.Tensor:
        average = weights @ p / n
        value: torch.Tensor = (weights @ negative_entropies / n - torch.special.xlogy(average, average).sum(-1)).exp()
        return value

    return bootstrap(score, n)


def score_figure(name: str, images: FeatureSet) -> Figure:
    """The score of the kept images. Raises ValueError where the extractor does not classify."""
    if images.kept is None or images.kept.logits is None:
        raise ValueError(f"{name} needs an extractor that classifies.")
    return Figure(name, inception_score(images.kept.logits), len(images.kept.logits), "higher")
