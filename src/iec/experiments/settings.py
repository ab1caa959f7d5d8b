"""One way of sampling with the embedded model, and what it will cost."""

from dataclasses import dataclass

from iec.efficient import DeepCacheConfig
from iec.evaluation.cost import EvaluationCost
from iec.method.config import IECConfig
from iec.method.steps import select_steps


@dataclass(frozen=True)
class Setting:
    """A row of a comparison: the number of DDIM steps, the cache interval (1: no cache), and the correction."""

    num_steps: int
    interval: int = 1
    correction: IECConfig | None = None
    branch: int | None = None

    @property
    def cache(self) -> DeepCacheConfig | None:
        """The cache, or None at interval 1, where every evaluation is full."""
        return None if self.interval == 1 else DeepCacheConfig(self.interval, self.branch)

    @property
    def label(self) -> str:
        """How a report names it."""
        cache = "full precision" if self.interval == 1 else f"DeepCache N={self.interval}"
        steps = f"T={self.num_steps}"
        return f"{cache}, {steps}" if self.correction is None else f"{cache}, {steps} + IEC {self.correction.steps}"

    def evaluations(self) -> tuple[int, int]:
        """The full and cached evaluations per image that this will take, if no sample converges early."""
        full_steps = frozenset(range(self.num_steps) if self.cache is None else self.cache.full_steps(self.num_steps))
        full, cached = len(full_steps), self.num_steps - len(full_steps)
        if self.correction is not None:
            corrected = select_steps(self.correction.steps, self.num_steps)
            if not self.correction.cached_steps:
                corrected &= full_steps
            full += self.correction.num_iterations * len(corrected)
        return full, cached

    def cost(self, unit: EvaluationCost) -> float:
        """F + c C, in full evaluations per image."""
        return unit.total(*self.evaluations())


def rivals(setting: Setting, unit: EvaluationCost) -> list[Setting]:
    """The plain settings nearest in cost: the cache intervals just below and just above, and DDIM with other steps.

    Among intervals of the same cost the smallest one stands for all; interval 1 is the uncached run.
    """
    target = setting.cost(unit)
    by_cost: dict[float, Setting] = {}
    for interval in range(1, setting.num_steps + 1):
        plain = Setting(setting.num_steps, interval, branch=setting.branch if interval > 1 else None)
        by_cost.setdefault(plain.cost(unit), plain)
    below = [cost for cost in by_cost if cost <= target]
    above = [cost for cost in by_cost if cost > target]
    chosen = [by_cost[cost] for cost in ([max(below)] if below else []) + ([min(above)] if above else [])]
    return list(dict.fromkeys([*chosen, Setting(max(1, round(target)))]))
