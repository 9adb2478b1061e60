"""Models: parameters by name, objectives, snapshots and undo, checkpoints, training, classifiers."""

from unlearnkit.models.checkpoint import load_checkpoint, model_state, save_checkpoint
from unlearnkit.models.language import CausalLanguageModel, MaskedLanguageModel, Seq2Seq, SequenceClassification
from unlearnkit.models.objective import (
    Autocast,
    BinaryCrossEntropy,
    Classification,
    CrossEntropy,
    Objective,
    SquaredError,
)
from unlearnkit.models.parameters import device_of, digest, trainable
from unlearnkit.models.sources import input_transform, load_model
from unlearnkit.models.training import EpochRecord, Loss, OptimizerConfig, Training, train
from unlearnkit.models.zoo import SmallCNN, SmallResNet, resnet18_classifier, small_cnn, small_resnet

__all__ = [
    "Autocast",
    "BinaryCrossEntropy",
    "CausalLanguageModel",
    "Classification",
    "CrossEntropy",
    "EpochRecord",
    "Loss",
    "MaskedLanguageModel",
    "Objective",
    "OptimizerConfig",
    "Seq2Seq",
    "SequenceClassification",
    "SmallCNN",
    "SmallResNet",
    "SquaredError",
    "Training",
    "device_of",
    "digest",
    "input_transform",
    "load_checkpoint",
    "load_model",
    "model_state",
    "resnet18_classifier",
    "save_checkpoint",
    "small_cnn",
    "small_resnet",
    "train",
    "trainable",
]
