"""Generate support conversations from a knowledge base.

Kinds: FAQ, troubleshooting, edge cases and requests to refuse.  The same seed yields the same corpus.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.curate.corpus_files import write_corpus
from tasks.curate.shop import wording
from tasks.curate.shop.changed_numbers import change_numbers
from tasks.curate.shop.invented import invent
from tasks.curate.shop.knowledge import BUILT_IN, Company, Knowledge, load_knowledge
from tasks.curate.shop.passages import choose_passages, earlier_topic
from tasks.curate.shop.phrasings import Phrasing, Topic, share_out, topics_of
from tasks.curate.shop.rationales import derive_reasoning
from tasks.curate.shop.task import SUPPORT, TASK
from tasks.shared.errors import DataError
from tasks.shared.forecast import LONG_ROW_TOKENS, Forecast, Rows, Workload, forecast_light
from tasks.shared.formats.articles import Article, with_article
from tasks.shared.formats.rows import SPLITS, Message, Row, Split
from tasks.shared.formats.targets import Decline, Facts, Label, Target
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Spec, StepRun
from tasks.shared.text.answer_format import join_answer
from tasks.shared.text.fact_matching import normalize
from tasks.shared.text.overlap import TextIndex, check_overlap, user_text

Fraction = Annotated[float, Field(ge=0, le=1)]
START_TOKENS, TURN_TOKENS, TITLE_TOKENS, SENTENCE_TOKENS = 30, 55, 12, 30
"""Tokens of the beginning of a conversation, of a question with its answer, of an article's title and of a sentence of it."""
ARTICLE_SENTENCES = 6
MEAN_SHARE = 0.75
"""Tokens of the mean conversation, as a share of the longest."""
TRIES = 60
"""Variants to try for a topic's next conversation before the topic counts as exhausted."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Support:
    """Train, calibration and test conversations that ask for the same facts in different words.

    Splits are separated by phrasing group: all typo and tone variants of one wording are in one split.  In addition, each test
    text is compared with all other texts (`tasks/shared/text/overlap.py`), and near-copies are dropped.
    Multi-turn rows keep the bot's first step as the customer saw it, without a label: train on the last turn only.
    Troubleshooting rows, which have more than one step, carry reasoning: the article, the step that was tried, the next step.
    """

    knowledge: str = ""
    """Folder of your own knowledge base (*.yaml); empty: the built-in one, Fenwick & Lark."""
    articles: Annotated[int, Field(ge=0)] = 0
    """Number of training articles to use; 0 for all.  One article for each intent of the held-out articles comes first, the others
    are spread evenly over the knowledge base."""
    train_size: Annotated[int, Field(ge=1)] = 3000
    """Number of training conversations."""
    calibration_size: Annotated[int, Field(ge=1)] = 256
    """Number of conversations for pruning and quantization statistics."""
    test_size: Annotated[int, Field(ge=1)] = 1000
    """Number of test conversations."""
    test_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Fraction of every fact's phrasings that only the test split may use."""
    calibration_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.07
    """Fraction of every fact's phrasings that only the calibration split may use."""
    min_train_phrasings: Annotated[int, Field(ge=1)] = 10
    """Fewest phrasings of each fact that must remain for training."""
    refusal_share: Fraction = 0.2
    """Fraction of conversations with a request to refuse."""
    held_out_share: Fraction = 0.1
    """Fraction of test conversations about articles absent from training, with the article in the prompt."""
    grounded_rate: Fraction = 0.08
    """Fraction of training and calibration conversations about an article with that article in the prompt."""
    test_grounded_rate: Fraction = 0.0
    """The same fraction of test conversations; those about articles absent from training always have theirs."""
    passages: Annotated[int, Field(ge=1)] = 1
    """Number of articles in a prompt that has any: the right one and distractors, half of them with the same label."""
    uncovered_rate: Fraction = 0.0
    """Fraction of those prompts whose articles do not cover the question, so that the answer must decline.  Above 0, requests to refuse
    come with articles as well, or a model would learn to refuse whenever there is none."""
    passage_sentences: Annotated[int, Field(ge=0)] = 0
    """Sentences of each of those articles, as a search returns them; 0 for whole articles."""
    changed_rate: Fraction = 0.0
    """Fraction of prompts with the right article whose numbers are changed, in article and answer alike.

    Training and calibration only: a model has to read these numbers, and cannot learn them."""
    invented_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of training conversations about articles that are made up for each: nothing but reading answers their questions."""
    show_topics: bool = False
    """Write an article's topic, which is the label of its questions, behind its title in the prompt, as the category of a help page."""
    questions: Annotated[int, Field(ge=1)] = 1
    """Most questions about the articles of a prompt, each answered in a turn of its own.

    Training and calibration only; a test conversation asks one.  Several cost fewer tokens per answer, since they share the articles."""
    first_turn_rate: Fraction = 0.25
    """Fraction of troubleshooting conversations that end with the first step instead of the second."""
    typo_rate: Fraction = 0.3
    """Fraction of user turns with one or two typing errors."""
    tone_rate: Fraction = 0.3
    """Fraction of conversations with a greeting, apology, urgency or thanks around the question; the test split has its own wordings."""
    max_similarity: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Largest character 5-gram Jaccard similarity between a test conversation and any conversation of another split; more similar
    ones are dropped.

    The default separates paraphrases from edited copies of the built-in questions.  Measured: nearest paraphrase of the same
    fact 0.09 (median) and 0.23 (99th percentile); nearest question about another fact 0.12 and 0.29; a copy with typos 0.85
    (median) and 0.54 (5th percentile); a copy with a greeting 0.62 and 0.34.
    """

    spec: ClassVar[Spec] = Spec(
        summary="Built-in corpus of a fictional shop: 45 articles, 52 checkable facts, typos and tones, split by phrasing",
        ports={},
        produces=Kind.CORPUS,
        libraries=("pydantic", "PyYAML"),
    )

    def sources(self) -> tuple[Path, ...]:
        """Folder of the knowledge base, whose content is part of the key."""
        return (user_path(self.knowledge) if self.knowledge else BUILT_IN,)

    def forecast(self, work: Workload) -> Forecast:
        """Half a minute, most of it to compare texts, and the rows that the settings ask for."""
        longest = max(LONG_ROW_TOKENS, self._longest)
        return forecast_light(20, Rows(self.train_size, self.test_size, longest, round(MEAN_SHARE * self._longest)))

    @property
    def _longest(self) -> int:
        """About the tokens of the longest training conversation; those of the built-in shop."""
        articles = self.passages * (TITLE_TOKENS + SENTENCE_TOKENS * (self.passage_sentences or ARTICLE_SENTENCES))
        return START_TOKENS + TURN_TOKENS * self.questions + (articles if self.grounded_rate else 0)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write train, calibration, test and articles (.jsonl), card.json and corpus.schema.json."""
        knowledge = load_knowledge(*self.sources())
        topics = topics_of(knowledge, self.articles)
        shared = [share_out(topic, run.seed, self.test_fraction, self.calibration_fraction) for topic in topics]
        self._check_phrasings(shared)
        parts = {split: [cut[split] for cut in shared if split in cut] for split in SPLITS}
        known: list[Row] = []
        rows: dict[Split, list[Row]] = {}
        shown = articles_of(topics)
        for split in ("train", "calibration"):
            writer = _Writer(self, knowledge.company, shown, split, run.seed)
            rows[split] = writer.rows(parts[split])
            known += rows[split]
        writer = _Writer(self, knowledge.company, shown, "test", run.seed, TextIndex(user_text(row) for row in known))
        rows["test"] = writer.rows(parts["test"])
        overlap = {**asdict(check_overlap(rows["test"], known, self.max_similarity)), "dropped": writer.dropped}
        _save(out, rows, knowledge, topics, overlap)
        sizes: Metrics = {split: len(rows[split]) for split in SPLITS}
        return sizes | {
            "intents": len({topic.intent for topic in topics}),
            "overlap_max": round(overlap["max"], 3),
            "overlap_median": round(overlap["median"], 3),
            "near_copies_dropped": writer.dropped,
        }

    def size_of(self, split: Split) -> int:
        """Number of conversations to generate for a split."""
        return {"train": self.train_size, "calibration": self.calibration_size, "test": self.test_size}[split]

    def _check_phrasings(self, shared: Sequence[Mapping[Split, Topic]]) -> None:
        short = [
            f"{cut['train'].id} ({len(cut['train'].phrasings)})"
            for cut in shared
            if "train" in cut and len(cut["train"].phrasings) < self.min_train_phrasings
        ]
        if short:
            raise DataError(
                "knowledge base",
                f"too few phrasings left for training: {', '.join(short)}",
                f"at least {self.min_train_phrasings} each",
                "write more questions for these facts, or lower test_fraction or min_train_phrasings",
            )


