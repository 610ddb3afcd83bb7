"""Every instruction check, with an answer that follows it and one that does not."""

import pytest

from tasks.evaluate.benchmark.instructions import CHECKS, follows_all

CASES = {
    "punctuation:no_comma": ({}, "no comma here", "one, two"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "less than"}, "two words", "now three words"),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n***\n\n***\ntwo"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "well"}, "one\n\nWell, two", "well\n\none",
    ),
    "keywords:existence": ({"keywords": ["Kettle", "box"]}, "the kettle's boxes", "the kettle"),
    "keywords:frequency": ({"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea and tea", "tea"),
    "keywords:forbidden_words": ({"forbidden_words": ["tea"]}, "a team", "some Tea"),
    "keywords:letter_frequency": ({"letter": "Q", "let_frequency": 2, "let_relation": "at least"}, "q Q", "q"),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] of [street]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. more", "Bye. P.S. more"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* one\n- two", "* one\n**two**"),
    "detectable_format:constrained_response": ({}, "My answer is no.", "No."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    "detectable_format:multiple_sections": ({"section_spliter": "Section", "num_sections": 2}, "Section 1 a\nSection 2 b", "Section one"),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "a: 1"),
    "detectable_format:title": ({}, "<<A title>>\ntext", "<< >>"),
    "combination:two_responses": ({}, "one\n******\ntwo", "same ****** same"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it."}, "say it. I do.", "I say it."),
    "startend:end_checker": ({"end_phrase": "Anything else?"}, '"Well. Anything else?"', "Anything else? No."),
    "startend:quotation": ({}, ' "all of it" ', '"'),
}  # fmt: skip


def test_every_kind_has_a_case() -> None:
    assert CASES.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", CASES)
def test_followed_and_not(name: str) -> None:
    given, good, bad = CASES[name]
    assert follows_all(good, [name], [given])
    assert not follows_all(bad, [name], [given])


def test_all_of_a_prompt_s_instructions_count_and_nothing_said_follows_none() -> None:
    names, given = ["punctuation:no_comma", "startend:quotation"], [{}, {"unused": None}]
    assert follows_all('"quiet"', names, given)
    assert not follows_all('"one, two"', names, given)
    assert not follows_all("  ", ["punctuation:no_comma"], [{}])
