"""How long the state machines look. In `make test` the same examples every time, so that a change to the code is what makes
one fail; with HYPOTHESIS_EXAMPLES so many of them, and new ones each time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MANY = int(os.environ.get("HYPOTHESIS_EXAMPLES", "0"))
PATIENCE = 0 if MANY else 600
"""Seconds for pytest-timeout, 0 for no limit: hypothesis takes up to 5 minutes to make a failing example short."""


def examples(usual: int, *, steps: int) -> settings:
    return settings(
        max_examples=MANY or usual,
        stateful_step_count=steps,
        derandomize=not MANY,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
