from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(check: Callable[[], Awaitable[bool]], *, within: float = 15.0) -> None:
    """Waits until a check of something out of this process holds. Raises TimeoutError after `within` seconds."""
    async with asyncio.timeout(within):
        while not await check():
            await asyncio.sleep(0.05)
