"""The agent on a runner VM: tells what happens here, and starts the runner once it is handed a JIT configuration.

    GET  /runner/status   what the machine does now
    POST /runner/start    {"runner_id": 7, "jit_config": "..."}; repeating it for the same id changes nothing

This file is copied to the VM as it is: one file, standard library only, Python 3.10 or newer. A JIT configuration reaches the
runner through a pipe and its environment, never through a command line, a log or the state file. The runner outlives the
agent on purpose: SIGTERM ends the agent alone, and the next one finds the runner again by process id and start time.
"""

from __future__ import annotations

import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

# Under the root, which is "/" on a VM and any folder in a test.
CONFIG = "etc/runnerpool/agent.json"  # name, token, address ("": the VM's own), port, user, runner_directory, scheduled_events
BIRTH = "etc/runnerpool/jit.json"  # a JIT configuration given at birth, or nothing; erased once the runner has it
READY = "var/lib/runnerpool/ready"  # the bootstrap's last act; holds the runner's version
STATE = "var/lib/runnerpool/state.json"
HOOKS = "var/lib/runnerpool/hooks"
MARKS = "var/lib/runnerpool/marks"  # where the hooks, running as the job's user, leave their word
SETUP_LOG = "var/log/runnerpool/setup.log"
RUNNER_LOG = "var/log/runnerpool/runner.log"

HEAD_LIMIT, BODY_LIMIT = 8 * 1024, 64 * 1024  # a JIT configuration has about 5 KiB
CONNECTIONS = 32  # beyond them the oldest one goes, so that idle connections cannot shut the pool out
PATIENCE = 5.0  # seconds that one connection may take, from its first byte to its last
TICK = 0.5  # seconds between two looks at the runner

# A failing hook would fail the job: this one cannot. The mark has the name of its hook.
STARTED, COMPLETED = "job-started.sh", "job-completed.sh"
HOOK = """#!/bin/sh
printf '' > "${0%/*}/../marks/${0##*/}" || true
"""
# Nothing runs before the agent has written down which process it is: the shell waits for the configuration on its pipe, and
# ends when the agent dies before sending it; `exec` keeps process id and start time. There is no --disableupdate: run.sh
# knows no such option, and GitHub puts DisableUpdate into every just-in-time configuration.
RUN = "IFS= read -r ACTIONS_RUNNER_INPUT_JITCONFIG && export ACTIONS_RUNNER_INPUT_JITCONFIG && exec ./run.sh < /dev/null"
LAUNCH = ["sh", "-c", RUN]


class Refusal(Exception):
    """A request that is answered with an error: a status code, and what the client should know."""


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


def write(path: Path, text: str, mode: int) -> None:
    """Replaces a file in one step: a reader, or an agent started after a crash, sees the old text or the new one."""
    draft = path.with_name(f"{path.name}.new")
    draft.touch(mode)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def read(path: Path, limit: int = 1 << 20) -> str:
    """The last `limit` bytes of a file, nothing where there is none."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
        return file.read(limit).decode("utf-8", "replace")
    return ""


def proc(pid: int | str, name: str) -> bytes:
    """A file of /proc, nothing where the process has gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def process(pid: int | str) -> tuple[int, int] | None:
    """Session and start time (in clock ticks since boot: with it a process id is never ambiguous) of a process that lives."""
    fields = proc(pid, "stat").rpartition(b")")[2].split()
    return None if not fields or fields[0] in (b"Z", b"X") else (int(fields[3]), int(fields[19]))


def worker_runs(session: int | None) -> bool:
    """Whether a job worker runs now. Its session tells whose it is, also when its parents have gone."""
    members = (pid for pid in os.listdir("/proc") if pid.isdigit() and (process(pid) or (None,))[0] == session)
    return session is not None and any(b"Runner.Worker" in proc(pid, "cmdline") for pid in members)


