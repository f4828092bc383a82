"""What a port raises, named by what its caller does next. SDK exceptions are translated into these once, at the port.

    PoolError
     ├── RetryLater     come back after `after`; `uncertain` when the call may have taken effect all the same
     ├── NoCapacity     Azure has no room for this offer: rest it, try the next rung
     ├── Gone           the thing is not there (404)
     ├── Conflict       somebody else was first (409 on a name, 412 on an ETag): read again, decide again
     ├── Busy           GitHub says that the runner runs a job (422): leave it alone
     └── Misconfigured  will fail the same way until a person changes something

No message may hold a secret: these texts end in rows, logs and mails.
"""

from __future__ import annotations

from datetime import timedelta


class PoolError(Exception):
    """The root of everything that a port raises on purpose."""


class RetryLater(PoolError):
    """The service is throttling, failing or unreachable. `after` is its own wish, None where it named none.

    `uncertain`: the request may have been applied (a timeout, a 5xx on a write); a caller that counts must assume it was.
    """

    def __init__(self, message: str, *, after: timedelta | None = None, uncertain: bool = False) -> None:
        super().__init__(message)
        self.after = after
        self.uncertain = uncertain


class NoCapacity(PoolError):
    """Azure refused this offer. `code` is ARM's `error.code`, `detail` its text; `capacity.py` says what rests, and how long."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class Gone(PoolError):
    """404. Not proof of absence on GitHub, where a lost permission answers 404 too."""


class Conflict(PoolError):
    """409 on a name or 412 on a version."""


class Busy(PoolError):
    """GitHub refuses to remove a runner that runs a job (422)."""


class Misconfigured(PoolError):
    """Refused for a reason that stays until somebody changes a setting, a permission or the pool file.

    `area` says which part is at fault: `auth` (credentials or permissions), `provisioning` (image, size, policy),
    `setup` (runner group, runner version) or `network` (subnet, addresses). `everywhere`: the credential itself is no good,
    so nothing else that is asked for with it will be granted either.
    """

    def __init__(self, message: str, *, area: str, everywhere: bool = False) -> None:
        super().__init__(message)
        self.area = area
        self.everywhere = everywhere
