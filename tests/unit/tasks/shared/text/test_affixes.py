"""Shared beginnings and ends: instructions are cut off, copies and questions that begin alike stay whole."""

import random

from tasks.shared.text.affixes import find_affixes

HEAD = "Below is a message of a customer. Decide whether the customer is satisfied. Answer with one word. Message: "
TAIL = "\n\nAnswer with exactly one of: satisfied, dissatisfied, undecided."
WORDS = "kettle lamp parcel shade filter lid handle cable switch glass wood color price week courier shelf".split()  # noqa: SIM905


def bodies(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.sample(WORDS, 7)) for _ in range(count)]


def test_an_instruction_before_and_after_every_text() -> None:
    plain = bodies(60)
    found = find_affixes([HEAD + text + TAIL for text in plain])
    assert [found.cut(HEAD + text + TAIL) for text in plain] == plain


def test_a_short_instruction_before_every_text() -> None:
    plain = bodies(60)
    found = find_affixes([f"Classify: {text}" for text in plain] + [f"Classify: {text}" for text in bodies(60, 1)])
    assert found.before == ()  # shorter than twelve letters: as much as questions share by nature
    found = find_affixes([f"Classify this: {text}" for text in plain])
    assert found.cut(f"Classify this: {plain[0]}") == plain[0]


def test_several_instructions_each_before_some_texts() -> None:
    heads = [
        f"Task {name}: read the following text of a customer with care and then {name} it. Text: "
        for name in WORDS[:10]
    ]
    texts = [head + text for place, head in enumerate(heads) for text in bodies(30, place)]
    found = find_affixes(texts)
    assert [found.cut(text) for text in texts] == [text.partition("Text: ")[2] for text in texts]


def test_first_words_that_many_texts_share_stay() -> None:
    heads = [
        f"Task {name}: read the following text of a customer with care and then {name} it. Text: "
        for name in WORDS[:10]
    ]
    texts = [
        f"{head}{first} {body}"
        for place, head in enumerate(heads)
        for first in ("please", "where")
        for body in bodies(30, place)
    ]
    found = find_affixes(texts)
    assert [found.cut(text) for text in texts] == [text.partition("Text: ")[2] for text in texts]


def test_copies_of_one_text_stay_comparable() -> None:
    ticket = "I ordered the blue kettle on Monday and it has not arrived yet, could you please look where it is now? Thanks, "
    copies = [ticket + name for name in ("Ann", "Bob", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo")]
    found = find_affixes([*copies, *bodies(30)])
    assert [found.cut(text) for text in copies] == copies


def test_a_text_that_is_only_the_instruction_stays() -> None:
    found = find_affixes([HEAD + text for text in bodies(60)])
    assert found.cut(HEAD) == HEAD and found.cut("other") == "other"
    assert find_affixes([]).cut("a") == "a"
