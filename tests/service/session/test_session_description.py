"""The create body: what is wrong in it is named as the sender wrote it."""

from __future__ import annotations

from typing import Any

import pytest

from optimd_service.errors import InvalidField
from optimd_service.session.description import read_description


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "name"),
        ({"name": "gaussian"}, "name"),
        ({"name": 1}, "name"),
        ({"name": "constant"}, "val"),
        ({"name": "constant", "val": 1e39}, "val"),
        ({"name": "normal", "std": -1}, "std"),
        ({"name": "normal", "std": "1"}, "std"),
        ({"name": "normal", "mean": float("nan")}, "mean"),
        ({"name": "uniform", "a": 2.0}, "b"),
        ({"name": "uniform", "a": 2.0, "b": 1.0}, "b"),
        ({"name": "trunc_normal", "std": 0}, "std"),
        ({"name": "trunc_normal", "a": 3.0}, "b"),
        ({"name": "trunc_normal", "mean": 9.0}, "b"),
        ({"name": "trunc_normal", "mean": -1.0, "a": 0.0, "b": 1e9}, "b"),
        ({"name": "kaiming_uniform", "nonlinearity": "swish"}, "nonlinearity"),
        ({"name": "kaiming_uniform", "mode": "fan"}, "mode"),
        ({"name": "xavier_normal", "gain": -1}, "gain"),
        ({"name": "orthogonal", "gain": True}, "gain"),
        ({"name": "zeros", "val": 1}, "val"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        read_description({"optimizer": {"name": "sgd"}, "tensors": [{"name": "w", "shape": [2, 2], "init": spec}]})
    assert refusal.value.evidence == {"field": f"tensors.0.init.{field}"}
