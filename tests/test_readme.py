"""The README as a newcomer takes it: every command typed as written, every answer compared."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("over_tcp")

README = (Path(__file__).parents[1] / "README.md").read_text()
SERVER = "http://127.0.0.1:8000"


def block(after: str, language: str, number: int = 0) -> str:
    """A code block of this language behind a heading, counted from 0."""
    section = re.search(rf"^## {after}$(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert section, f"no heading {after!r}"
    return re.findall(rf"^```{language}\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)[number]


def settled(text: str) -> str:
    """Without what differs from run to run: ids, times, the server's address."""
    text = re.sub(r"[0-9a-f]{20}", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    return re.sub(r"http://127\.0\.0\.1:\d+", "SERVER", text).strip()


def typed(session: str) -> list[tuple[str, str]]:
    """Each command behind a prompt, and what is printed below it."""
    prompts = [found.start() for found in re.finditer(r"^\$ ", session, re.MULTILINE)] + [len(session)]
    pairs = [session[start + 2 : stop].partition("\n") for start, stop in pairwise(prompts)]
    return [(command, re.sub(r"^#.*", "", answer, flags=re.MULTILINE)) for command, _, answer in pairs]


def test_the_session_by_hand_answers_as_it_is_printed(server_url: str) -> None:
    assignments: list[str] = []
    printed_id = actual_id = "no id yet"
    answered = 0
    for command, printed in typed(block("By hand", "console")):
        here = command.replace(SERVER, server_url).replace(printed_id, actual_id)
        if re.match(r"\w+=", here):
            assignments.append(here)
            continue
        answer = run("\n".join([*assignments, here]))
        assert settled(answer) == settled(printed), command
        answered += 1
        if answered == 1:  # whoever types this copies the id from the first answer
            (printed_id,), (actual_id,) = (re.findall(r"[0-9a-f]{20}", text) for text in (printed, answer))
    assert answered > 5


def run(script: str) -> str:
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout


def printed_by(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_the_program_in_ten_lines_fits_the_line(server_url: str) -> None:
    printed = printed_by(block("In Python", "python").replace(SERVER, server_url))
    numbers = [float(text) for text in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", printed)]
    assert numbers[:2] == pytest.approx([3, 1], abs=0.05)


def test_the_program_with_torch_takes_a_step(server_url: str) -> None:
    printed = printed_by(block("In Python", "python", 1).replace(SERVER, server_url))
    assert "step=1" in printed
    assert "outcome='applied'" in printed
