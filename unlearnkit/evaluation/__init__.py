"""What an edit did: measures of a model on data, none of which changes the model."""

from unlearnkit.evaluation.accuracy import LossAndAccuracy, loss_and_accuracy, undisturbed

__all__ = ["LossAndAccuracy", "loss_and_accuracy", "undisturbed"]
