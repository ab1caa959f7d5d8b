"""`enable`, `disable`, `enabled` and `summary`: the one-line promise."""

from typing import Any

from diffusers import DiffusionPipeline

from iec.method.config import IECConfig
from iec.method.summary import Summary
from iec.pipelines.conflicts import require_no_conflict
from iec.pipelines.corrector import Corrector
from iec.runtime import attach, detach, participant, require_pipeline

_NAME = "correction"


def enable(pipe: DiffusionPipeline, config: IECConfig | None = None) -> None:
    """Correct every later run of `pipe`; a second call replaces the first. None: the paper's defaults.

    Raises TypeError or ValueError where `pipe` is no pipeline with a scheduler and a network, IECUnsupportedError
    where it is one that is known not to fit, RuntimeError where it is being called.
    """
    if config is not None and not isinstance(config, IECConfig):
        raise TypeError(f"config must be an iec.IECConfig, but is a {type(config).__name__}.")
    require_no_conflict(pipe)
    attach(pipe, _NAME, Corrector(IECConfig() if config is None else config))


def disable(pipe: DiffusionPipeline) -> None:
    """End the correction and leave no trace; a pipeline that is not corrected is left alone."""
    require_pipeline(pipe)
    detach(pipe, _NAME)


def summary(pipe: DiffusionPipeline) -> Summary:
    """What the latest run of a corrected pipeline did. Raises RuntimeError where there was none."""
    require_pipeline(pipe)
    corrector = participant(pipe, _NAME)
    if not isinstance(corrector, Corrector):
        raise RuntimeError("Correction is not enabled on this pipeline: call iec.enable(pipe) first.")
    if corrector.latest is None:
        raise RuntimeError("Nothing was sampled since correction was enabled: call the pipeline first.")
    return corrector.latest


class enabled:  # noqa: N801 (reads as a verb: `with iec.enabled(pipe):`)
    """Correction for the length of a `with` block; afterwards the pipeline is corrected as it was before."""

    def __init__(self, pipe: DiffusionPipeline, config: IECConfig | None = None) -> None:
        self.pipe, self.config = pipe, config

    def __enter__(self) -> DiffusionPipeline:
        require_pipeline(self.pipe)
        self._before = participant(self.pipe, _NAME)
        enable(self.pipe, self.config)
        return self.pipe

    def __exit__(self, *exception: Any) -> None:
        if self._before is None:
            disable(self.pipe)
        else:
            attach(self.pipe, _NAME, self._before)
