"""What a Functions host reads before it runs anything: host.json, and the functions with the bindings that they declare."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRIGGERS = frozenset({"httpTrigger", "queueTrigger", "timerTrigger"})
OUTPUTS = frozenset({"http", "queue", "table"})

HTTP_GROUP = "http"
"""The group in which all HTTP functions share one process, as on Flex Consumption."""


class IndexingError(Exception):
    """The app cannot be run as it stands; a real host would find no functions in it."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """`extensions.queues` of host.json, in seconds. The defaults are those of the real extension."""

    max_polling_interval: float = 60.0
    visibility_timeout: float = 0.0
    batch_size: int = 16
    new_batch_threshold: int = 8
    max_dequeue_count: int = 5
    base64: bool = True


@dataclass(frozen=True, slots=True)
class HostSettings:
    route_prefix: str = "api"
    function_timeout: float = 300.0
    queues: QueueSettings = field(default_factory=QueueSettings)


@dataclass(frozen=True, slots=True)
class Function:
    """One function as `azure-functions` declares it. Bindings are the dictionaries that Core Tools would see as function.json."""

    name: str
    call: Callable[..., Any]
    trigger: Mapping[str, Any]
    outputs: tuple[Mapping[str, Any], ...]

    @property
    def group(self) -> str:
        """The process that runs it: the HTTP functions share one, every other function has its own."""
        return HTTP_GROUP if self.trigger["type"] == "httpTrigger" else self.name


def read_host_json(root: Path) -> HostSettings:
    """The settings of an app's host.json. Raises IndexingError when it is missing or cannot be read."""
    try:
        document = json.loads((root / "host.json").read_text())
        extensions = document.get("extensions", {})
        queues = extensions.get("queues", {})
        known = QueueSettings()
        batch_size = int(queues.get("batchSize", known.batch_size))
        return HostSettings(
            route_prefix=extensions.get("http", {}).get("routePrefix", "api"),
            function_timeout=seconds(document.get("functionTimeout", "00:05:00")),
            queues=QueueSettings(
                max_polling_interval=seconds(queues.get("maxPollingInterval", "00:01:00")),
                visibility_timeout=seconds(queues.get("visibilityTimeout", "00:00:00")),
                batch_size=batch_size,
                new_batch_threshold=int(queues.get("newBatchThreshold", batch_size // 2)),
                max_dequeue_count=int(queues.get("maxDequeueCount", known.max_dequeue_count)),
                base64=queues.get("messageEncoding", "base64") == "base64",
            ),
        )
    except (OSError, ValueError, AttributeError) as error:
        raise IndexingError(f"{root / 'host.json'}: {error}") from error


def seconds(text: str) -> float:
    """A .NET TimeSpan such as "00:05:00" in seconds. Raises ValueError."""
    hours, minutes, rest = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def read_functions(root: Path) -> list[Function]:
    """The functions of the app's `function_app.py`. Runs that module. Raises IndexingError where a real host finds none."""
    source = root / "function_app.py"
    spec = importlib.util.spec_from_file_location("function_app", source)
    if spec is None or spec.loader is None or not source.exists():
        raise IndexingError(f"no {source}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        declared = module.app.get_functions()
    except Exception as error:
        raise IndexingError(f"{source}: {type(error).__name__}: {error}") from error
    return [_function(function) for function in declared]


def _function(declared: Any) -> Function:
    name = declared.get_function_name()
    bindings = json.loads(declared.get_function_json())["bindings"]
    triggers = [binding for binding in bindings if binding["type"] in TRIGGERS]
    outputs = [binding for binding in bindings if binding["direction"] == "OUT"]
    unknown = [binding["type"] for binding in bindings if binding not in triggers and binding["type"] not in OUTPUTS]
    if len(triggers) != 1 or unknown:
        raise IndexingError(
            f"function {name}: this host runs HTTP, queue and timer triggers with table and queue outputs, not {unknown}"
        )
    parameters = set(inspect.signature(declared.get_user_function()).parameters)
    bound = {binding["name"] for binding in bindings} - {"$return"}
    if parameters != bound:
        raise IndexingError(f"function {name}: its parameters are {sorted(parameters)}, its bindings {sorted(bound)}")
    return Function(name=name, call=declared.get_user_function(), trigger=triggers[0], outputs=tuple(outputs))
