"""Plots are well-formed, stay inside, and say in words what they show."""

import re
from xml.etree import ElementTree as ET

import pytest

from stochcl.downstream import svg

BAD = '<&">'


@pytest.mark.parametrize(
    "text",
    [
        svg.lines([(BAD, [0, 5, 10], [0, 1, 2]), ("b", [0, 10], [0, 4])], label=BAD, x_label=BAD, y_label=BAD),
        svg.scatter([(0.1, 0.2), (1, 1)], [(1, 1, BAD), (1, 1, "b")], label=BAD, x_label=BAD, y_label=BAD),
        svg.scatter([(0, 0)], [], label=BAD, x_label=BAD, y_label=BAD),
        svg.histogram([0, 1, 2], [3, 0], label=BAD, x_label=BAD, y_label=BAD),
        svg.histogram([5, 5], [0], label=BAD, x_label=BAD, y_label=BAD),
        svg.squares([BAD, "b"], [[1, -0.5], [-0.5, 1]], label=BAD),
    ],
)
def test_plots_are_well_formed_and_inside(text):
    root = ET.fromstring(text)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == BAD
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for shape in root.iter():
        for along, size in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            if along in shape.attrib:
                assert 0 <= float(shape.attrib[along]) <= size
        if "d" in shape.attrib:
            assert all(float(n) <= max(width, height) for n in re.findall(r"[-\d.]+", shape.attrib["d"]))
    assert "nan" not in text


def test_a_mark_has_its_place_and_a_name_stands_on_no_other():
    frame = svg.Frame((0, 10), (0, 1))
    assert frame.at(0, 0) == (56, 208)
    assert frame.at(10, 1) == (366, 12)
    text = svg.scatter(
        [(1, 1)], [(0.5, 0.5, "aa"), (0.5, 0.5, "bb"), (0.5, 0.5, "cc")], label="", x_label="", y_label=""
    )
    assert ("aa" in text, "bb" in text, "cc" in text) == (True, True, False)  # left, right, and no room


def test_what_goes_apart_is_hollow():
    root = ET.fromstring(svg.squares(["a", "b", "c"], [[1, 0.9, -0.4], [0.9, 1, 0], [-0.4, 0, 1]], label=""))
    kinds = [shape.attrib["class"] for shape in root.iter() if shape.tag.endswith("rect")]
    assert sorted(kinds) == ["full", "full", "hollow", "hollow"]
