"""The examples do what they are shown to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = ("--epochs", "3", "--optimizers", "adam", "lion", "--rates", "0.01", "1e18", "--require", "0.9")


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, **environment}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_nothing_left(output: str, folder: Path) -> None:
    address = re.search(r"http://\S+", output)
    assert address, output
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address[0]}/readyz", trust_env=False)
    assert not list(folder.glob("optimd-*"))


def test_the_quickstart_finds_the_line(server_url: str) -> None:
    output = run(sys.executable, EXAMPLES / "quickstart.py", OPTIMD_URL=server_url)
    assert output.startswith("y = 3.000 x + 1.000\n")
    assert re.findall(r"^step +(\d+)", output, re.MULTILINE) == ["1", "10", "100", "200"]


@pytest.mark.usefixtures("over_tcp")
def test_the_curl_session_shows_each_promise_once(server_url: str) -> None:
    output = run(EXAMPLES / "curl.sh", server_url)
    assert re.findall(r'"duplicate":(\w+)\},"params"', output) == ["false"]
    assert re.findall(r'"step":2.*"duplicate":(\w+)\}\}', output) == ["false", "true"]
    assert '"status":412' in output
    assert '"etag":"2.0"' in output
    assert output.endswith("\n204\n\n")
    session = re.search(r"SESSION=(\S+)", output)
    assert session
    assert httpx.get(session[1], trust_env=False).status_code == 404


def test_the_demo_trains_compares_draws_and_leaves_nothing_running(tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    output = run(sys.executable, EXAMPLES / "digits.py", *QUICK, "--out", picture, TMPDIR=str(tmp_path), COLUMNS="120")
    assert re.search(r"Test accuracy: 9\d\.\d%", output)
    assert re.search(r"Adam\(fused=True\):\n[0-9.e-]+ after 1 epoch, [0-9.e-]+ after 3\n", output)
    assert re.findall(r"│ (Adam|Lion) +│ +0.01 │ +★ 0\.\d+ │", output) == ["Adam", "Lion"]
    assert re.findall(r"│ (Adam|Lion) +│ 1e\+18 │ ended at step 1 │", output) == ["Adam", "Lion"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert_nothing_left(output, tmp_path)


def test_the_demo_fails_when_the_accuracy_is_not_reached(tmp_path: Path) -> None:
    short = ("--epochs", "1", "--optimizers", "adam", "--rates", "0.01", "--require", "1.01")
    command = [sys.executable, EXAMPLES / "digits.py", *short, "--out", tmp_path / "digits.png"]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert "should be 101.0% or better" in done.stderr


def test_a_demo_that_is_told_to_stop_ends_its_server(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, EXAMPLES / "digits.py", "--out", tmp_path / "digits.png"]
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        first_line = demo.stdout.readline()
        demo.send_signal(signal.SIGTERM)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "Interrupted" in errors
    assert_nothing_left(first_line, tmp_path)
