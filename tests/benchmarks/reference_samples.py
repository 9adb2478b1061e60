"""Measures what a reference from a sample of the retain set costs in quality: tuned edits and fixed options.

    python -m tests.benchmarks.reference_samples
    python -m tests.benchmarks.reference_samples docs/experiments/cifar10-full-class.toml \\
        --samples 100 300 1000 3000 --set data.options.per_class=2000 training.epochs=20

For each seed (of the training, of the draw and of the edit) and each forget target of the configuration, `ssd` is tuned
with the importance of the full set, and with one that is composed of the forget set and N retained samples
(`importance.reference_samples`). What was chosen with the full set is applied with each sample too: once the same α,
once the α that selects the same fraction of the weights, with the same λ. The score is Tug-of-War against the mean of
the retrained models. The search leaves BatchNorm as it is, so that tuned and fixed edits differ by their options alone.
Every trial is a file under ``--folder``, so an interrupted run resumes.
"""

import argparse
import importlib.metadata
import platform
import time
import warnings
from pathlib import Path

import attrs
import numpy as np
import torch

from unlearnkit.experiments.comparison.compare import compare
from unlearnkit.experiments.comparison.trial import forget_text
from unlearnkit.experiments.config import MethodConfig, load_config
from unlearnkit.utils.errors import UnlearnKitWarning

DIGITS = Path(__file__).parents[2] / "docs" / "experiments" / "digits-comparison.toml"
EVERY_DIGIT = f"comparison.forget=[{', '.join(f'{{classes=[{digit}]}}' for digit in range(10))}]"


@attrs.frozen(kw_only=True)
class Worker:
    """The configuration, the folder of the trials and the processes that share them."""

    path: Path
    folder: Path
    settings: tuple[str, ...] = ()
    jobs: int = 1

    def config(self, samples, seed, method, output):
        """The configuration of one comparison: one method, one seed, one size of the sample (0: the full set)."""
        settings = [
            "tuning.method=''",
            "tuning.reestimate='no'",
            "comparison.metrics=['tug-of-war']",
            *self.settings,
            f"output='{self.folder / output}'",
            f"evaluation.retrained_folder='{self.folder / 'models'}'",
            f"importance.reference_samples={samples}",
            f"comparison.training_seeds=[{seed}]",
            f"comparison.unlearning_seeds=[{seed}]",
        ]
        return attrs.evolve(load_config(self.path, settings), method=(method,))

    def tuned(self, samples, seed):
        """Forget target to the result of a tuned edit."""
        method = MethodConfig(name="ssd", tuned=True)
        found = compare(self.config(samples, seed, method, f"tuned-{samples}-{seed}"), jobs=self.jobs)
        return {trial.config.forget: found.results[trial.key] for trial in found.trials}

    def fixed(self, samples, seed, target, options):
        """The result of an edit with given options."""
        method = MethodConfig(name="ssd", options=options)
        kind = "fraction" if "fraction" in options else "fixed"
        config = self.config(samples, seed, method, f"{kind}-{samples}-{seed}-{forget_text(target)}")
        comparison = attrs.evolve(config.comparison, forget=(target,))
        found = compare(attrs.evolve(config, comparison=comparison))
        return found.results[found.trials[0].key]


def measure(worker, sizes, seeds):
    """Yield a row of each trial: size of the sample, kind, Tug-of-War, fraction, seconds of the reference, finding."""
    for seed in seeds:
        start, full = time.perf_counter(), worker.tuned(0, seed)
        for samples in (0, *sizes):
            for target, result in (full if samples == 0 else worker.tuned(samples, seed)).items():
                yield samples, "tuned", *scores(result)
                chosen = full[target]
                if samples and "no candidate" not in chosen.findings:
                    lam, alpha = (chosen.options[name] for name in ("lam", "alpha"))
                    for kind, options in (("α", {"alpha": alpha}), ("fraction", {"fraction": chosen.fraction})):
                        edit = worker.fixed(samples, seed, target, {**options, "lam": lam})
                        yield samples, f"same {kind}", *scores(edit)
            print(f"seed {seed}, {samples or 'all'} samples: {time.perf_counter() - start:.0f} s", flush=True)
            start = time.perf_counter()


def scores(result):
    if result.failed:
        raise SystemExit(result.error)
    found = "no candidate" if "no candidate" in result.findings else "" if result.changed else "no-op"
    return result.metrics["tug-of-war"]["ToW"], result.fraction, result.seconds.get("full importance", np.nan), found


def table(rows, sizes):
    """One line for each size and kind."""
    yield f"{'samples':>8}  {'options':13}  {'n':>3}  median  10th p.    min  edited, median  reference, s  remarks"
    for samples in (0, *sizes):
        for kind in ("tuned", "same α", "same fraction"):
            found = [row for row in rows if row[:2] == (samples, kind)]
            if found:
                tow, edited, seconds = (np.array([row[i] for row in found], dtype=float) for i in (2, 3, 4))
                notes = [row[5] for row in found if row[5]]
                remarks = ", ".join(f"{notes.count(note)} × {note}" for note in dict.fromkeys(notes))
                yield (
                    f"{samples or 'all':>8}  {kind:13}  {len(found):3}  {np.median(tow):6.3f}  "
                    f"{np.percentile(tow, 10):8.3f}  {tow.min():5.3f}  {100 * np.median(edited):12.2f} %  "
                    f"{np.nanmedian(seconds):12.3f}  {remarks}"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path, nargs="?", default=DIGITS)
    parser.add_argument("--samples", type=int, nargs="+", default=[30, 100, 300])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UnlearnKitWarning)
    torch.set_num_threads(1)
    folder = arguments.folder or Path("out") / f"reference-samples-{arguments.config.stem}"
    own = (EVERY_DIGIT,) if arguments.config == DIGITS else ()
    worker = Worker(path=arguments.config, folder=folder, settings=(*own, *arguments.settings), jobs=arguments.jobs)
    start = time.perf_counter()
    rows = list(measure(worker, arguments.samples, arguments.seeds))
    print("\n" + "\n".join(table(rows, arguments.samples)))
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "numpy", "scikit-learn"))
    print(f"\nPython {platform.python_version()}, {versions}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
