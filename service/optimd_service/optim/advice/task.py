"""What is asked of the advice: the task, its bounds, and what was seen when it was last trained."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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
Precision = Literal["f32", "bf16", "f16", "f64"]
# Beyond every model and every data set, and small enough for JSON's numbers and ours.
LARGEST = 10**15
Count = Annotated[int, Field(ge=1, le=LARGEST)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class TaskData(_Strict):
    """What is known of the data."""

    examples: Count | None = Field(None, description="How many there are.")
    sparse: bool = Field(
        default=False, description="Most gradients are zero at most steps, as of embeddings of rare ids."
    )
    noisy_labels: bool = Field(default=False, description="A good share of the labels is wrong.")


class Task(_Strict):
    """A training task; `model` and `parameters` are required, and each further field makes the advice more exact."""

    model: ModelKind = Field(description="Its kind.")
    parameters: Count = Field(description="Number of trainable parameters.")
    data: TaskData = TaskData()
    batch_size: Count | None = Field(None, description="Examples a step; of language models, sequences.")
    steps: Count | None = Field(None, description="Planned updates.")
    epochs: Count | None = Field(None, description="Planned passes over the data, in place of `steps`.")
    memory_bytes: int | None = Field(
        None, ge=0, le=LARGEST * 1000, description="Room for the optimizer's state, beside weights and gradients."
    )
    fine_tuning: bool = Field(default=False, description="Training goes on from trained weights.")
    precision: Precision = Field("f32", description="Dtype in which gradients are computed.")
    symptoms: list[Symptom] = Field(default=[], max_length=10, description="Seen in training so far.")

    @property
    def total_steps(self) -> int | None:
        """Updates planned, if that can be told: given, or from epochs, examples and batch size."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None or self.data.examples is None or self.batch_size is None:
            return None
        return self.epochs * math.ceil(self.data.examples / self.batch_size)

    @property
    def full_batch(self) -> bool:
        """Whether every step is known to see all of the data."""
        batch, examples = self.batch_size, self.data.examples
        return batch is not None and examples is not None and batch >= examples

    @property
    def state_budget(self) -> float:
        """Room for state, bytes a parameter if they were float32; infinite when no bound is given."""
        return self.room / self.parameters * 4 / self.width

    @property
    def room(self) -> float:
        """Room for state in bytes; infinite when no bound is given."""
        return math.inf if self.memory_bytes is None else self.memory_bytes

    @property
    def width(self) -> int:
        """Bytes of a weight, and of a number of the state: float32 whatever the wire carries, unless it is f64."""
        return 8 if self.precision == "f64" else 4
