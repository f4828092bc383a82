"""The bearer token of one VM's agent: derived, so that nothing has to be stored, and so that one VM's token opens no other."""

from __future__ import annotations

import hashlib
import hmac


def agent_token(key: str, name: str) -> str:
    """Hex HMAC-SHA256 of the VM's name under `RUNNER_AGENT_KEY`. An empty key raises ValueError: anybody could derive from it."""
    if not key:
        raise ValueError("the agent key is empty")
    return hmac.new(key.encode(), name.encode(), hashlib.sha256).hexdigest()
