"""The study of CIFAR-10 from the same code and TOML files, on a few hundred small images and a small net."""

import pytest
from digits_as_cifar10 import write_images

from tests.benchmarks import cifar10_study as study
from unlearnkit.experiments import load_config
from unlearnkit.models.zoo import small_resnet


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("cifar10"), train=24, test=20)


def small(images, work, **options):
    settings = (
        "data.options.image_size=8",
        "data.options.per_class=24",
        "model.factory='unlearnkit.models:small_cnn'",
        "model.options={channels=3, width=4, image_size=8}",
        "training.epochs=6",
        "training.learning_rate=0.02",
        "importance.batch_size=32",
        "recommend.trials=1",
        "tuning.budget=1",
        "evaluation.retrained_seeds=[100, 101]",
    )
    return study.Study(data=images, work=work, settings=settings, **options)


def test_one_scenario_of_the_study(images, tmp_path, capsys):
    methods = (study.SCRATCH, "finetune", "ssd", study.RECOMMENDED)
    bench = small(images, tmp_path, methods=methods)
    bench.run("subclass", 0)
    rows = bench.rows("subclass", (0, 1))
    assert set(rows) == {study.SCRATCH, "finetune", "ssd", study.RECOMMENDED, study.ORIGINAL, study.RETRAINED}
    for label in (study.SCRATCH, "finetune", study.ORIGINAL):
        assert all(0 <= rows[label]["0"][name] <= 1 for name in ("forget", "test", "ToW", "AUC", "swap", "recovery"))
    known = {}
    bench.add_to(known, (0, 1))
    page = study.page(known)
    assert "## Sub-class" in page
    assert "## Whole class" not in page
    assert "| finetune | 1 |" in page
    assert "Reached by `recommend`" in page or "1 failed: Nothing was edited" in page

    # What was measured now takes the place of what was there, and the rest stays.
    older = {"subclass": {"finetune": {"0": {"failed": "x"}, "2": rows["finetune"]["0"]}}}
    bench.add_to(older, (0, 1))
    assert "| finetune | 2 |" in study.page(older)

    capsys.readouterr()
    bench.run("subclass", 0)
    assert capsys.readouterr().out == "", "the results are there"


@pytest.mark.parametrize("scenario", study.SCENARIOS)
def test_every_method_is_there_at_its_defaults_and_tuned(scenario, tmp_path):
    labels = {method.label: method for method in study.Study(data=tmp_path, work=tmp_path).config(scenario, 1).method}
    assert {
        "finetune",
        "ssd",
        "capped-neg-grad",
        "finetune, tuned",
        "ssd, tuned",
        study.SCRATCH,
    } <= set(labels)
    assert labels[study.SCRATCH].options["epochs"] == 9


def test_the_page_says_what_is_reached_and_what_came_nearest():
    row = {"ToW": 0.98, "swap": 0.66, "recovery": 0.0, "AUC": 0.5, "share": 0.4, "search": 90.0}
    rows = {
        study.RETRAINED: [{"ToW": 0.98, "swap": 0.65}],
        study.RECOMMENDED: [row],
        study.SCRATCH: [{"ToW": 0.9, "swap": 0.65}],
        "good": [{"ToW": 0.975, "swap": 0.64}],
        "hides": [{"ToW": 0.99, "swap": 0.9}],
    }
    assert study.reach("full-class", rows).startswith("Reached by `recommend`: yes, every aim.")
    rows[study.RECOMMENDED] = [{**row, "ToW": 0.85, "share": 0.7}]
    said = study.reach("full-class", rows)
    assert "ToW is 0.850, not at least 0.97" in said
    assert "it costs 0.70 of retraining" in said
    assert "from scratch for half of the epochs has ToW 0.900" in said
    assert "Nearest: good, ToW 0.975 (every aim reached)" in said


def test_the_interval_is_that_of_students_t():
    assert study.interval([0.9, 0.92, 0.94]) == "0.920 [0.870, 0.970]"  # 4.303 · 0.02 / √3 = 0.0497
    assert study.interval([0.9]) == "0.900"
    assert study.interval([]) == "–"


def test_the_network_has_the_size_that_the_page_says():
    config = load_config(study.ROOT / "docs" / "experiments" / "cifar10-study-random.toml")
    assert config.model.factory == "unlearnkit.models:small_resnet"
    assert sum(p.numel() for p in small_resnet().parameters()) == pytest.approx(590_000, rel=0.01)
