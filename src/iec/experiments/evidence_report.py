"""The evidence as a page: one table per part, what correction does to each system, and which claims held."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig
from iec.evaluation.bootstrap import Estimate
from iec.experiments.corrections import describe_correction
from iec.experiments.evidence import REFRESH_ONLY, EvidenceConfig, Part, Row
from iec.experiments.rows import Judge, PairableFigures, Verdict, compare
from iec.experiments.settings import Setting, Technique
from iec.experiments.spread import difference_spread, kernel_spread, psnr_spread, spread
from iec.method.config import IECConfig
from iec.reports.grid import picture_grid, save_png
from iec.reports.plot import Point, quality_cost_plot
from iec.reports.table import Column, Table, to_markdown
from iec.reports.table import Row as TableRow
from iec.storage.files import write_json, write_text

_COLUMNS = (
    Column("system", align="left"),
    Column("correction", align="left"),
    Column("KD-cifar x1000", note="lower is better"),
    Column("FD-cifar", note="lower is better"),
    Column("PSNR", note="to full precision, dB"),
    Column("full", note="evaluations"),
    Column("cached", note="evaluations"),
    Column("cost", note="of full precision"),
    Column("model", note="MB"),
    Column("time", note="processor ms per image"),
)
_GRID_IMAGES = 12


@dataclass(frozen=True)
class JudgedRow:
    """A row with its figures over all seeds, and KD-cifar of each seed on its own."""

    row: Row
    figures: PairableFigures
    per_seed: tuple[float, ...]

    @property
    def setting(self) -> Setting:
        """What was sampled."""
        return self.row.setting


@dataclass(frozen=True)
class Comparison:
    """One row against another of the same part, paired by image."""

    ours: Setting
    verdict: Verdict

    @property
    def sentence(self) -> str:
        """What came of it."""
        words = {"wins": "is better than", "loses": "is worse than", "not separable": "cannot be told from"}
        found, rival = self.verdict, self.verdict.rival
        return f"{self.ours.label} {words[found.outcome]} {rival.label}: {difference_spread(found.difference)}"


@dataclass(frozen=True)
class Section:
    """A judged part."""

    part: Part
    rows: tuple[JudgedRow, ...]

    def find(self, setting: Setting) -> JudgedRow | None:
        """The row of a setting, or None where it was not sampled."""
        return next((row for row in self.rows if row.setting == setting), None)


def judge_part(rows: Sequence[Row]) -> Section:
    """The figures of one part's rows; the first must be full precision without correction."""
    if rows[0].setting != Setting(rows[0].setting.num_steps):
        raise ValueError("A part begins with full precision without correction, which the others are measured against.")
    judge = Judge(rows[0].images)
    return Section(rows[0].part, tuple(_judge(judge, row) for row in rows))


def corrections(section: Section) -> list[Comparison]:
    """Every corrected row against its own system without correction."""
    pairs = [(row, section.find(replace(row.setting, correction=None))) for row in section.rows]
    return [_compared(row, plain) for row, plain in pairs if plain is not None and row.setting.correction is not None]


def equal_cost(section: Section) -> list[Comparison]:
    """Every row with IEC against the best uncorrected row of the table that costs no more, whatever its system."""
    plain = [row for row in section.rows if row.setting.correction is None]
    found = []
    for row in section.rows:
        if row.setting.correction == IECConfig.paper():
            affordable = [other for other in plain if _cost(other) <= _cost(row) + 1e-9]
            best = min(affordable, key=lambda other: other.figures.kernel.value)
            found.append(_compared(row, best))
    return found


def claims(section: Section) -> list[Comparison]:
    """Without correction: quantization against full precision, CacheQuant against the bare cache, reconstruction and
    bias correction against rounding to nearest."""
    found = []
    for row in section.rows:
        rival = _claimed_rival(row.setting.technique)
        if row.setting.correction is None and rival is not _NO_RIVAL:
            other = section.find(replace(row.setting, technique=rival))
            if other is not None:
                found.append(_compared(row, other))
    return found


