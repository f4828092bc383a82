"""What the sandbox's GitHub does wrong on request, and what it counts: calls, points, rate limits.

A fault is a rule that applies to what it matches, `times` times (None: until it is cleared):

    API calls   answer                 `status` instead of the right answer; with `applied` the call takes effect all the same
                secondary_limit        403, with `Retry-After` where `retry_after` is set, without it otherwise
                primary_limit          403, nothing remaining, until the next full hour
                hang                   `seconds` of silence, then the right answer
                removed_although_busy  DELETE of a runner answers 204 while its job goes on
                shift                  a runner moves to the front of the list between two pages
                busy_lag               `busy` turns true only `seconds` after the job began (each look uses the rule once)
    runners     reap                   a registration goes `seconds` after it was minted, unless it runs a job
                refuse_version         a runner program that asks for a job is told that its version is too old
    deliveries  drop                   never sent, never listed
                fail                   does not get through, and is listed as failed
                double                 sent twice
                late                   sent `seconds` later
                reorder                sent after the job's next delivery, or `seconds` later where none comes
"""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from sandbox.clock import now

API_KINDS = ("answer", "secondary_limit", "primary_limit", "hang", "removed_although_busy", "shift", "busy_lag")
DELIVERY_KINDS = ("drop", "fail", "double", "late", "reorder")
KINDS = frozenset({*API_KINDS, "reap", "refuse_version", *DELIVERY_KINDS})


@dataclass(slots=True)
class Fault:
    """`method` and `path` choose API calls; `path` is a regular expression, searched in the path with its query. For faults
    about one runner it is searched in its name, for deliveries in OWNER/NAME of the repository, beside `action`."""

    kind: str
    times: int | None = 1
    probability: float = 1.0
    method: str = ""
    path: str = ""
    action: str = ""
    status: int = 502
    message: str = "Server Error"
    applied: bool = False
    retry_after: int | None = None
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; there are {', '.join(sorted(KINDS))}")
        re.compile(self.path)

    def fits(self, method: str, path: str, action: str) -> bool:
        return self.method in ("", method) and self.action in ("", action) and re.search(self.path, path) is not None


class Faults:
    def __init__(self, random: Random) -> None:
        self.struck: Counter[str] = Counter()  # how often each kind happened
        self._random = random
        self._rules: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._rules.append(fault)

    def clear(self) -> None:
        self._rules.clear()

    def take(self, *kinds: str, method: str = "", path: str = "", action: str = "") -> Fault | None:
        """The first rule of these kinds that fits and that chance does not spare, used up by one."""
        for rule in self._rules:
            if rule.kind in kinds and rule.fits(method, path, action) and self._random.random() < rule.probability:
                self.struck[rule.kind] += 1
                if rule.times is not None:
                    rule.times -= 1
                    if rule.times <= 0:
                        self._rules.remove(rule)
                return rule
        return None

    def told(self) -> list[dict[str, Any]]:
        return [asdict(rule) for rule in self._rules]


class Calls:
    """API calls by endpoint, and the points that GitHub counts for its secondary limit: 1 for a GET, 5 for a write
    (https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api#calculating-points-for-the-secondary-rate-limit)."""

    def __init__(self, *, hourly: int, points_per_minute: int) -> None:
        self.hourly = hourly
        self.points_per_minute = points_per_minute
        self.used = 0
        self.highest = 0
        self._by_endpoint: Counter[str] = Counter()
        self._minute: deque[tuple[float, int]] = deque()
        self._resets_at = 0

    def note(self, method: str, endpoint: str) -> None:
        at, points = now().timestamp(), 1 if method in ("GET", "HEAD") else 5
        if at >= self._resets_at:
            self._resets_at, self.used = int(at) + 3600, 0
        self.used += 1
        self._by_endpoint[f"{method} {endpoint}"] += 1
        self._minute.append((at, points))
        self.highest = max(self.highest, self.points())

    def points(self) -> int:
        """Within the last minute."""
        since = now().timestamp() - 60
        while self._minute and self._minute[0][0] <= since:
            self._minute.popleft()
        return sum(points for _, points in self._minute)

    @property
    def too_fast(self) -> bool:
        return self.points() > self.points_per_minute

    @property
    def exhausted(self) -> bool:
        return self.used > self.hourly

    def headers(self, *, nothing_left: bool = False) -> dict[str, str]:
        remaining = 0 if nothing_left else max(0, self.hourly - self.used)
        return {
            "X-RateLimit-Limit": str(self.hourly),
            "X-RateLimit-Remaining": str(remaining),
            "X-RateLimit-Reset": str(self._resets_at),
            "X-RateLimit-Used": str(self.hourly - remaining),
            "X-RateLimit-Resource": "core",
        }

    def told(self) -> dict[str, Any]:
        return {
            "total": sum(self._by_endpoint.values()),
            "by_endpoint": dict(self._by_endpoint.most_common()),
            "points": {"last_minute": self.points(), "highest_minute": self.highest, "limit": self.points_per_minute},
        }
