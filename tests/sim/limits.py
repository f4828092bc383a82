"""Invariant 9: what GitHub and ARM count, whether a call went well or not.

GitHub counts points, 1 for a reading and 5 for a write, and allows 900 a minute; ARM has a bucket for writes and one for
deletions, of 200 each, which 10 a second refill. A call that fails has been counted all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

POINTS_A_MINUTE = 900
READS, WRITES = 1, 5
BUCKET, REFILL = 200.0, 10.0


@dataclass(slots=True)
class Bucket:
    tokens: float = BUCKET
    at: float = 0.0

    def take(self, now: float) -> bool:
        """Whether there was one."""
        self.tokens = min(BUCKET, self.tokens + (now - self.at) * REFILL) - 1
        self.at = now
        return self.tokens >= 0


@dataclass(slots=True)
class Limits:
    """`broken` is told in a sentence when a ceiling is passed."""

    broken: Callable[[str], None]
    most_points: int = 0
    calls: int = 0  # writes that GitHub or ARM got, of whatever outcome
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _points: int = 0
    _buckets: dict[str, Bucket] = field(default_factory=lambda: {"writes": Bucket(), "deletions": Bucket()})

    def count(self, now: float, service: str, *, write: bool, what: str) -> None:
        """A call has reached its service."""
        if service == "github":
            self.calls += write
            self._spend(now, WRITES if write else READS)
        elif service == "azure" and write:
            self.calls += 1
            kind = "writes" if what == "put" else "deletions"
            if not self._buckets[kind].take(now):
                self.broken(f"ARM's bucket of {kind} is empty")

    def _spend(self, now: float, points: int) -> None:
        self._recent.append((now, points))
        self._points += points
        while self._recent[0][0] <= now - 60:
            self._points -= self._recent.popleft()[1]
        self.most_points = max(self.most_points, self._points)
        if self._points > POINTS_A_MINUTE:
            self.broken(f"{self._points} GitHub points in a minute")