class _Turn(NamedTuple):
    """A question and its answer.

    covered: False if the articles of the prompt should hold the answer and do not.
    """

    topic: Topic
    covered: bool
    group: str
    texts: tuple[str, str]


class _Writer:
    """Generator of one split's rows, balanced over topics.

    It repeats no text, and drops near-copies of other splits' texts.

    others: index of the texts of the other splits; None: do not compare.
    """

    def __init__(
        self,
        settings: Support,
        company: Company,
        articles: Sequence[Article],
        split: Split,
        seed: int,
        others: TextIndex | None = None,
    ) -> None:
        self.settings, self.company, self.split, self.others = settings, company, split, others
        self.articles = [article for article in articles if split == "test" or not article.held_out]
        self.system = Message(role="system", content=company.system)
        self.rng = Random(f"{seed}/{split}")
        self.topics: Sequence[Topic] = ()
        self.seen: set[str] = set()
        self.dropped = 0

    def rows(self, topics: Sequence[Topic]) -> list[Row]:
        """Rows of the split, shuffled and numbered."""
        self.topics = topics
        size = self.settings.size_of(self.split)
        invented = round(size * self.settings.invented_share) if self.split == "train" else 0
        wanted = quotas(topics, size - invented, self._shares(), self.rng)
        made = [row for topic in topics for row in self._topic(topic, wanted[topic.id])]
        made += self._distinct(self._invented, invented, "invented")
        self.rng.shuffle(made)
        return [row.model_copy(update={"id": f"{self.split}-{number:05d}"}) for number, row in enumerate(made, start=1)]

    def _shares(self) -> tuple[float, float]:
        return self.settings.refusal_share, self.settings.held_out_share if self.split == "test" else 0.0

    def _topic(self, topic: Topic, wanted: int) -> list[Row]:
        phrasings = cycle(self.rng.sample(topic.phrasings, len(topic.phrasings)))
        return self._distinct(lambda: self._variant(topic, next(phrasings)), wanted, topic.id, len(topic.phrasings))

    def _distinct(self, make: Callable[[], Row], wanted: int, name: str, least: int = 0) -> list[Row]:
        """Return `wanted` rows with texts of their own.

        least: if it is more than `wanted`, TRIES times as many are tried.
        Raises DataError if there are not enough.
        """
        made: list[Row] = []
        for _ in range(TRIES * max(wanted, least)):
            if len(made) == wanted:
                break
            row = make()
            if self._is_new(row):
                made.append(row)
        if len(made) < wanted:
            raise DataError(
                f"{self.split}: {name}",
                f"only {len(made)} distinct conversations",
                f"{wanted}",
                f"lower {self.split}_size, raise typo_rate or tone_rate, or write more questions",
            )
        return made

    def _is_new(self, row: Row) -> bool:
        text = user_text(row)
        if normalize(text) in self.seen:
            return False
        if self.others is not None and self.others.nearest(text)[0] > self.settings.max_similarity:
            self.dropped += 1
            return False
        self.seen.add(normalize(text))
        return True

    def _variant(self, topic: Topic, phrasing: Phrasing) -> Row:
        rng, settings = self.rng, self.settings
        question = self._question(phrasing)
        asked = topic
        if settings.changed_rate and self.split != "test" and rng.random() < settings.changed_rate:
            asked = change_numbers(topic, rng)
        shown, covered = self._passages(asked)
        changed = asked is not topic and bool(shown) and covered
        topic = asked if changed else topic
        others = [other for other in self.topics if other.id != topic.id]
        earlier = self._asked(others, shown, self._questions - 1) if shown else []
        turns = [*(text for turn in earlier for text in turn.texts), question]
        learned = len(turns) // 2
        answers, accept = topic.answers, topic.accept
        first = bool(topic.first_answers) and rng.random() < settings.first_turn_rate
        if not covered:
            answers, accept, first = self.company.not_covered, (), True
        elif first:
            answers, accept = topic.first_answers, topic.first_accept
        elif topic.first_answers:
            turns += [rng.choice(topic.first_answers), self._with_typos(rng.choice(topic.followups))]
        turns.append(join_answer(topic.intent, rng.choice(answers)))
        turns[0] = self._with_articles(turns[0], shown)
        talk = [
            Message(role="assistant", content=text, learn=None if place < 2 * learned or text is turns[-1] else False)
            if place % 2
            else Message(role="user", content=text)
            for place, text in enumerate(turns)
        ]  # a first step has no label, so it is not learned
        talk[-1] = talk[-1].model_copy(update={"reasoning": derive_reasoning(topic, first) if covered else ""})
        grounded = "uncovered" if shown else "no"
        if shown and covered and topic.article:
            grounded = "changed" if changed else "yes"
        tags = {"kind": topic.kind, "intent": topic.intent.lower(), "grounded": grounded}
        if self.split == "test" and topic.article:
            tags["trained"] = "no" if topic.held_out else "yes"  # the article
        return Row(
            id="new",
            task=TASK,
            messages=(self.system, *talk),
            key=answer_key(topic, accept, covered),
            tags=tags,
            group=phrasing.group,
            evidence=topic.article.id if topic.article and covered and not changed else "",
        )

    def _question(self, phrasing: Phrasing) -> str:
        """Return a question with typos, and the remarks around it."""
        question = self._with_typos(phrasing.text)
        if self.rng.random() >= self.settings.tone_rate:
            return question
        if self.split == "test":
            return wording.dress(question, wording.TEST_OPENINGS, wording.TEST_CLOSINGS, self.rng)
        return wording.dress(question, wording.TRAIN_OPENINGS, wording.TRAIN_CLOSINGS, self.rng)

    def _invented(self) -> Row:
        """Return a conversation about articles that exist nowhere else."""
        settings = self.settings
        intents = sorted({topic.intent for topic in self.topics if topic.article})
        shown, topics = invent(intents, settings.passages, settings.passage_sentences, self.rng)
        refusals = [topic for topic in self.topics if topic.article is None]
        asked = self._asked([*topics, *refusals], shown, self._questions)
        last = asked[-1]
        turns = [text for turn in asked for text in turn.texts]
        turns[0] = self._with_articles(turns[0], shown)
        roles: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
        accept = last.topic.accept if last.covered else ()
        return Row(
            id="new",
            task=TASK,
            messages=(
                self.system,
                *(Message(role=roles[place % 2], content=text) for place, text in enumerate(turns)),
            ),
            key=answer_key(last.topic, accept, last.covered),
            tags={"kind": last.topic.kind, "intent": last.topic.intent.lower(), "grounded": "invented"},
            group=last.group,
        )

    @property
    def _questions(self) -> int:
        return self.settings.questions if self.split != "test" else 1

    def _asked(self, topics: Sequence[Topic], shown: Sequence[Article], count: int) -> list["_Turn"]:
        """Return `count` questions about the articles of a prompt, or fewer, and their answers."""
        turns: list[_Turn] = []
        left = list(topics)
        for _ in range(count):
            found = earlier_topic(left, shown, self.settings.uncovered_rate, self._shares()[0], self.rng)
            if found is None:
                break
            topic, covered = found
            left.remove(topic)
            phrasing = self.rng.choice(topic.phrasings)
            question = self._question(phrasing)
            answer = self.rng.choice(topic.answers if covered else self.company.not_covered)
            turns.append(_Turn(topic, covered, phrasing.group, (question, join_answer(topic.intent, answer))))
        return turns

    def _with_articles(self, question: str, shown: Sequence[Article]) -> str:
        if self.settings.show_topics:
            shown = [
                article.model_copy(update={"title": f"{article.title} ({article.topic})"}) if article.topic else article
                for article in shown
            ]
        return with_article(question, *shown) if shown else question

    def _passages(self, topic: Topic) -> tuple[list[Article], bool]:
        """Articles for the prompt, and False if they should cover the question and do not."""
        rng, settings = self.rng, self.settings
        if topic.article is None and not settings.uncovered_rate:
            return [], True
        rate = settings.grounded_rate if self.split != "test" else settings.test_grounded_rate
        if rng.random() >= (1.0 if topic.held_out else rate):
            return [], True
        if topic.article is None:
            return self._choose(topic, covered=False), True
        covered = not settings.uncovered_rate or rng.random() >= settings.uncovered_rate
        return self._choose(topic, covered), covered

    def _choose(self, topic: Topic, covered: bool) -> list[Article]:
        settings = self.settings
        return choose_passages(
            topic, covered, settings.passages, self.articles, self.rng, settings.passage_sentences, self.topics
        )

    def _with_typos(self, text: str) -> str:
        return wording.mistype(text, self.rng) if self.rng.random() < self.settings.typo_rate else text


