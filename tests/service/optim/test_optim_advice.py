"""What is recommended for which task: the choices that a practitioner would make."""

from __future__ import annotations

from typing import Any

import pytest

from optimd_service.optim.advice.advise import Advice, Recommendation, advise
from optimd_service.optim.advice.task import Task

MILLION, BILLION = 10**6, 10**9
# A task of each kind: where a scenario starts from.
RESNET: dict[str, Any] = {"model": "resnet", "parameters": 25 * MILLION, "batch_size": 256, "steps": 450_000}
LANGUAGE: dict[str, Any] = {"model": "language_model", "parameters": 125 * MILLION, "steps": 100_000}
MLP: dict[str, Any] = {"model": "mlp", "parameters": 100_000, "steps": 5_000}
RECOMMENDER: dict[str, Any] = {"model": "recommender", "parameters": BILLION, "steps": 50_000}
GAN: dict[str, Any] = {"model": "gan", "parameters": 10 * MILLION}


def ask(*parts: dict[str, Any], **fields: Any) -> Advice:
    body: dict[str, Any] = {}
    for part in parts:
        body |= part
    return advise(Task.model_validate(body | fields))


def choice(advice: Advice, optimizer: str) -> Recommendation:
    return next(found for found in advice.recommendations if found.optimizer == optimizer)


def names(advice: Advice) -> list[str]:
    return [found.optimizer for found in advice.recommendations]


@pytest.mark.parametrize(
    ("task", "first"),
    [
        (RESNET, "sgd"),
        (RESNET | {"model": "cnn"}, "sgd"),
        (RESNET | {"batch_size": 32_768}, "lars"),
        (LANGUAGE, "adamw"),
        (LANGUAGE | {"fine_tuning": True}, "adamw"),
        ({"model": "transformer_encoder", "parameters": 110 * MILLION}, "adamw"),
        ({"model": "transformer_encoder", "parameters": 340 * MILLION, "batch_size": 32_768}, "lamb"),
        ({"model": "vision_transformer", "parameters": 86 * MILLION}, "adamw"),
        ({"model": "diffusion", "parameters": BILLION}, "adamw"),
        (GAN, "adam"),
        (MLP, "adamw"),
        (MLP | {"batch_size": 100, "data": {"examples": 100}}, "rprop"),
        (RECOMMENDER, "adam"),
        (RECOMMENDER | {"data": {"sparse": True}}, "adagrad"),
        ({"model": "linear", "parameters": 1000}, "sgd"),
        ({"model": "linear", "parameters": 10**6, "data": {"sparse": True}}, "adagrad"),
        ({"model": "rnn", "parameters": MILLION}, "adam"),
        ({"model": "reinforcement_learning", "parameters": MILLION}, "adam"),
        (MLP | {"symptoms": ["generalises_poorly"]}, "sgd"),
        (RESNET | {"model": "cnn", "symptoms": ["vanishing_gradients"]}, "adamw"),
        # Room for one buffer a parameter, or for two of half the bytes.
        (LANGUAGE | {"memory_bytes": 4 * 125 * MILLION}, "adamw"),
        (LANGUAGE | {"memory_bytes": 2 * 125 * MILLION}, "lion"),
        # Room for next to nothing.
        (LANGUAGE | {"memory_bytes": 125 * MILLION}, "adafactor"),
        (RECOMMENDER | {"memory_bytes": 0}, "sgd"),
    ],
)
def test_the_first_choice_is_a_practitioners(task: dict[str, Any], first: str) -> None:
    assert names(ask(task))[0] == first


def test_a_language_model_gets_warmup_cosine_clipping_and_undecayed_biases() -> None:
    found = choice(ask(LANGUAGE), "adamw")
    assert found.hyperparameters == {"lr": 6e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}
    assert found.groups == "no_decay"
    assert found.schedule == {"name": "cosine", "warmup_steps": 2000, "total_steps": 100_000, "eta_min": 6e-5}
    assert found.clip == {"max_norm": 1.0}


