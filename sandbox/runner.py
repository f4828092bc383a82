"""What stands in for `run.sh` on the sandbox's VMs: takes one job from the sandbox's GitHub, and behaves as the real runner does.

Like the real one it reads its JIT configuration from ACTIONS_RUNNER_INPUT_JITCONFIG and clears it, says `Listening for Jobs`,
keeps a `Runner.Worker` process and its log under `_diag/` while a job runs, calls the job hooks, and exits with 0 whether or
not a job ran. Standard library only, and of that the quick part: two hundred of these may start at once.
"""

from __future__ import annotations

import binascii
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds that an answer may take; the server holds a poll for at most 20
RETRIES = 60  # a second apart: GitHub may be down for a while
GONE = frozenset({401, 404, 409})  # the registration is no more, or belongs to another session
REFUSED = 403  # this version of the runner


class Deregistered(Exception):
    """GitHub knows this runner no more: there is nothing left to do."""


class TooOld(Exception):
    """GitHub gives a runner of this version no jobs."""


def call(url: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of one HTTP/1.0 exchange. Raises OSError where there was no whole answer."""
    host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((host, int(port or 80)), timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + content)
        with connection.makefile("rb") as stream:
            answer = stream.read()
    first, _, rest = answer.partition(b"\r\n\r\n")
    words = first.split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionError("the server ended the connection without an answer")
    return int(words[1]), json.loads(rest) if rest else None


def insist(url: str, method: str, path: str, body: object = None) -> Any:
    """The JSON of a 2xx answer (None for 204), however often it takes. Raises Deregistered, TooOld."""
    for _ in range(RETRIES):
        try:
            code, answer = call(url, method, path, body)
        except OSError as error:
            print(f"GitHub cannot be reached: {error}", flush=True)
        else:
            if code in GONE:
                raise Deregistered
            if code == REFUSED:
                raise TooOld(answer["message"])
            if code < 300:
                return answer
            print(f"GitHub answered {code}", flush=True)
        time.sleep(1)
    raise Deregistered


def run_hook(variable: str) -> bool:
    """Whether the hook that this variable names succeeded; a runner without one has nothing to fail."""
    script = os.environ.get(variable)
    return not script or subprocess.run(["sh", "-e", script], check=False).returncode == 0


def run_job(job: dict[str, Any]) -> str:
    """Runs the job and returns its conclusion. As with the real runner, a failing hook or worker fails the job."""
    diagnostics = Path("_diag")
    diagnostics.mkdir(exist_ok=True)
    # `sleep` under another name, so that the process list shows what it would show with the real runner.
    with subprocess.Popen(["Runner.Worker", str(float(job["seconds"]))], executable="/bin/sleep") as worker:
        # Its log comes after it, as with the real one, which writes it itself.
        (diagnostics / time.strftime("Worker_%Y%m%d-%H%M%S-utc.log", time.gmtime())).write_text(f"job {job['job_id']}\n")
        sound = run_hook("ACTIONS_RUNNER_HOOK_JOB_STARTED")
        sound &= worker.wait() == 0
    sound &= run_hook("ACTIONS_RUNNER_HOOK_JOB_COMPLETED")
    return str(job["conclusion"]) if sound else "failure"


def main() -> None:
    registration = json.loads(binascii.a2b_base64(os.environ.pop("ACTIONS_RUNNER_INPUT_JITCONFIG")))
    url = registration.pop("url")
    try:
        session = insist(url, "POST", "/_runner/session", registration)["session"]
        print("Listening for Jobs", flush=True)
        job = None
        while job is None:
            job = insist(url, "GET", f"/_runner/message?session={session}")
        print(f"Running job: {job['job_id']}", flush=True)
        conclusion = run_job(job)
        insist(url, "POST", f"/_runner/jobs/{job['job_id']}/finished?session={session}", {"conclusion": conclusion})
        print(f"Job {job['job_id']} completed with result: {conclusion}", flush=True)
    except Deregistered:
        print("The runner registration has been deleted from the server", flush=True)
    except TooOld as error:  # the registration stays behind, offline; see https://github.com/actions/runner/issues/3266
        print(f"An error occurred: {error}", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
