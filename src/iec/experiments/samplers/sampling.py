"""How a setting samples: the solver, and what is done to the network's label and output at no cost."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import diffusers

Solver = Literal["ddim", "heun", "dpm++2m", "unipc", "deis", "ipndm", "plms", "plms-sd"]

_NAMES = {
    "ddim": "DDIM",
    "heun": "Heun",
    "dpm++2m": "DPM++ 2M",
    "unipc": "UniPC",
    "deis": "DEIS",
    "ipndm": "iPNDM",
    "plms": "PLMS",
    "plms-sd": "PLMS",
}
#: The fewest evaluations with which each solver is more than its first step.
_FEWEST = {"ddim": 1, "heun": 3, "dpm++2m": 2, "unipc": 2, "deis": 3, "ipndm": 2, "plms": 4, "plms-sd": 4}
#: The others are diffusers' code.
_OURS = ("ddim", "heun", "ipndm")


@dataclass(frozen=True)
class Sampling:
    """The default is DDIM with the network as it is.

    solver: with any but `ddim`, a setting's number of steps is its number of evaluations; `plms-sd` is PLMS over the
        timesteps that Stable Diffusion has.
    epsilon_scale: the noise prediction is divided by it (arXiv 2308.15321).
    time_shift: the window, in training timesteps, in which the sample's variance picks the label (arXiv 2305.15583).

    Raises ValueError for an unknown solver, a scale that is not positive, or a negative window.
    """

    solver: Solver = "ddim"
    epsilon_scale: float = 1.0
    time_shift: int = 0

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise ValueError(f"Unknown solver '{self.solver}': use {', '.join(get_args(Solver))}.")
        if not 0 < self.epsilon_scale < math.inf:
            raise ValueError(f"epsilon_scale must be a positive number, but is {self.epsilon_scale}.")
        if self.time_shift < 0:
            raise ValueError(f"time_shift must not be negative, but is {self.time_shift}.")

    @property
    def changes(self) -> tuple[str, ...]:
        """How a report names what is done to the network; empty for the network as it is."""
        scale = () if self.epsilon_scale == 1 else (f"epsilon / {self.epsilon_scale:g}",)
        return (*scale, *(() if self.time_shift == 0 else (f"time shift {self.time_shift}",)))

    def describe(self, num_steps: int) -> str:
        """How a report names it with so many steps."""
        steps = f"T={num_steps}" if self.solver == "ddim" else f"{_NAMES[self.solver]} {num_steps} evaluations"
        return ", ".join([steps, *self.changes])

    def require_steps(self, num_steps: int) -> None:
        """Raise ValueError where the solver cannot make so many evaluations."""
        fewest = _FEWEST[self.solver]
        if num_steps < fewest:
            raise ValueError(f"{_NAMES[self.solver]} needs at least {fewest} evaluations, but got {num_steps}.")
        if self.solver == "heun" and num_steps % 2 == 0:
            raise ValueError(
                f"Heun makes two evaluations a step and one in the last, an odd number, but got {num_steps}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, with the version of diffusers where its code is the solver."""
        version = {} if self.solver in _OURS else {"diffusers": diffusers.__version__}
        return {**asdict(self), **version}


#: DDIM with the network as it is.
PLAIN = Sampling()
