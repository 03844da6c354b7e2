"""The figures of a report as SVG to stand within a page: equal bytes for equal data, text as text, no colour alone."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people with any kind of colour vision (Okabe and Ito), and of different lightness in grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
INK, QUIET, GRID = "#1b1f24", "#59636e", "#e3e7eb"
BINS, SMOOTH = 120, 1.5  # bins of a histogram, and the least deviation, in bins, of what smooths it
SIZE = (5.4, 3.3)  # inches
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "cgd", "font.size": 10, "axes.edgecolor": QUIET, "axes.labelcolor": INK,
    "xtick.color": QUIET, "ytick.color": QUIET, "text.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.linewidth": 0.8,
    "figure.facecolor": "white", "axes.facecolor": "white", "axes.titlesize": 11, "font.family": "DejaVu Sans",
}  # fmt: skip
_ATTRIBUTES_WITH_IDS = ("clip-path", "fill", "mask", "filter")


@dataclass(frozen=True)
class Line:
    """What a legend says of a line: its name, colour and pattern."""

    name: str
    colour: str
    dash: Any = "solid"
    width: float = 1.8


def teacher_lines(labels: Sequence[str]) -> list[Line]:
    """A line for each teacher, in their order."""
    count = len(COLOURS)  # the seventh and later ones are wider
    return [Line(label, COLOURS[n % count], width=1.8 + 1.4 * (n // count)) for n, label in enumerate(labels)]


def curve_lines(titles: Mapping[str, str]) -> dict[str, Line]:
    """A line for each curve of precision by recall, by kind."""
    looks = {
        "teacher": (COLOURS[2], DASHES[2], 1.8),
        "ensemble": (COLOURS[0], DASHES[1], 1.8),
        "before": ("#8c959f", DASHES[3], 1.8),
        "after": (COLOURS[1], "solid", 2.6),
    }
    return {kind: Line(title, *looks[kind]) for kind, title in titles.items()}


def legend(lines: Sequence[Line], pairs: bool = False) -> str:
    """Names beside their lines, as SVG and text that wrap on a narrow screen; `pairs` also tells solid from dashed."""
    items = [(line.name, line.colour, line.dash, line.width) for line in lines]
    if pairs:
        items += [("a different object", QUIET, "solid", 1.8), ("the same object", QUIET, DASHES[1], 1.4)]
    entries = []
    for name, colour, dash, width in items:
        pattern = "" if dash == "solid" else f' stroke-dasharray="{" ".join(f"{d * width:g}" for d in dash[1])}"'
        entries.append(
            f'<span class="key"><svg width="34" height="10" aria-hidden="true"><path d="M1 5H33" stroke="{colour}" '
            f'stroke-width="{width}"{pattern}/></svg>{html.escape(name)}</span>'
        )
    return f'<p class="legend">{"".join(entries)}</p>'


def similarity_chart(
    name: str, title: str, panels: Mapping[str, tuple[np.ndarray, np.ndarray]], span: tuple[float, float]
) -> str:
    """Densities of cosines by teacher: with images of a different object solid, of the same one dashed and filled."""
    edges = np.linspace(*span, BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2

    def draw(axes: Axes) -> None:
        for line, (others, same) in zip(teacher_lines(list(panels)), panels.values(), strict=True):
            axes.plot(middles, density(others, edges), color=line.colour, linewidth=line.width)
            if len(same):
                height = density(same, edges)
                axes.fill_between(middles, height, color=line.colour, alpha=0.12, linewidth=0)
                axes.plot(middles, height, color=line.colour, linewidth=1.2, linestyle=DASHES[1])
        axes.set(xlabel="cosine of a query and a gallery image", ylabel="density", xlim=span, yticks=[])
        axes.set_ylim(bottom=0)
        axes.set_title(title, loc="left")

    return _chart(name, title, draw)


def density(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """A smooth histogram (len(edges) - 1,) with an area of one; zeros where there is no value."""
    if not len(values):
        return np.zeros(len(edges) - 1)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    by_rule = 1.06 * float(np.std(values)) * len(values) ** -0.2 / (edges[1] - edges[0])  # Silverman's, in bins
    width = min(max(SMOOTH, by_rule), len(counts) / 10)  # the kernel stays shorter than the histogram
    reach = np.arange(-int(4 * width), int(4 * width) + 1)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), "same")
    found: np.ndarray = smooth / (smooth.sum() * (edges[1] - edges[0]))
    return found


def loss_chart(name: str, epochs: Sequence[int], losses: Sequence[float], validation: Sequence[float | None]) -> str:
    """The loss by epoch, and on a second axis the mAP of the classes held out, where there were any."""
    title = "Training: the loss by epoch"
    mark = "o" if len(epochs) <= 30 else None
    scored = [(e, v) for e, v in zip(epochs, validation, strict=True) if v is not None]

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.plot(epochs, losses, color=COLOURS[0], linewidth=2, marker=mark, markersize=4)
        axes.set(xlabel="epoch", ylabel="loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_title(title, loc="left")
        axes.set_ylim(bottom=min(0.0, *losses))
        if scored:
            other = axes.twinx()
            other.plot(*zip(*scored, strict=True), color=COLOURS[1], linewidth=1.6, linestyle=DASHES[1], marker=mark)
            other.set_ylabel("mAP of classes held out (dashed)", color=COLOURS[1])
            other.grid(visible=False)
            other.spines["right"].set_visible(True)

    return _chart(name, title, draw)


def precision_chart(name: str, recalls: np.ndarray, curves: Mapping[str, np.ndarray], lines: Mapping[str, Line]) -> str:
    """Precision (percent) by recall (percent), a line for each kind."""
    title = "Precision by recall"

    def draw(axes: Axes) -> None:
        for kind, curve in curves.items():
            line = lines[kind]
            axes.plot(
                100 * recalls,
                100 * curve,
                color=line.colour,
                linestyle=line.dash,
                linewidth=line.width,
                label=line.name,
            )
        axes.set(xlabel="recall: share of the right images found (%)", ylabel="precision (%)", xlim=(0, 100))
        axes.set_ylim(0, 100)
        axes.set_title(title, loc="left")

    return _chart(name, title, draw)


def _chart(name: str, title: str, draw: Any) -> str:
    """A figure with one pair of axes as SVG; every id in it begins with `name`, which is one page's only once."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        return _inline(_svg(figure), name, title)


def _svg(figure: Figure) -> bytes:
    data = io.BytesIO()
    unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(data, format="svg", metadata=unsaid)
    return data.getvalue()


def _inline(svg: bytes, name: str, title: str) -> str:
    """SVG as it may stand in a page several times: own ids, no rule for the rest of the page, its font."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        for key, text in list(element.attrib.items()):
            del element.attrib[key]
            element.set(_local(key), _renamed(_local(key), text, name))
    for side in ("width", "height"):
        del root.attrib[side]  # the page says how wide it is
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")
    described = ElementTree.Element("title", {"id": f"{name}-title"})
    described.text = title
    root.insert(0, described)
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _renamed(key: str, text: str, name: str) -> str:
    if key == "id":
        return f"{name}-{text}"
    if key == "href":
        return f"#{name}-{text.removeprefix('#')}"
    if key == "style":
        text = re.sub(r"'DejaVu Sans'", "system-ui, sans-serif", text)
    if key == "style" or key in _ATTRIBUTES_WITH_IDS:
        return text.replace("url(#", f"url(#{name}-")
    return text
