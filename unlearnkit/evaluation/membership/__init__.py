"""Membership inference: can an attacker tell forgotten samples from samples that were never trained on?"""

from unlearnkit.evaluation.membership.population import PopulationAttack, Samples, population_attack
from unlearnkit.evaluation.membership.rmia import rmia_scores
from unlearnkit.evaluation.membership.success import AttackSuccess, attack_success
from unlearnkit.evaluation.membership.ulira import ulira

__all__ = [
    "AttackSuccess",
    "PopulationAttack",
    "Samples",
    "attack_success",
    "population_attack",
    "rmia_scores",
    "ulira",
]
