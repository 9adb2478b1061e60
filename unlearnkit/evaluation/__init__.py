"""Metrics of what an edit did; none changes the model that it measures."""

from unlearnkit.evaluation.membership.model_populations import epsilon_scores, forgetting_quality, klom, ulira
from unlearnkit.evaluation.metric import (
    EvaluationInputs,
    FeatureMeasure,
    Measurement,
    Metric,
    MetricTraits,
    NotApplicable,
)
from unlearnkit.evaluation.metrics.loss_and_accuracy import mean_interval, proportion_interval
from unlearnkit.evaluation.metrics.residual_knowledge import round_trip, steps_to_relearn
from unlearnkit.evaluation.metrics.retrain_gap import destinations, gap_to_retrain
from unlearnkit.evaluation.model_outputs import LossAndAccuracy, loss_and_accuracy
from unlearnkit.evaluation.per_sample import jensen_shannon

__all__ = [
    "EvaluationInputs",
    "FeatureMeasure",
    "LossAndAccuracy",
    "Measurement",
    "Metric",
    "MetricTraits",
    "NotApplicable",
    "destinations",
    "epsilon_scores",
    "forgetting_quality",
    "gap_to_retrain",
    "jensen_shannon",
    "klom",
    "loss_and_accuracy",
    "mean_interval",
    "proportion_interval",
    "round_trip",
    "steps_to_relearn",
    "ulira",
]
