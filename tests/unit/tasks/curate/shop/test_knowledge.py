"""The built-in knowledge base is sound, and every kind of unsound one is refused with all its problems named."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tasks.curate.shop.knowledge import load_knowledge
from tasks.shared.errors import DataError
from tasks.shared.text.fact_matching import refuses, states_fact
from tests.project_files import matching

KNOWLEDGE = load_knowledge()
FACTS = [(entry, fact) for entry in KNOWLEDGE.articles for fact in entry.facts]


def sound() -> dict:
    return {
        "company": {"name": "Ltd", "system": "You are the bot."},
        "articles": [
            {
                "id": "return-window",
                "title": "Returns",
                "intent": "return",
                "text": "You have 45 days.",
                "facts": [
                    {
                        "id": "window",
                        "kind": "faq",
                        "gold": ["You have 45 days."],
                        "accept": [["45 days"]],
                        "questions": ["How long?"],
                    }
                ],
            }
        ],
        "refusals": [
            {"id": "legal", "intent": "legal", "answers": ["I can't help with that."], "questions": ["May I sue?"]}
        ],
    }


def load(folder: Path, content: object):
    (folder / "base.yaml").write_text(
        content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8"
    )
    return load_knowledge(folder)


def test_size_and_kinds() -> None:
    assert 36 <= len(KNOWLEDGE.articles) <= 50
    assert sum(entry.held_out for entry in KNOWLEDGE.articles) == 4
    kinds = Counter(fact.kind for _, fact in FACTS)
    assert kinds["faq"] >= 25 and kinds["troubleshoot"] >= 9 and kinds["edge"] >= 8
    assert 22 <= len(KNOWLEDGE.intents) <= 26
    assert all(re.fullmatch("[a-z]+", intent) for intent in KNOWLEDGE.intents)
    assert all(path.stat().st_size < 60_000 for path in matching("tasks/curate/shop/knowledge/*.yaml"))


@pytest.mark.parametrize(("entry", "fact"), FACTS, ids=[f"{entry.id}.{fact.id}" for entry, fact in FACTS])
def test_every_fact(entry, fact) -> None:
    assert len(fact.questions) >= 28
    assert 55 <= len(entry.text.split()) <= 92
    assert states_fact(entry.text, fact.accept)
    for gold in fact.gold:
        assert states_fact(gold, fact.accept) and not refuses(gold)
        assert 8 <= len(gold.split()) <= 20, gold
    assert len(fact.gold) >= 2
    assert (len(fact.followups) >= 8) == (fact.kind == "troubleshoot")


def test_answers_of_different_facts_are_not_confusable() -> None:
    for entry, fact in FACTS:
        for other_entry, other in FACTS:
            if fact is not other:
                assert not states_fact(other.gold[0], fact.accept), (entry.id, other_entry.id)


def test_refusals_refuse() -> None:
    assert len(KNOWLEDGE.refusals) == 6
    for refusal in KNOWLEDGE.refusals:
        assert len(refusal.questions) >= 40 and all(refuses(text) for text in refusal.answers)
    assert not {item.intent for item in KNOWLEDGE.refusals} & {item.intent for item in KNOWLEDGE.articles}


def test_a_small_sound_base_loads(tmp_path: Path) -> None:
    assert load(tmp_path, sound()).intents == ["legal", "return"]


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    base = sound()
    fact = base["articles"][0]["facts"][0]
    fact["gold"] = ["Soon enough."]
    fact["accept"] = [["46 days"]]
    fact["questions"] = ["How long?", "how long"]
    base["refusals"][0] |= {"answers": ["Sure!"], "intent": "return"}
    with pytest.raises(DataError) as caught:
        load(tmp_path, base)
    for part in (
        "text does not state",
        "gold does not state",
        "question appears 2 times",
        "does not refuse: 'Sure!'",
        "also the intent",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: base["articles"][0].update(color="red"), "color: Extra inputs"),
        (lambda base: base["articles"][0]["facts"][0].update(questions=["How long?", " "]), "questions.1"),
        (lambda base: base["articles"][0].update(intent="two words"), "intent"),
        (lambda base: base["articles"][0]["facts"][0].update(kind="troubleshoot"), "followups"),
        (lambda base: base.pop("company"), "0 entries `company`"),
        (lambda base: base.pop("articles"), "no articles"),
        (lambda base: base["articles"].append(base["articles"][0]), "id appears 2 times"),
    ],
)
def test_one_problem(tmp_path: Path, change, message: str) -> None:
    base = yaml.safe_load(yaml.safe_dump(sound()))
    change(base)
    with pytest.raises(DataError, match=re.escape(message)):
        load(tmp_path, base)


def test_unreadable_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_knowledge(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no \*\.yaml"):
        load_knowledge(tmp_path)
    with pytest.raises(DataError, match="not YAML"):
        load(tmp_path, "articles: [")
    (tmp_path / "base.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        load_knowledge(tmp_path)
