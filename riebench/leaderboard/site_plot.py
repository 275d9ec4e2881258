"""The trade-off plot of the site: the report's, with every point a link to its entry."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from riebench.report.figures import Point, trade_off


@dataclass(frozen=True)
class LinkedPoint:
    point: Point
    entry: str
    """Identifier of its entry, for the filter."""
    page: str
    """Relative address of its entry's page."""


def linked_trade_off(title: str, x_label: str, y_label: str, linked: Sequence[LinkedPoint]) -> Markup:
    """Returns `riebench.report.figures.trade_off`, where each point, with its bars and its label, leads to its page.

    Every part of an entry carries `data-entry`. Points are those of no strength or subset: none is small, all have a
    label.
    """
    svg = ET.fromstring(trade_off(title, x_label, y_label, [one.point for one in linked]))
    svg.set("class", "scrolled")  # there are many of these: one form for all screens
    svg.set("role", "group")  # a picture, role img, would hide its links
    drawn = list(svg)
    bars = [g for g in drawn if "bars" in _classes(g)]
    points = [g for g in drawn if g.find("path") is not None]
    labels = [number for number, text in enumerate(drawn) if "label" in _classes(text)]
    for one, bar, point, label in zip(linked, bars, points, labels, strict=True):
        bar.set("data-entry", one.entry)
        link = ET.SubElement(svg, "a", {"href": one.page, "data-entry": one.entry})
        leader = [drawn[label - 1]] if "leader" in _classes(drawn[label - 1]) else []
        link.extend([*leader, *point, drawn[label]])  # the point's title names the link
        for part in (*leader, point, drawn[label]):
            svg.remove(part)
    return Markup(ET.tostring(svg, encoding="unicode", short_empty_elements=False))


def _classes(element: ET.Element) -> list[str]:
    return element.get("class", "").split()
