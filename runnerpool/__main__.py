"""The command line: `python -m runnerpool COMMAND`. Each command is a function from its arguments to an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runnerpool import check
from runnerpool.pool_file import ConfigError, read_pool_file, spell
from runnerpool.settings import APP_FOLDER


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    exit_code: int = options.run(options)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runnerpool", description="A fresh Azure VM for every GitHub Actions job.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_check(commands)
    return parser


# ---------------------------------------------------------------------------------------------- check


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "check",
        help="check the pool file",
        description="Says all that is wrong with the pool file (exit code 1), or what will most likely disappoint (exit code 0).",
    )
    command.add_argument("file", nargs="?", type=Path, help="the pool file (default: POOL_CONFIG, else pool-config.yaml)")
    command.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    path = options.file or _default_pool_file()
    try:
        pool_file = read_pool_file(path)
    except ConfigError as error:
        print(error)
        return 1
    for finding in check.findings(pool_file.config):
        print(f"{path}:{pool_file.line(finding.loc)}: warning: {spell(finding.loc)}: {finding.message}")
    pools = pool_file.config.pools
    names = ", ".join(f"{pool.name} (up to {pool.maximum_pool_size} VMs)" for pool in pools)
    print(f"{path}: {len(pools)} {'pool' if len(pools) == 1 else 'pools'}: {names}")
    return 0


def _default_pool_file() -> Path:
    """The file that the app would read, spelled as seen from here where it lies below."""
    path = APP_FOLDER / (os.environ.get("POOL_CONFIG", "").strip() or "pool-config.yaml")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
