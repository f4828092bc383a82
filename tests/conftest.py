from __future__ import annotations

import pytest

from tests.azurite_fixture import azurite as azurite

LONG = ["simulation", "mutations", "chaos", "plan_machine", "demo", "real_linux", "scale", "model_machine", "settling"]
"""The files that take minutes, the longest first: handed out last, they would keep one worker busy while the other has nothing left
to do. By itself pytest-xdist begins with the files of the most tests, which are not these."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))
