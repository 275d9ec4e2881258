"""Which networks score the pictures of a family, and whether their weights are on this machine: nothing is downloaded
by the self-test."""

from __future__ import annotations

from riebench.core.hub import missing_files
from riebench.metrics import METRICS, default_metrics, split_name
from riebench.metrics.models import ScoringModels
from riebench.metrics.networks.base import Network
from riebench.metrics.networks.table import NETWORKS


def networks(family: str) -> tuple[Network, ...]:
    """Returns all networks that may score the pictures of a family."""
    return NETWORKS.get(family, ())


def needed(family: str) -> set[str]:
    """Returns the keys of those that every run is scored by."""
    models = ScoringModels(family)
    metrics = (METRICS.get(split_name(name)[0])(models) for name in default_metrics(family))
    return {key for metric in metrics for key in getattr(metric, "uses", ())}


def is_absent(network: Network) -> bool:
    """Returns whether files of a network are missing, which would be downloaded if it were loaded."""
    if network.weights:
        return any(missing_files(weights) for weights in network.weights)
    files = network.describe().files
    return not files or not all(file.is_file() for file in files)


def absent_from_runs(family: str) -> list[str]:
    """Returns the labels of the networks that every run is scored by and that are not on this machine."""
    keys = needed(family)
    return [network.label for network in networks(family) if network.key in keys and is_absent(network)]
