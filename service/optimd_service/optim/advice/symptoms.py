"""The table's part on what was seen in training, and what to change; and the warnings."""

from __future__ import annotations

from math import inf

from optimd_service.optim.advice.choices import CONVOLUTIONAL, TRANSFORMERS
from optimd_service.optim.advice.rule import Kinds, Rule, Schedule, When

_ADAMS = ("adam", "adamw", "nadam", "radam", "lamb", "soap", "schedule_free_adamw")
# Kinds whose lr falls to the end of training.
_FALLING: Kinds = (*CONVOLUTIONAL, *TRANSFORMERS, "mlp", "linear", "rnn", "recommender")
_BENGIO = "Bengio 2012, arXiv:1206.5533, section 3.1"

SYMPTOMS: tuple[Rule, ...] = (
    Rule(
        when=When(symptoms=("loss_spikes",)),
        optimizers=_ADAMS,
        largest_beta2=0.95,
        text="Spikes come when the second moment lags behind the gradients: β₂ 0.95 lets it follow.",
        source="Wortsman et al. 2023, arXiv:2304.13013; Molybog et al. 2023, arXiv:2304.09871",
    ),
    Rule(
        when=When(symptoms=("loss_spikes", "oscillates")),
        times={"lr": 0.5},
        text="Spikes and oscillation say that lr is too high for this landscape: half of it.",
        source="Wortsman et al. 2023, arXiv:2309.14322; " + _BENGIO,
    ),
    Rule(
        when=When(symptoms=("diverges",)),
        times={"lr": 1 / 3},
        text="It diverged: begin again with a third of the lr.",
        source=_BENGIO,
    ),
    Rule(
        when=When(symptoms=("nan_gradients",)),
        times={"lr": 0.5},
        text="Before gradients are NaN they are often huge: half the lr.",
        source=_BENGIO,
    ),
    Rule(
        when=When(symptoms=("loss_spikes", "diverges", "nan_gradients", "exploding_gradients")),
        clip=1.0,
        text="Clipping the gradient's norm bounds what one step can do.",
        source="Pascanu et al. 2013, arXiv:1211.5063",
    ),
    Rule(
        when=When(symptoms=("slow_start",)),
        times={"lr": 3.0},
        text="The loss hardly moves at the start: three times the lr, as far as it does not diverge.",
        source=_BENGIO + "; Smith 2017, arXiv:1506.01186",
    ),
    Rule(
        when=When(symptoms=("plateau",)),
        schedule=Schedule("reduce_on_plateau"),
        text="lr is lowered whenever the loss has stopped falling.",
        source="torch.optim.lr_scheduler.ReduceLROnPlateau; " + _BENGIO,
    ),
    Rule(
        when=When(symptoms=("overfits", "generalises_poorly")),
        times={"weight_decay": 3.0},
        text="Three times the weight decay, where there is any.",
        source="Krogh & Hertz 1992, A simple weight decay can improve generalization",
    ),
    Rule(
        when=When(models=(*CONVOLUTIONAL, "mlp"), symptoms=("generalises_poorly",)),
        optimizers=("sgd",),
        weight=4,
        text="At equal training loss SGD with momentum often generalises better than adaptive optimizers.",
        source="Wilson et al. 2017, arXiv:1705.08292",
    ),
    Rule(
        when=When(models=(*CONVOLUTIONAL, "mlp", "rnn"), symptoms=("vanishing_gradients",)),
        optimizers=("adam", "adamw", "rmsprop"),
        weight=4,
        text="Its steps do not shrink with the gradients, so that layers with small ones are trained too.",
        source="Kingma & Ba 2015, arXiv:1412.6980, section 2.1",
    ),
    # Last: what these bring by themselves, no schedule above may replace.
    Rule(
        when=When(),
        optimizers=("schedule_free_sgd", "schedule_free_adamw"),
        set={"warmup_steps": 1000},
        schedule=Schedule("constant"),
        text="Its averages take the place of a falling lr; the warm-up is its own, since it counts in the average.",
        source="Defazio et al. 2024, arXiv:2405.15682",
    ),
    Rule(
        when=When(),
        optimizers=("rprop", "asgd"),
        schedule=Schedule("constant"),
        text="It adapts or lowers its own steps; a schedule would work against it.",
        source="Riedmiller & Braun 1993; Polyak & Juditsky 1992",
    ),
)

