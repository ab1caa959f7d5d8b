"""One run of a diffusers pipeline: the session around its call, and the paper's schedules as a scheduler."""

from iec.runtime.inputs import call_parameters
from iec.runtime.network import network_of
from iec.runtime.sampler import Sampler
from iec.runtime.schedulers import SpacedDDIMScheduler
from iec.runtime.session import (
    Part,
    Participant,
    Run,
    attach,
    detach,
    participant,
    require_pipeline,
    timestep_of,
)
from iec.runtime.subclassing import subclass

__all__ = [
    "Part",
    "Participant",
    "Run",
    "Sampler",
    "SpacedDDIMScheduler",
    "attach",
    "call_parameters",
    "detach",
    "network_of",
    "participant",
    "require_pipeline",
    "subclass",
    "timestep_of",
]
