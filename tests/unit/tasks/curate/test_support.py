"""The support corpus: balanced, seeded, walled by phrasing, and honest about overlap."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
import yaml

from tasks.curate.shop import wording
from tasks.curate.shop.changed_numbers import change_numbers
from tasks.curate.shop.invented import invent
from tasks.curate.shop.knowledge import BUILT_IN, load_knowledge
from tasks.curate.shop.phrasings import topics_of
from tasks.curate.support import Support, quotas
from tasks.shared.errors import DataError
from tasks.shared.formats.articles import question_of, read_articles
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.technique import Inputs, StepRun
from tasks.shared.text.answer_format import split_answer
from tasks.shared.text.fact_matching import refuses, states_fact
from tasks.shared.text.overlap import check_overlap, user_text
from tasks.shared.text.sentences import sentences
from tests.settings_case import Case, Change

SPLITS = ("train", "calibration", "test")
SMALL = {"train_size": 420, "calibration_size": 64, "test_size": 320}


def build(out: Path, seed: int = 0, **settings) -> dict[str, list[Row]]:
    out.mkdir(exist_ok=True)
    Support(**{**SMALL, **settings})(Inputs({}), out, StepRun("corpus", seed, out))
    return {split: read_rows(out / f"{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Row]]]:
    out = tmp_path_factory.mktemp("corpus")
    return out, build(out)


def test_sizes_kinds_and_card(small) -> None:
    out, rows = small
    assert {split: len(rows[split]) for split in SPLITS} == {"train": 420, "calibration": 64, "test": 320}
    for split in SPLITS:
        assert {row.tags["kind"] for row in rows[split]} == {"faq", "troubleshoot", "edge", "refuse"}
    card = json.loads((out / "card.json").read_text())
    assert card["counts"]["test"]["rows"] == 320 and sum(card["counts"]["test"]["label"].values()) == 320
    assert card["overlap"]["max"] <= card["overlap"]["limit"] and card["overlap"]["dropped"] >= 0
    assert card["labels"] == sorted(card["labels"]) and len(card["labels"]) == 25
    assert json.loads((out / "corpus.schema.json").read_text())["title"] == "Row"


def test_every_answer_is_right(small) -> None:
    _, rows = small
    for row in (row for split in SPLITS for row in rows[split]):
        label, text = split_answer(row.answer)
        assert label == row.label
        assert refuses(text) == (row.tags["kind"] == "refuse")
        assert row.tags["kind"] == "refuse" or states_fact(text, row.facts)


def test_no_group_or_text_on_both_sides(small) -> None:
    _, rows = small
    groups = {split: {row.group for row in rows[split]} for split in SPLITS}
    assert (
        not groups["test"] & (groups["train"] | groups["calibration"]) and not groups["train"] & groups["calibration"]
    )
    texts = [user_text(row) for split in SPLITS for row in rows[split]]
    assert len(texts) == len(set(texts))
    assert not any(opening in user_text(row) for row in rows["train"] for opening in wording.TEST_OPENINGS)


def test_facts_are_covered_evenly(small) -> None:
    _, rows = small
    asked = Counter(row.group.partition("#")[0] for row in rows["train"] if row.tags["kind"] != "refuse")
    assert len(asked) == 48 and max(asked.values()) - min(asked.values()) <= 1
    judged = Counter(
        row.group.partition("#")[0]
        for row in rows["test"]
        if row.tags["kind"] != "refuse" and row.tags["grounded"] != "yes"
    )
    assert set(judged) == set(asked) and max(judged.values()) - min(judged.values()) <= 1
    assert sum(row.tags["kind"] == "refuse" for row in rows["test"]) == 64


def test_training_has_ten_wordings_of_each_fact(tmp_path: Path) -> None:
    rows = build(tmp_path, train_size=1200)["train"]
    groups = {row.group for row in rows}
    wordings = Counter(group.partition("#")[0] for group in groups)
    assert min(wordings.values()) >= 10


def test_held_out_articles_only_in_the_test_and_grounded(small) -> None:
    out, rows = small
    articles = read_articles(out / "articles.jsonl")
    held = {name for name, article in articles.items() if article.held_out}
    assert len(held) == 4
    for split in ("train", "calibration"):
        assert not held & {row.evidence for row in rows[split]}
        assert not any(articles[name].text in row.messages[1].content for row in rows[split] for name in held)
    asked = [row for row in rows["test"] if row.evidence in held]
    assert len(asked) == 32 and {row.evidence for row in asked} == held
    assert all(
        (row.tags["grounded"] == "yes") and articles[row.evidence].text in row.messages[1].content for row in asked
    )
    assert any((row.tags["grounded"] == "yes") for row in rows["train"])


def test_passages_hold_the_answer_among_others_or_the_answer_declines(tmp_path: Path) -> None:
    grounded = {"grounded_rate": 1.0, "test_grounded_rate": 1.0, "passages": 2, "uncovered_rate": 0.2}
    rows = build(tmp_path, **grounded)
    articles = read_articles(tmp_path / "articles.jsonl")
    places: Counter[int] = Counter()
    for split in SPLITS:
        asked = [row for row in rows[split] if row.tags["kind"] != "refuse"]
        missing = sum(row.declines for row in asked)
        assert 0.1 * len(asked) < missing < 0.3 * len(asked)
        for row in rows[split]:
            text = row.messages[1].content
            shown = [name for name, article in articles.items() if article.text in text]
            assert len(shown) == 2 and text.count("Article: ") == 2 and "Article: " not in question_of(text)
            assert split == "test" or not any(articles[name].held_out for name in shown)
            assert row.declines == (row.evidence not in shown) == refuses(split_answer(row.answer)[1])
            if row.evidence:
                others = "".join(articles[name].text for name in shown if name != row.evidence)
                assert states_fact(articles[row.evidence].text, row.facts) and not states_fact(others, row.facts)
                places[text.index(articles[row.evidence].text) < text.index(others)] += 1
    assert min(places.values()) > 0.4 * places.total(), "the right one comes first as often as last"


def test_excerpts_and_changed_numbers_hold_the_answer(tmp_path: Path) -> None:
    grounded = {"grounded_rate": 1.0, "test_grounded_rate": 1.0, "passages": 2, "uncovered_rate": 0.2}
    rows = build(tmp_path, **grounded, passage_sentences=2, changed_rate=0.8)
    articles = read_articles(tmp_path / "articles.jsonl")
    assert not [row for row in rows["test"] if row.tags["grounded"] == "changed"], (
        "the test asks for the shop's own facts"
    )
    changed = [row for split in ("train", "calibration") for row in rows[split] if row.tags["grounded"] == "changed"]
    covered = [row for row in rows["train"] if row.tags["grounded"] in ("yes", "changed")]
    assert 0.55 * len(covered) < len(changed)
    values: dict[str, set[str]] = {}
    for row in changed:
        shown = row.messages[1].content.removesuffix(question_of(row.messages[1].content))
        assert states_fact(shown, row.facts) and states_fact(split_answer(row.answer)[1], row.facts)
        assert not any(states_fact(article.text, row.facts) for article in articles.values() if article.text in shown)
        assert row.evidence == "", "the corpus' own article states another number"
        values.setdefault(row.group.partition("#")[0], set()).add(row.facts[0][0])
    assert sum(len(found) > 1 for found in values.values()) > 0.8 * len(values), "not one other number, learned instead"
    lengths: Counter[int] = Counter()
    for row in (row for split in SPLITS for row in rows[split]):
        blocks = row.messages[1].content.removesuffix(question_of(row.messages[1].content)).split("Article: ")[1:]
        assert len(blocks) == 2
        lengths.update(len(sentences(block.split("\n")[1])) for block in blocks)
    assert min(lengths) == 2 and max(lengths) <= 6 and lengths[2] > 0.6 * lengths.total(), "longer only for facts apart"


def test_several_questions_share_the_articles_of_a_training_prompt(tmp_path: Path) -> None:
    grounded = {"grounded_rate": 1.0, "test_grounded_rate": 1.0, "passages": 2, "uncovered_rate": 0.2}
    rows = build(tmp_path, **grounded, passage_sentences=2, questions=3, first_turn_rate=1.0)
    topics = {topic.intent: [] for topic in topics_of(load_knowledge())}
    for topic in topics_of(load_knowledge()):
        topics[topic.intent] += [topic.accept] if topic.kind != "troubleshoot" else []
    assert {len(row.messages) for row in rows["test"]} == {3}
    assert {len(row.messages) for row in rows["train"]} == {7}
    counts: Counter[str] = Counter()
    for row in rows["train"]:
        turns = [message.content for message in row.messages if message.role == "user"]
        shown = turns[0].removesuffix(question_of(turns[0]))
        assert shown.count("Article: ") == 2 and not any("Article: " in text for text in turns[1:])
        assert all(message.learn is None for message in row.messages)
        asked = {question_of(text) for text in turns}
        assert len(asked) == 3
        for message in row.messages[2:-1:2]:
            label, text = split_answer(message.content)
            facts = [accept for accept in topics[label] if states_fact(text, accept)]
            counts["fact" if facts else "declined"] += 1
            assert refuses(text) != bool(facts)
            assert not facts or any(states_fact(shown, accept) for accept in facts), "an answer that the prompt lacks"
    assert 0.4 < counts["declined"] / counts.total() < 0.65, "few facts stand in two excerpts; the rest declines"


def test_made_up_articles_answer_their_questions_and_no_other_prompt_holds_them(tmp_path: Path) -> None:
    rows = build(
        tmp_path, grounded_rate=1.0, test_grounded_rate=1.0, passages=2, passage_sentences=2, questions=3, uncovered_rate=0.2,
        invented_share=0.5, show_topics=True,
    )  # fmt: skip
    made = [row for row in rows["train"] if row.tags["grounded"] == "invented"]
    assert len(rows["train"]) == SMALL["train_size"] and len(made) == len(rows["train"]) // 2
    assert not [row for split in ("calibration", "test") for row in rows[split] if row.tags["grounded"] == "invented"]
    articles = {article.title: article for article in read_articles(tmp_path / "articles.jsonl").values()}
    declined = 0
    values: set[str] = set()
    for row in made:
        blocks = row.messages[1].content.removesuffix(question_of(row.messages[1].content)).split("Article: ")[1:]
        titles = [block.split("\n")[0].removesuffix(")").split(" (") for block in blocks]
        assert len(titles) == 2 and not {title for title, _ in titles} & set(articles)
        label, answer = split_answer(row.answer)
        declined += refuses(answer)
        assert refuses(answer) or states_fact(answer, row.facts)
        holding = [topic for block, (_, topic) in zip(blocks, titles, strict=True) if states_fact(block, row.facts)]
        assert not row.facts or label in holding, "the label is that of the article that answers"
        values |= {group[0] for group in row.facts}
    assert 0.2 < declined / len(made) < 0.6 and len(values) > 80
    for row in rows["test"]:
        blocks = row.messages[1].content.removesuffix(question_of(row.messages[1].content)).split("Article: ")[1:]
        for title, topic in (block.split("\n")[0].removesuffix(")").split(" (") for block in blocks):
            assert articles[title].topic == topic


def test_more_articles_than_subjects_are_fewer() -> None:
    shown, topics = invent(["a"], 40, 2, Random(0))
    assert 10 < len(shown) < 14 and len({topic.article.id for topic in topics if topic.article}) == len(shown) + 1


def test_whatever_is_made_up_reads_well() -> None:
    """Each sentence and answer states its value, with every value that may be drawn."""
    rng = Random(0)
    for _ in range(300):
        shown, topics = invent(["a", "b", "c"], 2, 3, rng)
        assert len(shown) == 2 and len({topic.id for topic in topics}) == len(topics) == 9
        for topic in topics:
            assert topic.article and states_fact(topic.article.text, topic.accept)
            texts = [*topic.answers, *(phrasing.text for phrasing in topic.phrasings), topic.article.text]
            assert all(states_fact(answer, topic.accept) for answer in topic.answers)
            assert all("{" not in text for text in texts) and topic.article.title[0].isupper()


def test_numbers_change_everywhere_or_nowhere() -> None:
    topics = {topic.id: topic for topic in topics_of(load_knowledge())}
    for topic in topics.values():
        changed = change_numbers(topic, Random(1))
        if topic.article is None or changed is topic:
            continue
        assert topic.accept + topic.first_accept != changed.accept + changed.first_accept
        assert not any(states_fact(text, topic.accept) for text in (changed.article.text, *changed.answers))
    same = {name for name, topic in topics.items() if change_numbers(topic, Random(1)) is topic and topic.article}
    assert same == {
        "account-lost-phone.backup", "no-heat.pin", "return-gift.receipt", "store-sunday.sunday", "sub-skip.deadline",
        "warranty.refurbished",
    }  # fmt: skip


def test_troubleshooting_takes_turns(small) -> None:
    _, rows = small
    turns = Counter(len(row.messages) for row in rows["train"] if row.tags["kind"] == "troubleshoot")
    assert set(turns) == {3, 5} and turns[5] > turns[3]
    follow = {split: {row.messages[3].content for row in rows[split] if len(row.messages) == 5} for split in SPLITS}
    assert not follow["test"] & follow["train"]


def test_rows_of_more_than_one_step_carry_their_reasoning(small) -> None:
    out, rows = small
    titles = {article.id: article.title for article in read_articles(out / "articles.jsonl").values()}
    for row in (row for split in SPLITS for row in rows[split]):
        if row.tags["kind"] != "troubleshoot":
            assert row.reasoning == ""
            continue
        assert titles[row.evidence] in row.reasoning and states_fact(row.reasoning, row.facts), "it leads to the answer"
        assert ("Nothing was tried" in row.reasoning) == (len(row.messages) == 3), "and knows where one stands"


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    build(tmp_path / "a"), build(tmp_path / "b"), build(tmp_path / "c", seed=1)
    for name in (*(f"{split}.jsonl" for split in SPLITS), "card.json", "articles.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "test.jsonl").read_bytes() != (tmp_path / "c" / "test.jsonl").read_bytes()


def test_large_sizes_give_distinct_conversations(tmp_path: Path) -> None:
    rows = build(tmp_path, train_size=3000, test_size=1000)
    assert len({user_text(row) for row in rows["train"]}) == 3000 and len(rows["test"]) == 1000


def test_rates_of_zero_leave_the_wording_alone(tmp_path: Path) -> None:
    rows = build(tmp_path, typo_rate=0.0, tone_rate=0.0, grounded_rate=0.0, calibration_size=48, test_size=150)
    written = {phrasing.text for topic in topics_of(load_knowledge()) for phrasing in topic.phrasings}
    assert all(question_of(row.messages[1].content) in written for split in SPLITS for row in rows[split])


def test_too_many_for_the_phrasings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="raise typo_rate or tone_rate"):
        build(tmp_path, typo_rate=0.0, tone_rate=0.0, train_size=3000)


def test_too_few_phrasings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few phrasings left"):
        build(tmp_path, test_fraction=0.5, min_train_phrasings=13)


def test_a_low_limit_drops_or_refuses_near_copies(tmp_path: Path) -> None:
    build(tmp_path / "tight", max_similarity=0.15)
    overlap = json.loads((tmp_path / "tight" / "card.json").read_text())["overlap"]
    assert overlap["dropped"] > 0 and overlap["max"] <= 0.15
    with pytest.raises(DataError, match="only"):
        build(tmp_path / "none", max_similarity=0.01)


def test_a_smuggled_copy_is_caught(small) -> None:
    _, rows = small
    copy = rows["train"][0]
    typo = copy.messages[1].model_copy(update={"content": copy.messages[1].content + "!"})
    fake = copy.model_copy(update={"group": "elsewhere", "messages": (copy.messages[0], typo, *copy.messages[2:])})
    with pytest.raises(DataError, match="copy a training one"):
        check_overlap([fake, *rows["test"]], rows["train"], 0.4)
    with pytest.raises(DataError, match="phrasing groups"):
        check_overlap([copy], rows["train"], 1.0)


def test_fewer_articles(tmp_path: Path) -> None:
    rows = build(tmp_path, articles=6, train_size=60, calibration_size=12, test_size=40)
    assert len({row.evidence for row in rows["train"]} - {""}) == 6
    trained = {row.label for row in rows["train"]}
    assert {row.label for row in rows["test"]} <= trained, "nobody can choose a label never seen"
    assert len({row.evidence for row in rows["test"] if (row.tags["grounded"] == "yes")}) == 4


def test_your_own_knowledge_base(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    starts = (
        "Why",
        "When",
        "Can somebody say",
        "Explain",
        "Tell",
        "Whereabouts",
        "Who knows",
        "Perhaps",
        "Today",
        "Query",
        "Zebra",
        "Months",
    )
    (folder / "all.yaml").write_text(
        yaml.safe_dump(
            {
                "company": {"name": "Ltd", "system": "You are the Ltd bot."},
                "articles": [
                    {
                        "id": "a",
                        "title": "A",
                        "intent": "order",
                        "text": "It takes 45 days.",
                        "facts": [
                            {
                                "id": "f",
                                "kind": "faq",
                                "gold": ["It takes 45 days."],
                                "accept": [["45 days"]],
                                "questions": [f"{start} {start[::-1]} {start * 2}" for start in starts],
                            }
                        ],
                    }
                ],
            }
        ),
        encoding="utf-8",
    )
    rows = build(
        tmp_path / "out", knowledge=str(folder), min_train_phrasings=8, train_size=12, calibration_size=2, test_size=4
    )
    assert {row.messages[0].content for row in rows["train"]} == {"You are the Ltd bot."}
    assert {row.tags["kind"] for row in rows["test"]} == {"faq"}
    assert Support(knowledge=str(folder)).sources() == (folder,)


def test_typos_change_the_text_but_hardly_its_length() -> None:
    rng = Random(3)
    questions = [phrasing.text for topic in topics_of(load_knowledge()) for phrasing in topic.phrasings]
    typed = [(text, wording.mistype(text, rng)) for text in questions]
    assert sum(before != after for before, after in typed) > 0.9 * len(typed)
    assert all(abs(len(before) - len(after)) <= 2 for before, after in typed)
    assert all([c for c in before if c.isdigit()] == [c for c in after if c.isdigit()] for before, after in typed)


def test_dress_ends_a_terse_question_before_the_closing() -> None:
    dressed = {wording.dress("refund how long", ("Hi!",), ("Thanks!",), Random(seed)) for seed in range(20)}
    assert dressed == {"Hi! refund how long", "refund how long. Thanks!", "Hi! refund how long. Thanks!"}
    assert not set(wording.TRAIN_OPENINGS + wording.TRAIN_CLOSINGS) & set(wording.TEST_OPENINGS + wording.TEST_CLOSINGS)


def test_quotas_add_up() -> None:
    topics = topics_of(load_knowledge())
    for size in (1, 7, 100, 999):
        assert sum(quotas(topics, size, (0.2, 0.1), Random(0)).values()) == size


CHANGES = {
    "knowledge": Change(lambda case: str(case.folder / "knowledge")),
    "articles": Change(3),
    "train_size": Change(50),
    "calibration_size": Change(6),
    "test_size": Change(14),
    "test_fraction": Change(0.4),
    "calibration_fraction": Change(0.2),
    "min_train_phrasings": Change(60, refused="too few phrasings"),
    "refusal_share": Change(0.5),
    "held_out_share": Change(0.4),
    "grounded_rate": Change(1.0),
    "test_grounded_rate": Change(1.0),
    "passages": Change(2),
    "uncovered_rate": Change(0.9),
    "passage_sentences": Change(1),
    "changed_rate": Change(1.0),
    "invented_share": Change(0.3),
    "show_topics": Change(value=True, given={"grounded_rate": 1.0}),
    "questions": Change(2),
    "first_turn_rate": Change(1.0),
    "typo_rate": Change(0.9),
    "tone_rate": Change(0.9),
    "max_similarity": Change(0.5),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    shutil.copytree(BUILT_IN, folder / "knowledge")
    company = folder / "knowledge" / "company.yaml"
    company.write_text(company.read_text(encoding="utf-8").replace("Fenwick", "Fennimore"), encoding="utf-8")
    sizes = {
        "articles": 2, "train_size": 48, "calibration_size": 4, "test_size": 12, "min_train_phrasings": 2, "invented_share": 0.1,
    }  # fmt: skip
    yield Case(folder, Inputs({}), sizes)
