"""Every optimizer, in one table. A new one is one file beside this and one row here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from optimd_service.errors import InvalidField
from optimd_service.optim import (
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    adamw,
    adan,
    ademamix,
    asgd,
    lamb,
    lars,
    lion,
    muon,
    nadam,
    prodigy,
    radam,
    rmsprop,
    rprop,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
    sgd,
    shampoo,
    soap,
    sparse_adam,
)
from optimd_service.optim.hyperparameters import LONGEST_NAME_SHOWN, Hyperparameters
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.refused import REFUSED

FLOAT32_BYTES = 4
LONGEST_DECOMPOSED = 1e15
_USUAL_MATRIX = (1024, 1024)

_ROWS: tuple[Optimizer[Any], ...] = (
    Optimizer(
        "sgd",
        "Steps against the gradient; with momentum, Nesterov's if wanted. No state without momentum.",
        sgd.SGD,
        sgd.state,
        sgd.step_,
        "Sutskever et al. 2013; defaults of torch.optim.SGD",
        optional_state=("momentum_buffer",),
        takes_rows=sgd.takes_rows,
    ),
    Optimizer(
        "rmsprop",
        "Divides the gradient by a running root mean square of itself.",
        rmsprop.RMSprop,
        rmsprop.state,
        rmsprop.step_,
        "Hinton 2012, lecture 6e; defaults of torch.optim.RMSprop",
        optional_state=("momentum_buffer",),
        own_scale=frozenset({"momentum_buffer"}),
    ),
    Optimizer(
        "adam",
        "Sizes every parameter's step by running means of its gradient and of the square.",
        adam.Adam,
        adam.state,
        adam.step_,
        "Kingma & Ba 2015, arXiv:1412.6980; defaults of torch.optim.Adam",
    ),
    Optimizer(
        "adamw",
        "Adam whose weight decay leaves the moments alone; the usual first choice.",
        adamw.AdamW,
        adamw.state,
        adamw.step_,
        "Loshchilov & Hutter 2019, arXiv:1711.05101; defaults of torch.optim.AdamW",
    ),
    Optimizer(
        "lion",
        "Moves every parameter by lr in the sign of its momentum; half of Adam's state.",
        lion.Lion,
        lion.state,
        lion.step_,
        "Chen et al. 2023, arXiv:2302.06675; the paper's defaults",
    ),
    Optimizer(
        "adagrad",
        "Divides the gradient by the root of the sum of all its squares; for sparse gradients.",
        adagrad.Adagrad,
        adagrad.state,
        adagrad.step_,
        "Duchi, Hazan & Singer 2011, JMLR 12; defaults of torch.optim.Adagrad",
        begin_=adagrad.begin_,
        takes_rows=adagrad.takes_rows,
    ),
    Optimizer(
        "sparse_adam",
        "Adam for embeddings whose gradients name their rows: other rows are not touched, and cost nothing.",
        sparse_adam.SparseAdam,
        sparse_adam.state,
        sparse_adam.step_,
        "Kingma & Ba 2015, arXiv:1412.6980; arithmetic and defaults of torch.optim.SparseAdam",
        shapes=sparse_adam.shapes,
        check=sparse_adam.check,
        takes_rows=sparse_adam.takes_rows,
    ),
    Optimizer(
        "adadelta",
        "Sizes steps by the steps before them, so that a learning rate of 1 is a good one.",
        adadelta.Adadelta,
        adadelta.state,
        adadelta.step_,
        "Zeiler 2012, arXiv:1212.5701; defaults of torch.optim.Adadelta",
    ),
    Optimizer(
        "rprop",
        "Lets every parameter's step grow or shrink by the gradient's sign; for whole data sets in one batch.",
        rprop.Rprop,
        rprop.state,
        rprop.step_,
        "Riedmiller & Braun 1993; defaults of torch.optim.Rprop",
        begin_=rprop.begin_,
    ),
    Optimizer(
        "lamb",
        "Adam whose step for each tensor is as long as the tensor's weights tell; for large batches.",
        lamb.LAMB,
        lamb.state,
        lamb.step_,
        "You et al. 2020, arXiv:1904.00962; the paper's defaults",
        shapes=lamb.shapes,
    ),
    Optimizer(
        "lars",
        "SGD whose rate for each tensor follows its weights' norm over its gradient's; for large batches.",
        lars.LARS,
        lars.state,
        lars.step_,
        "You, Gitman & Ginsburg 2017, arXiv:1708.03888; the paper's momentum and trust coefficient",
        optional_state=("momentum_buffer",),
        shapes=lars.shapes,
        own_scale=frozenset({"momentum_buffer"}),
    ),
    Optimizer(
        "adafactor",
        "Adam's sense of scale with next to no state: one number for each row and column of a matrix.",
        adafactor.Adafactor,
        adafactor.state,
        adafactor.step_,
        "Shazeer & Stern 2018, arXiv:1804.04235; defaults of torch.optim.Adafactor",
        shapes=adafactor.shapes,
    ),
    Optimizer(
        "muon",
        "Momentum made orthonormal; for the matrices of hidden layers, and for nothing but matrices.",
        muon.Muon,
        muon.state,
        muon.step_,
        "Jordan et al. 2024, kellerjordan.github.io/posts/muon; defaults of torch.optim.Muon",
        shapes=muon.shapes,
        check=muon.check,
        own_scale=frozenset({"momentum_buffer"}),
    ),
    Optimizer(
        "soap",
        "Adam in the eigenbasis of Shampoo's preconditioners; two square matrices of state for each dimension.",
        soap.SOAP,
        soap.state,
        soap.step_,
        "Vyas et al. 2024, arXiv:2409.11321; defaults of pytorch_optimizer's SOAP, which it needs",
        longest=LONGEST_DECOMPOSED,
        shapes=soap.shapes,
        check=soap.check,
        own_scale=frozenset({"exp_avg", "exp_avg_sq"}),
    ),
    Optimizer(
        "shampoo",
        "Multiplies every dimension of the gradient by an inverse root of its second moments.",
        shampoo.Shampoo,
        shampoo.state,
        shampoo.step_,
        "Gupta, Koren & Singer 2018, arXiv:1802.09568; defaults of pytorch_optimizer's Shampoo",
        longest=LONGEST_DECOMPOSED,
        shapes=shampoo.shapes,
        check=shampoo.check,
        own_scale=frozenset({"momentum_buffer"}),
    ),
    Optimizer(
        "adamax",
        "Adam that divides by a decaying maximum of |g|: steps are never longer than lr.",
        adamax.Adamax,
        adamax.state,
        adamax.step_,
        "Kingma & Ba 2015, arXiv:1412.6980, section 7.1; defaults of torch.optim.Adamax",
    ),
    Optimizer(
        "nadam",
        "Adam with Nesterov's momentum.",
        nadam.NAdam,
        nadam.state,
        nadam.step_,
        "Dozat 2016; defaults of torch.optim.NAdam",
        numbers={"mu_product": 1.0},
        advance=nadam.advance,
    ),
    Optimizer(
        "radam",
        "Adam that warms itself up: no denominator until it rests on enough gradients.",
        radam.RAdam,
        radam.state,
        radam.step_,
        "Liu et al. 2020, arXiv:1908.03265; defaults of torch.optim.RAdam",
    ),
    Optimizer(
        "asgd",
        "SGD with a decaying rate, and an average of the weights kept beside them.",
        asgd.ASGD,
        asgd.state,
        asgd.step_,
        "Polyak & Juditsky 1992; defaults of torch.optim.ASGD",
        numbers=asgd.NUMBERS,
        advance=asgd.advance,
        evaluate_=asgd.evaluate_,
    ),
    Optimizer(
        "ademamix",
        "AdamW with a second, very slow mean of the gradient; for long runs.",
        ademamix.AdEMAMix,
        ademamix.state,
        ademamix.step_,
        "Pagliardini et al. 2024, arXiv:2409.03137",
    ),
    Optimizer(
        "adan",
        "Nesterov's momentum from differences of successive gradients; twice Adam's state.",
        adan.Adan,
        adan.state,
        adan.step_,
        "Xie et al. 2022, arXiv:2208.06677; defaults of the authors' code",
        begin_=adan.begin_,
        own_scale=frozenset({"exp_avg_sq"}),
    ),
    Optimizer(
        "schedule_free_sgd",
        "SGD that averages its weights in place of a learning-rate schedule; no length of the run is needed.",
        schedule_free_sgd.ScheduleFreeSGD,
        schedule_free_sgd.state,
        schedule_free_sgd.step_,
        "Defazio et al. 2024, arXiv:2405.15682; defaults of the authors' SGDScheduleFree",
        begin_=schedule_free.begin_,
        numbers=schedule_free.NUMBERS,
        advance=schedule_free.advance,
        evaluate_=schedule_free_sgd.evaluate_,
    ),
    Optimizer(
        "schedule_free_adamw",
        "AdamW that averages its weights in place of a learning-rate schedule; no length of the run is needed.",
        schedule_free_adamw.ScheduleFreeAdamW,
        schedule_free_adamw.state,
        schedule_free_adamw.step_,
        "Defazio et al. 2024, arXiv:2405.15682; defaults of the authors' AdamWScheduleFree",
        begin_=schedule_free.begin_,
        numbers=schedule_free.NUMBERS,
        advance=schedule_free.advance,
        evaluate_=schedule_free_adamw.evaluate_,
    ),
    Optimizer(
        "prodigy",
        "AdamW that finds its own learning rate; lr stays 1, or is a schedule's factor.",
        prodigy.Prodigy,
        prodigy.state,
        prodigy.step_,
        "Mishchenko & Defazio 2023, arXiv:2306.06101; defaults of the authors' code",
        begin_=prodigy.begin_,
        numbers=prodigy.NUMBERS,
        survey_=prodigy.survey_,
        settle=prodigy.settle,
        own_scale=frozenset({"exp_avg", "exp_avg_sq"}),
    ),
)

OPTIMIZERS: Mapping[str, Optimizer[Any]] = MappingProxyType({row.name: row for row in _ROWS})


def find(name: str) -> Optimizer[Any]:
    """The row that a session's ``optimizer.name`` names.

    Raises: InvalidField, with the reason for a name that is left out on purpose, else listing the names there are.
    """
    if name.lower() in REFUSED:
        raise InvalidField(f"There is no optimizer '{name}' here: it {REFUSED[name.lower()]}.", field="optimizer.name")
    if name not in OPTIMIZERS:
        shown, known = name[:LONGEST_NAME_SHOWN], ", ".join(OPTIMIZERS)
        close = get_close_matches(shown.lower(), OPTIMIZERS, n=1)
        meant = f", perhaps '{close[0]}' is meant" if close else ""
        detail = f"There is no optimizer '{shown}'{meant}; there are {known}."
        raise InvalidField(detail, field="optimizer.name")
    return OPTIMIZERS[name]


def describe(optimizer: Optimizer[Any]) -> dict[str, Any]:
    """The row as ``GET /v1/optimizers`` gives it; state and its bytes are with the default hyperparameters.

    Where the state of a tensor depends on its shape, the bytes are those of a matrix of 1024 × 1024.
    """
    defaults = optimizer.hyperparameters()
    state = optimizer.state(defaults)
    return {
        "name": optimizer.name,
        "summary": optimizer.summary,
        "hyperparameters": optimizer.hyperparameters.model_json_schema(),
        "defaults": defaults.model_dump(mode="json"),
        "state": list(state),
        "bytes_per_parameter": FLOAT32_BYTES * _buffers_per_parameter(optimizer, defaults),
        "takes_rows": optimizer.takes_rows is not None and optimizer.takes_rows(defaults),
        "source": optimizer.source,
    }


def _buffers_per_parameter(optimizer: Optimizer[Any], hyper: Hyperparameters) -> float:
    if optimizer.shapes is None:
        return len(optimizer.state(hyper))
    sizes = map(math.prod, optimizer.shapes(hyper, _USUAL_MATRIX).values())
    return sum(sizes) / math.prod(_USUAL_MATRIX)
