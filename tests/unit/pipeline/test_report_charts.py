"""Figures of a report: smooth histograms, and SVG that may stand in a page beside others."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from cgd.pipeline import charts
from cgd.pipeline.charts import density, legend, loss_chart, precision_chart, similarity_chart, teacher_lines

RECALLS = np.linspace(0, 1, 101)


def drawn(name: str) -> list[str]:
    """One chart of each kind."""
    values = np.random.default_rng(0).normal(0.3, 0.1, 500)
    lines = charts.curve_lines({"before": "student before", "after": "student after"})
    return [
        similarity_chart(
            f"{name}-1", "Before whitening", {"a": (values, values + 0.2), "b": (values, values[:0])}, (-1, 1)
        ),
        loss_chart(f"{name}-2", [1, 2, 3], [3.0, 2.0, 1.5], [None, 20.0, 30.0]),
        precision_chart(f"{name}-3", RECALLS, {"before": 1 - RECALLS, "after": 1 - RECALLS**2}, lines),
    ]


def test_equal_data_give_equal_bytes_and_every_id_is_its_own() -> None:
    assert drawn("x") == drawn("x")
    ids = re.findall(r'\bid="([^"]*)"', "".join(drawn("x") + drawn("y")))
    assert len(ids) == len(set(ids)) > 50


@pytest.mark.parametrize("number", range(3))
def test_a_chart_is_titled_text_and_leaves_the_page_alone(number: int) -> None:
    chart = drawn("x")[number]
    root = ElementTree.fromstring(chart)
    known = {element.get("id") for element in root.iter()}
    title = root.find("title")
    assert title is not None
    assert title.text
    assert root.get("aria-labelledby") == title.get("id")
    assert {element.tag for element in root.iter()}.isdisjoint({"style", "metadata", "script", "image"})
    assert [element.text for element in root.iter("text")]
    referred = re.findall(r'(?:url\(|href=")#([^)"]*)', chart)
    assert set(referred) <= known
    assert "http" not in chart


@pytest.mark.parametrize("count", [1, 3, 100, 100_000])
def test_a_density_has_an_area_of_one_and_its_peak_where_values_are(count: int) -> None:
    edges = np.linspace(-1, 1, 121)
    height = density(np.random.default_rng(1).normal(0.25, 0.05, count), edges)
    assert height.shape == (120,)
    assert height.sum() * (edges[1] - edges[0]) == pytest.approx(1)
    assert abs((edges[1:] + edges[:-1])[height.argmax()] / 2 - 0.25) < 0.15


def test_a_density_of_nothing_or_of_few_wide_values_is_drawn() -> None:
    edges = np.linspace(-1, 1, 121)
    assert not density(np.zeros(0), edges).any()
    assert density(np.array([-1.0, 1.0, 5.0]), edges).shape == (120,)


def test_a_legend_tells_lines_by_more_than_colour_and_escapes_names() -> None:
    lines = charts.curve_lines(dict.fromkeys(("teacher", "ensemble", "before", "after"), "<b>"))
    assert len({str(line.dash) for line in lines.values()}) == 4
    assert "<b>" not in legend(list(lines.values()))
    pairs = legend(teacher_lines(["a", "b"]), pairs=True)
    assert pairs.count('class="key"') == 4
    assert len({line.colour for line in teacher_lines(list("abcdef"))}) == 6
