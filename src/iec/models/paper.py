"""The paper's five models with the settings of its experiments, from `paper.toml` (spec section 5)."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.models.component import Component
from iec.models.loading import load_pipeline

_COMPONENTS = ("unet", "scheduler", "autoencoder", "class_embedder")


@dataclass(frozen=True)
class PaperModel:
    """A model of the paper's experiments, and how they sample it.

    dataset: what the paper's tables call its data.
    hub: the name of its weights; None where they exist only as a CompVis checkpoint.
    weights: which weights of a CompVis checkpoint are sampled, `ema` (their running average) or `raw`.
    num_steps, eta, guidance_scale (None: no guidance), images, batch_size: of the published runs.
    intervals: N in the tables. branch: where DeepCache re-enters. correct: the corrected steps.
    calibration: full-precision trajectories behind a calibrated plan.
    without: components that the experiments leave out.
    """

    name: str
    title: str
    dataset: str
    unet: Component
    scheduler: Component
    num_steps: int
    eta: float
    images: int
    batch_size: int
    intervals: tuple[int, ...]
    branch: int
    correct: str
    calibration: int
    autoencoder: Component | None = None
    class_embedder: Component | None = None
    guidance_scale: float | None = None
    hub: str | None = None
    weights: str | None = None
    without: tuple[str, ...] = ()

    @classmethod
    def from_table(cls, name: str, table: Mapping[str, Any]) -> "PaperModel":
        """From a table of `paper.toml`."""
        components = {part: Component.from_table(table[part]) for part in _COMPONENTS if part in table}
        settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
        return cls(name=name, **{**settings, **components})

    @property
    def takes_prompts(self) -> bool:
        """Whether its images are of prompts: it is guided, but not to classes."""
        return self.guidance_scale is not None and self.class_embedder is None

    @property
    def inputs(self) -> dict[str, Any]:
        """What a call of its pipeline takes besides generators, labels or prompts."""
        guidance = {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}
        return {"num_inference_steps": self.num_steps, **guidance}

    def require_fit(self, pipe: DiffusionPipeline) -> None:
        """Raise ValueError, naming the first tensor, where the pipeline's UNet is not the one of the experiments."""
        found = {name: tensor.shape for name, tensor in pipe.unet.state_dict().items()}
        expected = self.unet.shapes()
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                raise ValueError(
                    f"This UNet is not the one of '{self.name}': {name} is {_shape(found.get(name))} there and "
                    f"{_shape(expected.get(name))} in {self.title}."
                )


@cache
def paper_models() -> Mapping[str, PaperModel]:
    """The paper's models, by name."""
    tables = tomllib.loads((files("iec.models") / "paper.toml").read_text(encoding="utf-8"))
    return {name: PaperModel.from_table(name, table) for name, table in tables.items()}


def paper_model(name: str) -> PaperModel:
    """The paper's model of that name. Raises ValueError where there is none."""
    known = paper_models()
    if name not in known:
        raise ValueError(f"The paper has no model '{name}': use {', '.join(known)}.")
    return known[name]


def load_paper_model(
    model: str | PaperModel,
    source: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> DiffusionPipeline:
    """The pipeline of a paper model with the scheduler of its experiments, which never clips.

    source: a folder or hub name in the place of the model's own; the folder that `iec convert` wrote for those whose
    weights exist only as a CompVis checkpoint.
    Raises ValueError, in one sentence, where there is nothing to load, or its UNet is another.
    """
    chosen = paper_model(model) if isinstance(model, str) else model
    source = source or chosen.hub
    if source is None:
        raise ValueError(
            f"The weights of {chosen.title} exist only as a CompVis checkpoint: rewrite it with "
            f"iec convert --model {chosen.name}, and give the folder that it writes."
        )
    pipe = load_pipeline(source, dtype, device, spacing="scheduler")
    chosen.require_fit(pipe)
    pipe.scheduler = chosen.scheduler.make()
    for name in chosen.without:
        setattr(pipe, name, None)
    return pipe


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(list(shape))
