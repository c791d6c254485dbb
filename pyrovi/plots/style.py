"""What the figures share: colours, arrays checked before anything is drawn, plain axes, a legend with every label once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi.errors import SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CLASSES",
    "FITTED",
    "MARKERS",
    "RASTER",
    "REFERENCE",
    "SEEN",
    "SEVERAL",
    "bare",
    "histogram",
    "legend",
    "numbers",
    "shortened",
]

FITTED, REFERENCE = "#3f74b5", "#d1570f"
"""The colours of q and of the exact posterior, apart for colour-blind readers; the report puts its own shades in their place."""

SEEN = "#000000"
"""The colour of data."""

SEVERAL, MARKERS = (FITTED, "#8c3fa6", "#2c7a4b", "#bb3a74", "#0d7c86", "#6f6a2a"), "os^vD"
"""Of several fits in one figure, which their markers tell apart too."""

BINS = 40
"""Bars of a histogram: as many as a panel can show."""

RASTER = 2_000
"""Points past which a cloud is saved as an image within an SVG or PDF: as paths it would be megabytes, and slow to show."""

CLASSES = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
"""Ten colours apart for colour-blind readers, from
Accessible color sequences for data visualization (Petroff, 2021) | https://arxiv.org/abs/2107.02270
"""


def numbers(name: str, value: Any, shape: Sequence[int | str], *, broadcast: bool = False, missing: bool = False) -> NDArray[Any]:
    """`value` in float64, or as it is if it holds dates, once it is known to have the shape.

    Args:
        name: What errors call it.
        value: A tensor, or what NumPy makes an array of.
        shape: A length for every axis, or its name where any length from 1 up will do. A column `(n, 1)` passes for `(n,)`.
        broadcast: Whether a single number stands for an array full of it.
        missing: Whether NaN is allowed.

    Raises:
        SettingsError: It is of another shape, or holds what is not a number, or not a finite one.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
        array = array if array.dtype.kind == "M" else array.astype(float)
    except (TypeError, ValueError):
        raise SettingsError(f"{name} must be an array of numbers; got {value!r:.60}") from None
    if broadcast and not array.ndim:
        array = np.full([length for length in shape if isinstance(length, int)], array)
    if len(shape) == 1 and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    fits = array.size and array.ndim == len(shape)
    if not fits or any(isinstance(want, int) and want != got for want, got in zip(shape, array.shape, strict=True)):
        wanted = f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"
        raise SettingsError(f"{name} must have the shape {wanted}; got {array.shape}")
    if not (missing or np.isfinite(array).all()):
        raise SettingsError(f"{name} must be finite; it holds NaN or infinite values")
    return array


def shortened(label: str) -> str:
    return label if len(label) <= 28 else f"…{label[-27:]}"


def legend(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Every label once."""
    entries = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(entries.values()), list(entries)


def bare(axes: Axes, *sides: str) -> None:
    axes.spines[["top", "right", *sides]].set_visible(False)


def histogram(axes: Axes, draws: NDArray[Any], low: float, high: float, name: str = "draws from q") -> float:
    """Bars of draws between two ends; how high the highest is."""
    height, edges = np.histogram(draws, BINS, (low, high))
    # A share of all draws, those beyond the panel included: a density that a curve can be held against.
    height = height / (len(draws) * np.diff(edges))
    axes.stairs(height, edges, fill=True, color=FITTED, alpha=0.5, label=name)
    return float(height.max())
