"""Figures of what a model makes of images: stacks of them, reconstructions, and the latent space that they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi.errors import SettingsError
from pyrovi.plots.style import CLASSES, RASTER, bare, numbers, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["images", "latent_grid", "latent_scatter", "reconstructions"]

Array = NDArray[Any]

TILE, SMALL = 1.4, 0.9
"""Inches of an image's width, on its own and beside its reconstruction."""

MARKERS = "o^"
"""Classes past the tenth have the colours again, and the second shape."""


def images(
    array: ArrayLike, titles: Sequence[str] = (), *, columns: int = 6, own_scale: bool = False, signed: bool = False
) -> Figure:
    """A grid of small images; the line below it says what its colours stand for.

    Args:
        array: The images, shape `(n, height, width)`.
        titles: One an image, or none.
        columns: Images in a row.
        own_scale: Whether every image has a scale of its own, as factors want that differ in size. Otherwise all have the same, so
            that they can be held against one another.
        signed: Whether values have a sign: blue is below 0, white is 0, and red above it. Otherwise white is the least value and
            black the greatest.

    Raises:
        SettingsError: The array is not a stack of images or is not finite, there is not a title for each, or no column.

    Example:
        >>> from pyrovi import data, plots
        >>> zeros = data.digits(0).images[:3]
        >>> figure = plots.images(zeros, ["one", "two", "three"])
    """
    stack = numbers("images", array, ("n", "height", "width"))
    if len(titles) not in (0, len(stack)):
        raise SettingsError(f"there are {len(stack)} images and {len(titles)} titles")
    figure, tiles = _sheet(len(stack), 1, columns, stack.shape[1:], TILE, 0.2 if len(titles) else 0.05)
    for i, axes in enumerate(tiles[0]):
        _tile(axes, stack[i], stack[i] if own_scale else stack, signed)
        axes.set_title(titles[i] if len(titles) else "", fontsize="small", parse_math=False)
    figure.supxlabel(_key(None if own_scale else stack, signed), fontsize="small")
    return figure


def reconstructions(images: ArrayLike, reconstructed: ArrayLike, *, columns: int = 10) -> Figure:
    """Images, and under each what the model makes of its code, all on one grey scale.

    Args:
        images: Shape `(n, height, width)`.
        reconstructed: The same shape, in the same order.
        columns: Images in a row; past it they go on in another pair of rows.

    Raises:
        SettingsError: The arrays are not stacks of images of one shape or are not finite, or there is no column.

    Example:
        >>> from pyrovi import data, plots
        >>> zeros = data.digits(0).images[:3]
        >>> figure = plots.reconstructions(zeros, zeros / 2)
    """
    above = numbers("images", images, ("n", "height", "width"))
    below = numbers("reconstructed", reconstructed, above.shape)
    both = np.stack([above, below])
    figure, tiles = _sheet(len(above), 2, columns, above.shape[1:], SMALL, 0.05)
    for name, stack, row in zip(("image", "reconstruction"), both, tiles, strict=True):
        for i, axes in enumerate(row):
            _tile(axes, stack[i], both, False)
            if i % columns == 0:
                axes.set_ylabel(name, fontsize="small")
    figure.supxlabel(_key(both, False), fontsize="small")
    return figure


def latent_grid(decode: Callable[[torch.Tensor], Any], shape: tuple[int, int], *, limit: float = 2.0, n: int = 30) -> Figure:
    """What a decoder draws all over a square of a two-dimensional latent space, as one mosaic of n x n images.

    Each image stands where its code is: z[0] rises from left to right, z[1] from bottom to top. White is the least value of all,
    black the greatest.

    Args:
        decode: From codes, a `(n * n, 2)` tensor, to images, as many in any shape of height · width pixels each:
            `lambda z: autoencoder.decode(fit, z)`. For more than two latents it can lay the plane into their space.
        shape: Height and width of an image, in pixels.
        limit: The square goes from −limit to limit, in units of the latents; a standard Normal prior has 91% of its codes within 2.
        n: Images along a side.

    Raises:
        SettingsError: The decoder gives other than `n * n` images of the shape or values that are not finite, n is below 2, or
            the limit is not positive.

    Example:
        >>> import torch
        >>> from pyrovi import plots
        >>> figure = plots.latent_grid(lambda z: torch.cat([z, z], 1), (2, 2), n=5)
    """
    from matplotlib.figure import Figure

    if n < 2:
        raise SettingsError(f"n must be at least 2 images along a side; got {n}")
    if not limit > 0:
        raise SettingsError(f"limit must be above 0; got {limit}")
    height, width = shape
    side = torch.linspace(-limit, limit, n)
    up, right = torch.meshgrid(side.flip(0), side, indexing="ij")
    with torch.no_grad():
        decoded = decode(torch.stack([right.ravel(), up.ravel()], -1))
    count = tuple(np.shape(decoded))
    if not count or count[0] != n * n or np.prod(count[1:]) != height * width:
        raise SettingsError(f"decode must give {n * n} images of {height} x {width} pixels; it gave the shape {count}")
    tiles = numbers("decoded images", torch.as_tensor(decoded).reshape(n * n, -1), (n * n, height * width))
    mosaic = tiles.reshape(n, n, height, width).transpose(0, 2, 1, 3).reshape(n * height, n * width)
    figure = Figure(figsize=(7, 0.4 + 6.6 * height / width), layout="constrained")
    axes = figure.subplots()
    edge = limit + limit / (n - 1)
    axes.imshow(mosaic, cmap="gray_r", extent=(-edge, edge, -edge, edge), aspect=height / width)
    axes.set(xlabel="z[0]", ylabel="z[1]")
    axes.spines[:].set_visible(False)
    return figure


