"""The list of trials, and what their keys depend on."""

import pytest

from unlearnkit.experiments import Comparison
from unlearnkit.experiments.comparison.trial import forget_text, trials_of, variants
from unlearnkit.experiments.config import ForgetConfig, MethodConfig
from unlearnkit.utils.errors import ConfigurationError, UnknownMethodError


def names(config):
    return [(t.forget, t.config.training.seed, t.config.seed, t.variant) for t in trials_of(config)]


def test_trials_worked_example(small):
    config = small("comparison.unlearning_seeds=[0, 5]", "comparison.forget=[{classes=[3]}, {classes=[7, 8]}]")
    four = ["ssd alpha=2", "ssd alpha=1e+09", "binary-mask", "diverges"]
    assert names(config) == [
        (forget, training, unlearning, variant)
        for forget in ("classes=3", "classes=7,8")
        for training in (0, 1)
        for unlearning in (0, 5)
        for variant in four
    ]


def test_a_trial_has_a_configuration_of_its_own(small):
    trial = trials_of(small("evaluation.metrics=['zrf']", "evaluation.retrained_seeds=[8, 9]"))[-1]
    assert trial.config.forget.classes == (3,)
    assert trial.config.training.seed == 1
    assert trial.config.evaluation.metrics == ("tug-of-war", "zrf")
    assert trial.config.evaluation.retrained_seeds == (7, 8, 9)
    assert trial.method.options == {"epochs": 1, "learning_rate": 1e30}
    assert trial.name == "diverges · classes=3 · training seed 1 · unlearning seed 0"


def test_grid_is_expanded_into_variants():
    method = MethodConfig(name="ssd", label="s", options={"epsilon": 0.0}, grid={"alpha": [1, 3], "lam": [1, 2]})
    found = dict(variants(method))
    assert list(found) == ["s alpha=1 lam=1", "s alpha=1 lam=2", "s alpha=3 lam=1", "s alpha=3 lam=2"]
    assert found["s alpha=3 lam=1"].options == {"epsilon": 0.0, "alpha": 3, "lam": 1}


def test_the_section_forget_is_the_target_when_no_other_is_named(small):
    assert {t.forget for t in trials_of(small("comparison.forget=[]", "forget.classes=[4]"))} == {"classes=4"}


def test_texts_of_targets():
    assert forget_text(ForgetConfig(fine=("rocket", 3))) == "fine=rocket,3"
    assert forget_text(ForgetConfig(indices_file="deep/down.txt")) == "indices_file=down.txt"
    one, other = (forget_text(ForgetConfig(indices=rows)) for rows in ((1, 2), (1, 3)))
    assert one.startswith("indices=2:")
    assert one != other


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method=[]"], r"at least one \[\[method\]\]"),
        (["comparison.forget=[]"], r"expected what to forget, saw nothing"),
        (["comparison.forget=[{classes=[3]}, {classes=[3]}]"], r"comparison\.forget: expected each once"),
        (["evaluation.retrained=['x.safetensors']"], r"fit one forget target: set comparison\.retrained_seeds"),
        (["comparison.training_seeds=[]"], "at least one training seed"),
        (["comparison.training_seeds=[1, 1]"], r"training_seeds: expected different whole numbers ≥ 0, saw \[1, 1\]"),
        (["method.ssd.grid={alpha=[]}"], r"grid\.alpha: expected a list of at least one value"),
        (["method.ssd.grid={alpha=3}"], r"grid\.alpha: expected a list of at least one value, saw 3"),
        (["method.ssd.options={alpha=3}"], r"grid\.alpha: is in options too"),
        (["method.ssd.grid={alpa=[3]}"], "did you mean 'alpha'"),
        (["method.diverges.tuned=true"], "expected an option to search"),
        (["comparison.forget=[{classes=[33]}]"], "expected a class between 0 and 9"),
    ],
)
def test_what_cannot_be_compared(small, settings, said):
    with pytest.raises(ConfigurationError, match=said):
        Comparison.plan(small(*settings))


def test_an_unknown_metric(small):
    with pytest.raises(UnknownMethodError, match="tug-of-war"):
        Comparison.plan(small("comparison.metrics=['tug-of-wra']"))


def key(config):
    return Comparison.plan(config).trials[0].key


def test_key_depends_exactly_on_what_determines_the_result(small, monkeypatch):
    usual = key(small())
    for same in ("output='elsewhere'", "method.ssd.label='s'", "tuning.rounds=3", "data.workers=1", "seed=3"):
        assert key(small(same)) == usual, same
    others = [
        key(small(setting))
        for setting in (
            "model.options.width=3",
            "data.options.seed=1",
            "training.epochs=3",
            "importance.reference='retain'",
            "method.ssd.grid={alpha=[4]}",
            "method.ssd.normalise=false",
            "method.ssd.options.lam=0.5",
            "comparison.forget=[{classes=[4]}]",
            "comparison.training_seeds=[2]",
            "comparison.unlearning_seeds=[2]",
            "comparison.retrained_seeds=[7]",
            "comparison.metrics=['zrf']",
            "comparison.threads=2",
            "evaluation.batch_size=100",
            "evaluation.seed=1",
        )
    ]
    monkeypatch.setattr("unlearnkit.experiments.provenance.versions", lambda: {"torch": "0"})
    others.append(key(small()))
    assert len({usual, *others}) == 1 + 16


def test_a_tuned_trial_depends_on_the_section_tuning(small):
    one, other = (Comparison.plan(small(s)).trials[2].key for s in ("tuning.rounds=0", "tuning.rounds=1"))
    assert one != other


def test_a_tuned_trial_depends_on_which_options_are_fixed(small):
    """λ = 1 is the default; but given, it is not searched."""
    free, given = (
        key(small(f"method=[{{name='ssd', tuned=true{options}}}]")) for options in ("", ", options={lam=1.0}")
    )
    assert free != given


def test_run_and_tune_refuse_options_of_compare(small):
    from unlearnkit.experiments.run import run
    from unlearnkit.experiments.tune import tune

    with pytest.raises(ConfigurationError, match="'binary-mask': expected fixed options for a dry run, saw tuned"):
        list(run(small(), dry_run=True))
    with pytest.raises(ConfigurationError, match="'ssd': expected no grid"):
        list(run(small("method=[{name='ssd', grid={alpha=[1]}}]")))
    with pytest.raises(ConfigurationError, match="'ssd': expected no grid"):
        tune(small("tuning.method='ssd'"))
