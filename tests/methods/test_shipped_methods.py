"""Every shipped method and estimator: the laws in both precisions, and a run by name."""

import json
from functools import partial

import attrs
import pytest
import torch
from safetensors.torch import load_file

from unlearnkit import Need, PluginManager
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.testing import LawCase, RuleInputs, laws_for
from unlearnkit.utils.options import options_of


def shipped(role):
    provided = PluginManager().provided(role)
    return {entry.name: entry.cls for entry in provided if entry.plugin.origin.startswith("unlearnkit ")}


METHODS, ESTIMATORS = shipped("unlearner"), shipped("estimator")
PRECISIONS = (torch.float32, torch.float64)


def quick(cls):
    """The cheapest options of a method: one epoch, one draw."""
    names = {option.name for option in options_of(cls)}
    if cls.name == "sequence":
        return cls(steps=(METHODS["ssd"](), METHODS["finetune"](epochs=1)))
    return cls(**{name: 1 for name in ("epochs", "draws", "max_epochs") if name in names})


def has(dtype, case):
    one = case[0] if isinstance(case, tuple) else case
    if isinstance(one, RuleInputs):
        return one.theta.dtype == dtype
    return not isinstance(one, LawCase) or one.dtype == dtype


def moved(dtype, case):
    """The same law case in another precision; other values unchanged."""
    if isinstance(case, tuple):
        return (moved(dtype, case[0]), *case[1:])
    return attrs.evolve(case, dtype=dtype) if isinstance(case, LawCase) else case


EXACT = ("additive", "order-free", "batch-size-free", "quadratic")
"""Laws of sums that are checked only in float64, where rounding hides no fault."""


def in_precision(law, dtype):
    """The same law, on cases of one precision only."""
    return attrs.evolve(law, cases=lambda s: law.cases(s).map(partial(moved, dtype)).filter(partial(has, dtype)))


def test_the_list_is_that_of_the_docs():
    assert set(METHODS) == {
        *("prune", "binary-mask", "ssd", "ssd-adaptive", "ssd-soft", "fisher-topk", "fisher-noise", "finetune"),
        *("neg-grad-plus", "bad-teacher", "scrub", "salun", "jit", "retrain"),
        *("grad-diff", "npo", "simnpo", "undial", "rmu"),
        *(
            "capped-neg-grad",
            "shrink-perturb",
            "reset-last",
            "l1-sparse",
            "random-label",
            "unsir",
            "ssd-depth",
            "class-projection",
            "sequence",
        ),
    }
    assert set(ESTIMATORS) == {
        *("diagonal-fisher", "batched-diagonal-fisher", "sketched-fisher", "loss-free", "output-norm"),
        *("sampled-fisher", "exact-fisher"),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", [*METHODS, *ESTIMATORS])
def test_contract_in_each_precision(name, dtype):
    subject = quick({**METHODS, **ESTIMATORS}[name])
    laws, seen = [law for law in laws_for(subject) if dtype == torch.float64 or law.name not in EXACT], []
    for law in laws:
        fixed = in_precision(law, dtype)
        looking = attrs.evolve(fixed, holds=lambda s, case, law=law: (seen.append(case), law.holds(s, case))[1])
        looking.check(subject, examples=3)
    assert len(seen) >= len(laws)
    assert all(has(dtype, case) for case in seen)


EPOCHS = {
    **dict.fromkeys(("bad-teacher", "finetune", "jit", "neg-grad-plus", "retrain", "salun", "random-label"), 2),
    **dict.fromkeys(("shrink-perturb", "reset-last", "l1-sparse", "unsir"), 2),
    **dict.fromkeys(("grad-diff", "npo", "simnpo", "undial", "rmu"), 2),
    **dict.fromkeys(("scrub", "capped-neg-grad"), 3),
}
FORGETS = ("bad-teacher", "neg-grad-plus", "retrain", "salun", "scrub", "random-label")


def settings(name):
    """The `[[method]]` table of a method."""
    more = ", max_epochs = 3, learning_rate = 3e-3" if name == "scrub" else ""
    options = f"options = {{ epochs = {EPOCHS[name]}{more} }}\n" if name in EPOCHS else ""
    if name == "sequence":
        options = "steps = [{ name = 'ssd' }, { name = 'finetune', options = { epochs = 1 } }]\n"
    return f'[[method]]\nname = "{name}"\n{options}'


@pytest.fixture(scope="module")
def by_name(tmp_path_factory, trained_checkpoint):
    """Every method by its name from one configuration, on the digits."""
    root = tmp_path_factory.mktemp("shipped")
    methods = "".join(map(settings, METHODS))
    (root / "experiment.toml").write_text(
        f'output = "{root}/out"\ndevice = "cpu"\n'
        f'[model]\nfactory = "unlearnkit.models:small_cnn"\noptions = {{ width = 4 }}\n'
        f'checkpoint = "{trained_checkpoint}"\n[data]\nname = "digits"\n[forget]\nclasses = [3]\n'
        f'[importance]\nreference = "retain"\n[evaluation]\npage = false\n{methods}'
    )
    return {r.label: (r, root / "out" / r.label) for r in run(load_config(root / "experiment.toml"))}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_by_name_and_its_report_is_true(by_name, trained_checkpoint, name):
    record, folder = by_name[name]
    original, edited = load_file(trained_checkpoint), load_file(folder / "model.safetensors")
    report = json.loads((folder / "report.json").read_text())
    assert report["method"] == name
    assert report["provider"].startswith("unlearnkit ")
    assert report["changed"] == sum(int((original[t.name] != edited[t.name]).sum()) for t in record.report.tensors) > 0
    wanted = quick(METHODS[name]).requires() & {Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE}
    assert len(record.report.evidence) == len(wanted)
    assert set(report["after"]) == {"retain-test", "forget-test", "forget-train"}


@pytest.mark.parametrize("name", EPOCHS)
def test_a_method_that_trains_reports_its_epochs_and_the_buffers_that_changed(by_name, trained_checkpoint, name):
    _, folder = by_name[name]
    original, edited = load_file(trained_checkpoint), load_file(folder / "model.safetensors")
    report = json.loads((folder / "report.json").read_text())
    assert report["options"]["epochs"] == EPOCHS[name]
    buffers = [key for key in original if "running" in key or "num_batches" in key]
    assert set(report["buffers_changed"]) == {key for key in buffers if not torch.equal(original[key], edited[key])}


@pytest.mark.parametrize("name", FORGETS)
def test_a_method_that_trains_forgets_the_class_and_keeps_the_others(by_name, name):
    record, _ = by_name[name]
    assert record.after["forget-test"].accuracy < 0.5 * record.before["forget-test"].accuracy
    assert record.after["retain-test"].accuracy > (0.5 if name == "retrain" else 0.85)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_runs_by_name(run_by_name, name):
    # Labels from the model need several passes; prune needs only the forget importance, of 137 images.
    method, options = ("prune", "{tau=1e-3}") if ESTIMATORS[name].traits.labels == "model" else ("ssd", "{alpha=2.0}")
    record, before, after = run_by_name(method, f"importance.estimator='{name}'", options=options)
    assert {e.fingerprint.estimator for e in record.report.evidence} == {name}
    assert {e.fingerprint.labels for e in record.report.evidence} == {ESTIMATORS[name].traits.labels}
    assert record.report.changed == sum(int((before[k] != after[k]).sum()) for k in before) > 0
    assert record.report.fraction < 1