def evidence_table(section: Section) -> Table:
    """The rows of one part, those of one system together."""
    part, full_cost = section.part, _cost(section.rows[0])
    rows = []
    for row in section.rows:
        record, correction = row.row.record, row.setting.correction
        images = part.images * len(part.seeds)
        milliseconds = sum(stored.record["processor_seconds"] for stored in row.row.sampled) / images * 1000
        cells = (
            row.setting.system,
            "none" if correction is None else describe_correction(correction),
            kernel_spread(row.figures.kernel) + _seed_range(row.per_seed),
            spread(row.figures.frechet, 1, 2),
            psnr_spread(row.figures.psnr),
            str(record["full_evaluations"]),
            str(record["cached_evaluations"]),
            f"{_cost(row) / full_cost:.2f}",
            f"{record['model_bytes'] / 1e6:.1f}",
            f"{milliseconds:.0f}",
        )
        rows.append(TableRow(cells, "reference" if row is section.rows[0] else "", row.setting.system))
    notes = (
        f"{part.images} images from each of the seeds {', '.join(map(str, part.seeds))}; 95 % bootstrap intervals"
        f"{'; in brackets behind KD-cifar its range over the seeds' if len(part.seeds) > 1 else ''}.",
        f"FD-cifar is biased upwards at {part.images * len(part.seeds)} images: compare it within this table only.",
        "Quantized rows compute in simulated arithmetic: their time is that of the simulation, no integer model's.",
    )
    return Table(f"T={part.num_steps} quad", _COLUMNS, tuple(rows), notes)


def evidence_markdown(sections: Sequence[Section], config: EvidenceConfig, size: str) -> str:
    """The whole page."""
    seconds = sum(stored.record["seconds"] for s in sections for row in s.rows for stored in row.row.sampled)
    parts = [
        "# The paper's efficient models, without and with correction",
        "This page is written by `iec reproduce efficient`; nothing on it was put in by hand. The embedded CIFAR-10 "
        "model is sampled with DDIM (quad spacing, eta 0) under every efficiency technique that the paper corrects, "
        "each without and with the published correction (relaxation 0.5, one iteration, full steps only, the cache "
        "refreshed). `cache refresh only` is the control that spends the same evaluations on refreshing the cache and "
        "corrects nothing. KD-cifar is the verdict: a difference counts where its paired 95 % interval excludes zero. "
        "KD-cifar and FD-cifar use our small CIFAR-10 network: they are no FID or KID. PSNR is fidelity to the "
        "full-precision images of the same seeds, not quality.",
        f"Size `{size}`; network in {config.dtype}, state in float32; plans from {config.calibration.samples} "
        f"trajectories of seed {config.calibration.seed} + 2000. Sampling took {seconds / 60:.0f} minutes of wall time "
        f"in all, where other work may have shared the machine ({platform.machine()}, "
        f"{sections[0].rows[0].row.record['threads']} workers of one thread, torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}).",
    ]
    for section in sections:
        parts += [
            f"## T={section.part.num_steps}",
            *_missing(section),
            _summary(section),
            to_markdown(evidence_table(section)),
        ]
        for title, found in (
            ("What correction does to each system", corrections(section)),
            ("Correction against the best uncorrected row that costs no more", equal_cost(section)),
            ("The techniques themselves", claims(section)),
        ):
            parts += [_listed(title, found)] if found else []
        if section is sections[0]:
            parts += ["![The same seeds in every row](efficient-models.png)"]
        parts += [f"![KD-cifar against cost](efficient-models-T{section.part.num_steps}.svg)"]
    return "\n\n".join(parts) + "\n"


def write_evidence(sections: Sequence[Section], config: EvidenceConfig, size: str, folder: Path) -> list[Path]:
    """Write the page with its pictures, and its figures as JSON, into `folder`; returns their paths."""
    paths = [folder / "efficient-models.md", folder / "efficient-models.png", folder / "efficient-models.json"]
    write_text(paths[0], evidence_markdown(sections, config, size))
    pictures = [(row.setting.label, row.row.images[:_GRID_IMAGES]) for row in sections[0].rows]
    save_png(picture_grid(pictures), paths[1])
    write_json(paths[2], evidence_json(sections, size))
    for section in sections:
        paths.append(folder / f"efficient-models-T{section.part.num_steps}.svg")
        plot = quality_cost_plot([_point(row) for row in section.rows], "KD-cifar x1000")
        write_text(paths[-1], plot)
    return paths


