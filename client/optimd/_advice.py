"""A training task, and the advice on it."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from optimd._safetensors import WireDtype

ModelKind = Literal[
    "mlp",
    "linear",
    "cnn",
    "resnet",
    "vision_transformer",
    "transformer_encoder",
    "language_model",
    "diffusion",
    "gan",
    "recommender",
    "rnn",
    "reinforcement_learning",
]
Symptom = Literal[
    "loss_spikes",
    "diverges",
    "nan_gradients",
    "plateau",
    "slow_start",
    "overfits",
    "oscillates",
    "vanishing_gradients",
    "exploding_gradients",
    "generalises_poorly",
]


class TaskData(TypedDict, total=False):
    """What is known of a task's data: how many `examples`, whether gradients are `sparse` and labels noisy."""

    examples: int
    sparse: bool
    noisy_labels: bool


class TaskFields(TypedDict, total=False):
    """What may be said of a training task beside its kind of model and its size.

    `memory_bytes` is the room for the optimizer's state; `steps`, or `epochs` with `batch_size` and the data's
    `examples`, say how long training takes.
    """

    data: TaskData
    batch_size: int
    steps: int
    epochs: int
    memory_bytes: int
    fine_tuning: bool
    precision: WireDtype
    symptoms: list[Symptom]


class Reason(TypedDict):
    """Why, and the paper or page that shows it; None for what follows from the task alone."""

    text: str
    source: str | None


class AdviceMemory(TypedDict):
    """`bytes_per_parameter` and `state_bytes` are of the state, `total_bytes` of weights, gradients and state."""

    bytes_per_parameter: float
    state_bytes: int
    total_bytes: int


class Recommendation(TypedDict):
    """One choice; `optimizer` with `hyperparameters` and all fields up to `state_dtype` are a create body's."""

    optimizer: str
    hyperparameters: dict[str, Any]
    groups: Literal["no_decay"] | list[dict[str, Any]]
    schedule: dict[str, Any]
    clip: dict[str, float] | None
    state_dtype: str
    memory: AdviceMemory
    score: float
    reasons: list[Reason]


class Advice(TypedDict):
    """Choices, the best first; without any, `needed_bytes` is the least room for state that would allow one."""

    recommendations: list[Recommendation]
    warnings: list[Reason]
    needed_bytes: int | None
