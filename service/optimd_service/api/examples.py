"""Bodies that the OpenAPI document shows; tests send each of them."""

from __future__ import annotations

from typing import Any

CREATE: dict[str, Any] = {
    "name": "line",
    "optimizer": {"name": "adamw", "lr": 0.1, "weight_decay": 0.01},
    "tensors": [
        {"name": "weight", "shape": [1, 2], "init": {"name": "kaiming_uniform"}},
        {"name": "bias", "shape": [1]},
    ],
    "groups": [{"name": "no_decay", "match": ["*bias"], "weight_decay": 0}],
    "seed": 0,
}
CHANGE: dict[str, Any] = {"optimizer": {"lr": 0.01}, "groups": [{"name": "no_decay", "lr": 0.02}]}
EXCHANGE: dict[str, Any] = {"name": "sgd", "lr": 0.01, "momentum": 0.9, "carry": {"momentum_buffer": "exp_avg"}}
CHECKPOINT: dict[str, Any] = {"label": "best"}
ROLLBACK: dict[str, Any] = {"label": "best"}
FORK: dict[str, Any] = {"label": "best", "name": "with half the rate", "optimizer": {"lr": 0.05}}
WHAT_IF: dict[str, Any] = {
    "grads": {"weight": [[0.1, -0.2]], "bias": [0.05]},
    "candidates": [{"optimizer": {"lr": 0.01}}, {"name": "plain", "optimizer": {"name": "sgd", "lr": 0.1}}],
}
PARAMS: dict[str, Any] = {"params": {"weight": [[0.5, -0.5]], "bias": [0.0]}}
PUSH: dict[str, Any] = {"grads": {"weight": [[0.1, -0.2]], "bias": [0.05]}, "loss": 0.7, "num_examples": 64}
ADVICE: dict[str, Any] = {
    "model": "resnet",
    "parameters": 25_600_000,
    "data": {"examples": 1_281_167},
    "batch_size": 256,
    "epochs": 90,
}
