"""Which steps a feature cache computes in full (spec of DeepCache's uniform and non-uniform schedules).

Every schedule is a sorted tuple of step indices that begins with 0: without a first full step nothing is cached.
"""

import cmath
import math


def uniform_schedule(num_steps: int, interval: int) -> tuple[int, ...]:
    """Every `interval`-th step: 0, N, 2N, ... below T."""
    return tuple(range(0, num_steps, interval))


def plms_schedule(num_steps: int, interval: int) -> tuple[int, ...]:
    """0, 1 + N, 1 + 2N, ...: uniform for PLMS, whose first timestep takes the first two calls (CacheQuant on SD)."""
    return (0, *range(1 + interval, num_steps, interval))


def centred_schedule(num_steps: int, interval: int, centre: int = 15, power: float = 1.4) -> tuple[int, ...]:
    """ceil(T/N) full steps, densest around step `centre`; the larger `power`, the denser (DeepCache, non-uniform).

    Raises ValueError where no power above 1 gives that many distinct steps.
    """
    count = math.ceil(num_steps / interval)
    while power > 1:
        steps = _centred(num_steps, count, centre, power)
        if len(steps) == count and steps[-1] < num_steps:
            return steps
        power -= 0.02
    raise ValueError(
        f"No centred schedule of {count} full steps fits {num_steps} steps around step {centre}: "
        "use the uniform schedule or another interval."
    )


def power_schedule(num_steps: int, interval: int, power: float = 1.5) -> tuple[int, ...]:
    """Full steps that thin out as k^power, densest at the start (DeepCache's non-uniform latent-diffusion schedule)."""
    count = math.ceil(num_steps / interval)
    ends = [value**power for value in _linspace(0, num_steps ** (1 / power), count + 1)]
    return tuple(sorted({int(end) for end in ends}))[:-1]


def _centred(num_steps: int, count: int, centre: int, power: float) -> tuple[int, ...]:
    # The steps before the centre have a negative base; their principal complex power runs smoothly through it.
    start, end = (cmath.exp(cmath.log(base) / power) if base else 0 for base in (-centre, num_steps - centre))
    points = [start + (end - start) * k / count for k in range(count + 1)]
    inner = {int((point**power).real) for point in points[1:-1]}
    offsets = sorted({-centre, *inner, num_steps - centre})  # the ends are exact, whatever the powers round to
    return tuple(sorted({0, *(offset + centre for offset in offsets[1:-1])}))


def _linspace(start: float, end: float, count: int) -> list[float]:
    return [start + (end - start) * k / (count - 1) for k in range(count)]
