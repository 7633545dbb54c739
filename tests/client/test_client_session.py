"""What a session handle promises, over both blocking transports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_service import FakeService, problem, read_safetensors

import optimd
from optimd import errors

GRADS = {"w": np.full((2, 3), 2.0, np.float32), "b": np.ones(2, np.float32)}


@pytest.fixture
def session(client: optimd.Client) -> optimd.Session:
    return client.session("s1")


def test_a_step_returns_the_receipt_and_the_new_weights(session: optimd.Session) -> None:
    result = session.step(GRADS, loss=0.7)
    assert (result.receipt.step, result.receipt.base_step, result.receipt.loss) == (1, 0, 0.7)
    np.testing.assert_array_equal(result.params["w"], np.zeros((2, 3)))
    np.testing.assert_array_equal(result.params["b"], [-0.5, -0.5])


def test_gradients_travel_in_layout_order(session: optimd.Session, service: FakeService) -> None:
    session.step(GRADS)
    header = service.seen[-1].body[8:].partition(b"}}")[0].decode()
    assert header.index('"b"') < header.index('"w"')


def test_a_step_carries_a_fresh_key_and_the_version_seen_last(session: optimd.Session, service: FakeService) -> None:
    for _ in range(2):
        session.step(GRADS)
    first, second = service.seen[-2:]
    assert (first.headers["if-match"], second.headers["if-match"]) == ('"0.0"', '"1.0"')
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert session.etag == "2.0"


def test_a_stale_step_is_refused_with_the_servers_version(session: optimd.Session) -> None:
    with pytest.raises(optimd.StaleStep) as caught:
        session.step(GRADS, if_match="7")
    assert (caught.value.step, caught.value.etag) == (0, "0.0")


def test_a_step_without_if_match_applies_to_whatever_version(session: optimd.Session, service: FakeService) -> None:
    session.step(GRADS, if_match=None)
    assert "if-match" not in service.seen[-1].headers


def test_one_key_is_one_step(session: optimd.Session, service: FakeService) -> None:
    first = session.step(GRADS, key="k").receipt
    again = session.step(GRADS, key="k").receipt
    assert again.duplicate
    assert (first.step, again.step, len(service.rows)) == (1, 1, 1)


def test_a_retry_repeats_the_key_and_the_bytes(session: optimd.Session, service: FakeService) -> None:
    service.planned = [problem("history-unavailable", 503, retry_after="0"), problem("step-in-flight", 409), None]
    session.step(GRADS, loss=1.0)
    tries = service.seen[-3:]
    assert len({seen.headers["idempotency-key"] for seen in tries}) == 1
    assert len({seen.body for seen in tries}) == 1
    assert len(service.rows) == 1


def test_what_a_push_says_of_itself_travels_in_the_metadata(session: optimd.Session, service: FakeService) -> None:
    session.push(GRADS, loss=0.5, num_examples=64, worker="w0", hyperparameters={"lr": np.float32(0.25)})
    _, metadata = read_safetensors(service.seen[-1].body)
    assert json.loads(metadata.pop("hyperparameters")) == {"lr": 0.25}
    assert metadata == {"loss": "0.5", "num_examples": "64", "worker": "w0"}


def test_a_loss_that_is_not_finite_is_left_out(session: optimd.Session) -> None:
    assert session.push(GRADS, loss=float("nan")).loss is None


def test_a_push_pulls_no_weights(session: optimd.Session, service: FakeService) -> None:
    assert session.push(GRADS).step == 1
    assert service.seen[-1].target.endswith("?pull=none")


def test_weights_are_written_into_out(session: optimd.Session) -> None:
    out = {"w": np.empty((2, 3), np.float32), "b": np.empty(2, np.float32)}
    result = session.step(GRADS, out=out)
    assert result.params["w"] is out["w"]
    np.testing.assert_array_equal(out["w"], np.zeros((2, 3)))
    np.testing.assert_array_equal(out["b"], [-0.5, -0.5])


def test_out_is_refused_before_anything_is_sent(session: optimd.Session, service: FakeService) -> None:
    seen = len(service.seen)
    frozen = np.empty(2, np.float32)
    frozen.flags.writeable = False
    for out in ({"x": np.empty(1)}, {"w": np.empty(5)}, {"b": frozen}, {"b": np.empty(2, np.int64)}):
        with pytest.raises(ValueError, match="out"):
            session.step(GRADS, out=out)
    assert len(service.seen) == seen


def test_pull_asks_for_names_and_dtype(session: optimd.Session, service: FakeService) -> None:
    params = session.pull(["w", "b"], "f32")
    np.testing.assert_array_equal(params["w"], np.ones((2, 3)))
    assert service.seen[-1].target.endswith("/params?dtype=f32&names=w&names=b")


def test_wait_returns_none_while_nothing_is_newer(session: optimd.Session, service: FakeService) -> None:
    assert session.wait(90) is None
    assert [seen.headers["prefer"] for seen in service.seen[-2:]] == ["wait=60", "wait=30"]


def test_wait_returns_newer_weights(session: optimd.Session, service: FakeService, client: optimd.Client) -> None:
    client.session("s1").step(GRADS)
    params = session.wait(1)
    assert params is not None
    np.testing.assert_array_equal(params["b"], [-0.5, -0.5])
    assert session.etag == "1.0"


def test_weights_that_are_put_raise_the_tracked_generation(session: optimd.Session, service: FakeService) -> None:
    session.put_params({"w": np.zeros((2, 3)), "b": np.zeros(2)})
    assert session.etag == "0.1"
    assert session.step(GRADS).receipt.step == 1


def test_state_goes_out_and_in_under_torchs_names(session: optimd.Session, service: FakeService) -> None:
    state = session.state()
    assert (state.optimizer, state.step, list(state.tensors)) == ("sgd", 3, ["w.momentum_buffer"])
    session.put_state(state)
    tensors, metadata = read_safetensors(service.seen[-1].body)
    assert metadata == {"optimizer": "sgd", "step": "3"}
    np.testing.assert_array_equal(tensors["w.momentum_buffer"], state.tensors["w.momentum_buffer"])


def test_history_follows_the_cursor_to_the_end(session: optimd.Session) -> None:
    for _ in range(5):
        session.push(GRADS)
    assert [step.step for step in session.history()] == [1, 2, 3, 4, 5]
    assert [step.step for step in session.history(after=1, limit=3)] == [2, 3, 4]
    assert session.recorded(4).committed_at.tzinfo is not None


def test_update_sends_only_what_is_given(session: optimd.Session, service: FakeService) -> None:
    session.update(optimizer={"lr": 0.1})
    assert json.loads(service.seen[-1].body) == {"optimizer": {"lr": 0.1}}
    session.update(name="x", schedule=None, clip={"agc": 0.01})
    assert json.loads(service.seen[-1].body) == {"name": "x", "schedule": None, "clip": {"agc": 0.01}}


def test_what_an_optimizer_remembers_travels_with_its_state(session: optimd.Session, service: FakeService) -> None:
    numbers = {"default": {"mu_product": 0.1}}
    assert session.put_state(optimd.StateDict("nadam", 3, {}, numbers), strict=False) == []
    assert service.seen[-1].target.endswith("/state?strict=false")
    _, metadata = read_safetensors(service.seen[-1].body)
    assert json.loads(metadata["numbers"]) == numbers


def test_an_exchange_whose_answer_was_lost_is_not_sent_again(session: optimd.Session, service: FakeService) -> None:
    for if_match in (optimd.TRACKED, None):
        service.planned = [problem("history-unavailable", 503, retry_after="0")]
        with pytest.raises(errors.HistoryUnavailable):
            session.change_optimizer("sgd", if_match=if_match, lr=0.1)
    first, second = service.seen[-2:]
    assert (first.headers["if-match"], "if-match" in second.headers) == ('"0.0"', False)
    assert json.loads(first.body) == {"name": "sgd", "carry": {}, "lr": 0.1}


def test_a_delete_whose_answer_was_lost_counts_as_done(session: optimd.Session, service: FakeService) -> None:
    service.deleted = True
    service.planned = [problem("history-unavailable", 503, retry_after="0")]
    session.delete()
    with pytest.raises(optimd.SessionNotFound):
        session.delete()


def test_a_session_from_weights_is_created_with_them(client: optimd.Client, service: FakeService) -> None:
    client.create_session("adamw", params={"w": np.ones(3, np.float32)}, lr=1e-3, name="x")
    tensors, metadata = read_safetensors(service.seen[-1].body)
    assert json.loads(metadata["session"]) == {"optimizer": {"name": "adamw", "lr": 1e-3}, "name": "x"}
    np.testing.assert_array_equal(tensors["w"], np.ones(3))


def test_a_session_from_shapes_is_created_in_json(client: optimd.Client, service: FakeService) -> None:
    client.create_session({"name": "sgd"}, tensors={"w": (2, 3)}, seed=1)
    document = json.loads(service.seen[-1].body)
    assert document == {"optimizer": {"name": "sgd"}, "tensors": [{"name": "w", "shape": [2, 3]}], "seed": 1}


def test_a_refused_session_is_not_created_again(client: optimd.Client, service: FakeService) -> None:
    service.planned = [problem("history-unavailable", 503, retry_after="0")]
    with pytest.raises(errors.HistoryUnavailable):
        client.create_session("sgd", tensors={"w": (1,)})
    assert len(service.seen) == 1


def test_the_list_of_sessions_follows_the_cursor(client: optimd.Client, service: FakeService) -> None:
    assert [info["id"] for info in client.sessions("all")] == ["s1", "s1"]
    assert [seen.target for seen in service.seen] == [
        "/v1/sessions?status=all",
        "/v1/sessions?after=s1&status=all",
    ]


def test_the_catalogue_and_health_are_read(client: optimd.Client) -> None:
    assert [info["name"] for info in client.optimizers()] == ["sgd"]
    assert client.optimizer("sgd")["defaults"] == {"lr": 1e-3}
    assert client.health()["status"] == "ready"


def test_the_api_key_is_sent_and_never_shown(service: FakeService) -> None:
    with service.serving() as url, optimd.Client(url, api_key="sesame") as client:
        client.health()
        assert "sesame" not in repr(vars(client))
    assert service.seen[0].headers["authorization"] == "Bearer sesame"
