"""The `optimd` command, against a service on a real socket."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from fake_service import FakeService
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

import optimd
from optimd import _tables as tables
from optimd.cli import app

GRADS = {"w": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    with service.serving() as url:
        yield url


def run(url: str, *arguments: str, answer: str | None = None) -> Any:
    return CliRunner().invoke(app, ["--url", url, *arguments], input=answer)


def step(url: str, count: int, worker: str | None = None) -> None:
    with optimd.Client(url) as client:
        session = client.session("s1")
        for i in range(count):
            session.push(GRADS, loss=1 / (i + 1), worker=worker)


def test_version_needs_no_server() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == optimd.__version__


def test_sessions_are_listed_with_where_they_stand(url: str) -> None:
    step(url, 3)
    result = run(url, "sessions")
    assert result.exit_code == 0
    for shown in ("s1", "digits", "sgd", "3", "64 B"):
        assert shown in result.stdout


def test_one_session_is_shown_with_its_groups_and_tensors(url: str) -> None:
    result = run(url, "show", "s1")
    assert result.exit_code == 0
    for shown in ("reject", "default", "0.5", "2 × 3", "F32"):
        assert shown in result.stdout


def test_names_are_neither_markup_nor_terminal_commands(service: FakeService, url: str) -> None:
    service.name = "[red]x[/red]\x1b[2J"
    result = run(url, "sessions")
    assert "[red]x[/red]�[2J" in result.stdout
    assert "\x1b" not in result.stdout


def test_history_shows_the_last_steps_and_a_picture_of_the_loss(url: str) -> None:
    step(url, 5)
    result = run(url, "history", "s1", "--last", "2")
    assert "Last 2 of 5 steps" in result.stdout
    assert "loss 0.25 █▁ 0.2" in result.stdout


def test_history_in_json_is_one_object_a_line(url: str) -> None:
    step(url, 3)
    lines = run(url, "history", "s1", "--json", "--last", "0").stdout.splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_history_in_csv_defuses_formulas(url: str) -> None:
    step(url, 1, worker="=HYPERLINK(1)")
    rows = list(csv.DictReader(io.StringIO(run(url, "history", "s1", "--csv").stdout)))
    assert [(row["step"], row["worker"]) for row in rows] == [("1", "'=HYPERLINK(1)")]


def test_history_goes_on_with_new_steps_until_interrupted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step(url, 1)
    pauses = iter([lambda: step(url, 2), pytest.fail])

    def pause(_: float) -> None:
        if (act := next(pauses)) is pytest.fail:
            raise KeyboardInterrupt
        act()

    monkeypatch.setattr("optimd.cli.time.sleep", pause)
    lines = run(url, "history", "s1", "--json", "--follow").stdout.splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_long_histories_are_read_under_a_progress_bar(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step(url, 5)
    monkeypatch.setattr("optimd.cli._PAGE_ROWS", 2)
    result = run(url, "history", "s1", "--json", "--last", "4")
    assert [json.loads(line)["step"] for line in result.stdout.splitlines()] == [2, 3, 4, 5]


def test_optimizers_are_listed_and_shown(url: str) -> None:
    assert "sgd" in run(url, "optimizers").stdout
    detail = run(url, "optimizers", "sgd").stdout
    assert "step size" in detail
    assert "0.001" in detail
    assert "Robbins" in detail


def test_deleting_asks_first(url: str, service: FakeService) -> None:
    assert run(url, "delete", "s1", answer="n\n").exit_code == 1
    assert not service.deleted
    assert run(url, "delete", "s1", answer="y\n").exit_code == 0
    assert service.deleted


def test_deleting_with_yes_does_not_ask(url: str, service: FakeService) -> None:
    assert run(url, "delete", "s1", "--yes").exit_code == 0
    assert service.deleted


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--url", "http://127.0.0.1:9", "sessions"], "--url or OPTIMD_URL"),
        (["--url", "nonsense", "sessions"], "http://host:port"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(arguments: list[str], advice: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert advice in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.output


def test_a_session_that_is_not_there_is_said_to_be_missing(url: str) -> None:
    result = run(url, "show", "s9")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "optimd sessions --status all" in result.stderr


AT = "2026-11-24T23:10:54.493397Z"
RECOMMENDED = {
    "optimizer": "sgd",
    "hyperparameters": {"lr": 0.01, "weight_decay": 0.0005},
    "schedule": {"name": "cosine", "total_steps": 11730},
    "clip": None,
    "groups": "no_decay",
    "state_dtype": "f32",
    "memory": {"state_bytes": 24_000_000, "total_bytes": 72_000_000},
    "reasons": [],
}
ID = "01a20fd3954c0c2bd458"
STEP: dict[str, Any] = {
    "session": ID,
    "step": 100_000,
    "base_step": 99_999,
    "outcome": "applied",
    "clip_scale": 1.0,
    "durable_step": 0,
    **dict.fromkeys(("lr", "loss", "grad_norm", "update_norm", "param_norm"), 1.234e-05),
    **dict.fromkeys(("num_examples", "worker", "hyperparameters")),
}


def shown(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("width", [80, 120])
def test_an_id_can_be_copied_from_a_terminal_of_any_width(client: optimd.Client, width: int) -> None:
    info: Any = client.session("s1").info | {"id": ID, "name": "a name of some length", "created_at": AT}
    info["optimizer"] = {"name": "schedule_free_adamw"}
    table = shown(tables.sessions_table([info], width), width)
    assert f" {ID} " in table
    assert ("created" in table) == (width == 120)


@pytest.mark.parametrize("width", [80, 120])
def test_a_step_is_one_line_whatever_the_width(width: int) -> None:
    step = optimd.Step(**STEP, committed_at=datetime.fromisoformat(AT))
    lines = shown(tables.steps_table([step], "Last 1 of 1 steps", width), width).splitlines()
    assert [line.count("1.234e-05") for line in lines if line.startswith("│")] == [5]


def test_advice_does_not_break_words() -> None:
    advice: Any = {"warnings": [], "needed_bytes": None, "recommendations": [RECOMMENDED]}
    table = shown(next(tables.advice_tables(advice)), 80)
    for said in ("weight_decay 0.0005", "schedule: cosine, total_steps 11730", "groups: no_decay"):
        assert said in table
    assert "clip" not in table


def test_a_sparkline_has_one_bar_a_value_up_to_its_width() -> None:
    assert tables.sparkline([0.0, 7.0]) == "▁█"
    assert tables.sparkline([2.0, 2.0]) == "▁▁"
    assert len(tables.sparkline([float(i) for i in range(1000)])) == 60
    assert tables.sparkline([]) == ""