def evidence_json(sections: Sequence[Section], size: str) -> dict[str, Any]:
    """The figures as JSON values."""
    return {"size": size, "parts": [_json(section) for section in sections]}


class _NoRival:
    pass


_NO_RIVAL = _NoRival()


def _claimed_rival(technique: Technique | None) -> Any:
    """What the paper's claim compares a technique with; None is full precision."""
    if isinstance(technique, QuantizationConfig):
        nearest = replace(technique, reconstruction=None, bias_correction=False)
        return None if technique == nearest else nearest
    if isinstance(technique, CacheQuantConfig):
        uncorrected = replace(technique, bias_correction=False)
        return DeepCacheConfig(technique.interval, technique.branch) if technique == uncorrected else uncorrected
    return _NO_RIVAL


def _judge(judge: Judge, row: Row) -> JudgedRow:
    alone = [judge.kernel_distance(stored.images) for stored in row.sampled] if len(row.sampled) > 1 else []
    return JudgedRow(row, judge.judge(row.images), tuple(alone))


def _compared(ours: JudgedRow, other: JudgedRow) -> Comparison:
    return Comparison(ours.setting, compare(ours.figures, other.figures, other.setting))


def _cost(row: JudgedRow) -> float:
    return float(row.row.record["cost"])


def _missing(section: Section) -> list[str]:
    """What the table lacks, in one sentence; nothing where it is complete."""
    there = {row.setting for row in section.rows}
    missing = [setting.label for setting in section.part.settings() if setting not in there]
    return [f"**Not measured yet: {', '.join(missing)}.**"] if missing else []


def _summary(section: Section) -> str:
    own = [found for found in corrections(section) if found.ours.correction == IECConfig.paper()]
    rivals = equal_cost(section)
    better = [found for found in own if found.verdict.outcome == "wins"]
    names = ", ".join(found.ours.system for found in better) or "none"
    wins = [found for found in rivals if found.verdict.outcome == "wins"]
    return (
        f"**IEC improves {len(better)} of {len(own)} systems over themselves without correction ({names}); "
        f"{sum(found.verdict.outcome == 'loses' for found in own)} get worse. Against the best uncorrected row that "
        f"costs no more it wins {len(wins)} of {len(rivals)} times.**"
    )


def _listed(title: str, found: Sequence[Comparison]) -> str:
    lines = [f"- {comparison.sentence}" for comparison in found]
    return "\n".join([f"{title} (difference of KD-cifar x1000, paired):", "", *lines])


def _seed_range(values: Sequence[float]) -> str:
    return f" ({1000 * min(values):.1f} to {1000 * max(values):.1f})" if values else ""


def _point(row: JudgedRow) -> Point:
    kernel, setting = row.figures.kernel, row.setting
    low, high = min(kernel.low, kernel.value), max(kernel.high, kernel.value)
    if setting.correction == REFRESH_ONLY:
        kind = "cache refresh only"
    elif setting.correction is not None:
        kind = "corrected"
    elif setting.technique is None:
        kind = "full precision"
    else:
        kind = "quantized" if isinstance(setting.technique, QuantizationConfig) else "plain cache"
    return Point(setting.label, _cost(row), 1000 * kernel.value, 1000 * low, 1000 * high, kind)


def _json(section: Section) -> dict[str, Any]:
    rows = [
        {
            **row.row.record,
            "seeds": list(section.part.seeds),
            "kd_cifar": _interval(row.figures.kernel),
            "kd_cifar_per_seed": list(row.per_seed),
            "fd_cifar": _interval(row.figures.frechet),
            "psnr": None if row.figures.psnr is None else _interval(row.figures.psnr),
        }
        for row in section.rows
    ]
    return {"num_steps": section.part.num_steps, "images": section.part.images, "rows": rows}


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
