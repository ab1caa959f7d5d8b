"""What sampling into a folder has to know of a correction: whether it fits, and what a record says of it."""

from collections.abc import Mapping
from typing import Any

import torch

from iec.method.adams import AdamsConfig
from iec.method.config import IECConfig
from iec.method.steps import select_steps
from iec.pipelines import CorrectionPlan, IECUnsupportedError
from iec.pipelines.output_correction import require_correctable
from iec.pipelines.scheduler_state import copied_scheduler
from iec.storage.fingerprint import tensors_fingerprint

#: In the folder of a technique's plan, the folder of its correction's.
INNER_FOLDER = "correction"

Correction = IECConfig | AdamsConfig | CorrectionPlan


def require_correction(
    pipe: Any, correction: Correction | None, num_steps: int, inputs: Mapping[str, Any] | None = None
) -> None:
    """Raise ValueError, in one sentence, for a correction that cannot correct a run of `num_steps` steps.

    What needs the technique on the pipeline is not asked.
    """
    if isinstance(correction, IECConfig):
        if correction.num_iterations and num_steps > 0:
            select_steps(correction.steps, num_steps)
        return
    if correction is None:
        return
    scheduler = copied_scheduler(pipe.scheduler)
    try:
        scheduler.set_timesteps(num_steps)
    except (TypeError, ValueError):
        return  # it needs more than the number of steps: the run will ask
    try:
        require_correctable(scheduler, dict(inputs or {}), planned=isinstance(correction, CorrectionPlan))
    except IECUnsupportedError as error:
        raise ValueError(str(error)) from error
    if isinstance(correction, CorrectionPlan):
        correction.require_timesteps(scheduler)


def recorded_correction(correction: Correction | None, num_steps: int) -> dict[str, Any] | None:
    """What decides the numbers of a correction, as JSON values; of a plan, a digest of them."""
    if isinstance(correction, AdamsConfig):
        return {"kind": "adams", "relaxation": correction.relaxation_over(num_steps)}
    if isinstance(correction, CorrectionPlan):
        return _recorded_plan(correction)
    return None if correction is None else correction.to_dict()


def _recorded_plan(plan: CorrectionPlan) -> dict[str, Any]:
    numbers = {"timesteps": torch.tensor(plan.sampler.timesteps, dtype=torch.float64)}
    if plan.fitted is None:
        numbers["relaxations"] = torch.tensor(plan.relaxations or (), dtype=torch.float64)
        return {"kind": "fitted relaxation", "digest": tensors_fingerprint(numbers)}
    numbers["coefficients"] = plan.fitted.coefficients
    if plan.fitted.constants is not None:
        numbers["constants"] = plan.fitted.constants
    if plan.fitted.full_steps is not None:
        numbers["full_steps"] = torch.tensor(plan.fitted.full_steps)
    return {
        "kind": "calibrated",
        "history": plan.fitted.history,
        "bands": plan.fitted.num_bands,
        "bias": plan.fitted.constants is not None,
        "digest": tensors_fingerprint(numbers),
    }
