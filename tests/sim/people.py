"""The people whom alerts reach."""

from __future__ import annotations

from runnerpool.ports import Alert
from tests.sim.process import Process


class AlertsPort:
    """`ports.Alerts` for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def send(self, alert: Alert) -> None:
        await self._process.call("mail", lambda: self._process.world.checks.told(alert), write=True)
