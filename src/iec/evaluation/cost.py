"""The unit of cost: one full evaluation of the network for one image; a cached evaluation costs c of it."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from iec.evaluation.network_call import NetworkCall
from iec.method.clock import Clock


@dataclass(frozen=True)
class EvaluationCost:
    """Multiply-adds of one evaluation for one image: computed in full, and served from a cache (equal without one)."""

    full: int
    cached: int

    @property
    def cached_fraction(self) -> float:
        """c, the cost of a cached evaluation in full ones."""
        return self.cached / self.full

    def total(self, full: float, cached: float) -> float:
        """The cost F + c C of F full and C cached evaluations, in full evaluations."""
        return full + self.cached_fraction * cached


#: Schedules leave at most this many full steps before the first cached one, or have none.
_LONGEST_FULL_START = 64


@torch.no_grad()
def evaluation_cost(network: nn.Module, call: NetworkCall, num_steps: int = 1000) -> EvaluationCost:
    """Measure a network as it is now (with whatever cache it carries).

    call: what one evaluation for one image takes. num_steps: the length of the run; a calibrated model knows one length
    only.
    """
    counts: list[int] = []
    with Clock(num_steps) as clock:
        while clock.step < min(num_steps, _LONGEST_FULL_START):
            with FlopCounterMode(display=False) as counter:
                network(*call.args, **call.kwargs)
            counts.append(counter.get_total_flops() // 2)
            if not clock.full:  # cached, or no cache at all
                break
            clock.advance()
    return EvaluationCost(counts[0], counts[-1])
