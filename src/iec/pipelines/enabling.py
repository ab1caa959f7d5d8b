"""`enable`, `disable`, `enabled` and `summary`: the one-line promise."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from iec.method.adams import AdamsConfig
from iec.method.config import IECConfig
from iec.method.summary import Summary
from iec.pipelines.conflicts import require_no_conflict
from iec.pipelines.correction_plan import CorrectionPlan
from iec.pipelines.corrector import Corrector
from iec.pipelines.output_correction import OutputCorrection
from iec.runtime import attach, detach, participant, require_pipeline

_NAME = "correction"


Correction = IECConfig | AdamsConfig | CorrectionPlan | str | Path


def enable(pipe: DiffusionPipeline, config: Correction | None = None) -> None:
    """Correct every later run of `pipe`; a second call replaces the first.

    config: an `IECConfig` (None: the paper's defaults), which evaluates again; or an `AdamsConfig`, a `CorrectionPlan`
    or the folder of one, which change the outputs that are made anyway and evaluate nothing.
    Raises TypeError or ValueError where `pipe` is no pipeline with a scheduler and a network, or not the plan's;
    IECUnsupportedError where IEC is known not to fit it; RuntimeError where it is being called.
    """
    require_pipeline(pipe)
    attach(pipe, _NAME, _participant(pipe, IECConfig() if config is None else config))


def _participant(pipe: DiffusionPipeline, config: Any) -> Corrector | OutputCorrection:
    if isinstance(config, (str, Path)):
        config = CorrectionPlan.from_pretrained(config)
    if isinstance(config, IECConfig):
        require_no_conflict(pipe)
        return Corrector(config)
    if isinstance(config, AdamsConfig):
        return OutputCorrection(config)
    if not isinstance(config, CorrectionPlan):
        raise TypeError(
            "config must be an iec.IECConfig, iec.AdamsConfig, iec.CorrectionPlan or the folder of one, but is a "
            f"{type(config).__name__}."
        )
    config.require_fits(pipe)
    if config.iec_config is None:
        return OutputCorrection(config, pipe)
    require_no_conflict(pipe)
    return Corrector(config.iec_config, config)


def disable(pipe: DiffusionPipeline) -> None:
    """End the correction and leave no trace; a pipeline that is not corrected is left alone."""
    require_pipeline(pipe)
    detach(pipe, _NAME)


def summary(pipe: DiffusionPipeline) -> Summary:
    """What the latest run of a corrected pipeline did. Raises RuntimeError where there was none."""
    require_pipeline(pipe)
    corrector = participant(pipe, _NAME)
    if not isinstance(corrector, (Corrector, OutputCorrection)):
        raise RuntimeError("Correction is not enabled on this pipeline: call iec.enable(pipe) first.")
    if corrector.latest is None:
        raise RuntimeError("Nothing was sampled since correction was enabled: call the pipeline first.")
    return corrector.latest


class enabled:  # noqa: N801 (reads as a verb: `with iec.enabled(pipe):`)
    """Correction for the length of a `with` block; afterwards the pipeline is corrected as it was before."""

    def __init__(self, pipe: DiffusionPipeline, config: Correction | None = None) -> None:
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
