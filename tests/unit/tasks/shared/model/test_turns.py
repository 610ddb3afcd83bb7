"""What is learned of a conversation, for the chat templates of known families."""

from typing import Any

import pytest

from tasks.shared.errors import ModelError
from tasks.shared.formats.rows import Row
from tasks.shared.model.encoding import IGNORED, encode
from tasks.shared.model.prompts import render
from tasks.shared.model.turns import examples
from tests.chat_templates import FAMILIES, Family, named, tokenizer_of
from tests.tiny_llama import make_row

ANSWERS = ("Returns are accepted.", "Yes:\n\n- within 45 days\n- 3.95 postage")


@pytest.fixture(params=FAMILIES, ids=named)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


def talk(family: Family, turns: int = 2) -> Row:
    system = [("system", "Be short.")] if family.system else []
    spoken = [(role, text) for ask, answer in zip(("What?", "Sure?"), ANSWERS, strict=True) for role, text in (("user", ask), ("assistant", answer))]
    return make_row([*system, *spoken[: 2 * turns]])


def learned(tokenizer: Any, row: Row) -> tuple[str, list[list[int]]]:
    """Text of a row's sequence, and the ids of each learned part."""
    (one,) = encode([row], tokenizer, 10_000)
    parts: list[list[int]] = []
    for token, label, before in zip(one["input_ids"], one["labels"], [IGNORED, *one["labels"]], strict=False):
        if label != IGNORED:
            parts += [[]] if before == IGNORED else []
            parts[-1].append(token)
    return tokenizer.decode(one["input_ids"]), parts


def test_an_answer_is_learned_as_generation_would_have_to_write_it(family: Family) -> None:
    tokenizer, row = tokenizer_of(family), talk(family, 1)
    text, (part,) = learned(tokenizer, row)
    prompt = render(tokenizer, row.prompt)
    read = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    (one,) = encode([row], tokenizer, 10_000)
    assert one["input_ids"] == read + part, "the prompt is the one that generation reads, token by token"
    assert tokenizer.decode(part[-1]) == family.end == tokenizer.eos_token
    assert tokenizer.decode(one["input_ids"]) == prompt + family.head + ANSWERS[0] + _gap(family) + family.end
    if not family.rewritten and not family.added:
        assert render(tokenizer, row.chat, False).startswith(text)


def _gap(family: Family) -> str:
    return " " if family.name == "llama2" else ""


def test_every_turn_is_learned_once(family: Family) -> None:
    tokenizer, row = tokenizer_of(family), talk(family)
    rows = examples([row], tokenizer, "all")
    assert len(rows) == 1 + family.split and rows[-1].id == row.id
    parts = [part for each in rows for part in learned(tokenizer, each)[1]]
    head = family.head.lstrip(" ") if family.prefixed else family.head  # decoding drops a text's first space
    assert [tokenizer.decode(part) for part in parts] == [head + answer + _gap(family) + family.end for answer in ANSWERS]
    for each, number in zip(examples([row], tokenizer, "all", apart=True), (1, 2), strict=True):
        alone = learned(tokenizer, talk(family, number).model_copy(update={"messages": each.messages}))
        assert alone == learned(tokenizer, examples([talk(family, number)], tokenizer, "last")[0])


def test_the_last_turn_alone_is_learned_where_asked(family: Family) -> None:
    tokenizer, row = tokenizer_of(family), talk(family)
    (last,) = examples([row], tokenizer, "last")
    text, (part,) = learned(tokenizer, last)
    assert ANSWERS[1] in tokenizer.decode(part) and ANSWERS[0] in text
