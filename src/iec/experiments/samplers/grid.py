"""The timesteps of a solver that divides by the length of a step, and so cannot take one twice."""

from iec.method.ddim import Spacing, spaced_timesteps


def distinct_timesteps(num_steps: int, spacing: Spacing, num_train_timesteps: int = 1000) -> list[int]:
    """`spaced_timesteps` in sampling order, where a timestep that repeats another is moved on to the next free one.

    Raises ValueError for a number of steps that the spacing cannot take.
    """
    distinct: list[int] = []
    for timestep in reversed(spaced_timesteps(num_steps, spacing, num_train_timesteps)):
        distinct.append(max(timestep, distinct[-1] + 1) if distinct else timestep)
    return distinct[::-1]
