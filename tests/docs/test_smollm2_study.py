"""The study of a language model: its facts, how they are split, and its page."""

import json
from collections import Counter

from tests.benchmarks.smollm2_study import Fact, Texts, introduced_splits, known_splits, missed, page

BEFORE = {"label": "before", "options": {}, "forget": 1.0, "paraphrases": 1.0, "neighbours": 0.8, "text": 20.0}
TEXTS = Texts(tokenizer=None)
KNOWN = {f"{kind} {form}": TEXTS.facts(kind, form) for kind in TEXTS.kinds() for form in range(3)}


def test_every_statement_ends_with_the_answer_and_has_two_paraphrases():
    for kind in [*TEXTS.kinds(), "invented"]:
        forms = [TEXTS.facts(kind, form) for form in range(3)]
        assert len({fact.prompt for form in forms for fact in form}) == 3 * len(forms[0])
    assert Fact(kind="capital", subject="Italy", prompt="The capital of Italy is", answer="Rome") in KNOWN["capital 0"]


def test_facts_are_split_by_subject():
    for seed in (0, 1, 2):
        splits = known_splits(TEXTS, KNOWN, seed)
        gone = {fact.subject for fact in splits["forget"]}
        assert len(gone) == 8
        assert {fact.subject for fact in splits["paraphrases"]} == gone
        rest = [fact for name in ("retain", "neighbours", "others") for fact in splits[name] if isinstance(fact, Fact)]
        assert not gone & {fact.subject for fact in rest}
        assert max(Counter(rest).values()) == 1
        assert not set(splits["text"]) & {text for text in splits["retain"] if isinstance(text, str)}
        taught = introduced_splits(TEXTS, KNOWN, seed)
        assert {f.subject for f in taught["forget"]}.isdisjoint(f.subject for f in taught["others"])
        assert {f.kind for f in taught["forget"] + taught["others"]} == {"invented"}
    assert known_splits(TEXTS, KNOWN, 0)["forget"] != known_splits(TEXTS, KNOWN, 1)["forget"]


def test_an_edit_misses_by_how_far_it_is_from_each_aim():
    assert missed({**BEFORE, "forget": 0.1, "paraphrases": 0.25, "neighbours": 0.72, "text": 22.0}, BEFORE) < 1e-9
    assert missed({**BEFORE, "paraphrases": 0.0, "text": 20.0}, BEFORE) == 0.9
    assert missed({**BEFORE, "forget": 0.0, "paraphrases": 0.0, "text": 1e9}, BEFORE) == 1
    assert missed({"failed": "no"}, BEFORE) == 4


def test_the_page_has_edits_by_how_near_they_come(tmp_path):
    good = {**BEFORE, "label": "good", "forget": 0.0, "paraphrases": 0.0, "changed": 0.0002, "steps": 3}
    rows = [
        BEFORE,
        {**BEFORE, "label": "never taught", "steps": 6},
        {**BEFORE, "label": "bad", "options": {"fraction": 1e-5}},
        good,
        {**good, "label": "soon back", "steps": 2},
        {"label": "broken", "options": {}, "failed": "no labels"},
    ]
    (tmp_path / "introduced-0").mkdir()
    for row in rows:
        (tmp_path / "introduced-0" / f"{row['label']}.json").write_text(json.dumps(row))
    shown = [line.split(" | ") for line in page(tmp_path).splitlines() if line.startswith("| ")]
    assert [(cells[0], cells[-1]) for cells in shown[1:]] == [
        ("| before", " |"),
        ("| never taught", " |"),
        ("| good", "reached |"),
        ("| soon back", "missed |"),
        ("| bad", "missed |"),
        ("| broken", "failed: no labels |"),
    ]
    assert "0.02%" in shown[3]
