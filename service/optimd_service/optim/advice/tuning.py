"""The table's part on how to train: memory, size, batch, precision, schedules, clipping, weight decay."""

from __future__ import annotations

from math import inf

from optimd_service.optim.advice.choices import CONVOLUTIONAL, TRANSFORMERS
from optimd_service.optim.advice.rule import Kinds, Rule, Schedule, When

_ADAMS = ("adam", "adamw", "nadam", "radam", "adamax", "ademamix")
# Those whose lr has AdamW's meaning; Adafactor's is relative to the weights.
_LIKE_ADAMW = ("adamw", "lion", "muon", "soap", "ademamix", "schedule_free_adamw")
_LARGE_MODELS: Kinds = (*TRANSFORMERS, "diffusion")
_MOMENTUM_MODELS: Kinds = (*CONVOLUTIONAL, "mlp", "linear")
_EIGHT_BIT_BUFFER = 1.02  # bytes a parameter, scales included

TUNING: tuple[Rule, ...] = (
    # Memory. An optimizer that does not fit is dropped by its size; these say what to take then.
    Rule(
        when=When(models=_LARGE_MODELS, state_budget=(0, 8)),
        optimizers=("lion", "adafactor"),
        weight=3,
        text="Room for state is below Adam's two buffers; this one needs less.",
        source="Chen et al. 2023, arXiv:2302.06675; Shazeer & Stern 2018, arXiv:1804.04235",
    ),
    Rule(
        when=When(sparse=False, state_budget=(0, 12)),
        state_dtype="bf16",
        text="Two bytes a number are enough for running means, if what they cannot hold is rounded at random.",
        source="Gupta et al. 2015, arXiv:1502.02551; Zamirai et al. 2020, arXiv:2010.06192",
    ),
    Rule(
        when=When(sparse=False, state_budget=(0, 6)),
        state_dtype="8bit",
        text="Running means of eight bits, scaled block by block, train as well as those of 32.",
        source="Dettmers et al. 2022, arXiv:2110.02861",
    ),
    Rule(
        when=When(models=_MOMENTUM_MODELS, state_budget=(0, _EIGHT_BIT_BUFFER)),
        optimizers=("sgd",),
        set={"momentum": 0.0, "nesterov": False},
        text="There is no room for a single buffer, not even of eight bits: SGD without momentum keeps none.",
        source="Bottou 2012, Stochastic gradient descent tricks",
    ),
    Rule(
        when=When(models=_MOMENTUM_MODELS, state_budget=(_EIGHT_BIT_BUFFER, 4), sparse=True),
        optimizers=("sgd",),
        set={"momentum": 0.0, "nesterov": False},
        text="There is no room for a single buffer of float32: SGD without momentum keeps none.",
        source="Bottou 2012, Stochastic gradient descent tricks",
    ),
    Rule(
        when=When(models=_MOMENTUM_MODELS, state_budget=(_EIGHT_BIT_BUFFER, 4), precision="f64"),
        optimizers=("sgd",),
        set={"momentum": 0.0, "nesterov": False},
        text="There is no room for a single buffer of float64: SGD without momentum keeps none.",
        source="Bottou 2012, Stochastic gradient descent tricks",
    ),
    Rule(
        when=When(models=("recommender", "rnn"), state_budget=(0, 4)),
        optimizers=("sgd",),
        weight=3,
        set={"lr": 0.1},
        text="SGD is no first choice here, and the only one that keeps no state.",
        source="Naumov et al. 2019, arXiv:1906.00091; Pascanu et al. 2013, arXiv:1211.5063",
    ),
    Rule(
        when=When(models=("language_model",), parameters=(0, 30e6)),
        optimizers=_LIKE_ADAMW,
        times={"lr": 1.5},
        text="Small language models bear a larger lr.",
        source="Kaplan et al. 2020, arXiv:2001.08361, appendix D.6",
    ),
    Rule(
        when=When(models=("language_model",), parameters=(300e6, inf)),
        optimizers=_LIKE_ADAMW,
        times={"lr": 0.5},
        text="From 300 million parameters on, half the lr.",
        source="Brown et al. 2020, arXiv:2005.14165, table 2.1",
    ),
    Rule(
        when=When(models=("language_model",), parameters=(1e9, inf)),
        optimizers=_LIKE_ADAMW,
        times={"lr": 2 / 3},
        text="From a billion parameters on, two thirds of that lr.",
        source="Brown et al. 2020, arXiv:2005.14165, table 2.1",
    ),
    Rule(
        when=When(models=("language_model",), parameters=(6e9, inf)),
        optimizers=_LIKE_ADAMW,
        times={"lr": 0.6},
        text="From six billion parameters on, lr is 1.2e-4 for AdamW, and less for others in the same proportion.",
        source="Brown et al. 2020, arXiv:2005.14165, table 2.1",
    ),
    Rule(
        when=When(models=("language_model",), parameters=(50e9, inf)),
        optimizers=_LIKE_ADAMW,
        times={"lr": 0.5},
        text="From fifty billion parameters on, lr is 0.6e-4 for AdamW.",
        source="Brown et al. 2020, arXiv:2005.14165, table 2.1",
    ),
    # Fine-tuning.
    Rule(
        when=When(fine_tuning=True),
        times={"lr": 0.1},
        text="Trained weights are near where they should be: a tenth of the lr.",
        source="Kornblith et al. 2019, arXiv:1805.08974; Howard & Ruder 2018, arXiv:1801.06146",
    ),
    Rule(
        when=When(models=("transformer_encoder",), fine_tuning=True),
        optimizers=("adamw",),
        set={"lr": 2e-5},
        text="Encoders are fine-tuned at 2e-5, with bias correction.",
        source="Mosbach et al. 2021, arXiv:2006.04884; Devlin et al. 2019, arXiv:1810.04805",
    ),
    # Schedules.
    Rule(
        when=When(models=CONVOLUTIONAL),
        schedule=Schedule("cosine"),
        text="lr falls along a cosine to the end of training.",
        source="Loshchilov & Hutter 2017, arXiv:1608.03983",
    ),
    Rule(
        when=When(models=CONVOLUTIONAL, fine_tuning=False, steps=(100, 10_000)),
        optimizers=("sgd",),
        schedule=Schedule("one_cycle"),
        text="In short training one cycle up and down gets SGD further.",
        source="Smith & Topin 2018, arXiv:1708.07120",
    ),
    Rule(
        when=When(models=CONVOLUTIONAL, batch=(1024, inf)),
        schedule=Schedule("cosine", warmup=0.05, longest=2000),
        text="Large batches need a warm-up of lr over the first epochs.",
        source="Goyal et al. 2017, arXiv:1706.02677",
    ),
    Rule(
        when=When(models=("mlp", "linear", "rnn", "recommender")),
        schedule=Schedule("cosine"),
        text="A falling lr lets the noise of small batches die away.",
        source="Loshchilov & Hutter 2017, arXiv:1608.03983",
    ),
    Rule(
        when=When(models=TRANSFORMERS, fine_tuning=False),
        schedule=Schedule("cosine", warmup=0.1, longest=2000, floor=0.1),
        text="Warm-up, until the second moments can be trusted, then a cosine over the whole training to a tenth.",
        source="Hoffmann et al. 2022, arXiv:2203.15556; Ma & Yarats 2021, arXiv:1910.04209",
    ),
    Rule(
        when=When(models=TRANSFORMERS, fine_tuning=True),
        schedule=Schedule("cosine", warmup=0.1, longest=500),
        text="Fine-tuning that begins with a warm-up over a tenth of the steps fails less often.",
        source="Mosbach et al. 2021, arXiv:2006.04884",
    ),
    Rule(
        when=When(models=TRANSFORMERS, fine_tuning=False),
        optimizers=("muon", "soap"),
        schedule=Schedule("warmup_stable_decay", warmup=0.1, longest=2000),
        text="A constant lr with a decay at the end does as well as a cosine, and training can be prolonged.",
        source="Hägele et al. 2024, arXiv:2405.18392; Hu et al. 2024, arXiv:2404.06395",
    ),
    Rule(
        when=When(models=("diffusion", "gan", "reinforcement_learning")),
        schedule=Schedule("constant"),
        text="lr stays constant: the objective has no end that a schedule could aim at.",
        source="Peebles & Xie 2023, arXiv:2212.09748; Radford et al. 2016, arXiv:1511.06434",
    ),
    # Clipping and decay.
    Rule(
        when=When(models=(*TRANSFORMERS, "rnn")),
        clip=1.0,
        text="The gradient's norm is clipped at 1, so that one bad batch cannot undo much.",
        source="Pascanu et al. 2013, arXiv:1211.5063; Brown et al. 2020, arXiv:2005.14165",
    ),
    Rule(
        when=When(models=("reinforcement_learning",)),
        clip=0.5,
        text="Policy gradients are clipped at a norm of 0.5.",
        source="Huang et al. 2022, The 37 implementation details of PPO; Andrychowicz et al. 2021, arXiv:2006.05990",
    ),
    Rule(
        when=When(models=(*TRANSFORMERS, *CONVOLUTIONAL, "mlp")),
        but_not=("muon",),
        no_decay=True,
        text="Biases and the scales of normalisations are not decayed: they do not overfit, and shrinking them hurts.",
        source="Goyal et al. 2017, arXiv:1706.02677; Devlin et al. 2019, reference implementation",
    ),
    Rule(
        when=When(models=("diffusion",)),
        set={"weight_decay": 0.0},
        text="No weight decay, as for AdamW.",
        source="Peebles & Xie 2023, arXiv:2212.09748",
    ),
    Rule(
        when=When(models=("mlp", "linear", "rnn"), batch=(8192, inf)),
        optimizers=_ADAMS,
        times={"lr": 2.0},
        text="Adaptive optimizers' lr grows with the square root of the batch size; twice is a careful part of it.",
        source="Malladi et al. 2022, arXiv:2205.10782",
    ),
)
