"""What a session is, in the words of the one who creates it: the create body, checked field by field."""

from __future__ import annotations

import math
import unicodedata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from optimd_service.errors import InvalidField
from optimd_service.optim.accumulation import Accumulate
from optimd_service.optim.averages import Ema, Swa
from optimd_service.optim.clipping import Clip
from optimd_service.optim.initialisers import Initialiser
from optimd_service.optim.loss_scale import LossScale
from optimd_service.optim.schedules import Schedule
from optimd_service.optim.state_dtype import StateDtype
from optimd_service.session.checkpointing import Checkpointing
from optimd_service.session.wire_dtypes import Wire
from optimd_service.types import Durability, NonfinitePolicy, Role

MAX_GROUPS = 1_000
MAX_PATTERNS = 1_000
MAX_TENSORS = 100_000
MAX_NAME = 512
MAX_DIMENSIONS = 32


def _plain_name(name: str) -> str:
    # Cc: control characters, NUL among them; Cs: halves of surrogate pairs, which no UTF-8 header can hold.
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in name):
        raise ValueError("must not hold control characters or lone surrogates")
    if name == "__metadata__":
        raise ValueError("is reserved by the safetensors format")
    return name


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_plain_name)]
GroupName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_plain_name)]
Title = Annotated[str, Field(max_length=200), AfterValidator(lambda name: _plain_name(name) if name else name)]
Pattern = Annotated[str, Field(max_length=MAX_NAME)]
Recipe = Literal["no_decay"]
Size = Annotated[int, Field(ge=0, lt=2**63)]
Dtype = Annotated[Literal["F32", "F64"], BeforeValidator(lambda v: v.upper() if isinstance(v, str) else v)]


class Strict(BaseModel):
    """What is read by itself: each field is as its type says, and there is no other."""

    # strict: "0.1" is no number and true is no 1.
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class TensorDescription(Strict):
    """One tensor of the session."""

    name: Name = Field(description="Unique within the session.")
    shape: list[Size] = Field(max_length=MAX_DIMENSIONS, description="Sizes; [] is a single number.")
    dtype: Dtype = Field("F32", description="One dtype for the whole session.")
    init: Initialiser | None = Field(None, description="How the weights start; zero when absent.")
    group: GroupName | None = Field(None, description="The group it belongs to; else the groups' patterns decide.")
    role: Role | None = Field(
        None,
        description="`trained` by the optimizer; `buffer`: travels with the weights, set by a push or a put, such as "
        "running statistics; `frozen`: set by a put alone. Default: what `buffers` and `frozen` say, else trained.",
    )

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class GroupDescription(BaseModel):
    """Tensors with hyperparameters of their own; every further field is a hyperparameter of the optimizer."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    name: GroupName | None = Field(None, description="Default: group0, group1, …")
    match: list[Pattern] = Field(default=[], description="Shell patterns on tensor names.")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class OptimizerDescription(BaseModel):
    """The optimizer's name; every further field is one of its hyperparameters."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    name: str = Field(description="A name from GET /v1/optimizers.")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class StorageDescription(Strict):
    """Where weights and state live."""

    backend: Literal["device", "redis"] = Field(
        "device",
        description="`device`: the memory of one server. `redis`: Redis; every server that has the same one serves the "
        "session, from a copy in its memory.",
    )
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:[1-9]?[0-9])?)$",
        description="cpu, or cuda and perhaps its number, cuda:1: the memory that holds weights and state, and what "
        "computes.",
    )


