"""Records of runs with every section of a page, for tests without a model."""

import attrs
import numpy as np

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.evaluation.plot_data import Destination, Histogram, PlotData, RocCurve
from unlearnkit.evaluation.tuning.result import Candidate, Setting, Tuning
from unlearnkit.importance.provenance import Fingerprint
from unlearnkit.reporting import RunRecord
from unlearnkit.unlearning.report import Report, ReportedImportance, TensorChange

HOSTILE = "<script>alert('x')</script> & \"$\\frac{1}{2}$\" 犬"
CLASSES = ("aeroplane", HOSTILE, "a class with a very long name that nobody would read to its end", "deer")


def scores(**accuracies):
    return {
        name.replace("_", "-"): LossAndAccuracy(loss=1.5 - a, accuracy=a, samples=100) for name, a in accuracies.items()
    }


def views(models=("original", "unlearned", "retrained")):
    draw = np.random.default_rng(0)
    histograms, curves, destinations = [], [], [Destination(model="label", counts=(0, 60, 40, 0))]
    for place, model in enumerate(models):
        for samples, at in (("forgotten", 5 - place), ("unseen", 3 - place)):
            histograms.append(Histogram.of(draw.beta(at + 0.2, 2, size=80), model=model, samples=samples))
        destinations.append(Destination(model=model, counts=(10 + 5 * place, 60 - 20 * place, 25, 5 + 15 * place)))
        for attack in ("loss", "entropy", "RMIA"):
            for _ in range(3 if model == "retrained" else 1):
                known, other = draw.normal(1.0 - 0.4 * place, size=100), draw.normal(size=100)
                curves.append(RocCurve.of(known, other, attack=attack, model=model))
    return PlotData(
        classes=CLASSES,
        histograms=tuple(histograms),
        curves=tuple(curves),
        destinations=tuple(destinations),
        samples={"forget-train": 100, "retain-test": 100},
        reasons={} if "retrained" in models else {"retrained": "no retrained model at hand"},
    )


def tuning(chosen=True):
    tried = [
        Candidate(
            setting=Setting(fraction=f, strength=0.3, reestimate=bool(i % 2)),
            options={"alpha": 1 / f, "lam": float(i)},
            selected=f,
            changed=f,
            retain=0.95 - f,
            forget=0.9 - 2 * f,
            distance=0.2 - f / 2,
            damage=f,
            feasible=f < 0.1,
        )
        for i, f in enumerate((0.001, 0.01, 0.05, 0.2, 0.4))
    ]
    failed = Candidate(setting=tried[0].setting, options={"alpha": float("inf")}, problem="a weight became NaN")
    return Tuning(
        target=0.7,
        target_source="stated",
        budget=0.1,
        original_retain=0.95,
        original_forget=0.9,
        candidates=(*tried, failed),
        chosen=tried[2] if chosen else None,
        seconds=2.0,
    )


REPORT = Report(
    method="ssd",
    options={"alpha": 10.0, "lam": 1.0, "limit": float("inf")},
    tensors=tuple(TensorChange(name=f"layers.{i}.weight", size=1000 * (i + 1), changed=40 * i) for i in range(12)),
    buffers_changed=("layers.1.running_mean",),
    evidence=(
        ReportedImportance(
            role="forget",
            count=100,
            samples=100,
            batches="1 × 64, 1 × 36",
            order="0f" * 16,
            fingerprint=Fingerprint(estimator="diagonal-fisher", objective="CrossEntropy()"),
            relative_error=0.0,
        ),
    ),
    remarks=("F_f/F_D is large everywhere.",),
    seconds={"forget importance": 0.5, "full importance": 4.0, "edit": 0.01, "evaluation": 1.25},
    model_before="ab" * 16,
    model_after="cd" * 16,
    provider="unlearnkit 0.1.0",
)
FULL = RunRecord(
    label="ssd-tuned",
    report=REPORT,
    forget={"scenario": "sub-class", "samples": 100, "of": 1000, "fraction": 0.1, "digest": "ef" * 16},
    before=scores(retain_test=0.96, forget_test=0.9, forget_train=1.0),
    after=scores(retain_test=0.95, forget_test=0.73, forget_train=0.74),
    metrics={"tug-of-war": {"ToW": 0.97, "original ToW": 0.7}, "mia-loss": {"AUC": 0.55, "TPR at 1 % FPR": None}},
    not_applicable={
        "mia-loss": {"TPR at 1 % FPR": "a false-positive rate of 1 % needs at least 100 non-members, saw 46"}
    },
    manifest={
        "config": {"output": "out", "forget": {"classes": ["rocket", HOSTILE], "fine": []}, "seed": 0},
        "data_digest": "01" * 16,
        "versions": {"python": "3.12.0", "torch": "2.11.0"},
        "device": "cpu (x86_64)",
        "threads": 2,
        "platform": "Linux",
        "finished": "2026-01-01T00:00:00+00:00",
    },
    retrained=tuple(
        scores(retain_test=0.95 + d, forget_test=0.72 + d, forget_train=0.72 - d) for d in (-0.02, 0, 0.02)
    ),
    tuning=tuning().to_dict(),
    views=views(),
)
BARE = RunRecord(label="bare", report=Report(method="m", remarks=("40 edits tried, and none keeps the budget.",)))
ALONE = attrs.evolve(
    FULL, label=HOSTILE, retrained=(), tuning=None, metrics={}, views=views(("original", "unlearned")), manifest={}
)
DEEP = attrs.evolve(
    BARE,
    label="deep",
    report=Report(
        method="prune",
        tensors=tuple(
            TensorChange(name=f"encoder.block{i}.attention.{w}_projection.weight", size=1000, changed=7 * i)
            for i in range(40)
            for w in "qkv"
        ),
    ),
)
RECORDS = {"full": FULL, "bare": BARE, "alone": ALONE, "deep": DEEP}
