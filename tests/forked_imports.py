"""What a run imports and reads of its metrics when it begins, done once for all processes of `forked`."""

from riebench.metrics import default_metrics, describe
from riebench.metrics.networks import lpips_distance, openclip  # noqa: F401

describe(default_metrics("tinyworld"), "tinyworld")