WARNINGS: tuple[Rule, ...] = (
    Rule(
        warning=True,
        when=When(symptoms=("vanishing_gradients",)),
        text="Vanishing gradients are cured in the model: initialise for its activations, add normalisation or "
        "residual connections.",
        source="Glorot & Bengio 2010; He et al. 2015, arXiv:1502.01852",
    ),
    Rule(
        warning=True,
        when=When(symptoms=("nan_gradients",)),
        text="Find where the first NaN arises (a logarithm or root of 0, an overflow); `nonfinite: skip` keeps such "
        "gradients from the weights meanwhile.",
        source="https://docs.pytorch.org/docs/stable/autograd.html#anomaly-detection",
    ),
    Rule(
        warning=True,
        when=When(symptoms=("overfits",)),
        text="Stop when the validation loss rises; more data or augmentation helps more than any optimizer.",
        source="Prechelt 1998, Early stopping – but when?",
    ),
    Rule(
        warning=True,
        when=When(symptoms=("generalises_poorly",), batch=(4096, inf)),
        text="Large batches find sharper minima: try a smaller batch at the same number of examples.",
        source="Keskar et al. 2017, arXiv:1609.04836",
    ),
    Rule(
        warning=True,
        when=When(symptoms=("oscillates", "plateau"), batch=(1, 32)),
        text="Part of what is seen may be the noise of small batches: a larger batch acts like a smaller lr.",
        source="Smith et al. 2018, arXiv:1711.00489",
    ),
    Rule(
        warning=True,
        when=When(noisy_labels=True),
        text="Networks learn right labels before wrong ones: keep a clean validation set, and stop early.",
        source="Li et al. 2020, arXiv:1903.11680",
    ),
    Rule(
        warning=True,
        when=When(fine_tuning=False, parameters_an_example=(1000, inf)),
        text="There are over a thousand parameters for each example, enough to learn them by heart: fine-tune a "
        "trained model, or watch a validation set.",
        source="Zhang et al. 2017, arXiv:1611.03530",
    ),
    Rule(
        warning=True,
        when=When(precision="f16"),
        text="Small gradients become 0 in f16: scale the loss, and let a push with an overflow be skipped.",
        source="Micikevicius et al. 2018, arXiv:1710.03740",
    ),
    Rule(
        warning=True,
        when=When(precision="bf16"),
        text="bf16 has float32's range, so that the loss needs no scaling; weights and state stay in float32.",
        source="Kalamkar et al. 2019, arXiv:1905.12322",
    ),
    Rule(
        warning=True,
        when=When(models=("gan",)),
        text="Train generator and discriminator in a session each; the discriminator may take the larger lr.",
        source="Heusel et al. 2017, arXiv:1706.08500",
    ),
    Rule(
        warning=True,
        when=When(models=("diffusion",)),
        text="Sample from an exponential moving average of the weights (decay 0.9999), not from the last step's.",
        source="Ho et al. 2020, arXiv:2006.11239",
    ),
    Rule(
        warning=True,
        when=When(models=("recommender",)),
        text="Embeddings want no weight decay: at every step it would shrink all the rows that a batch does not see.",
        source="https://docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html",
    ),
    Rule(
        warning=True,
        when=When(models=("recommender",), sparse=True),
        text="Adam's momentum moves rows that a batch does not see, for many steps after the last that did.",
        source="https://docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html",
    ),
    Rule(
        warning=True,
        when=When(models=_FALLING, length_known=False),
        text="How long training takes is not known, so that no schedule can fall to its end: give `steps`, or `epochs` "
        "with `batch_size` and `data.examples`.",
        source="Hoffmann et al. 2022, arXiv:2203.15556, appendix B",
    ),
)