def quotas(topics: Sequence[Topic], size: int, shares: tuple[float, float], rng: Random) -> dict[str, int]:
    """Number of conversations per topic id.

    The numbers sum to `size` and are even within each group of topics.
    shares: fractions of `size` for refusals and for held-out topics.  Facts get the rest, and the share of a group without topics.
    """
    refusals = [topic.id for topic in topics if topic.kind == "refuse"]
    held_out = [topic.id for topic in topics if topic.held_out]
    facts = [topic.id for topic in topics if topic.kind != "refuse" and not topic.held_out]
    counts = [round(size * share) if group else 0 for group, share in zip((refusals, held_out), shares, strict=True)]
    found: dict[str, int] = {}
    for group, count in ((refusals, counts[0]), (held_out, counts[1]), (facts, size - sum(counts))):
        one_more = set(rng.sample(group, count % len(group))) if group else set()
        found |= {name: count // len(group) + (name in one_more) for name in group}
    return found


def answer_key(topic: Topic, accept: tuple[tuple[str, ...], ...], covered: bool = True) -> tuple[Target, ...]:
    """Return the label, and the facts to state or the duty to decline.

    covered: False for a question that the passages in the prompt do not cover.
    """
    facts = (Facts(groups=accept),) if accept else ()
    declines = topic.kind == "refuse" or not covered
    return (Label(label=topic.intent), *facts, *((Decline(),) if declines else ()))


def articles_of(topics: Sequence[Topic]) -> list[Article]:
    """Return the articles of the topics, each once, in their order."""
    return list(dict.fromkeys(topic.article for topic in topics if topic.article))


def _save(
    out: Path,
    rows: Mapping[Split, Sequence[Row]],
    knowledge: Knowledge,
    topics: Sequence[Topic],
    overlap: dict[str, Any],
) -> None:
    used = {topic.article.id for topic in topics if topic.article}
    articles = [entry.article for entry in knowledge.articles if entry.id in used]
    more = {
        "company": knowledge.company.name,
        "articles": len(articles),
        "held_out": [article.id for article in articles if article.held_out],
        "facts": sum(topic.kind != "refuse" for topic in topics),
        "phrasings": sum(len(topic.phrasings) for topic in topics),
        "overlap": overlap,
    }
    write_corpus(out, rows, articles, {TASK: SUPPORT}, more)
