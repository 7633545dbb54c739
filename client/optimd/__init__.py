"""optimd: a remote optimizer. Gradients go to a server, one optimizer step happens there, new weights come back.

import numpy as np
import optimd

with optimd.Client("http://127.0.0.1:8000") as client:
    session = client.create_session("adamw", params={"w": np.ones(3, np.float32)}, lr=1e-3)
    result = session.step({"w": np.ones(3, np.float32)}, loss=0.7)
    print(result.receipt.step, result.params["w"])
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from optimd import errors
from optimd._core import UNCHANGED
from optimd._rows import RowGradient
from optimd._safetensors import RawTensor
from optimd._time_travel import TRACKED
from optimd.async_session import AsyncSession
from optimd.client import AsyncClient, Client
from optimd.errors import ConnectionFailed, OptimdError, ProblemError, SessionNotFound, StaleStep, TimedOut
from optimd.models import CostInfo, ExchangeReport, Receipt, SessionInfo, StateDict, Step, StepResult
from optimd.session import Session

if TYPE_CHECKING:
    from optimd.optimizer import RemoteOptimizer

__version__ = _version("optimd")

__all__ = [
    "TRACKED",
    "UNCHANGED",
    "AsyncClient",
    "AsyncSession",
    "Client",
    "ConnectionFailed",
    "CostInfo",
    "ExchangeReport",
    "OptimdError",
    "ProblemError",
    "RawTensor",
    "Receipt",
    "RemoteOptimizer",
    "RowGradient",
    "Session",
    "SessionInfo",
    "SessionNotFound",
    "StaleStep",
    "StateDict",
    "Step",
    "StepResult",
    "TimedOut",
    "errors",
]


def __getattr__(name: str) -> object:
    # NumPy users have no torch, and torch users should not wait for it before they need it.
    if name != "RemoteOptimizer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from optimd.optimizer import RemoteOptimizer  # noqa: PLC0415 - it imports torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError("RemoteOptimizer needs PyTorch: pip install 'optimd[torch]'") from error
    return RemoteOptimizer
