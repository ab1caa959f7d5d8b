"""One way of sampling with one model, and what it will cost."""

from dataclasses import dataclass, replace

from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig
from iec.evaluation.cost import EvaluationCost
from iec.experiments.corrections import Correction, describe_correction, extra_evaluations
from iec.experiments.samplers.sampling import PLAIN, Sampling

Technique = DeepCacheConfig | QuantizationConfig | CacheQuantConfig


@dataclass(frozen=True)
class Setting:
    """A row of a comparison: the number of steps, what makes the model efficient (None: nothing), the correction.

    sampler: what samples; with a solver other than DDIM, `num_steps` is the number of its evaluations.
    """

    num_steps: int
    technique: Technique | None = None
    correction: Correction | None = None
    sampler: Sampling = PLAIN

    @property
    def interval(self) -> int:
        """The cache interval N; 1 where every evaluation is full."""
        found = self.technique
        return 1 if found is None or isinstance(found, QuantizationConfig) else found.interval

    @property
    def system(self) -> str:
        """How a report names the model that it samples with."""
        return describe(self.technique)

    @property
    def label(self) -> str:
        """How a report names it."""
        name = f"{self.system}, {self.sampler.describe(self.num_steps)}"
        return name if self.correction is None else f"{name} + {describe_correction(self.correction)}"

    def plain(self, interval: int) -> "Setting":
        """The same without correction, at another cache interval."""
        return Setting(self.num_steps, at_interval(self.technique, interval))

    def evaluations(self) -> tuple[int, int]:
        """The full and cached evaluations per image that this will take, if no sample converges early.

        Of a schedule that calibration finds, only the number of full steps is known: they count as if evenly spread.
        """
        full_steps = frozenset(range(0, self.num_steps, self.interval))
        if isinstance(self.technique, DeepCacheConfig) and not self.technique.searches:
            full_steps = frozenset(self.technique.full_steps(self.num_steps))
        full, cached = len(full_steps), self.num_steps - len(full_steps)
        return full + extra_evaluations(self.correction, self.num_steps, full_steps), cached

    def cost(self, unit: EvaluationCost) -> float:
        """F + c C, in full evaluations per image."""
        return unit.total(*self.evaluations())


def rivals(setting: Setting, unit: EvaluationCost) -> list[Setting]:
    """The plain settings nearest in cost: the cache intervals just below and just above, and DDIM with other steps.

    Among intervals of the same cost the smallest one stands for all; interval 1 is the uncached run.
    """
    target = setting.cost(unit)
    by_cost: dict[float, Setting] = {}
    for interval in range(1, setting.num_steps + 1) if setting.interval > 1 else (1,):
        plain = setting.plain(interval)
        by_cost.setdefault(plain.cost(unit), plain)
    below = [cost for cost in by_cost if cost <= target]
    above = [cost for cost in by_cost if cost > target]
    chosen = [by_cost[cost] for cost in ([max(below)] if below else []) + ([min(above)] if above else [])]
    return list(dict.fromkeys([*chosen, Setting(max(1, round(target)), at_interval(setting.technique, 1))]))


def at_interval(technique: Technique | None, interval: int) -> Technique | None:
    """`technique` with another cache interval; at 1 nothing is cached, and only the quantization remains."""
    if technique is None or isinstance(technique, QuantizationConfig):
        if interval != 1:
            raise ValueError("A model without a cache has no cache interval.")
        return technique
    if interval > 1:
        return replace(technique, interval=interval)
    return technique.quantization if isinstance(technique, CacheQuantConfig) else None


def quantizes(technique: Technique | None) -> bool:
    """Whether the technique computes in simulated integer arithmetic."""
    return isinstance(technique, QuantizationConfig) or (
        isinstance(technique, CacheQuantConfig) and technique.weights is not None
    )


def describe(technique: Technique | None) -> str:
    """How a report names a technique."""
    if technique is None:
        return "full precision"
    if isinstance(technique, DeepCacheConfig):
        return f"DeepCache N={technique.interval}{_schedule(technique)}"
    if isinstance(technique, QuantizationConfig):
        return _bits(technique)
    quantization = technique.quantization
    bits = "float" if quantization is None else _bits(quantization)
    return f"CacheQuant N={technique.interval}{_schedule(technique)} {bits}"


def _bits(config: QuantizationConfig) -> str:
    reconstructed = "" if config.reconstruction is None else " reconstructed"
    return f"W{config.weights}A{config.activations}{reconstructed}{' bias-corrected' if config.bias_correction else ''}"


def _schedule(config: DeepCacheConfig | CacheQuantConfig) -> str:
    usual = config.schedule == type(config)().schedule
    return ("" if usual else f" {config.schedule}") + (" forecast" if config.forecast else "")
