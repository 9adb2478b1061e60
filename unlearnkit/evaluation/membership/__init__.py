"""Membership inference: can an attacker tell forgotten samples from samples that were never trained on?"""

from unlearnkit.evaluation.membership.attacks import (
    AttackSuccess,
    MembershipAttack,
    PopulationAttack,
    Samples,
    attack_success,
    population_attack,
)
from unlearnkit.evaluation.membership.model_populations import epsilon_scores, forgetting_quality, klom, ulira
from unlearnkit.evaluation.membership.rmia import rmia_scores

__all__ = [
    "AttackSuccess",
    "MembershipAttack",
    "PopulationAttack",
    "Samples",
    "attack_success",
    "epsilon_scores",
    "forgetting_quality",
    "klom",
    "population_attack",
    "rmia_scores",
    "ulira",
]
