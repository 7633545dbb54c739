"""A session as `GET /v1/sessions/{id}` gives it: its create body as it now stands, and what has become of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from optimd_service.session.policy import Policy
from optimd_service.session.session import Session
from optimd_service.types import SessionRow
from optimd_service.wire.dtypes import DTYPE_NAMES

# Long for a list of sessions, and not wanted there.
DETAILS = ("tensors", "hyperparameters")


def represent(session: Session) -> dict[str, Any]:
    """The whole representation."""
    plan = session.plan  # once: a change may come meanwhile
    layout, settings = plan.layout, plan.settings
    return {
        "id": session.id,
        "name": session.name,
        "status": "live",
        "created_at": iso(session.created_at),
        **progress(session),
        "optimizer": {"name": settings.optimizer.name, **settings.session_wide.model_dump(mode="json")},
        "groups": [
            {"name": name, "match": group.match, **settings.own[name]}
            for name, group in session.blueprint.groups.items()
        ],
        "hyperparameters": {name: hyper.model_dump(mode="json") for name, hyper in settings.resolved.items()},
        **_policy(plan.policy),
        "seed": session.blueprint.description.seed,
        "storage": session.blueprint.description.storage.model_dump(),
        "durability": session.blueprint.description.durability,
        "parameters": layout.numel,
        "tensors": _tensors(session),
    }


def remembered(row: SessionRow, step: int) -> dict[str, Any]:
    """A session that is no longer held, as history has it; ``step`` is its newest."""
    generation = row.spec["etag"].partition(".")[2]
    return {**row.spec, "status": row.status, "step": step, "etag": f"{step}.{generation}"}


def progress(session: Session) -> dict[str, Any]:
    """What changes from step to step."""
    version = session.version
    return {
        "step": version.step,
        "etag": version.etag,
        "skipped": session.skipped,
        "bytes": session.held_bytes,
        "loss_scale_now": session.loss_scale_now,
    }


def _policy(policy: Policy) -> dict[str, Any]:
    models = {name: getattr(policy, name) for name in ("schedule", "clip", "accumulate", "loss_scale", "ema", "swa")}
    return {
        "nonfinite": policy.nonfinite,
        **{name: None if model is None else model.model_dump(mode="json") for name, model in models.items()},
        "grad_dtype": policy.grad_dtype and DTYPE_NAMES[policy.grad_dtype],
        "wire": policy.wire.model_dump(mode="json"),
        "state_dtype": policy.state_dtype,
        "centralize": policy.centralize,
        "maximize": policy.maximize,
    }


def _tensors(session: Session) -> list[dict[str, Any]]:
    inits = {t.name: t.init for t in session.blueprint.tensors}
    dtype = DTYPE_NAMES[session.layout.dtype]
    return [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": dtype,
            "group": tensor.group or None,
            "role": tensor.role,
            "init": None if (init := inits[tensor.name]) is None else init.model_dump(),
        }
        for tensor in session.layout.tensors
    ]


def iso(moment: datetime) -> str:
    """RFC 3339, in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
