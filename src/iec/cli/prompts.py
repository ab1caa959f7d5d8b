"""Prompts from the options `--prompt` and `--prompts`."""

from pathlib import Path
from typing import Any


def prompt_inputs(prompt: str | None, prompts: Path | None) -> dict[str, Any]:
    """The `prompt` argument of a pipeline's call: one text, or the lines of a file, used in turn; empty for neither.

    Raises ValueError where both are given or the file holds no prompt.
    """
    if prompts is None:
        return {} if prompt is None else {"prompt": prompt}
    if prompt is not None:
        raise ValueError("Give --prompt or --prompts, not both.")
    try:
        lines = prompts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The prompts '{prompts}' cannot be read: {error}.") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"'{prompts}' holds no prompt: write one a line.")
    return {"prompt": found}
