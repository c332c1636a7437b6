"""Maps of a run: super-tiles by state, and by how long they took.

Cells of one class become one path, runs of equal cells in a row one rectangle of it, so that a map
of 256 x 256 cells is a few hundred kB at worst.  Classes differ by pattern or outline and not only
by colour.  Up to :data:`LABELLED` cells say what they are when pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from geopatch_dask.planning.units import seconds_text
from geopatch_dask.report.markup import EMPTY, Markup, joined, tag
from geopatch_dask.report.survey import STATES, Mosaic

__all__ = ["PATTERNS", "legend", "seconds_map", "state_map"]

#: Pixels of the larger side of a map, and the least of the smaller one.
_SIDE, _THIN = 430, 36
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 8, 20, 44
#: More cells than this have no tooltips, and no lines between them.
LABELLED = 1600
#: Classes of seconds.
_SHADES = 7
#: Longest over shortest, beyond which classes of seconds grow by a factor and not by a step.
_WIDE = 20.0
#: What a state means, for the legend.
_WORDS = {
    "done": "done",
    "gaps": "done, with patches left out or cells uncovered",
    "empty": "empty: all fill value",
    "pending": "not done yet",
    "failed": "failed",
}


def _pattern(name: str, step: float, *marks: Markup) -> Markup:
    ground = tag("rect", width=step, height=step, class_=f"s-{name}")
    return tag(
        "pattern",
        ground,
        *marks,
        id=f"p-{name}",
        width=step,
        height=step,
        patternUnits="userSpaceOnUse",
    )


def _stroke(d: str, name: str, width: float) -> Markup:
    return tag("path", d=d, class_=f"mark-{name}", stroke_width=width, fill="none")


#: Definitions that all maps share: to be put into the page once.
PATTERNS = tag(
    "svg",
    tag(
        "defs",
        _pattern("failed", 8, _stroke("M0 0L8 8M8 0L0 8", "failed", 1.1)),
        _pattern("gaps", 8, _stroke("M-2 2L2 -2M0 8L8 0M6 10L10 6", "gaps", 1.4)),
        _pattern("pending", 7, _stroke("M2.5 3.5h2M3.5 2.5v2", "pending", 1)),
    ),
    width=0,
    height=0,
    class_="defs",
    aria_hidden="true",
)
_PATTERNED = ("failed", "gaps", "pending")


def state_map(mosaic: Mosaic) -> Markup:
    """Super-tiles by state, as an SVG element."""
    layers = {name: mosaic.states == code for code, name in enumerate(STATES)}

    def words(row: int, column: int) -> str:
        seconds = mosaic.seconds[row, column]
        took = "" if math.isnan(seconds) else f", {seconds_text(seconds)}"
        return f"{STATES[mosaic.states[row, column]]}{took}"

    return _picture(mosaic, layers, words, "Map of super-tiles by state")


def seconds_map(mosaic: Mosaic) -> tuple[Markup, Markup]:
    """Super-tiles by worker time, as an SVG element, and its legend."""
    edges = _edges(mosaic.seconds)
    known = np.isfinite(mosaic.seconds)
    filled = np.where(known, mosaic.seconds, 0.0)
    shade = np.clip(np.searchsorted(edges, filled, "right") - 1, 0, len(edges) - 2)
    layers = {f"t{k}": known & (shade == k) for k in range(len(edges) - 1)}
    layers["pending"] = ~known

    def words(row: int, column: int) -> str:
        seconds = mosaic.seconds[row, column]
        return "no time known" if math.isnan(seconds) else seconds_text(seconds)

    items = [
        (f"t{k}", f"{_brief(a)} to {_brief(b)}" if a < b else _brief(a))
        for k, (a, b) in enumerate(pairwise(edges))
    ]
    if not known.all():
        items.append(("pending", "none known"))
    shown = items if known.any() else items[-1:]
    return _picture(mosaic, layers, words, "Map of super-tiles by seconds"), _keys(shown)


def legend(counts: dict[str, int]) -> Markup:
    """What the colours of :func:`state_map` mean, with how many super-tiles are of each."""
    order = ("done", "gaps", "empty", "pending", "failed")
    return _keys([(name, f"{counts[name]:,} {_WORDS[name]}") for name in order if counts[name]])


def _keys(items: Sequence[tuple[str, str]]) -> Markup:
    keys = []
    for name, text in items:
        swatch = tag("rect", x=1, y=1, width=16, height=12, **_paint(name))
        picture = tag("svg", swatch, width=18, height=14, aria_hidden="true")
        keys.append(tag("span", picture, text, class_="key"))
    return tag("p", *keys, class_="keys")


def _paint(name: str) -> dict[str, object]:
    if name in _PATTERNED:
        return {"fill": f"url(#p-{name})", "class_": f"outline o-{name}"}
    return {"class_": f"s-{name} outline"}


# ---- drawing -------------------------------------------------------------------------------


def _picture(
    mosaic: Mosaic,
    layers: dict[str, npt.NDArray[np.bool_]],
    words: Callable[[int, int], str],
    title: str,
) -> Markup:
    """The layers in a frame with axes; y points down, as in the output."""
    rows, columns = mosaic.states.shape
    # The last super-tile of an axis may be cut: so is the picture.
    across, down = (mosaic.shape[1] / mosaic.cells[1], mosaic.shape[0] / mosaic.cells[0])
    width, height = _size(mosaic.shape)
    scale = (width / across, height / down)
    body = [_patterns(scale, title)]
    body += [_layer(name, mask, title) for name, mask in layers.items() if mask.any()]
    if rows * columns <= LABELLED:
        body.append(_lines(rows, columns))
        body += [
            tag("rect", tag("title", _label(mosaic, r, c, words)), x=c, y=r, width=1, height=1)
            for r in range(rows)
            for c in range(columns)
        ]
    inner = tag(
        "svg",
        *body,
        x=_LEFT,
        y=_TOP,
        width=width,
        height=height,
        viewBox=f"0 0 {across:.6g} {down:.6g}",
        preserveAspectRatio="none",
        class_="cells",
    )
    frame = tag("rect", x=_LEFT, y=_TOP, width=width, height=height, class_="frame")
    size = (_LEFT + width + _RIGHT, _TOP + height + _BOTTOM)
    return tag(
        "svg",
        tag("title", title),
        inner,
        frame,
        _axes(mosaic, width, height),
        viewBox=f"0 0 {size[0]} {size[1]}",
        style=f"max-width:{size[0]}px",
        role="img",
        class_="map",
    )


def _size(shape: tuple[int, int]) -> tuple[int, int]:
    longest = max(shape)
    sides = [max(round(_SIDE * n / longest), _THIN) for n in shape]
    return sides[1], sides[0]


def _slug(title: str, name: str) -> str:
    return f"{title.split()[-1]}-{name}"


def _patterns(scale: tuple[float, float], title: str) -> Markup:
    """The shared patterns, undoing the scale of the cells."""
    undone = f"scale({1 / scale[0]:.6g} {1 / scale[1]:.6g})"
    made = [
        tag("pattern", id=_slug(title, name), href=f"#p-{name}", patternTransform=undone)
        for name in _PATTERNED
    ]
    return tag("defs", *made)


def _layer(name: str, mask: npt.NDArray[np.bool_], title: str) -> Markup:
    """All cells of one class as one path; failures are outlined, so that one of them is seen."""
    if name in _PATTERNED:
        return tag("path", d=_runs(mask), fill=f"url(#{_slug(title, name)})", class_=f"o-{name}")
    return tag("path", d=_runs(mask), class_=f"s-{name}")


def _runs(mask: npt.NDArray[np.bool_]) -> str:
    """Runs of true cells in a row, as rectangles of a path."""
    padded = np.pad(mask.astype(np.int8), ((0, 0), (1, 1)))
    step = np.diff(padded, axis=1)
    rows, starts = np.nonzero(step == 1)
    stops = np.nonzero(step == -1)[1]
    return "".join(
        f"M{a} {row}h{b - a}v1h{a - b}z"
        for row, a, b in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)
    )


def _lines(rows: int, columns: int) -> Markup:
    across = "".join(f"M0 {r}h{columns}" for r in range(1, rows))
    down = "".join(f"M{c} 0v{rows}" for c in range(1, columns))
    return tag("path", d=across + down, class_="lines") if across or down else EMPTY


def _label(mosaic: Mosaic, row: int, column: int, words: Callable[[int, int], str]) -> str:
    parts = []
    for dim, at, size, n in zip(
        mosaic.dims, (row, column), mosaic.cells, mosaic.shape, strict=True
    ):
        if dim:
            parts.append(f"{dim} {at * size:,} to {min((at + 1) * size, n):,}")
    return f"{', '.join(parts)}: {words(row, column)}"


def _axes(mosaic: Mosaic, width: int, height: int) -> Markup:
    (down, across), (rows, columns) = mosaic.dims, mosaic.shape
    bottom = _TOP + height
    parts = [
        tag("text", "0", x=_LEFT, y=bottom + 16, class_="tick"),
        tag("text", f"{columns:,}", x=_LEFT + width, y=bottom + 16, class_="tick end"),
        tag("text", f"{across} (cells)", x=_LEFT + width / 2, y=bottom + 34, class_="axis"),
    ]
    if down:
        middle = _TOP + height / 2
        turned = f"rotate(-90 16 {middle:g})"
        parts += [
            tag("text", "0", x=_LEFT - 6, y=_TOP + 10, class_="tick end"),
            tag("text", f"{down} (cells)", x=16, y=middle, transform=turned, class_="axis"),
        ]
        if height > 2 * _THIN / 3 + 10:
            text = f"{rows:,}"
            parts.append(tag("text", text, x=_LEFT - 6, y=bottom, class_="tick end"))
    return joined(parts)


# ---- classes of seconds --------------------------------------------------------------------


def _edges(seconds: npt.NDArray[np.float64]) -> list[float]:
    """Borders of the classes of seconds: steps, or factors where some took very much longer."""
    known = seconds[np.isfinite(seconds)]
    if not known.size:
        return [0.0, 1.0]
    low, high = float(known.min()), float(known.max())
    if high - low <= 0.02 * high:
        return [low, high]
    if low > 0 and high / low > _WIDE:
        return [float(v) for v in np.geomspace(low, high, _SHADES + 1)]
    return [float(v) for v in np.linspace(low, high, _SHADES + 1)]


def _brief(seconds: float) -> str:
    """Three digits, for a legend."""
    if seconds >= 60:
        return seconds_text(seconds)
    return f"{seconds * 1000:.3g} ms" if seconds < 0.1 else f"{seconds:.3g} s"