def latent_scatter(z: ArrayLike, labels: ArrayLike | None = None) -> Figure:
    """Codes in the plane, coloured by class, with the class's name at its median.

    More than two dimensions are seen along the two principal axes with the largest variance, and the axes say what share of it they
    have. Points are drawn in random order, lest the last class hide the others.

    Args:
        z: Mean codes, shape `(n, k)`, k at least 2.
        labels: A class each, shape `(n,)`: whole numbers or strings, 20 different ones at most.

    Raises:
        SettingsError: z has another shape or is not finite, there is not a label for each, or too many classes.

    Example:
        >>> import numpy as np
        >>> from pyrovi import plots
        >>> figure = plots.latent_scatter(np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3)
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    z = numbers("z", z, ("n", "k"))
    if z.shape[1] < 2:
        raise SettingsError("z must have at least 2 columns to be seen in the plane; a histogram shows one")
    given = np.zeros(len(z)) if labels is None else np.asarray(labels)
    if given.shape != (len(z),):
        raise SettingsError(f"labels must have the shape ({len(z)},), one for each row of z; got {given.shape}")
    if given.dtype.kind == "f" and (given == given.round()).all():
        given = given.astype(int)
    classes, which = np.unique(given, return_inverse=True)
    if len(classes) > len(MARKERS) * len(CLASSES):
        raise SettingsError(f"labels hold {len(classes)} classes; at most {len(MARKERS) * len(CLASSES)} can be told apart")
    plane, names = _plane(z)
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    axes = figure.subplots()
    order = np.random.default_rng(0).permutation(len(z))
    size = float(np.clip(3e4 / len(z), 4, 25))
    for shape, marker in enumerate(MARKERS):
        shown = order[which[order] // len(CLASSES) == shape]
        colours = [CLASSES[i % len(CLASSES)] for i in which[shown]]
        x, y = plane[shown].T
        axes.scatter(x, y, s=size, c=colours, marker=marker, alpha=0.7, linewidths=0, rasterized=len(z) > RASTER)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    bare(axes)
    if labels is not None:
        outline = [withStroke(linewidth=3, foreground="white")]
        for i, name in enumerate(classes):
            middle = np.median(plane[which == i], axis=0)
            axes.annotate(
                shortened(str(name)), middle, ha="center", va="center", weight="bold", path_effects=outline, parse_math=False
            )
        handles = []
        for i, name in enumerate(classes):
            marker, colour = MARKERS[i // len(CLASSES)], CLASSES[i % len(CLASSES)]
            handles.append(Line2D([], [], linestyle="", marker=marker, color=colour, label=shortened(str(name))))
        for text in figure.legend(handles=handles, loc="outside right upper", frameon=False).get_texts():
            text.set_parse_math(False)
    return figure


def _plane(z: Array) -> tuple[Array, tuple[str, str]]:
    """`(n, 2)`, and the names of the two axes."""
    if z.shape[1] == 2:
        return z, ("z[0]", "z[1]")
    centred = z - z.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, :-3:-1]
    # An axis has no sign of its own: its largest part is made positive, so that the same codes give the same figure.
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), [0, 1]])
    share = variances[:-3:-1] / (variances.sum() or 1.0)
    first, second = (f"principal axis {i + 1} of {z.shape[1]} latents: {share[i]:.0%} of the variance" for i in range(2))
    return centred @ directions, (first, second)


def _sheet(n: int, rows: int, columns: int, shape: Sequence[int], tile: float, gap: float) -> tuple[Figure, list[list[Axes]]]:
    """A figure with axes for `rows` rows of n images each, in blocks of `columns`; the axes by row.

    An image is `tile` inches wide, and has `gap` inches above it.
    """
    from matplotlib.figure import Figure

    if columns < 1:
        raise SettingsError(f"columns must be at least 1; got {columns}")
    columns = min(columns, n)
    blocks = -(-n // columns)
    size = (max(2.8, 0.2 + tile * columns), 0.3 + (gap + tile * shape[0] / shape[1]) * rows * blocks)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(blocks * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure, [[grid[rows * (i // columns) + row, i % columns] for i in range(n)] for row in range(rows)]


def _tile(axes: Axes, image: Array, scale: Array, signed: bool) -> None:
    low, high = _ends(scale, signed)
    axes.imshow(image, cmap="RdBu_r" if signed else "gray_r", vmin=low, vmax=high)


def _ends(scale: Array, signed: bool) -> tuple[float, float]:
    """The values at the two ends of the colours; images of one value are white."""
    low, high = (-np.abs(scale).max(), np.abs(scale).max()) if signed else (scale.min(), scale.max())
    return float(low), float(high)


def _key(scale: Array | None, signed: bool) -> str:
    """What the colours stand for."""
    if scale is None:
        return "each on its own scale, blue, white 0, red" if signed else "each on its own scale, white to black"
    low, high = _ends(scale, signed)
    ends = [f"{0.0 if abs(end) < (high - low) / 1_000 else end:.3g}".replace("-", "−") for end in (low, high)]
    return f"blue {ends[0]}, white 0, red {ends[1]}" if signed else f"white {ends[0]}, black {ends[1]}"
