"""The command line: `python -m runnerpool COMMAND`. Each command is a function from its arguments to an exit code.

0: done, or all is well; 1: not so, as the output says; 2: the command itself was wrong. The SDKs are imported by the commands that
need them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from runnerpool import check
from runnerpool.errors import PoolError
from runnerpool.pool_file import ConfigError, read_pool_file, spell
from runnerpool.settings import APP_FOLDER, Settings, SettingsError

Commands = argparse._SubParsersAction  # what add_subparsers() returns


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        exit_code: int = options.run(options)
    except (SettingsError, ConfigError, PoolError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runnerpool", description="A fresh Azure VM for every GitHub Actions job.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_check, _add_doctor, _add_webhook, _add_status, _add_explain, _add_drain, _add_marks):
        add(commands)
    return parser


def _command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    about: str,
    more: str = "",
    settings: bool = True,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=more or f"{about[0].upper()}{about[1:]}.")
    if settings:
        told = "settings beside the environment, as `Values` in JSON (default: local.settings.json of this folder, if there is one)"
        command.add_argument("--settings", type=Path, metavar="FILE", help=told)
    command.set_defaults(run=run)
    return command


# ---------------------------------------------------------------------------------------------- check


def _add_check(commands: Commands[argparse.ArgumentParser]) -> None:
    more = "Says all that is wrong with the pool file (exit code 1), or what will most likely disappoint (exit code 0)."
    command = _command(commands, "check", _check, about="check the pool file", more=more, settings=False)
    command.add_argument("file", nargs="?", type=Path, help="the pool file (default: POOL_CONFIG, else pool-config.yaml)")


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


# ---------------------------------------------------------------------------------------------- doctor, webhook


def _add_doctor(commands: Commands[argparse.ArgumentParser]) -> None:
    more = "Looks at everything that a deployment can get wrong, and changes nothing. Exit code 1 where something is to be mended."
    _command(commands, "doctor", _doctor, about="check a deployment, live", more=more)


def _doctor(options: argparse.Namespace) -> int:
    from runnerpool import console, doctor

    console.load_settings(os.environ, options.settings)
    return asyncio.run(doctor.run(os.environ))


def _add_webhook(commands: Commands[argparse.ArgumentParser]) -> None:
    webhook = commands.add_parser("webhook", help="make the webhook at GitHub", description="The webhook at GitHub.")
    verbs = webhook.add_subparsers(title="commands", metavar="COMMAND", required=True)
    more = (
        "Makes the webhook, or sets it right: address, secret (GITHUB_WEBHOOK_SECRET), event, content type. Repeating it is fine."
    )
    command = _command(verbs, "install", _webhook, about="create or update the webhook", more=more)
    command.add_argument("--url", required=True, help="the app's address, as in https://APP/github/webhook")


def _webhook(options: argparse.Namespace) -> int:
    from runnerpool import console, webhook
    from runnerpool.pool_file import load_config

    try:
        url = webhook.checked_url(options.url)
    except ValueError as error:
        print(f"--url: {error}", file=sys.stderr)
        return 2
    console.load_settings(os.environ, options.settings)
    settings = Settings.from_env(os.environ)
    return asyncio.run(webhook.install(settings, load_config(settings.pool_config), url))


# ---------------------------------------------------------------------------------------------- what the ledger says


def _add_status(commands: Commands[argparse.ArgumentParser]) -> None:
    more = "What /runner/status says, read from the ledger. Exit code 1 only where the ledger cannot be read."
    command = _command(commands, "status", _status, about="show health, pools and jobs", more=more)
    command.add_argument("--json", action="store_true", help="the whole document")


def _status(options: argparse.Namespace) -> int:
    from runnerpool import app, console, overview, status

    async def run() -> int:
        async with console.deployment(os.environ) as place:
            code, document = await status.report(app.now(), place.config, place.ledger)
        print(json.dumps(document, indent=2) if options.json else "\n".join(overview.lines(document)))
        return 0 if code == 200 else 1

    console.load_settings(os.environ, options.settings)
    return asyncio.run(run())


def _add_explain(commands: Commands[argparse.ArgumentParser]) -> None:
    more = "Why a job waits, or what happened to it and when."
    command = _command(commands, "explain", _explain, about="say why a job waits, or what happened to it", more=more)
    command.add_argument("job", help="its id, or its address at GitHub")
    command.add_argument("--days", type=int, default=14, help="how far back its end may lie (default 14)")


def _explain(options: argparse.Namespace) -> int:
    from runnerpool import app, console, story

    try:
        job_id = story.job_id_of(options.job)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2

    async def run() -> int:
        async with console.deployment(os.environ) as place:
            code, lines = await story.tell(place, job_id, app.now(), options.days)
        print("\n".join(lines))
        return code

    console.load_settings(os.environ, options.settings)
    return asyncio.run(run())


# ---------------------------------------------------------------------------------------------- drain, pause, resume


def _add_drain(commands: Commands[argparse.ArgumentParser]) -> None:
    more = "Idle VMs are retired, busy ones left to finish; returns when none is left. The app does the work and has to run."
    command = _command(commands, "drain", _drain, about="empty a pool, or all of them", more=more)
    _add_pools(command)
    command.add_argument(
        "--timeout",
        type=_duration,
        default=timedelta(hours=7),
        metavar="TIME",
        help="as in 30m or 7h (default 7h); then exit code 1",
    )


def _add_marks(commands: Commands[argparse.ArgumentParser]) -> None:
    _add_pools(_command(commands, "pause", _mark("pause"), about="make no new VMs in a pool; those that are there go on"))
    _add_pools(_command(commands, "resume", _mark("resume"), about="end a pause or a drain"))


def _add_pools(command: argparse.ArgumentParser) -> None:
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("pool", nargs="?", help="the pool's name")
    which.add_argument("--all", action="store_true", help="every pool")


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+)([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 90s, 30m or 7h")
    return int(match[1]) * {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}[match[2]]


def _drain(options: argparse.Namespace) -> int:
    from runnerpool import app, console, drain

    async def run() -> int:
        async with console.deployment(os.environ) as place:
            pools = await drain.chosen(place, options.pool)
            return await drain.Drain(deployment=place, pools=pools, clock=app.now).run(options.timeout)

    console.load_settings(os.environ, options.settings)
    try:
        return asyncio.run(run())
    except drain.UnknownPool as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nthe app goes on draining; python -m runnerpool resume ends that", file=sys.stderr)
        return 130


def _mark(verb: str) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        from runnerpool import console, drain

        async def mark() -> int:
            async with console.deployment(os.environ) as place:
                pools = await drain.chosen(place, options.pool)
                return await {"pause": drain.pause, "resume": drain.resume}[verb](place, pools, sys.stdout)

        console.load_settings(os.environ, options.settings)
        try:
            return asyncio.run(mark())
        except drain.UnknownPool as error:
            print(error, file=sys.stderr)
            return 2

    return run


if __name__ == "__main__":
    sys.exit(main())
