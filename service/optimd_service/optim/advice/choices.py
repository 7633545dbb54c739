"""The first half of the table: which optimizer for which kind of model, and the settings to begin with.

Learning rates are for training from scratch at the batch size that the source used; ``tuning`` adapts them.
"""

from __future__ import annotations

from math import inf

from optimd_service.optim.advice.rule import Kinds, Rule, Scaling, When

CONVOLUTIONAL: Kinds = ("cnn", "resnet")
TRANSFORMERS: Kinds = ("transformer_encoder", "language_model", "vision_transformer")

CHOICES: tuple[Rule, ...] = (
    # Images, by convolutions.
    Rule(
        when=When(models=("resnet",)),
        optimizers=("sgd",),
        weight=10,
        set={"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        batch=Scaling(256, 1.0),
        text="Residual networks are trained with SGD and momentum, lr 0.1 at batch size 256 and in proportion to it.",
        source="Goyal et al. 2017, arXiv:1706.02677; He et al. 2016, arXiv:1512.03385",
    ),
    Rule(
        when=When(models=("cnn",)),
        optimizers=("sgd",),
        weight=9,
        set={"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        batch=Scaling(128, 1.0),
        text="SGD with momentum serves convolutional networks well; lr 0.01 is safe without normalisation layers.",
        source="Krizhevsky et al. 2012, ImageNet classification with deep convolutional neural networks",
    ),
    Rule(
        when=When(models=CONVOLUTIONAL),
        optimizers=("adamw",),
        weight=7,
        set={"lr": 1e-3, "weight_decay": 0.05},
        text="AdamW needs less tuning of lr than SGD, and decoupled decay brings it close in accuracy.",
        source="Loshchilov & Hutter 2019, arXiv:1711.05101",
    ),
    Rule(
        when=When(models=CONVOLUTIONAL, batch=(1024, inf)),
        optimizers=("lamb",),
        weight=6,
        set={"lr": 5e-3, "weight_decay": 0.02},
        text="LAMB trains ResNet-50 at batch size 2048 to a better accuracy than the classical recipe.",
        source="Wightman et al. 2021, ResNet strikes back, arXiv:2110.00476",
    ),
    Rule(
        when=When(models=CONVOLUTIONAL, batch=(8192, inf)),
        optimizers=("lars",),
        weight=11,
        set={"lr": 10.0, "momentum": 0.9, "weight_decay": 5e-4},
        text="From batches of about 8,000 images on, a rate of its own for every layer keeps SGD's accuracy.",
        source="You et al. 2017, arXiv:1708.03888",
    ),
    Rule(
        when=When(models=CONVOLUTIONAL, fine_tuning=False, length_known=False),
        optimizers=("schedule_free_sgd",),
        weight=6,
        set={"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4},
        text="Schedule-free SGD needs no end of training to be named; its lr is some ten times SGD's.",
        source="Defazio et al. 2024, arXiv:2405.15682",
    ),
    # Transformers.
    Rule(
        when=When(models=("language_model",)),
        optimizers=("adamw",),
        weight=10,
        set={"lr": 6e-4, "betas": [0.9, 0.95], "weight_decay": 0.1},
        text="Language models are trained with AdamW, β₂ 0.95 and weight decay 0.1.",
        source="Brown et al. 2020, arXiv:2005.14165; Touvron et al. 2023, arXiv:2307.09288",
    ),
    Rule(
        when=When(models=("transformer_encoder",)),
        optimizers=("adamw",),
        weight=10,
        set={"lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 0.01},
        text="Encoders are trained with Adam and decoupled decay: lr 1e-4, weight decay 0.01.",
        source="Devlin et al. 2019, arXiv:1810.04805",
    ),
    Rule(
        when=When(models=("vision_transformer",)),
        optimizers=("adamw",),
        weight=10,
        set={"lr": 5e-4, "weight_decay": 0.05},
        batch=Scaling(512, 1.0),
        text="Vision transformers are trained with AdamW, lr 5e-4 at batch size 512 and in proportion to it.",
        source="Touvron et al. 2021, arXiv:2012.12877",
    ),
    Rule(
        when=When(models=("vision_transformer",), fine_tuning=True),
        optimizers=("sgd",),
        weight=7,
        set={"lr": 0.1, "momentum": 0.9},
        text="Vision transformers are also fine-tuned with SGD and momentum, with half of AdamW's state.",
        source="Dosovitskiy et al. 2021, arXiv:2010.11929; Kumar et al. 2022, arXiv:2211.09359",
    ),
    Rule(
        when=When(models=TRANSFORMERS, fine_tuning=False),
        optimizers=("muon",),
        weight=8,
        set={"lr": 6e-4, "momentum": 0.95, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"},
        text="Muon's orthogonalised momentum reaches a loss in fewer steps, with half of AdamW's state. It takes "
        "matrices alone: embeddings, head and vectors go to a second session, with AdamW.",
        source="Liu et al. 2025, arXiv:2502.16982",
    ),
    Rule(
        when=When(models=(*TRANSFORMERS, "diffusion")),
        optimizers=("lion",),
        weight=7,
        set={"lr": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0.3},
        text="Lion keeps half of AdamW's state; its lr is 3 to 10 times smaller, its weight decay as much larger.",
        source="Chen et al. 2023, arXiv:2302.06675",
    ),
    Rule(
        when=When(models=("language_model",), fine_tuning=False),
        optimizers=("soap",),
        weight=6,
        set={"lr": 3e-3, "betas": [0.95, 0.95], "weight_decay": 0.01},
        text="SOAP, Adam in Shampoo's eigenbasis, needs fewer steps than AdamW where memory and time a step allow it.",
        source="Vyas et al. 2024, arXiv:2409.11321",
    ),
    Rule(
        when=When(models=("language_model", "vision_transformer"), fine_tuning=False, steps=(100_000, inf)),
        optimizers=("ademamix",),
        weight=7,
        set={"lr": 6e-4, "weight_decay": 0.1},
        lasting=("alpha_warmup", "beta3_warmup"),
        text="In long training a second, much slower mean of the gradients pays; it comes in over the whole run.",
        source="Pagliardini et al. 2024, arXiv:2409.03137",
    ),
    Rule(
        when=When(models=("language_model", "transformer_encoder")),
        optimizers=("adafactor",),
        weight=5,
        set={"lr": 1e-2},
        text="Adafactor keeps row and column means in place of the second moment: next to no state.",
        source="Shazeer & Stern 2018, arXiv:1804.04235; Raffel et al. 2020, arXiv:1910.10683",
    ),
    Rule(
        when=When(models=("transformer_encoder",), batch=(4096, inf)),
        optimizers=("lamb",),
        weight=11,
        set={"lr": 2e-3, "weight_decay": 0.01},
        text="LAMB trains encoders on batches of tens of thousands of sequences without loss.",
        source="You et al. 2020, arXiv:1904.00962",
    ),
    Rule(
        when=When(models=(*TRANSFORMERS, "mlp", "rnn"), fine_tuning=False, length_known=False),
        optimizers=("schedule_free_adamw",),
        weight=7,
        set={"lr": 2.5e-3, "betas": [0.9, 0.999], "weight_decay": 0.05},
        text="Schedule-free AdamW needs no end of training to be named: its averages stand for the decay of lr.",
        source="Defazio et al. 2024, arXiv:2405.15682",
    ),
    # Generation.
    Rule(
        when=When(models=("diffusion",)),
        optimizers=("adamw",),
        weight=10,
        set={"lr": 1e-4, "weight_decay": 0.0},
        text="Diffusion models are trained with AdamW at a constant 1e-4 and without weight decay.",
        source="Dhariwal & Nichol 2021, arXiv:2105.05233; Peebles & Xie 2023, arXiv:2212.09748",
    ),
    Rule(
        when=When(models=("gan",)),
        optimizers=("adam",),
        weight=10,
        set={"lr": 2e-4, "betas": [0.5, 0.999]},
        text="Adversarial training oscillates with much momentum; β₁ 0.5 steadies it.",
        source="Radford et al. 2016, arXiv:1511.06434",
    ),
    Rule(
        when=When(models=("gan",)),
        optimizers=("rmsprop",),
        weight=7,
        set={"lr": 5e-5},
        text="A Wasserstein critic becomes unstable with momentum; RMSprop has none.",
        source="Arjovsky et al. 2017, arXiv:1701.07875",
    ),
    # Tables of embeddings.
    Rule(
        when=When(models=("recommender",)),
        optimizers=("adagrad",),
        weight=8,
        set={"lr": 0.01},
        text="AdaGrad gives rarely seen embeddings the large steps that they need.",
        source="Duchi et al. 2011, JMLR 12; Naumov et al. 2019, arXiv:1906.00091",
    ),
    Rule(
        when=When(models=("recommender",)),
        optimizers=("adam",),
        weight=8.5,
        set={"lr": 1e-3},
        text="Adam is the usual choice for recommenders whose rows are all seen often.",
        source="He et al. 2017, Neural collaborative filtering, arXiv:1708.05031",
    ),
    Rule(
        when=When(models=("recommender", "rnn", "mlp")),
        optimizers=("adamax",),
        weight=3,
        set={"lr": 2e-3},
        text="Adamax divides by the largest recent gradient, which rare, large ones cannot upset.",
        source="Kingma & Ba 2015, arXiv:1412.6980, section 7",
    ),
    Rule(
        when=When(models=("recommender", "linear", "mlp"), sparse=True),
        optimizers=("adagrad",),
        weight=10,
        set={"lr": 0.01},
        text="On sparse gradients AdaGrad's bound is better than SGD's, and what got no gradient stays where it is.",
        source="Duchi et al. 2011, JMLR 12",
    ),
)
