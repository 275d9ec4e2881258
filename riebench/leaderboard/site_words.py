"""Words and addresses of the site's pages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import quote, urlsplit

from riebench.edits.edit import CATEGORY_NAMES
from riebench.report.words import OVERALL, words

ALL = "all"  # the name of all categories together


def category_words(category: str) -> str:
    """Returns how pages call a category."""
    return OVERALL if category == ALL else words(category)


def rows_by_category(content: Mapping) -> dict[str, dict]:
    """Returns category -> row of an entry's aggregates, all together first."""
    of_categories = content["aggregates"]["categories"]
    return {ALL: content["aggregates"]["overall"], **{name: of_categories[name] for name in in_order(of_categories)}}


def in_order(categories: Collection[str]) -> list[str]:
    """Returns the protocol's nine in its order, then one's own."""
    return [
        *(name for name in CATEGORY_NAMES if name in categories),
        *sorted(name for name in categories if name not in CATEGORY_NAMES),
    ]


def address(*parts: str) -> str:
    """Returns the relative address of a file in folders of those names."""
    return "/".join(quote(part, safe="@+") for part in parts)


def web_address(text: str) -> str | None:
    """Returns the text where it is an http or https address that may be linked, else None."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    return text if parts.scheme in ("http", "https") and parts.hostname else None
