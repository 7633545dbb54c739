"""Nothing is lost, whichever container of docker-compose.yml ends while a training goes on: `make compose-test`."""

from __future__ import annotations

from dataclasses import asdict, fields

import numpy as np
import pytest
from compose_training import Arrays, Run, loss, replay

from optimd import Receipt


@pytest.fixture(scope="session")
def replayed(run: Run) -> list[dict[str, Arrays]]:
    """What torch makes of the gradients that were acknowledged, step by step."""
    return list(replay(len(run.receipts)))


def assert_same(actual: Arrays, expected: Arrays) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(actual[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_acknowledged_step_is_there_once_and_no_other(run: Run) -> None:
    assert [receipt.step for receipt in run.receipts] == list(range(1, len(run.receipts) + 1))
    assert {receipt.outcome for receipt in run.receipts} == {"applied"}
    assert run.stands_at == len(run.receipts)


def test_every_receipt_names_its_own_step_as_durable(run: Run) -> None:
    assert [receipt.durable_step for receipt in run.receipts] == [receipt.step for receipt in run.receipts]


def test_the_history_has_every_step_once_as_its_receipt_told_it(run: Run) -> None:
    said = [asdict(receipt) | {"duplicate": False} for receipt in run.receipts]
    recorded = [{each.name: getattr(row, each.name) for each in fields(Receipt)} for row in run.history]
    assert recorded == said
    assert [row.loss for row in run.history] == [loss(row.step) for row in run.history]


def test_weights_and_moments_are_those_of_a_replay(run: Run, replayed: list[dict[str, Arrays]]) -> None:
    expected = replayed[-1]
    assert_same(run.weights, expected["weights"])
    assert run.state.step == len(run.receipts)
    moments = {
        f"{name}.{buffer}": expected[buffer][name] for buffer in ("exp_avg", "exp_avg_sq") for name in run.weights
    }
    assert_same(run.state.tensors, moments)


def test_no_reader_saw_a_mixture_or_a_step_that_was_gone_later(run: Run, replayed: list[dict[str, Arrays]]) -> None:
    steps = [step for step, _ in run.seen]
    assert steps == sorted(steps)
    assert len(set(steps)) > 10
    for step, weights in run.seen:
        assert_same(weights, replayed[step]["weights"])
