"""One figure of an evaluation."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from iec.evaluation.bootstrap import Estimate


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval, from how many images it was made, which direction is better, and a warning."""

    name: str
    estimate: Estimate
    images: int
    better: Literal["lower", "higher"]
    warning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; null where a value is infinite, as the PSNR of identical images is."""
        values = {name: value if math.isfinite(value) else None for name, value in asdict(self.estimate).items()}
        warning = {"warning": self.warning} if self.warning else {}
        return {"name": self.name, **values, "images": self.images, "better": self.better, **warning}
