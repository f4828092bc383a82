from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(check: Callable[[], Awaitable[bool]], *, within: float = 30.0, pause: float = 0.05) -> None:
    """Waits until a check of something out of this process holds. Raises TimeoutError after `within` seconds. `pause`: between two
    looks, for one that costs something."""
    async with asyncio.timeout(within):
        while not await check():
            await asyncio.sleep(pause)
