"""Pipelines that are known not to fit, so that they are refused before anything is sampled."""

from typing import Any

from iec.pipelines.errors import IECUnsupportedError

_STEPS_TWICE = "takes several scheduler steps per turn of its loop, with one evaluation of its network"
_SHARES_CALLS = "steps several schedulers with the output of one network call, and one alone cannot be corrected"
_CONFLICTS = {
    _STEPS_TWICE: "CosmosTextToWorldPipeline CosmosVideoToWorldPipeline StableDiffusionPanoramaPipeline",
    _SHARES_CALLS: (
        "LTX2Pipeline LTX2ConditionPipeline LTX2DFRPipeline LTX2DFRTemporalRefinePipeline LTX2HDRPipeline "
        "LTX2InContextPipeline LTX2ImageToVideoPipeline LTX2ModularPipeline Cosmos3OmniPipeline "
        "Cosmos3OmniModularPipeline Kandinsky6TI2VAPipeline SkyReelsV2DiffusionForcingPipeline "
        "SkyReelsV2DiffusionForcingImageToVideoPipeline SkyReelsV2DiffusionForcingVideoToVideoPipeline "
        "TextToVideoZeroPipeline TextToVideoZeroSDXLPipeline"
    ),
}
#: The class of a pipeline -> why it cannot be corrected.
CONFLICTS = {name: reason for reason, names in _CONFLICTS.items() for name in names.split()}


def require_no_conflict(pipe: Any) -> None:
    """Raise IECUnsupportedError for a pipeline (or a subclass of one) that is known not to fit."""
    for cls in type(pipe).__mro__:
        if cls.__name__ in CONFLICTS:
            raise IECUnsupportedError(
                f"{cls.__name__} {CONFLICTS[cls.__name__]}: use it without correction, or another pipeline."
            )
