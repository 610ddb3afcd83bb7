"""Labels as tokens: tokenized once for all prompts, and found without scoring all of them."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from tasks.shared.engines.labels import Found, Path, end_of_turn, find_likeliest, grow_tree, label_prompts
from tests.tiny_llama import build_tokenizer
from tests.tiny_tokenizers import llama3_like, sentencepiece_like

LABELS = ["card_arrival", "card_linking", "lost or stolen card", "returns", "Änderung", "退款"]
HEADS = [
    "<|im_start|>user\nHow long?<|im_end|>\n<|im_start|>assistant\n",
    "User: is it 24 months?\nBot:",
    "The kettle",
    "[INST] a [/INST] ",
]
QUESTIONS = ["Where is it", "returns are accepted within 45 days", "退款?", "a  b"]


def encoder(tokenizer: Any) -> Any:
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def alone(encode: Any, prompt: str, labels: Sequence[str]) -> tuple[Path, ...]:
    """The harness's definition, label by label."""
    before = encode(prompt.rstrip())
    return tuple(tuple(encode(prompt + label)[len(before) :]) for label in labels)


@pytest.mark.parametrize("make", [build_tokenizer, llama3_like, sentencepiece_like, lambda: sentencepiece_like(True)])
@pytest.mark.parametrize("head", HEADS)
def test_labels_are_tokenized_as_after_each_whole_prompt(make: Any, head: str) -> None:
    encode = encoder(make())
    prompts = [question + head for question in QUESTIONS]
    for count in (1, len(prompts)):
        found = label_prompts(encode, encode, prompts[:count], LABELS, "\n")
        assert [prompt.ids for prompt in found] == [encode(prompt.rstrip()) for prompt in prompts[:count]]
        assert [prompt.labels for prompt in found] == [alone(encode, prompt, LABELS) for prompt in prompts[:count]]


def test_tokenizing_costs_a_few_calls_per_prompt_and_one_per_label() -> None:
    encode, calls = encoder(build_tokenizer()), []

    def count(text: str) -> list[int]:
        calls.append(text)
        return list(encode(text))

    labels = [f"label_{index}" for index in range(77)]
    label_prompts(count, count, [f"question {index}{HEADS[0]}" for index in range(20)], labels, "\n")
    assert len(calls) <= 2 * 77 + 5 * 20


def test_labels_end_where_one_is_a_prefix_of_another() -> None:
    encode = encoder(build_tokenizer())
    nested, plain = ["refund", "refund_status", "other"], ["refund", "status"]
    assert label_prompts(encode, encode, ["x\n"], nested, "\n")[0].labels == alone(
        encode, "x\n", [f"{label}\n" for label in nested]
    )
    assert label_prompts(encode, encode, ["x\n"], nested, "<|im_end|>")[0].labels[0][-1:] == (2,)
    assert label_prompts(encode, encode, ["x\n"], plain, "\n")[0].labels == alone(encode, "x\n", plain)


def test_labels_of_one_token_need_no_end() -> None:
    ids = {"1": 5, "10": 6, "x": 7}

    def encode(text: str) -> list[int]:
        return [ids[word] for word in text.split()]

    assert label_prompts(encode, encode, ["x "], ["1", "10"], " x")[0].labels == ((5,), (6,))


def test_a_tree_spells_every_label_and_holds_shared_tokens_once() -> None:
    labels = [(9, 1, 2, 3), (9, 1, 2, 4), (9, 1, 5), (9, 6)]
    tree = grow_tree(labels)
    assert tree.tokens == (9, 1, 2) and tree.parents == (-1, 0, 1) and tree.is_chain
    assert [tuple(tree.edges[edge][1] for edge in path) for path in tree.paths] == labels
    wider = grow_tree([*labels, (8, 7)])
    assert wider.tokens == (9, 1, 2, 8) and not wider.is_chain
    assert wider.lineages() == [[0], [0, 1], [0, 1, 2], [3]] and wider.depths() == [0, 1, 2, 0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("top", [1, 3, 40])
def test_the_search_finds_the_likeliest_label_or_says_that_it_ended_early(seed: int, top: int) -> None:
    """A toy model with random distributions over 40 tokens; the search sees the top ones and the likeliest of those it names."""
    draw = random.Random(seed)
    labels = [(0, *(draw.randrange(1, 40) for _ in range(draw.randint(1, 4))), 39) for _ in range(30)]
    table: dict[Path, list[float]] = {}

    def logs(path: Path) -> list[float]:
        if path not in table:
            weights = [draw.expovariate(1) ** 3 for _ in range(40)]

            table[path] = [math.log(weight / sum(weights)) for weight in weights]
        return table[path]

    def total(label: Path) -> float:
        return sum(logs(label[:place])[token] for place, token in enumerate(label))

    asked = []

    def score(path: Path, among: Sequence[int]) -> dict[int, float]:
        asked.append(path)
        values = logs(path)
        best = max(among, key=lambda token: values[token])
        shown = sorted(range(40), key=lambda token: -values[token])[:top]
        return {token: values[token] for token in [*shown, best]}

    wanted = max(map(total, labels))
    found = find_likeliest(labels, score, 10_000)
    assert found.proven and total(labels[found.label]) == pytest.approx(wanted)
    if top == 40:
        assert len(asked) == len(set(asked)), "no path is asked twice where all is known"
    greedy: Path = labels[0][:1]
    while greedy not in labels:
        options = {label[len(greedy)] for label in labels if label[: len(greedy)] == greedy}
        greedy = (*greedy, max(options, key=lambda token: logs(greedy)[token]))
    asked.clear()
    short = find_likeliest(labels, score, 4)
    assert len(asked) <= 5 and total(labels[short.label]) >= total(greedy) - 1e-9
    assert not short.proven or total(labels[short.label]) == pytest.approx(wanted)


def test_a_sure_model_is_asked_once_per_token_of_its_label() -> None:
    labels = [(0, 1, 2, 3), (0, 1, 4, 5), (0, 6, 7, 8)]
    asked = []

    def score(path: Path, among: Sequence[int]) -> dict[int, float]:
        asked.append(path)
        return {token: -0.01 if token == among[0] else -20.0 for token in among}

    assert find_likeliest(labels, score, 3) == Found(0, True)
    assert asked == [(0,), (0, 1), (0, 1, 2)], "what all labels share is not asked"
    assert find_likeliest([(5, 6)], score, 3) == Found(0, True)


def test_the_end_of_a_turn_is_read_from_the_template() -> None:
    from tasks.shared.model.prompts import render

    tokenizer = build_tokenizer()
    assert end_of_turn(lambda talk: render(tokenizer, talk)) == "<|im_end|>"
    tokenizer.chat_template = "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + ' </s>' }}{% endfor %}"
    assert end_of_turn(lambda talk: render(tokenizer, talk)) == "</s>"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert end_of_turn(lambda talk: render(tokenizer, talk)) == "\n"
