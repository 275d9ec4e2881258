"""The leaderboard: entries, how they are made of a run and checked, and the site that shows them. Imports no torch."""

from riebench.leaderboard.entries import Entry, entry_folders, read_entries, read_entry
from riebench.leaderboard.site import render_site
from riebench.leaderboard.submit import submit
from riebench.leaderboard.validate import validate

__all__ = ["Entry", "entry_folders", "read_entries", "read_entry", "render_site", "submit", "validate"]
