"""The JSON documents of version 1: they are the OpenAPI's schemas, and tests hold every reply against them."""

from __future__ import annotations

from pydantic import BaseModel

from optimd_service.api.documents.base import Stands
from optimd_service.api.documents.choosing import AdviceDocument, OptimizerDocument, OptimizerList
from optimd_service.api.documents.kept import CheckpointDocument, CheckpointList, RollbackReport
from optimd_service.api.documents.server import Liveness, ProblemDocument, ProblemList, ProblemMeaning, Readiness
from optimd_service.api.documents.sessions import (
    CostDocument,
    ExchangeReport,
    ParamsBody,
    ParamsReply,
    SessionDocument,
    SessionList,
    StatePut,
)
from optimd_service.api.documents.steps import EventList, PushBody, PushReply, SegmentReply, StepDocument, StepList
from optimd_service.api.documents.what_if import WhatIfReport
from optimd_service.session.advice import Task
from optimd_service.session.branching import ForkDescription
from optimd_service.session.description import OptimizerExchange, SessionChange, SessionDescription
from optimd_service.session.moment import CheckpointOrder, Rollback
from optimd_service.session.what_if import WhatIfBody

DOCUMENTS: tuple[type[BaseModel], ...] = (
    SessionDescription, SessionChange, SessionDocument, SessionList, PushBody, PushReply, ParamsBody, ParamsReply,
    Stands, StatePut, ExchangeReport, CostDocument, OptimizerExchange, StepDocument, StepList, EventList,
    OptimizerDocument, OptimizerList, ProblemDocument, ProblemMeaning, ProblemList, Readiness, Liveness, Task,
    AdviceDocument, SegmentReply, CheckpointOrder, CheckpointDocument, CheckpointList, Rollback, RollbackReport,
    ForkDescription, WhatIfBody, WhatIfReport,
)  # fmt: skip

__all__ = [
    "DOCUMENTS",
    "AdviceDocument",
    "CheckpointDocument",
    "CheckpointList",
    "CostDocument",
    "EventList",
    "ExchangeReport",
    "Liveness",
    "OptimizerDocument",
    "OptimizerList",
    "ParamsBody",
    "ParamsReply",
    "ProblemDocument",
    "ProblemList",
    "ProblemMeaning",
    "PushBody",
    "PushReply",
    "Readiness",
    "RollbackReport",
    "SegmentReply",
    "SessionDocument",
    "SessionList",
    "Stands",
    "StatePut",
    "StepDocument",
    "StepList",
    "WhatIfReport",
]
