"""CLIP score: how well images fit their prompts, by transformers (extra `clip`).

Source: Hessel et al. 2021, "CLIPScore", in the form of the papers on diffusion: the mean of max(100 cos, 0).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from iec.evaluation.bootstrap import bootstrap_mean
from iec.evaluation.image_sets import ImageSet
from iec.evaluation.metrics.extras import require_extra
from iec.evaluation.metrics.figure import Figure

#: ViT-g/14, as in the evaluations of DeepCache and of the paper.
DEFAULT_MODEL = "laion/CLIP-ViT-g-14-laion2B-s34B-b88K"
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipScore:
    """The score of each image and its prompt, from 0 to 100.

    model, tokenizer: a CLIPModel of transformers and its tokenizer; `ClipScore.load` gets them by name.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def load(cls, name: str = DEFAULT_MODEL, device: str = "cpu") -> "ClipScore":
        """A folder or hub name. Raises ValueError where the extra is missing or the model cannot be loaded."""
        transformers = require_extra("transformers", "clip", "The CLIP score")
        try:
            model = transformers.CLIPModel.from_pretrained(name, use_safetensors=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"The CLIP model '{name}' could not be loaded: {reason}") from error
        return cls(model.to(device), tokenizer)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores float64 [B] of images uint8 [B, 3, H, W] and as many prompts, cut where CLIP's context ends."""
        if len(images) != len(prompts) or images.shape[1] != 3:
            raise ValueError(f"{len(images)} images of {images.shape[1]} channels do not fit {len(prompts)} prompts.")
        text = self.model.config.text_config
        tokens = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=text.max_position_embeddings,
            return_tensors="pt",
        )
        pixels = prepare(images.to(self.model.device), self.model.config.vision_config.image_size)
        output = self.model(
            input_ids=tokens["input_ids"].to(self.model.device),
            attention_mask=tokens["attention_mask"].to(self.model.device),
            pixel_values=pixels.to(self.model.dtype),
        )
        cosines = functional.cosine_similarity(output.image_embeds.double(), output.text_embeds.double())
        return (100 * cosines).clamp(min=0).cpu()


def prepare(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images uint8 [B, 3, H, W] as CLIP's input [B, 3, size, size]: resized, cut to the middle square, normalized."""
    height, width = images.shape[2:]
    scale = size / min(height, width)
    resized = functional.interpolate(
        images.float(), (max(size, int(height * scale)), max(size, int(width * scale))), mode="bicubic", antialias=True
    )
    top, left = (resized.shape[2] - size) // 2, (resized.shape[3] - size) // 2
    # Bicubic filters overshoot; an image file cannot.
    square = resized[:, :, top : top + size, left : left + size].round().clamp(0, 255) / 255
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (square - mean) / std


def clip_figure(
    images: ImageSet,
    prompts: Sequence[str],
    score: ClipScore,
    batch_size: int = 50,
    on_progress: Callable[[int], None] = lambda images: None,
) -> Figure:
    """The mean score of images and prompts, which are used in turn. Raises ValueError for fewer than 10 images."""
    scores, start = [], 0
    for batch in images.batches(batch_size):
        scores.append(score(batch, [prompts[(start + i) % len(prompts)] for i in range(len(batch))]))
        start += len(batch)
        on_progress(len(batch))
    return Figure("CLIP score", bootstrap_mean(torch.cat(scores)), start, "higher")
