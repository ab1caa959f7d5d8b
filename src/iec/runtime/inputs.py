"""What a pipeline's call takes, checked before it is made."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any


def call_parameters(pipe: Any, inputs: Mapping[str, Any], given: Collection[str]) -> Mapping[str, inspect.Parameter]:
    """The parameters of the pipeline's call, to which `inputs` and the arguments named in `given` will be passed.

    Raises ValueError, naming it, for an input that the call does not take, or one that it needs and would not get; a
    prompt is always needed, or its embeddings.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    for name in inputs:
        if name not in parameters:
            raise ValueError(f"{type(pipe).__name__} takes no '{name}'.")
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        asked = required or (name == "prompt" and "prompt_embeds" not in inputs)
        if asked and name not in {*inputs, *given, "self"}:
            raise ValueError(f"{type(pipe).__name__} needs '{name}', which was not given.")
    return parameters
