"""The session around a pipeline's call: it opens the clock, counts `scheduler.step` calls, and hosts participants.

`attach` gives the pipeline a subclass of its own whose `__call__` opens a `Run`. Everything else is installed when
the call starts and gone when it ends, so that whatever the user does between `attach` and the call stays outermost.
"""

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline

from iec.method.clock import Clock
from iec.runtime.hooks import Handler, install, uninstall
from iec.runtime.subclassing import subclass

_NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})
_current_run: ContextVar["Run | None"] = ContextVar("iec_run", default=None)


class Part:
    """A participant's part in one run, entered for the length of the run; the defaults do nothing."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: Any) -> None:
        return None

    def steps_known(self) -> None:
        """Called once the clock's `num_steps` is known, before the first evaluation, and again should it change."""

    def timesteps_set(self) -> None:
        """Called after every `scheduler.set_timesteps` of the run."""

    def step(self, commit: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stands before one `scheduler.step` call; `commit(*args, **kwargs)` takes the step."""
        return commit(*args, **kwargs)


class Participant:
    """What takes part in every run of a pipeline; this one only needs the clock."""

    def join(self, run: "Run") -> Part:
        """Its part in one run."""
        return Part()

    def before_saving(self) -> None:
        """Called before the pipeline is saved; raises where that would lose something."""


class Run:
    """One call of a pipeline.

    clock: the run's clock; `step` counts completed `scheduler.step` calls.
    scheduler: the pipeline's scheduler when the call started. arguments: of the call, by name.
    """

    def __init__(
        self, pipe: DiffusionPipeline, participants: list[Participant], arguments: Mapping[str, Any] = _NO_ARGUMENTS
    ) -> None:
        self.pipe, self.arguments = pipe, arguments
        self.scheduler = pipe.scheduler
        self.clock = Clock(_length(self.scheduler))
        self.parts = [participant.join(self) for participant in participants]
        self._announced: int | None = None
        self._modules: dict[int, Handler] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Run":
        with ExitStack() as stack:
            stack.enter_context(self.clock)
            token = _current_run.set(self)
            stack.callback(_current_run.reset, token)
            for name in ("step", "set_timesteps"):
                hook = install(self.scheduler, name, functools.partial(_scheduler_handler, name))
                stack.callback(uninstall, hook)
            for part in self.parts:
                stack.enter_context(part)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def intercept(self, module: torch.nn.Module, handler: Handler) -> AbstractContextManager[Any]:
        """While entered, calls of `module` in this run go through `handler(original, args, kwargs)`.

        An autoencoder's `encode` and `decode` are calls too. The hook stands outside a compiled region, so compiled
        modules stay compiled.
        """
        stack = ExitStack()
        forward = "forward" if getattr(module, "_compiled_call_impl", None) is None else "_compiled_call_impl"
        for name in (forward, *(name for name in ("encode", "decode") if callable(getattr(module, name, None)))):
            stack.callback(uninstall, install(module, name, _module_handler))
        self._modules[id(module)] = handler
        return stack

    def on_step(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One `scheduler.step` call: the participants first, then the clock advances."""
        if self.clock.step == 0:
            self._set_num_steps(_length_from(self.scheduler, timestep_of(self.scheduler, args, kwargs)))
        commit = original
        for part in self.parts:
            commit = _before(part, commit)
        output = commit(*args, **kwargs)
        self.clock.advance()
        return output

    def on_set_timesteps(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The pipeline chose its timesteps: T is known from here on, before the first evaluation."""
        output = original(*args, **kwargs)
        if self.clock.step == 0:
            self._set_num_steps(_length(self.scheduler))
        for part in self.parts:
            part.timesteps_set()
        return output

    def _set_num_steps(self, num_steps: int) -> None:
        if num_steps != self._announced:
            self.clock.num_steps = self._announced = num_steps
            for part in self.parts:
                part.steps_known()


class _Attachment:
    """The participants of one pipeline, and the lock that keeps its calls apart."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = weakref.ref(pipe)
        self.participants: dict[str, Participant] = {}
        self.calling = threading.Lock()
        copied: _Attachment | None = getattr(type(pipe), "_iec_attachment", None)
        self.base: type[Any] = (
            type(pipe) if copied is None else copied.base
        )  # a deep copy came with its original's class
        self.hooked = self._subclass()

    def _subclass(self) -> type:
        attachment, base = self, self.base

        @functools.wraps(base.__call__)
        def call(pipe: DiffusionPipeline, *args: Any, **kwargs: Any) -> Any:
            # A deep copy of the pipeline shares this class but is not attached; its networks may need the clock.
            if attachment.pipe() is not pipe:
                with Run(pipe, []):
                    return base.__call__(pipe, *args, **kwargs)
            if not attachment.participants:
                return base.__call__(pipe, *args, **kwargs)
            if not attachment.calling.acquire(blocking=False):
                raise RuntimeError(
                    "This pipeline is already being called, and its scheduler cannot serve two runs: "
                    "give each thread a pipeline with its own scheduler (they may share the other components)."
                )
            try:
                with Run(pipe, list(attachment.participants.values()), _named(base, pipe, args, kwargs)):
                    return base.__call__(pipe, *args, **kwargs)
            finally:
                attachment.calling.release()

        @functools.wraps(base.save_pretrained)
        def save(pipe: DiffusionPipeline, *args: Any, **kwargs: Any) -> Any:
            for participant in attachment.participants.values():
                participant.before_saving()
            return base.save_pretrained(pipe, *args, **kwargs)

        self.call = call
        return subclass(base, __call__=call, save_pretrained=save, _iec_attachment=self)


def require_pipeline(pipe: Any) -> None:
    """Raise TypeError or ValueError unless `pipe` is a diffusers pipeline with a scheduler and a network."""
    if not isinstance(pipe, (DiffusionPipeline, ModularPipeline)):
        raise TypeError(f"A diffusers pipeline is needed, but a {type(pipe).__name__} was given.")
    if getattr(pipe, "scheduler", None) is None or not hasattr(pipe.scheduler, "step"):
        raise ValueError(f"This {type(pipe).__name__} has no scheduler to follow.")
    if not any(isinstance(component, torch.nn.Module) for component in pipe.components.values()):
        raise ValueError(f"This {type(pipe).__name__} has no network to evaluate.")


def attach(pipe: DiffusionPipeline, name: str, participant: Participant) -> None:
    """Let `participant` take part in the runs of `pipe`, in the place of an earlier one of that name.

    Raises TypeError or ValueError where `pipe` is no usable pipeline, RuntimeError where it is being called.
    """
    require_pipeline(pipe)
    attachment = _attachment(pipe)
    if attachment is None:
        attachment = _Attachment(pipe)
        pipe.__class__ = attachment.hooked
    _require_idle(attachment)
    attachment.participants[name] = participant


def detach(pipe: DiffusionPipeline, name: str) -> None:
    """End what `attach` began; with the last participant the pipeline gets its own class back."""
    attachment = _attachment(pipe)
    if attachment is None or name not in attachment.participants:
        return
    _require_idle(attachment)
    del attachment.participants[name]
    # Where another library replaced `__call__` on our subclass, taking the class away would take that with it.
    untouched = attachment.hooked.__dict__.get("__call__") is attachment.call
    if not attachment.participants and untouched and type(pipe) is attachment.hooked:
        pipe.__class__ = attachment.base


def participant(pipe: Any, name: str) -> Participant | None:
    """The participant of that name, or None."""
    attachment = _attachment(pipe)
    return None if attachment is None else attachment.participants.get(name)


def _named(base: type[Any], pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call by name; a call that does not fit its signature will say so itself."""
    try:
        found = inspect.signature(base.__call__).bind_partial(pipe, *args, **kwargs).arguments
    except TypeError:
        return dict(kwargs)
    return {**found, **found.get("kwargs", {})}


def _attachment(pipe: Any) -> _Attachment | None:
    attachment: _Attachment | None = getattr(type(pipe), "_iec_attachment", None)
    return attachment if attachment is not None and attachment.pipe() is pipe else None


def _require_idle(attachment: _Attachment) -> None:
    if attachment.calling.locked():
        raise RuntimeError("This pipeline is being called: enable, disable, apply and remove between its calls.")


def _scheduler_handler(name: str, scheduler: Any) -> Handler | None:
    run = _current_run.get()
    if run is None or run.scheduler is not scheduler:
        return None
    return run.on_step if name == "step" else run.on_set_timesteps


def _module_handler(module: Any) -> Handler | None:
    run = _current_run.get()
    return None if run is None else run._modules.get(id(module))


def _before(part: Part, commit: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(commit)  # keeps the signature of `scheduler.step`
    def step(*args: Any, **kwargs: Any) -> Any:
        return part.step(commit, args, kwargs)

    return step


def _length(scheduler: Any) -> int:
    timesteps = getattr(scheduler, "timesteps", None)
    return 0 if timesteps is None else len(timesteps)


def timestep_of(scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The timestep among the arguments of a `scheduler.step` call, or None."""
    # By name: CogVideoXDPMScheduler takes another tensor second.
    return inspect.signature(scheduler.step).bind_partial(*args, **kwargs).arguments.get("timestep")


def _length_from(scheduler: Any, timestep: Any) -> int:
    """The number of timesteps from `timestep` on (image-to-image pipelines start inside the sequence)."""
    if timestep is None:
        return _length(scheduler)
    first = torch.as_tensor(timestep).cpu().flatten()[:1]
    places = (torch.as_tensor(scheduler.timesteps).cpu() == first).nonzero().flatten().tolist()
    # Second-order schedulers list a timestep twice; where they keep an index, it says which of the two this is.
    kept = [getattr(scheduler, name, None) for name in ("begin_index", "step_index")]
    places = [index for index in kept if index in places] + places
    return _length(scheduler) - (places[0] if places else 0)
