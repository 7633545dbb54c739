"""Asking for advice: what is sent, what comes back, and how the command shows it."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from fake_service import ADVICE, FakeService, problem
from typer.testing import CliRunner

import optimd
from optimd import errors, models
from optimd.cli import app


def run(url: str, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["--url", url, "advice", *arguments])


def test_only_what_is_said_of_the_task_is_sent(client: optimd.Client, service: FakeService) -> None:
    found = client.advice("cnn", 1024, batch_size=32, data={"sparse": True}, symptoms=["diverges"])
    assert found == ADVICE
    sent = {"model": "cnn", "parameters": 1024, "batch_size": 32, "data": {"sparse": True}, "symptoms": ["diverges"]}
    assert json.loads(service.seen[-1].body) == sent


def test_a_question_without_an_answer_is_asked_again(client: optimd.Client, service: FakeService) -> None:
    service.planned = [problem("gateway", 502, retry_after="0")]
    assert client.advice("cnn", 1)["recommendations"][0]["optimizer"] == "sgd"


def test_a_field_that_the_server_refuses_is_named(client: optimd.Client, service: FakeService) -> None:
    service.planned = [problem("invalid-field", 422, field="parameters")]
    with pytest.raises(errors.InvalidField) as caught:
        client.advice("cnn", 0)
    assert caught.value.field == "parameters"


async def test_the_asyncio_client_asks_the_same(service: FakeService) -> None:
    async with optimd.AsyncClient("http://optimd.test", transport=service.transport()) as client:
        assert await client.advice("cnn", 1024, fine_tuning=True) == ADVICE
    assert json.loads(service.seen[-1].body) == {"model": "cnn", "parameters": 1024, "fine_tuning": True}


def test_the_command_shows_choice_settings_memory_reasons_and_warnings(service: FakeService) -> None:
    with service.serving() as url:
        result = run(url, "--model", "cnn", "--parameters", "1024", "--examples", "50", "--symptom", "diverges")
    assert result.exit_code == 0
    shown = ("sgd", "lr 0.1, nesterov true", "cosine, total_steps 1000", "max_norm 1.0", "no_decay", "4 KiB", "12 KiB")
    for text in (*shown, "It serves well.", "Robbins & Monro 1951", "adam needs 8192 bytes"):
        assert text in result.stdout
    sent = {"model": "cnn", "parameters": 1024, "symptoms": ["diverges"], "data": {"examples": 50}}
    assert json.loads(service.seen[-1].body) == sent


def test_the_command_gives_the_whole_answer_in_json(service: FakeService) -> None:
    with service.serving() as url:
        result = run(url, "--model", "cnn", "--parameters", "1024", "--fine-tuning", "--json")
    assert json.loads(result.stdout) == ADVICE


def test_the_command_refuses_a_kind_of_model_that_there_is_not(service: FakeService) -> None:
    with service.serving() as url:
        result = run(url, "--model", "perceptron", "--parameters", "1")
    assert result.exit_code == 2
    assert "vision_transformer" in result.output
    assert service.seen == []


def test_the_client_knows_the_servers_kinds_and_symptoms(server_url: str) -> None:
    with optimd.Client(server_url) as client:
        for kind in get_args(models.ModelKind):
            assert client.advice(kind, 10**6)["recommendations"]
        symptoms = list(get_args(models.Symptom))
        assert client.advice("mlp", 10**6, symptoms=symptoms)["recommendations"]
        with pytest.raises(errors.InvalidField) as caught:
            client.advice("perceptron", 1)  # type: ignore[arg-type]  # that is the test
        assert caught.value.field == "model"
