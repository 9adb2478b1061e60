"""``unlearnkit train``."""

from collections.abc import Mapping

from unlearnkit.cli.console import bars, clear_errors, line, one_process
from unlearnkit.cli.options import ConfigPath, Overwrite, Quiet, Settings, Traceback, load


def train(
    config: ConfigPath,
    settings: Settings = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Train the original model of an experiment, and write its checkpoint."""
    with clear_errors(traceback=traceback):
        from unlearnkit.experiments import train_original

        one_process("train")
        chosen = load(config, settings)
        with bars(quiet=quiet) as progress:
            record = train_original(chosen, overwrite=overwrite, progress=progress)
        for number, epoch in enumerate(record["epochs"], start=1):
            line(f"epoch {number}: {_scores(epoch)}, {epoch['seconds']:.1f} s")
        line(f"test: {_scores(record['test'])}")
        line(f"checkpoint: {chosen.model.checkpoint}")


def _scores(scores: Mapping[str, float | None]) -> str:
    accuracy = scores["accuracy"]
    return f"loss {scores['loss']:.4f}" + ("" if accuracy is None else f", accuracy {accuracy:.4f}")