class SessionDescription(Strict):
    """The create body."""

    name: Title = Field("", description="For people.")
    optimizer: OptimizerDescription
    tensors: list[TensorDescription] | None = Field(None, min_length=1, max_length=MAX_TENSORS)
    params: dict[str, Any] | None = Field(None, description="Weights inline: nested lists by tensor name.")
    groups: list[GroupDescription] | Recipe = Field(
        default=[],
        max_length=MAX_GROUPS,
        description="Groups, or `no_decay`: no weight decay on biases, normalisation and whatever has one dimension.",
    )
    buffers: list[Pattern] = Field(
        default=[], max_length=MAX_PATTERNS, description="Shell patterns of tensors whose role is `buffer`."
    )
    frozen: list[Pattern] = Field(
        default=[], max_length=MAX_PATTERNS, description="Shell patterns of tensors whose role is `frozen`."
    )
    nonfinite: NonfinitePolicy = Field("reject", description="What to do with gradients that hold NaN or infinity.")
    schedule: Schedule | None = Field(None, description="How hyperparameters change from step to step.")
    clip: Clip | None = Field(None, description="How gradients are clipped before a step.")
    centralize: bool = Field(default=False, description="Take the mean from each gradient of two dimensions or more.")
    maximize: bool = Field(default=False, description="Step along the gradient in place of against it.")
    accumulate: Accumulate | None = Field(None, description="How many pushes make one step.")
    loss_scale: LossScale | None = Field(None, description="Gradients come scaled; the scale adapts.")
    grad_dtype: Literal["BF16"] | None = Field(
        None, description="Keep gradients in bfloat16 where they arrive: half the memory; F32 ones are rounded."
    )
    wire: Wire = Field(Wire(), description="In which dtypes gradients and weights travel.")
    state_dtype: StateDtype = Field(
        "f32", description="Keep the optimizer's moments in `f32`, in `bf16` with stochastic rounding, or in `8bit`."
    )
    ema: Ema | None = Field(None, description="Keep an exponential moving average of the weights.")
    swa: Swa | None = Field(None, description="Keep an equal average of the weights.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seeds the initialisers.")
    storage: StorageDescription = StorageDescription()
    durability: Durability = Field(
        "step",
        description="`step`: a step is on disk when it is acknowledged. `checkpoint`: acknowledged at once; a crash "
        "loses what came since the last checkpoint, as `durable_step` in every receipt says. `memory`: all is lost.",
    )
    checkpoint: Checkpointing = Field(Checkpointing(), description="When checkpoints are made, and how many are kept.")


class GroupChange(BaseModel):
    """A group by name, and the hyperparameters of its own to change."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    name: GroupName

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class SessionChange(Strict):
    """The PATCH body."""

    name: Title | None = None
    nonfinite: NonfinitePolicy | None = None
    schedule: Schedule | None = Field(None, description="A new schedule, which begins now; null ends the one there is.")
    clip: Clip | None = Field(None, description="How gradients are clipped from now on; null for not at all.")
    wire: Wire | None = Field(None, description="`grads` and `params` from now on, each null for the session's dtype.")
    optimizer: dict[str, Any] = Field(default={}, description="Hyperparameters of every group without its own.")
    groups: list[GroupChange] = Field(default=[], max_length=MAX_GROUPS)


class OptimizerExchange(BaseModel):
    """Another optimizer for a session under way; every further field is one of its hyperparameters."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    name: str = Field(description="A name from GET /v1/optimizers.")
    carry: dict[str, str] = Field(
        default={}, description="Its buffers that begin as another of the old: {'momentum_buffer': 'exp_avg'}."
    )

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class _Tensors(Strict):
    tensors: list[TensorDescription] = Field(min_length=1, max_length=MAX_TENSORS)


M = TypeVar("M", bound=BaseModel)


def read_description(fields: dict[str, Any]) -> SessionDescription:
    """Check a create body. Raises: InvalidField naming the first field that is wrong."""
    return read_as(SessionDescription, fields)


def read_change(fields: dict[str, Any]) -> SessionChange:
    """Check a PATCH body. Raises: InvalidField naming the first field that is wrong."""
    return read_as(SessionChange, fields)


def read_exchange(fields: dict[str, Any]) -> OptimizerExchange:
    """Check the body of an exchange of optimizers. Raises: InvalidField naming the first field that is wrong."""
    return read_as(OptimizerExchange, fields)


def read_tensors(tensors: list[dict[str, Any]]) -> list[TensorDescription]:
    """Check tensors that were described by weights alone. Raises: InvalidField."""
    return read_as(_Tensors, {"tensors": tensors}).tensors


def read_as(model: type[M], fields: dict[str, Any]) -> M:
    """Check a body. Raises: InvalidField naming the first field that is wrong."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid_field(error) from None


def invalid_field(error: ValidationError) -> InvalidField:
    """The first finding of pydantic, as a problem."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(_path(first["loc"], first["type"]))
    text = first["msg"].removeprefix("Value error, ")
    reason = "is not a field of this call" if first["type"] == "extra_forbidden" else text
    return InvalidField(f"{field}: {reason}.", field=field)


def _path(loc: tuple[int | str, ...], kind: str) -> list[str]:
    """Where the sender wrote it: pydantic puts the name of a choice behind its field, and leaves `name` out."""
    path = [str(part)[:80] for at, part in enumerate(loc) if not _is_tag(loc, at)]
    return [*path, "name"] if kind.startswith("union_tag") else path


def _is_tag(loc: tuple[int | str, ...], at: int) -> bool:
    """Whether a part of a path is the name of a choice, not of a field."""
    chosen = loc[at - 1] if at else None
    in_list = at > 1 and isinstance(chosen, int) and loc[at - 2] == "schedules"
    # Groups are a list or a word; what is wrong with either is told of the list.
    return in_list or chosen in {"init", "schedule", "clip"} or (chosen == "groups" and isinstance(loc[at], str))
