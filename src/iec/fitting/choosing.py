"""Which candidate a plan takes: that of the smallest error on held-out trajectories; of near equals, the smallest."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from diffusers import DiffusionPipeline

from iec.fitting.fit import Candidate, OutputFit
from iec.fitting.session import Session
from iec.pipelines.correction_plan import TriedFit

#: A larger candidate has to lower the error by this much.
_MARGIN = 0.02


def best_fit(
    session: Session,
    pipe: DiffusionPipeline,
    history: int | None,
    bands: int | None,
    bias: bool | None,
    own_error: bool,
) -> tuple[OutputFit, tuple[TriedFit, ...]]:
    """The best fit, and all that were tried; what is not None is not chosen.

    own_error: whether the network has another error than the solver's, which constants may correct. One choice after
    another, each with the best of the others: m, then bands, then the constants, which such a network begins with.
    """
    fits: dict[Candidate, OutputFit] = {}

    def fitted(candidate: Candidate) -> OutputFit:
        if candidate not in fits:
            fits[candidate] = session.fit_outputs(pipe, candidate)
        return fits[candidate]

    best = Candidate(1 if history is None else history, bands or 1, own_error if bias is None else bias)
    bias_open = bias is None and own_error
    for alternative in _alternatives(history is None, bands is None and session.latents.banded, bias_open):
        other = alternative(best)
        small, large = sorted((best, other), key=_size)
        best = large if fitted(large).error()[0] < (1 - _MARGIN) * fitted(small).error()[0] else small
    fitted(best)
    tried = tuple(TriedFit(c.history, c.bands, c.bias, *fit.error()) for c, fit in fits.items())
    return fits[best], tried


def _alternatives(history: bool, bands: bool, bias: bool) -> Iterator[Callable[[Candidate], Candidate]]:
    if history:
        yield lambda candidate: replace(candidate, history=2)
    if bands:
        yield lambda candidate: replace(candidate, bands=3)
    if bias:
        yield lambda candidate: replace(candidate, bias=not candidate.bias)


def _size(candidate: Candidate) -> int:
    """More numbers to fit, roughly; constants count as one."""
    return candidate.history * candidate.bands + candidate.bias
