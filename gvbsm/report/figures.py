"""Draws figures as SVG that follows the reader's light or dark theme, as data URIs."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

INK, RULE = "#010203", "#040506"  # stand-ins, replaced by the theme's colours
SETS = {"real": "#8b949e", "full": "#8b949e", "random": "#bf8700", "distilled": "#2f81f7"}
PALETTE = ["#2f81f7", "#bf8700", "#2da44e", "#e5534b", "#a371f7", "#1b9aaa", "#db61a2", "#8b949e"]
PALETTE += ["#7a6ff0", "#a0783c"]
THEME = (
    "<style>svg{--ink:#24292f;--rule:#d0d7de}"
    "@media (prefers-color-scheme:dark){svg{--ink:#d1d7e0;--rule:#3d444d}}</style>"
)
MOST_ANNOTATED = 12


@dataclass(frozen=True)
class Figure:
    """A picture for the page: a data URI, what it shows in words, and its caption."""

    uri: str
    alt: str
    caption: str


def _axes(width: float = 4.4, height: float = 3.0) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.add_subplot()
    canvas.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    axes.tick_params(colors=INK, labelsize=9, color=RULE)
    axes.tick_params(which="minor", colors=INK, color=RULE, labelsize=8)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    return canvas, axes


def _label(axes: Axes, x: str = "", y: str = "") -> None:
    axes.set_xlabel(literal(x), color=INK, fontsize=9)
    axes.set_ylabel(literal(y), color=INK, fontsize=9)


def _legend(axes: Axes, **options: Any) -> None:
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, **options)


def literal(text: str) -> str:
    """Return `text` so that matplotlib draws it as it is ($ would begin a formula), without control codes."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")


def svg(canvas: Any) -> str:
    """Return a canvas as an SVG document whose text is text and whose colours follow the theme."""
    import matplotlib

    file = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "gvbsm", "font.family": ["sans-serif"]}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # the reader's browser draws the text, in whatever script, not the fonts of matplotlib
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = text.replace(INK, "var(--ink)").replace(RULE, "var(--rule)")
    text = re.sub(r"(-?\d+\.\d{2})\d+", r"\1", text)
    head = text.index(">") + 1
    return text[:head] + THEME + text[head:]


def figure(canvas: Any, alt: str, caption: str) -> Figure:
    """Return a drawn canvas as a figure of the page."""
    return Figure(data_uri(svg(canvas).encode(), "image/svg+xml"), alt, caption)


def data_uri(content: bytes, media_type: str) -> str:
    """Return content as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def bars(rows: Sequence[tuple[str, str, float, float]], alt: str, caption: str) -> Figure:
    """Horizontal bars, the first on top: (label, set, percent, deviation)."""
    canvas, axes = _axes(height=0.9 + 0.34 * len(rows))
    places = list(range(len(rows)))[::-1]
    colours = [SETS.get(which, PALETTE[4]) for _, which, _, _ in rows]
    values = [value for _, _, value, _ in rows]
    axes.barh(places, values, xerr=[d for *_, d in rows], color=colours, height=0.7, ecolor=INK, capsize=2)
    axes.set_yticks(places, [literal(label) for label, *_ in rows])
    for place, (_, _, value, deviation) in zip(places, rows, strict=True):
        axes.text(value + deviation + 1, place, f"{value:.1f}", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, min(118.0, max(values) + 15))
    axes.grid(visible=False)
    _label(axes, "Top-1 on real test images, %")
    return figure(canvas, alt, caption)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    labels: tuple[str, str],
    alt: str,
    caption: str,
    colours: Mapping[str, str],
    logarithmic: bool = False,
) -> Figure:
    """Lines by name: (x, y), each of its colour in `colours`."""
    from matplotlib.ticker import MaxNLocator

    canvas, axes = _axes()
    for name, (x, y) in series.items():
        mark = "o" if len(x) < 30 else None
        axes.plot(x, y, label=literal(name), color=colours[name], linewidth=1.4, marker=mark, markersize=3)
    if logarithmic:
        axes.set_yscale("log")
    if all(float(value).is_integer() for x, _ in series.values() for value in x):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    _label(axes, *labels)
    if series:
        _legend(axes, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure(canvas, alt, caption)


def grouped_bars(
    names: Sequence[str], series: Mapping[str, Sequence[float]], y: str, alt: str, caption: str
) -> Figure:
    """Bars side by side: for each name one bar of each series (not-a-number: none)."""
    canvas, axes = _axes(width=max(4.4, 0.42 * len(names)))
    width = 0.8 / max(1, len(series))
    for number, (which, values) in enumerate(series.items()):
        places = [at + (number - (len(series) - 1) / 2) * width for at in range(len(names))]
        colour = SETS.get(which, PALETTE[number % len(PALETTE)])
        axes.bar(places, list(values), width, label=literal(which), color=colour)
    axes.set_xticks(range(len(names)), [literal(name) for name in names])
    _turn(axes, names)
    _label(axes, "", y)
    _legend(axes, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure(canvas, alt, caption)


def _turn(axes: Axes, names: Sequence[str]) -> None:
    if max((len(name) for name in names), default=0) > 3:
        axes.tick_params(axis="x", rotation=90 if len(names) > 12 else 45)


def scatter(
    points: dict[str, tuple[Tensor, Tensor]], classes: Sequence[str], alt: str, caption: str
) -> Figure:
    """Points [n, 2] with class numbers [n] by set; the set "distilled" is drawn large, with an edge."""
    canvas, axes = _axes(width=5.0, height=4.2)
    for which, (places, labels) in points.items():
        large = which == "distilled"
        colours = [PALETTE[int(label) % len(PALETTE)] for label in labels]
        options: dict[str, Any] = {"edgecolors": INK, "linewidths": 0.8} if large else {"alpha": 0.45}
        x, y = places[:, 0].tolist(), places[:, 1].tolist()
        axes.scatter(x, y, s=34 if large else 8, c=colours, marker="D" if large else "o", **options)
    for number, name in enumerate(classes):
        axes.scatter([], [], c=PALETTE[number % len(PALETTE)], s=20, label=literal(name[:24]))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    _legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.2)
    return figure(canvas, alt, caption)


def heat(matrix: Tensor, names: Sequence[str], alt: str, caption: str) -> Figure:
    """A matrix of shares 0 to 1, rows true and columns predicted; few classes get their numbers."""
    from matplotlib.colors import LinearSegmentedColormap

    canvas, axes = _axes(height=3.8)
    # from nothing to blue, so that it stands on either background
    colours = LinearSegmentedColormap.from_list("share", [(0.18, 0.5, 0.97, 0.04), (0.18, 0.5, 0.97, 1.0)])
    axes.imshow(matrix.tolist(), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    few = len(names) <= MOST_ANNOTATED
    if few:
        axes.set_xticks(range(len(names)), [literal(name[:16]) for name in names])
        axes.set_yticks(range(len(names)), [literal(name[:16]) for name in names])
        _turn(axes, names)
        for row, values in enumerate(matrix.tolist()):
            for column, value in enumerate(values):
                if value >= 0.005:
                    colour = "#ffffff" if value > 0.55 else INK
                    text = f"{100 * value:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    _label(axes, "predicted", "true")
    return figure(canvas, alt, caption)
