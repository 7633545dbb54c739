"""The whole table, in the order in which its rules work."""

from __future__ import annotations

from optimd_service.optim.advice.choices import CHOICES
from optimd_service.optim.advice.rule import Rule
from optimd_service.optim.advice.small_models import SMALL_MODELS
from optimd_service.optim.advice.symptoms import SYMPTOMS, WARNINGS
from optimd_service.optim.advice.tuning import TUNING

RULES: tuple[Rule, ...] = (*CHOICES, *SMALL_MODELS, *TUNING, *SYMPTOMS, *WARNINGS)
