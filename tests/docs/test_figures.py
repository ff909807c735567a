"""Figures and charts are readable in any common sans-serif font, on light and dark pages."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
EM = 0.62
"""The mean width of a character of DejaVu Sans, the widest common sans-serif font, in ems."""

FIGURES = sorted([*(ROOT / "docs/figures").glob("*.svg"), *(ROOT / "bench/charts").glob("*.svg")])


def extent(text: ElementTree.Element) -> tuple[float, float]:
    """Estimate the left and the right end of a line of text."""
    size = float(text.get("font-size") or (12 if text.get("class") else 14))
    width = len("".join(text.itertext())) * size * EM
    left = float(text.attrib["x"])
    shift = {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor", "start")]
    return left - shift, left - shift + width


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)
def test_every_line_of_text_fits_into_its_figure(path: Path) -> None:
    """E14."""
    root = ElementTree.fromstring(path.read_text("utf-8"))
    width = float(root.attrib["viewBox"].split()[2])
    lines = [one for one in root.iter(f"{SVG}text") if "transform" not in one.attrib]
    assert lines
    for line in lines:
        left, right = extent(line)
        assert left >= 0, line.text
        assert right <= width, line.text


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)
def test_no_text_of_a_box_runs_over_its_sides(path: Path) -> None:
    """E14."""
    root = ElementTree.fromstring(path.read_text("utf-8"))
    boxes = [
        tuple(float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        for box in root.iter(f"{SVG}rect")
        if box.get("class") in {"part", "store"}
    ]
    for line in root.iter(f"{SVG}text"):
        across, down = float(line.attrib["x"]), float(line.attrib["y"])
        for x, y, width, height in boxes:
            if x < across < x + width and y < down < y + height:
                left, right = extent(line)
                assert x <= left, line.text
                assert right <= x + width, line.text


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)
def test_every_figure_has_colours_for_dark_pages(path: Path) -> None:
    """E14."""
    assert "prefers-color-scheme:dark" in path.read_text("utf-8")
