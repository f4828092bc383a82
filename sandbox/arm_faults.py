"""What goes wrong in the sandbox's Azure: faults set over the admin endpoint, and ARM's token buckets.

A fault is a JSON object; `kind` says what happens, `operation` and `match` when, `times` how often (left out: until cleared),
`skip` how many that fit are let pass first, `probability` how often it then happens (1.0: each time; chance is seeded):

    put_409        a VM PUT is refused with 409 and `code` (default AllocationFailed)
    async_failure  a VM PUT is accepted and fails later with `code` (default AllocationFailed); the VM stays, failed
    dead_agent     a VM runs, but nothing boots in it
    slow_boot      a VM boots `seconds` later than the others
    setup_fails    a VM's agent runs, and its set-up ends with `message` in its log: it is never ready
    delete_fails   a VM DELETE is accepted and fails later; the VM runs on
    nic_left       a VM's deletion leaves its NIC behind, free
    list_omits     a new VM is missing from lists for `seconds`
    evict          a spot VM is taken away `seconds` after it was running, and `notice` seconds after it was told (0: never)
    error          any operation answers `status` (default 500) with `code`, `message`, and `retry_after` seconds in the header;
                   with `applied` true it is done all the same
    throttle       any operation answers 429 with `retry_after` (default 5) seconds
    hang           any operation answers `seconds` late; with `applied` false it is not done either, and answers 504

`operation` (default for the last three: any) is vm.put, vm.get, vm.list, vm.delete, nic.list, nic.get, nic.delete, subnet.get,
vnet.get, nsg.get or operation.get. `match` holds patterns (as in a shell) for name, size, zone, pool and spot ("true", "false").
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from random import Random
from typing import Any

KINDS: Mapping[str, Mapping[str, Any]] = {
    "put_409": {"operation": "vm.put", "status": 409, "code": "AllocationFailed"},
    "async_failure": {"operation": "vm.put", "code": "AllocationFailed"},
    "dead_agent": {"operation": "vm.put"},
    "slow_boot": {"operation": "vm.put"},
    "setup_fails": {"operation": "vm.put", "message": "the set-up failed in line 1: false"},
    "delete_fails": {"operation": "vm.delete", "code": "InternalExecutionError"},
    "nic_left": {"operation": "vm.delete"},
    "list_omits": {"operation": "vm.put", "seconds": 60.0},
    "evict": {"operation": "vm.put"},
    "error": {"status": 500, "code": "InternalServerError", "applied": False},
    "throttle": {"status": 429, "retry_after": 5},
    "hang": {"seconds": 60.0},
}
"""Each kind with what it leaves unsaid."""


@dataclass(slots=True)
class Fault:
    id: int
    kind: str
    operation: str = ""  # "": any
    match: dict[str, str] = field(default_factory=dict)
    times: int | None = None
    skip: int = 0
    probability: float = 1.0
    status: int = 500
    code: str = ""
    message: str = ""
    seconds: float = 0.0
    notice: float = 0.0
    retry_after: int | None = None
    applied: bool = True

    def fits(self, operation: str, facts: Mapping[str, str]) -> bool:
        wanted = self.match.items()
        return self.operation in ("", operation) and all(fnmatchcase(facts.get(key, ""), pattern) for key, pattern in wanted)


class Faults:
    """The faults that are set, oldest first."""

    def __init__(self, random: Random | None = None) -> None:
        self.struck: Counter[str] = Counter()  # how often each kind happened
        self._random = random or Random(0)
        self._faults: list[Fault] = []
        self._ids = itertools.count(1)

    def add(self, wish: Mapping[str, Any]) -> Fault:
        """Raises ValueError for a wish that cannot be read."""
        kind = wish.get("kind", "")
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; it is one of {', '.join(KINDS)}")
        unknown = set(wish) - {f.name for f in fields(Fault)}
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        fault = Fault(**{**KINDS[kind], **wish, "id": next(self._ids)})
        fault.match = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in fault.match.items()}
        self._faults.append(fault)
        return fault

    def take(self, kind: str, operation: str, facts: Mapping[str, str]) -> Fault | None:
        """The first fault of this kind that fits and that chance does not spare, counted as having happened once."""
        for fault in self._faults:
            if fault.kind != kind or not fault.fits(operation, facts):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                return None
            if self._random.random() < fault.probability:
                self._count(fault)
                return fault
        return None

    def _count(self, fault: Fault) -> None:
        self.struck[fault.kind] += 1
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                self._faults.remove(fault)

    def clear(self) -> None:
        self._faults.clear()

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self._faults]


class TokenBucket:
    """ARM's limit on one kind of request: `size` at once, then `refill` a second."""

    def __init__(self, *, size: float, refill: float) -> None:
        self._size = size
        self._refill = refill
        self._tokens = size
        self._at = time.monotonic()

    def take(self) -> int | None:
        """One token: how many whole ones are left, or None when there is none."""
        now = time.monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._refill)
        self._at = now
        if self._tokens < 1:
            return None
        self._tokens -= 1
        return int(self._tokens)

    def wait(self) -> int:
        """Whole seconds, at least 1, until there is a token again."""
        return max(1, math.ceil((1 - self._tokens) / self._refill))
