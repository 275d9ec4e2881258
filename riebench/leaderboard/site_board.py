"""The leaderboard as data: for each backbone its entries, with their ranks by every metric in every category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from riebench.analysis.planted import count_planted, planted_of
from riebench.analysis.ranks import Rank, rank_entries
from riebench.analysis.statistics import MIN_EDITS, TOO_FEW_DIFFER, TOO_FEW_EDITS, Interval
from riebench.core.scores import NOOP
from riebench.leaderboard.entries import Entry
from riebench.leaderboard.site_plot import LinkedPoint, linked_trade_off
from riebench.leaderboard.site_words import ALL, category_words, in_order, rows_by_category
from riebench.report.figures import Point
from riebench.report.words import COST, GAIN, count_of, interval_of

RESAMPLES = 2_000  # for each of a few hundred tables of ranks; the entries' own intervals have more
DIGITS = 4  # of the numbers in the page; it shows three
WITHHELD = (TOO_FEW_EDITS, TOO_FEW_DIFFER)  # why an interval is, in the order of `board.js`


@dataclass(frozen=True)
class Column:
    """A column that the table has whatever the entries are ranked by."""

    key: str
    """A score, or "gain": the gain in the headline score over doing nothing."""
    label: str
    better: str
    signed: bool = False

    def of(self, row: dict) -> Interval | None:
        """Returns the value in a row of an entry's aggregates."""
        return _known(row["gains"].get(GAIN) if self.key == "gain" else row["scores"].get(self.key))


COLUMNS = (
    Column("gain", "Edit gain", "higher", signed=True),
    Column(COST, "LPIPS to original", "lower"),
    Column("edit_efficiency", "Edit efficiency", "higher", signed=True),
    Column("oracle_success", "Oracle success", "higher"),
)


def name_of_board(entry: Entry) -> str:
    """Returns the name that entries which are ranked together share: the backbone's, with a mode that is not strict."""
    return entry.backbone if entry.mode == "strict" else f"{entry.backbone}, {entry.mode} mode"


def board_of(entries: Sequence[Entry], pages: Mapping[str, str]) -> dict:
    """Returns the entries of one backbone and mode, JSON-able and without anything per case.

    pages: name of an entry -> address of its page. Keys: `name`; `metrics`, those that have a direction to rank by,
    each with name, label, direction and meaning, the headline first; `categories`, "all" first, each with its words;
    `entries`; `ranked`: category -> metric -> for each entry [mean, low, high, rank, best rank, worst rank] or None;
    `columns`: column -> category -> for each entry [mean, low, high] or None.

    Where an interval is withheld, low is None, and high its place in `WITHHELD`. Raises `UserError` where the entries
    cannot be ranked together.
    """
    metrics = {metric["name"]: metric for entry in entries for metric in entry.content["metrics"]}
    directed = [name for name, metric in metrics.items() if metric["better"] != "neither"]
    names = sorted(directed, key=lambda name: name != GAIN)
    categories = _categories(entries)
    return {
        "name": name_of_board(entries[0]),
        "metrics": [{key: metrics[name][key] for key in ("name", "label", "better", "meaning")} for name in names],
        "categories": [[category, category_words(category)] for category in categories],
        "entries": [_listed(entry, pages[entry.name]) for entry in entries],
        "ranked": {category: {name: _ranked(entries, name, category) for name in names} for category in categories},
        "columns": {
            column.key: {
                category: [_numbers(column, row) for row in _rows(entries, category)] for category in categories
            }
            for column in COLUMNS
        },
    }


def plots_of(entries: Sequence[Entry], pages: Mapping[str, str]) -> dict[str, Markup]:
    """Returns category -> the trade-off plot of a backbone's entries; none where no entry has both scores."""
    plots = {}
    for category in _categories(entries):
        points = []
        for number, (entry, row) in enumerate(zip(entries, _rows(entries, category), strict=True)):
            gain, cost = _gain(entry, row), _known(row["scores"].get(COST)) if row else None
            if gain and cost:
                point = Point(entry.name, x=cost, y=gain, style=number)
                points.append(LinkedPoint(point, entry.name, pages[entry.name]))
        if points:
            plots[category] = linked_trade_off(
                f"Edit gain against preservation cost on {name_of_board(entries[0])}, {category_words(category)}",
                "preservation cost: LPIPS to the original (left keeps more)",
                "edit gain: CLIP cosine (up edits more)",
                points,
            )
    return plots


def standing(entry: Entry, board: Mapping) -> str:
    """Returns where an entry ranks by the headline score over all categories, as a sentence."""
    place = [one["name"] for one in board["entries"]].index(entry.name)
    metric, ranked = board["metrics"][0], board["ranked"][ALL][board["metrics"][0]["name"]][place]
    if ranked is None:
        return f"Not ranked by {metric['label']} over all categories."
    _, _, _, rank, lowest, highest = ranked
    interval = TOO_FEW_EDITS if lowest is None else f"95 % interval {lowest} to {highest}"
    return (
        f"Rank {rank} ({interval}) of {count_of(len(board['entries']), 'entry', 'entries')} "
        f"on {board['name']} by {metric['label']} over all categories."
    )


def _ranked(entries: Sequence[Entry], metric: str, category: str) -> list[list[float | None] | None]:
    found = {one.entry.name: one for one in rank_entries(entries, metric, category, resamples=RESAMPLES)}
    return [
        [*_rounded(one.value), one.rank, *_ends_of(one)] if (one := found.get(entry.name)) else None
        for entry in entries
    ]


def _ends_of(rank: Rank[Entry]) -> tuple[int | None, int | None]:
    """Returns the ends of a rank's interval; none of too few edits."""
    return (None, None) if rank.edits < MIN_EDITS else (rank.rank_low, rank.rank_high)


def _listed(entry: Entry, page: str) -> dict:
    content = entry.content
    return {
        "name": entry.name,
        "title": content["title"],
        "method": content["method"]["name"],
        "page": page,
        "control": entry.is_control,
        "sees": content["sees_edited_image"],
        "planted": _as_planted(content),
        "features": content["cost"]["num_features"],
        "submitted": content["submitted"],
    }


def _as_planted(content: dict) -> list[int] | None:
    """Returns in how many categories the verdict by the headline score names the planted block, and of how many it is
    known; None where it is not, or blocks were not compared."""
    counted = content["dominance"] and count_planted(content["dominance"], GAIN, planted_of(content))
    return [counted.recovered, counted.categories] if counted else None


def _categories(entries: Sequence[Entry]) -> list[str]:
    found = {category for entry in entries for category in entry.content["aggregates"]["categories"]}
    return [ALL, *in_order(found)]


def _rows(entries: Sequence[Entry], category: str) -> list[dict | None]:
    return [rows_by_category(entry.content).get(category) for entry in entries]


def _gain(entry: Entry, row: dict | None) -> Interval | None:
    if row is None:
        return None
    return Interval(0.0, 0.0, 0.0) if entry.setting.method == NOOP else _known(row["gains"].get(GAIN))


def _known(cell: dict | None) -> Interval | None:
    return interval_of(cell) if cell and cell["mean"] is not None else None


def _numbers(column: Column, row: dict | None) -> list[float | None] | None:
    value = column.of(row) if row else None
    return _rounded(value) if value else None


def _rounded(value: Interval) -> list[float | None]:
    if value.withheld:
        return [round(value.mean, DIGITS), None, WITHHELD.index(value.withheld)]
    return [round(part, DIGITS) for part in (value.mean, value.low, value.high)]
