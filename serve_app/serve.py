"""`python -m serve_app.serve [FILE]`, what `make serve` runs: picks a scenario, starts it, prints the first request."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

from models.errors import AceError
from serve_app.check import check_file
from serve_app.listening import refuse_open
from serve_app.prepare import prepare
from serve_app.settings import PROJECT, AppSettings

ONE_GPU = PROJECT / "serve_config.yaml"
NO_GPU = PROJECT / "configs" / "cpu-tiny.yaml"
READY_WITHIN_S = 1800  # a first start may fetch weights and compile


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def has_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def settings_of(scenario: Path) -> tuple[AppSettings, str]:
    """The scenario's settings and the address it will answer at. Raises OpenToAll, and BadKeys."""
    content = yaml.safe_load(scenario.read_text())
    settings = AppSettings.model_validate(content["applications"][0]["args"])
    http = content.get("http_options", {})
    host = http.get("host", "127.0.0.1")
    refuse_open(host, settings.api)
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{http.get('port', 8000)}"
    return settings, address


def v1_address(settings: AppSettings) -> str | None:
    """Of the v1 API's own port."""
    host = "127.0.0.1" if settings.api.v1_host == "0.0.0.0" else settings.api.v1_host
    return None if settings.api.v1_port is None else f"http://{host}:{settings.api.v1_port}"


def answers(address: str) -> bool:
    parts = urllib.parse.urlsplit(address)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname or "127.0.0.1", parts.port or 80)) == 0


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def first_request(address: str) -> str:
    body = json.dumps(
        {"prompt": "upbeat pop song", "lyrics": "Hello world", "audio_duration": 10, "inference_steps": 8}
    )
    return (
        f"curl -X POST {address}/release_task -H 'Content-Type: application/json' \\\n  -d '{body}'\n\n"
        f"then, with the task_id it returns, until status is 1:\n\n"
        f"curl -X POST {address}/query_result -H 'Content-Type: application/json' \\\n"
        f'  -d \'{{"task_id_list": ["TASK_ID"]}}\'\n\n'
        f"and fetch what `file` names:\n\ncurl -o song.mp3 '{address}/v1/audio?path=...'"
    )


def announce(scenario: Path, settings: AppSettings) -> None:
    say(f"scenario    {scenario.relative_to(PROJECT) if scenario.is_relative_to(PROJECT) else scenario}")
    say(f"checkpoints {settings.checkpoints_folder}")
    lms = ", ".join(lm.model for lm in settings.lm) or "none"
    say(f"models      {', '.join(dit.model for dit in settings.dit)}; LM {lms}")
    if address := v1_address(settings):
        say(f"v1 API      {address} (besides the shared port)")
    say(f"data        {settings.data_folder} (jobs and audio; kept over a restart)")
    if settings.tiny:
        say("weights     RANDOM. Everything runs, and every sound is noise. Real weights: see README, 'Real weights'")


def run(scenario: Path) -> int:
    """Starts Serve in a process of its own and stays until it ends or is interrupted."""
    settings, address = settings_of(scenario)
    if answers(address):
        sys.stderr.write(
            f"something answers at {address} already; stop it, or change http_options.port in {scenario}\n"
        )
        return 2
    v1 = v1_address(settings)
    if v1 and answers(v1):
        sys.stderr.write(f"something answers at {v1} already; stop it, or change args.api.v1_port in {scenario}\n")
        return 2
    announce(scenario, settings)
    prepare(settings)
    say("starting    Ray Serve and the models; a minute or two")
    for stop in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a shell's background processes ignore the first unless told otherwise
        signal.signal(stop, signal.default_int_handler)
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", "local", str(scenario)]
    server = subprocess.Popen(
        command, cwd=PROJECT, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}, start_new_session=True
    )
    try:
        wait_until_ready(server, address)
        return server.wait()
    except KeyboardInterrupt:
        for stop in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave processes behind
            signal.signal(stop, signal.SIG_IGN)
        say("\nstopping    queued jobs stay queued, running ones start again next time")
        server.send_signal(signal.SIGINT)
        server.wait()
        return 0


def wait_until_ready(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while server.poll() is None and time.monotonic() < deadline:
        if is_ready(address):
            say(f"\nready       {address}   (API page {address}/docs)\n\n{first_request(address)}\n")
            return
        time.sleep(1)
    if server.poll() is None:
        say(f"not ready after {READY_WITHIN_S} s; the log above says why. Still waiting.")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serve_app.serve", description=__doc__)
    parser.add_argument(
        "scenario", nargs="?", type=Path, help="a Serve config file; chosen by whether a GPU answers if absent"
    )
    scenario = parser.parse_args().scenario or (ONE_GPU if has_gpu() else NO_GPU)
    try:
        check_file(scenario)
        return run(scenario.resolve())
    except AceError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
