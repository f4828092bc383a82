"""The demo's table: redrawn in place on a terminal, one line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sandbox.demo_records import Tally

STATES = (
    "requested",
    "creating",
    "booting",
    "ready",
    "binding",
    "registered",
    "busy",
    "finished",
    "retiring",
    "failed",
    "deleting",
)
"""Runner states in the order of a VM's life, as `/runner/status` names them."""

LINE_SECONDS = 3.0


@dataclass(slots=True)
class View:
    """What there is to show: the stage of the demo, the app's own `/runner/status`, and jobs by pool and GitHub's status."""

    stage: str
    status: dict[str, Any]
    jobs: dict[str, Counter[str]] = field(default_factory=dict)
    waits: dict[str, Sequence[float]] = field(default_factory=dict)


def make_console() -> Console:
    """A pipe or a file has no width of its own; the tables are wider than what rich then assumes."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 100)


class LiveTable:
    """`with LiveTable() as table: table.show(view)`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or make_console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        self._began = time.monotonic()
        self._last_line = 0.0

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line above the table."""
        self._console.print(text, markup=False)

    def show(self, view: View) -> None:
        seconds = time.monotonic() - self._began
        if self._live is not None:
            self._live.update(render(view, seconds), refresh=True)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(line(view, seconds), markup=False, soft_wrap=True)


def render(view: View, seconds: float) -> RenderableType:
    headings = ("VMs", "max", "warm", "waiting", "running", "done", "cancelled", "start", "longest")
    table = _table(headings)
    below = []
    for pool in view.status.get("pools", []):
        jobs = view.jobs.get(pool["name"], Counter())
        numbers = (pool["vms"], pool["maximum_pool_size"], pool["minimum_warm_vms"])
        counts = (jobs[name] for name in ("queued", "in_progress", "success", "cancelled"))
        table.add_row(pool["name"], *map(str, (*numbers, *counts)), *_spread(view.waits.get(pool["name"], ())))
        below.append(f"{pool['name']}: {states(pool['runners']) or 'no VMs'}")
    return Group(Text(f"{view.stage}, {seconds:.0f} s", style="bold"), table, *map(Text, [*below, health(view.status)]))


def line(view: View, seconds: float) -> str:
    parts = [f"{seconds:4.0f} s"]
    for pool in view.status.get("pools", []):
        jobs = view.jobs.get(pool["name"], Counter())
        counts = f"{jobs['queued']} waiting, {jobs['in_progress']} running, {jobs['success']} completed"
        parts.append(f"{pool['name']}: {pool['vms']} VMs ({states(pool['runners']) or 'none'}), jobs {counts}")
    return " | ".join([*parts, f"health: {view.status.get('health', 'no answer yet')}"])


def states(runners: dict[str, int]) -> str:
    return ", ".join(f"{runners[state]} {state}" for state in STATES if runners.get(state))


def health(status: dict[str, Any]) -> str:
    """The app's own word on itself, with whatever it complains of."""
    wrong = [f"{name}: {check['detail']}" for name, check in status.get("checks", {}).items() if not check["ok"]]
    return "; ".join([f"health: {status.get('health', 'no answer yet')}", *wrong])


def summary(tallies: Sequence[Tally]) -> RenderableType:
    headings = ("completed", "cancelled", "VMs made", "peak", "left", "start", "longest")
    table = _table(headings)
    for tally in tallies:
        numbers = (tally.completed, tally.cancelled, tally.vms_made, tally.peak, tally.left)
        table.add_row(tally.pool, *map(str, numbers), *_spread(tally.waits))
    return Group("By the records of the sandbox's Azure and GitHub (start: median from queued to running)", table)


def _table(headings: Sequence[str]) -> Table:
    """The pool, then numbers; narrow enough for 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("pool", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _spread(waits: Sequence[float]) -> tuple[str, str]:
    """Median and maximum of ascending seconds."""
    return (f"{waits[len(waits) // 2]:.1f} s", f"{waits[-1]:.1f} s") if waits else ("", "")
