"""The steps of the self-test, in their order."""

from __future__ import annotations

from riebench.selftest import (
    decoding,
    denoiser,
    dictionaries,
    elsewhere,
    exactness,
    guidance,
    loading,
    machine,
    plain_call,
    regions,
    whole_cases,
)
from riebench.selftest.step import Check

CHECKS: tuple[Check, ...] = tuple(
    module.CHECK
    for module in (
        machine,
        loading,
        dictionaries,
        plain_call,
        decoding,
        denoiser,
        exactness,
        whole_cases,
        regions,
        guidance,
        elsewhere,
    )
)
