from __future__ import annotations

import pytest

from tests.azurite_fixture import azurite as azurite

LONG = ["simulation", "once_failed", "mutations", "chaos", "end_to_end", "real_linux", "crash", "eviction_live", "doctor"]
"""The files that take long, the longest first: handed out last, they would keep one worker busy while the other has nothing left
to do. By itself pytest-xdist begins with the files of the most tests, which are not these."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))
