"""The time that the sandbox's servers put on the wire.

`SANDBOX_CLOCK="<unix seconds of origin>:<rate>"` makes the clock run `rate` times as fast as the real one from that moment
on, in every process that is given the same variable; without it the time is the real one. What the sandbox sleeps is always
real seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime


def now() -> datetime:
    """The sandbox's present moment, aware, in UTC. Raises ValueError when SANDBOX_CLOCK cannot be read."""
    return datetime.fromtimestamp(scaled(time.time(), os.environ), tz=UTC)


def scaled(seconds: float, env: Mapping[str, str]) -> float:
    """The sandbox's unix seconds at the real unix time `seconds`."""
    setting = env.get("SANDBOX_CLOCK", "")
    if not setting:
        return seconds
    origin_text, separator, rate_text = setting.partition(":")
    try:
        origin, rate = float(origin_text), float(rate_text)
    except ValueError:
        separator = ""
    if not separator:
        raise ValueError(f"SANDBOX_CLOCK is {setting!r}; it reads <unix seconds of origin>:<rate>, as in 1750000000:60")
    return origin + (seconds - origin) * rate


def rate(env: Mapping[str, str]) -> float:
    """How many times as fast as the real clock it runs."""
    return scaled(1.0, env) - scaled(0.0, env)
