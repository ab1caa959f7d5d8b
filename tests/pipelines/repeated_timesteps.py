"""Correction by another mechanism: a scheduler that lists each timestep K + 1 times.

The pipeline's own loop then makes the passes: it evaluates at the state that the scheduler handed back, at the same
timestep, with its own guidance and conditions, and nothing is recorded or replayed. It serves as a reference wherever
a pipeline does not count its steps.
"""

import copy
import functools

import torch

from .by_hand import copied


class RepeatedTimesteps:
    """Stands for `scheduler` in one run, correcting every step with the given relaxations."""

    def __init__(self, scheduler, relaxations=(0.5, 0.5)):
        self.inner, self.relaxations = scheduler, relaxations
        self.pass_index = 0
        # Pipelines read these signatures to decide which arguments to pass.
        self.set_timesteps = functools.wraps(scheduler.set_timesteps)(lambda *a, **k: self._set_timesteps(*a, **k))
        if hasattr(scheduler, "set_begin_index"):
            self.set_begin_index = lambda index=0: scheduler.set_begin_index(index // (1 + len(relaxations)))
        self.step = functools.wraps(scheduler.step)(lambda *a, **k: self._step(*a, **k))

    def __getattr__(self, name):
        return getattr(self.__dict__["inner"], name)

    @property
    def order(self):
        return self.inner.order * (1 + len(self.relaxations))

    def _set_timesteps(self, *args, **kwargs):
        self.inner.set_timesteps(*args, **kwargs)
        for name in ("timesteps", "sigmas"):  # pipelines read both by the index of their loop
            if hasattr(self.inner, name):
                setattr(self, name, getattr(self.inner, name).repeat_interleave(1 + len(self.relaxations)))

    def _step(self, model_output, timestep, sample, **settings):
        def dry(output):
            again = {name: copied(value) if name == "generator" else value for name, value in settings.items()}
            return copy.deepcopy(self.inner).step(output, timestep, self.x_t, **again)

        if self.pass_index == 0:
            self.x_t, self.relaxed = sample, model_output
            stepped = dry(model_output)
            self.state = stepped[0]
        else:
            relaxation = self.relaxations[self.pass_index - 1]
            stepped = dry(model_output)
            self.state = self.state + relaxation * (stepped[0] - self.state)
            self.relaxed = torch.lerp(self.relaxed, model_output, relaxation)
        if self.pass_index == len(self.relaxations):
            self.inner.step(self.relaxed, timestep, self.x_t, **settings)
            self.pass_index = 0
        else:
            self.pass_index += 1
        if isinstance(stepped, tuple):
            return (self.state, *stepped[1:])
        stepped.prev_sample = self.state
        return stepped