@pytest.mark.parametrize(
    ("parameters", "lr"),
    [
        (10 * MILLION, 9e-4),
        (125 * MILLION, 6e-4),
        (760 * MILLION, 3e-4),
        (1_300 * MILLION, 2e-4),
        (13 * BILLION, 1.2e-4),
        (175 * BILLION, 6e-5),
    ],
)
def test_larger_language_models_take_smaller_steps(parameters: int, lr: float) -> None:
    found = choice(ask(LANGUAGE, parameters=parameters), "adamw")
    assert found.hyperparameters["lr"] == pytest.approx(lr, rel=0.01)


def test_a_resnet_gets_nesterov_and_a_rate_in_proportion_to_its_batch() -> None:
    assert choice(ask(RESNET), "sgd").hyperparameters == {
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 1e-4,
    }
    assert choice(ask(RESNET, batch_size=1024), "sgd").hyperparameters["lr"] == 0.4
    assert choice(ask(RESNET, batch_size=64), "sgd").hyperparameters["lr"] == 0.025


def test_fine_tuning_takes_a_tenth_of_the_rate() -> None:
    assert choice(ask(RESNET, fine_tuning=True), "sgd").hyperparameters["lr"] == 0.01
    encoder = {"model": "transformer_encoder", "parameters": 110 * MILLION, "fine_tuning": True, "steps": 1000}
    found = choice(ask(encoder), "adamw")
    assert found.hyperparameters["lr"] == 2e-5
    assert found.schedule == {"name": "cosine", "warmup_steps": 100, "total_steps": 1000}


def test_short_training_of_a_convnet_is_one_cycle_at_the_recommended_rate() -> None:
    found = choice(ask(RESNET, steps=2000), "sgd")
    assert found.schedule == {"name": "one_cycle", "max_lr": 0.1, "total_steps": 2000}


def test_epochs_examples_and_batch_size_tell_the_number_of_steps() -> None:
    advice = ask({"model": "mlp", "parameters": 1000}, data={"examples": 1001}, batch_size=100, epochs=3)
    assert advice.recommendations[0].schedule["total_steps"] == 33


def test_without_an_end_nothing_falls_to_it_and_a_warning_says_so() -> None:
    endless = {name: value for name, value in LANGUAGE.items() if name != "steps"}
    advice = ask(endless)
    for found in advice.recommendations:
        assert found.schedule["name"] == "constant"
        assert not any("cosine" in reason.text for reason in found.reasons)
    assert choice(advice, "adamw").schedule["warmup_steps"] == 2000
    assert any("give `steps`" in warning.text for warning in advice.warnings)


@pytest.mark.parametrize(
    ("task", "optimizer", "symptom", "changed"),
    [
        (LANGUAGE, "adamw", "diverges", {"lr": 2e-4}),
        (LANGUAGE, "adamw", "slow_start", {"lr": 1.8e-3}),
        (LANGUAGE, "adamw", "oscillates", {"lr": 3e-4}),
        (LANGUAGE, "adamw", "nan_gradients", {"lr": 3e-4}),
        (LANGUAGE, "adamw", "overfits", {"weight_decay": 0.3}),
        (RESNET, "sgd", "generalises_poorly", {"weight_decay": 3e-4}),
        (MLP, "adamw", "loss_spikes", {"lr": 5e-4, "betas": [0.9, 0.95]}),
        # β₁ is the model's own matter.
        (GAN, "adam", "loss_spikes", {"lr": 1e-4, "betas": [0.5, 0.95]}),
    ],
)
def test_symptoms_change_the_settings(
    task: dict[str, Any], optimizer: str, symptom: str, changed: dict[str, Any]
) -> None:
    before = choice(ask(task), optimizer)
    after = choice(ask(task, symptoms=[symptom]), optimizer)
    assert after.hyperparameters == before.hyperparameters | changed


@pytest.mark.parametrize("symptom", ["loss_spikes", "diverges", "nan_gradients", "exploding_gradients"])
def test_whatever_blows_up_is_clipped(symptom: str) -> None:
    assert choice(ask(RESNET), "sgd").clip is None
    assert choice(ask(RESNET, symptoms=[symptom]), "sgd").clip == {"max_norm": 1.0}


