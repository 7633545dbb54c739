"""A session as `GET /v1/sessions/{id}` gives it: its create body as it now stands, and what has become of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from optimd_service.session.past import Kept
from optimd_service.session.policy import Policy
from optimd_service.session.session import Session
from optimd_service.store.checkpoint import CheckpointInfo
from optimd_service.types import SessionRow
from optimd_service.wire.dtypes import DTYPE_NAMES

# Long for a list of sessions, and not wanted there.
DETAILS = ("tensors", "hyperparameters")


def represent(session: Session) -> dict[str, Any]:
    """The whole representation."""
    standing = session.standing  # once: a change may come meanwhile
    plan, blueprint = standing.plan, standing.blueprint
    layout, settings = plan.layout, plan.settings
    return {
        "id": session.id,
        "name": standing.name,
        "status": "live",
        "created_at": iso(standing.created_at),
        **progress(session),
        "optimizer": {"name": settings.optimizer.name, **settings.session_wide.model_dump(mode="json")},
        "groups": [
            {"name": name, "match": group.match, **settings.own[name]} for name, group in blueprint.groups.items()
        ],
        "hyperparameters": {name: hyper.model_dump(mode="json") for name, hyper in settings.resolved.items()},
        **_policy(plan.policy),
        "seed": blueprint.description.seed,
        "storage": blueprint.description.storage.model_dump(),
        "durability": blueprint.description.durability,
        "checkpoint": blueprint.description.checkpoint.of(blueprint.description.durability).model_dump(),
        "origin": standing.origin,
        "parameters": layout.numel,
        "segments": session.takes_segments,
        "tensors": _tensors(session),
    }


def remembered(row: SessionRow, step: int) -> dict[str, Any]:
    """A session that is no longer held, as history has it; ``step`` is its newest."""
    generation = row.spec["etag"].partition(".")[2]
    step = max(step, row.spec["step"])  # a fork has no steps of its own before its first
    return {**row.spec, "status": row.status, "step": step, "etag": f"{step}.{generation}", "segments": False}


def progress(session: Session) -> dict[str, Any]:
    """What changes from step to step."""
    version = session.version
    return {
        "step": version.step,
        "etag": version.etag,
        "skipped": session.standing.skipped,
        "bytes": session.held_bytes,
        "loss_scale_now": session.loss_scale_now,
    }


def represent_kept(kept: Kept) -> dict[str, Any]:
    """What a session can go back to."""
    checkpoints = [represent_checkpoint(info) for info in kept.checkpoints]
    return {"checkpoints": checkpoints, "retained": kept.retained, "next": None}


def represent_checkpoint(info: CheckpointInfo) -> dict[str, Any]:
    """One checkpoint."""
    return {
        "step": info.version.step,
        "etag": info.version.etag,
        "labels": info.labels,
        "created_at": iso(info.created_at),
        "bytes": info.nbytes,
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
    inits = {t.name: t.init for t in session.standing.blueprint.tensors}
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