def memory() -> dict[str, int]:
    """In bytes; `free` is what could be had without swapping."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return {key: int(lines[name].split()[0]) * 1024 for key, name in (("total", "MemTotal"), ("free", "MemAvailable"))}


class Agent:
    """What is known about this VM, and the rules for starting its runner. For one thread at a time: see Server.lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config: dict[str, Any] = json.loads(read(root / CONFIG))
        self.directory = root / self.config["runner_directory"].lstrip("/")
        self.eviction_at: str | None = None
        self.child: subprocess.Popen[bytes] | None = None
        for file in (root / HOOKS / "*", root / MARKS / "*", root / RUNNER_LOG):
            file.parent.mkdir(parents=True, exist_ok=True)
        for hook in (STARTED, COMPLETED):
            if not (root / HOOKS / hook).exists():
                write(root / HOOKS / hook, HOOK, 0o755)
        self.saved = read(root / STATE)
        self.state: dict[str, Any] = {"binding": None, "pid": None, "session": None, "start": None, "exit_code": None}
        self.state |= {"job_seen": False, "phase": None, "phases": {}} | json.loads(self.saved or "{}")
        self.birth = json.loads(read(root / BIRTH) or "null")
        if self.birth and self.state["pid"] is None and self.state["exit_code"] is None:
            self.state["binding"] = self.birth["runner_id"]  # its runner starts when the bootstrap is through
        else:
            self.birth = None
        self.observe()

    def marked(self, hook: str) -> float | None:
        """When this hook ran, None before."""
        mark = self.root / MARKS / hook
        return mark.stat().st_mtime if mark.exists() else None

    def runner_alive(self) -> bool:
        if self.child is None:  # never started, or started by an agent before this one
            return self.state["pid"] is not None and process(self.state["pid"]) == (self.state["session"], self.state["start"])
        self.state["exit_code"] = self.child.poll()
        return self.state["exit_code"] is None

    def phase(self) -> str:
        if self.birth or self.state["binding"] is None:
            return "setup" if self.birth or not (self.root / READY).exists() else "waiting"
        if not self.runner_alive():
            return "exited"
        if self.state["job_seen"]:
            return "busy"
        listening = self.state["phase"] == "listening" or "Listening for Jobs" in read(self.root / RUNNER_LOG)
        return "listening" if listening else "starting"

    def observe(self, *, worker: bool = False) -> None:
        """Brings the state up to date with processes and files. A worker too quick to be seen leaves its log behind."""
        if worker or self.marked(STARTED) or any((self.directory / "_diag").glob("Worker_*")):
            self.state["job_seen"] = True
        phase = self.phase()
        if phase != self.state["phase"]:
            since = self.marked(STARTED) if phase == "busy" else None
            self.state["phase"] = phase
            self.state["phases"][phase] = stamp(since or time.time())
        if completed := self.marked(COMPLETED):
            self.state["phases"]["completed"] = stamp(completed)
        try:
            self.save()
        except OSError as error:  # a job may have filled the disk: the next look tries again
            note(f"the state could not be saved: {error}")

    def save(self) -> None:
        if (text := json.dumps(self.state)) != self.saved:
            write(self.root / STATE, text, 0o600)
            self.saved = text

    def status(self) -> dict[str, Any]:
        worker = worker_runs(self.state["session"])
        self.observe(worker=worker)
        return {
            "name": self.config["name"],
            **{key: self.state[key] for key in ("phase", "phases", "job_seen", "binding", "exit_code")},
            "since": self.state["phases"][self.state["phase"]],
            "worker": worker,
            "runner_version": read(self.root / READY, 100).strip(),
            "eviction_at": self.eviction_at,
            "disk": shutil.disk_usage(self.root)._asdict(),
            "memory": memory(),
            "log": read(self.root / SETUP_LOG, 8 * 1024).splitlines()[-50:],
        }

    def tick(self) -> None:
        if self.birth and (self.root / READY).exists():
            birth, self.birth = self.birth, None
            self.launch(birth["runner_id"], birth["jit_config"])
        if self.birth is None:
            (self.root / BIRTH).unlink(missing_ok=True)
        if self.state["phase"] != "waiting":  # which only a request can change
            self.observe()

    def start(self, runner_id: int, jit_config: str) -> int:
        """The status code of the answer: 200 when the VM now holds this binding, 409 when it keeps another one."""
        if runner_id == self.state["binding"]:
            return 200
        now = self.status()
        if now["phase"] == "setup" and now["binding"] is None:
            raise Refusal(503, "the set-up of this machine has not finished")
        if now["phase"] not in ("waiting", "exited") or now["job_seen"]:
            return 409
        self.launch(runner_id, jit_config)
        return 200

    def launch(self, runner_id: int, jit_config: str) -> None:
        """Starts the runner. What goes wrong here shows as a runner that exited with code 127."""
        self.child = None
        self.state |= {"binding": runner_id, "pid": None, "session": None, "start": None, "exit_code": 127}
        try:
            with (self.root / RUNNER_LOG).open("wb") as log:
                who = self.identity() | {"cwd": self.directory}
                self.child = subprocess.Popen(LAUNCH, stdin=subprocess.PIPE, stdout=log, stderr=log, **who)
            session, start = process(self.child.pid) or (None, None)
            self.state |= {"pid": self.child.pid, "session": session, "start": start, "exit_code": None}
            self.save()
            note(f"the runner of binding {runner_id} is process {self.child.pid}")
        except (OSError, LookupError) as error:
            note(f"the runner of binding {runner_id} could not be started: {error}")
            jit_config = ""  # which ends the shell, if there is one
        if self.child is not None and self.child.stdin is not None:
            with suppress(BrokenPipeError), self.child.stdin as pipe:  # where the shell has gone, its exit code says so
                pipe.write(f"{jit_config}\n".encode() if jit_config else b"")
        self.observe()

    def identity(self) -> dict[str, Any]:
        """The runner's environment and user. Raises KeyError where that user does not exist."""
        hooks = {"STARTED": str(self.root / HOOKS / STARTED), "COMPLETED": str(self.root / HOOKS / COMPLETED)}
        environment = os.environ | {f"ACTIONS_RUNNER_HOOK_JOB_{when}": hook for when, hook in hooks.items()}
        if not (user := self.config["user"]):  # the runner runs as the agent does
            return {"env": environment}
        import pwd  # which Windows has not

        entry = pwd.getpwnam(user)
        os.chown(self.root / MARKS, entry.pw_uid, entry.pw_gid)
        environment |= {"HOME": entry.pw_dir, "USER": user, "LOGNAME": user}
        groups = os.getgrouplist(user, entry.pw_gid)
        return {"env": environment, "user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


class Server:
    """A thread a connection, one request each. What a client costs is bounded: bytes, seconds, and how many there are."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.lock = threading.Lock()
        self.clients: list[socket.socket] = []  # in the order in which they came

    def serve(self, listener: socket.socket) -> None:
        listener.settimeout(TICK)
        while True:
            with self.lock:
                self.agent.tick()
            try:
                peer, _ = listener.accept()
            except (TimeoutError, ConnectionAbortedError):
                continue
            with self.lock, suppress(OSError):
                self.clients.append(peer)
                if len(self.clients) > CONNECTIONS:  # its thread closes it; from here on it only reads an end
                    self.clients.pop(0).shutdown(socket.SHUT_RDWR)
            threading.Thread(target=self.converse, args=(peer,), daemon=True).start()

    def converse(self, peer: socket.socket) -> None:
        deadline = time.monotonic() + PATIENCE

        def receive() -> bytes:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            peer.settimeout(left)
            return peer.recv(16 * 1024)

        request = b""
        with suppress(OSError), peer:  # a client that has gone, or took too long, gets nothing more
            answer = None
            while answer is None and (received := receive()):
                request += received
                answer = self.answer(request)
            peer.sendall(answer or b"")
            peer.shutdown(socket.SHUT_WR)
            while receive():  # closing while it still sends would reset the connection before it has read the answer
                pass
        with self.lock, suppress(ValueError):  # another one's arrival may have put it out already
            self.clients.remove(peer)

    def answer(self, request: bytes) -> bytes | None:
        """The whole answer, None while the request is not complete."""
        try:
            if (answer := self.handle(request)) is None:
                return None
        except Refusal as refusal:
            answer = refusal.args[0], {"error": refusal.args[1]}
        except Exception as error:
            # Its message might quote the request, and with it a JIT configuration: kind and place are all that is told.
            note(f"a request failed: {type(error).__name__}")
            traceback.print_tb(error.__traceback__)
            answer = 500, {"error": f"the agent failed: {type(error).__name__}"}
        code, body = answer[0], json.dumps(answer[1]).encode()
        head = f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return (head + "Connection: close\r\n\r\n").encode() + body

    def handle(self, request: bytes) -> tuple[int, dict[str, Any]] | None:
        head, complete, body = request.partition(b"\r\n\r\n")
        if len(head) > HEAD_LIMIT:
            raise Refusal(431, f"a request's head may have {HEAD_LIMIT} bytes")
        if not complete:
            return None
        method, path, headers = parse_head(head.decode("latin-1"))
        if not hmac.compare_digest(headers.get("authorization", "").encode(), f"Bearer {self.agent.config['token']}".encode()):
            raise Refusal(401, "this machine's bearer token is needed")
        allowed = {"/runner/status": "GET", "/runner/start": "POST"}.get(path)
        if allowed is None:
            raise Refusal(404, "there is /runner/status and /runner/start")
        if method != allowed:
            raise Refusal(405, f"{path} takes {allowed} only")
        if method == "POST" and len(body) < (length := body_length(headers)):
            return None
        with self.lock:
            return self.agent.start(*parse_start(body[:length])) if method == "POST" else 200, self.agent.status()


def parse_head(head: str) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refusal(400, "the request line is not one of HTTP/1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or name.lower() in headers:
            raise Refusal(400, "a header line is malformed or repeated")
        headers[name.lower()] = value.strip()
    return words[0], words[1].partition("?")[0], headers


def body_length(headers: dict[str, str]) -> int:
    text = headers.get("content-length", "")
    if "transfer-encoding" in headers or not text.isdecimal():
        raise Refusal(411, "the body needs a Content-Length")
    if len(text) > 9 or int(text) > BODY_LIMIT:
        raise Refusal(413, f"a body may have {BODY_LIMIT} bytes")
    return int(text)


def parse_start(body: bytes) -> tuple[int, str]:
    try:
        order = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not JSON") from None
    runner_id, jit_config = (order.get(key) if isinstance(order, dict) else None for key in ("runner_id", "jit_config"))
    if type(runner_id) is not int or not 0 < runner_id < 1 << 63:
        raise Refusal(400, "runner_id must be a positive integer")
    if not isinstance(jit_config, str) or not jit_config or not jit_config.isascii() or not jit_config.isprintable():
        raise Refusal(400, "jit_config must be one line of base64")
    return runner_id, jit_config


def watch_evictions(agent: Agent, url: str) -> None:
    """Asks Azure's metadata service whether this VM is about to be taken away; it says so about 30 s ahead."""
    from email.utils import parsedate_to_datetime
    from urllib.request import ProxyHandler, Request, build_opener

    metadata = build_opener(ProxyHandler({}))  # it lives on the host: no proxy leads there
    while True:
        try:
            # The first question switches the service on and may take two minutes.
            with metadata.open(Request(url, headers={"Metadata": "true"}), timeout=150) as reply:
                events = json.load(reply)["Events"]
            for when in (event["NotBefore"] for event in events if event["EventType"] == "Preempt"):  # "" once it has begun
                agent.eviction_at = stamp(parsedate_to_datetime(when).timestamp() if when else time.time())
        except (OSError, ValueError, LookupError, TypeError) as error:
            note(f"scheduled events: {error}")
        time.sleep(5)


def own_address() -> str:
    """The address from which this VM reaches Azure's platform, which is its private one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("168.63.129.16", 53))
        return str(probe.getsockname()[0])


def main(arguments: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    agent = Agent(Path(arguments[1] if arguments[:1] == ["--root"] else "/"))
    with socket.create_server((agent.config["address"] or own_address(), agent.config["port"]), backlog=64) as listener:
        note("listening on {}:{}".format(*listener.getsockname()))
        if agent.config["scheduled_events"]:
            threading.Thread(target=watch_evictions, args=(agent, agent.config["scheduled_events"]), daemon=True).start()
        Server(agent).serve(listener)


if __name__ == "__main__":
    main(sys.argv[1:])