def test_a_plateau_lowers_the_rate_when_the_loss_stands_still() -> None:
    found = choice(ask(RESNET, symptoms=["plateau"]), "sgd")
    assert found.schedule == {"name": "reduce_on_plateau", "factor": 0.3, "patience": 9000}
    assert not any("cosine" in reason.text for reason in found.reasons)


def test_what_does_not_fit_is_left_out_and_named_with_its_size() -> None:
    advice = ask(LANGUAGE, memory_bytes=2 * 125 * MILLION)
    assert "adamw" not in names(advice)
    (said,) = (warning.text for warning in advice.warnings if warning.text.startswith("adamw"))
    assert "253906250 bytes of state even in 8bit" in said
    assert "adamw" in names(ask(LANGUAGE, memory_bytes=253_906_250))


@pytest.mark.parametrize(
    ("bytes_per_parameter", "state_dtype", "source"),
    [(8, "f32", None), (7.9, "bf16", "2010.06192"), (4, "bf16", "2010.06192"), (3.9, "8bit", "Dettmers")],
)
def test_state_is_kept_in_no_fewer_bytes_than_the_room_asks_for(
    bytes_per_parameter: float, state_dtype: str, source: str | None
) -> None:
    room = int(bytes_per_parameter * 125 * MILLION)
    found = choice(ask(LANGUAGE, memory_bytes=room), "adamw")
    assert found.state_dtype == state_dtype
    assert found.memory.state_bytes <= room
    said = " ".join(reason.source or "" for reason in found.reasons)
    assert ("Dettmers" in said or "2010.06192" in said) == (source is not None)
    assert source is None or source in said


@pytest.mark.parametrize("change", [{"precision": "f64"}, {"data": {"sparse": True}}], ids=str)
def test_state_is_not_compressed_where_a_session_or_rows_would_refuse_it(change: dict[str, Any]) -> None:
    advice = ask(MLP, change, memory_bytes=3 * 100_000)
    assert {found.state_dtype for found in advice.recommendations} == {"f32"}


def test_a_convnet_keeps_its_momentum_in_eight_bits_before_it_goes_without() -> None:
    found = choice(ask(RESNET, memory_bytes=int(1.1 * 25 * MILLION)), "sgd")
    assert (found.hyperparameters["momentum"], found.state_dtype) == (0.9, "8bit")


def test_where_nothing_fits_the_answer_says_what_would() -> None:
    advice = ask(GAN, memory_bytes=0)
    assert advice.recommendations == ()
    assert advice.needed_bytes is not None
    assert any(str(advice.needed_bytes) in warning.text for warning in advice.warnings)
    assert names(ask(GAN, memory_bytes=advice.needed_bytes))
    assert names(ask(GAN, memory_bytes=advice.needed_bytes - 1)) == []


def test_without_room_for_momentum_a_convnet_goes_without() -> None:
    found = choice(ask(RESNET, memory_bytes=0), "sgd")
    assert (found.hyperparameters["momentum"], found.hyperparameters["nesterov"]) == (0.0, False)
    assert found.memory.state_bytes == 0


def test_memory_counts_weights_gradients_and_state() -> None:
    memory = choice(ask(LANGUAGE), "adamw").memory
    assert memory.bytes_per_parameter == 8
    assert (memory.state_bytes, memory.total_bytes) == (8 * 125 * MILLION, 16 * 125 * MILLION)
    doubled = choice(ask(LANGUAGE, precision="f64"), "adamw").memory
    assert doubled.total_bytes == 2 * memory.total_bytes


def test_precision_and_data_bring_their_warnings() -> None:
    texts = " ".join(warning.text for warning in ask(MLP, precision="f16", data={"noisy_labels": True}).warnings)
    assert "scale the loss" in texts
    assert "stop early" in texts


def test_the_rate_grows_with_the_batch_only_as_far_as_that_was_seen_to_hold() -> None:
    assert choice(ask(RESNET, batch_size=10**9), "sgd").hyperparameters["lr"] == pytest.approx(3.2)
