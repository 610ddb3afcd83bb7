"""Instruction checks of IFEval that string operations can decide.

Source: Zhou et al. 2023, arXiv 2311.07911, table 1.  Five of the 25 kinds are left out, since they need a sentence splitter, a word
tokenizer or a language detector: number_sentences, capital_word_frequency, english_capital, english_lowercase, response_language.
"""

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[..., bool]


def follows_all(answer: str, instructions: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if the answer follows all instructions; an empty answer follows none.

    IFEval's strict prompt-level accuracy.
    """
    return bool(answer.strip()) and all(
        CHECKS[name](answer, **{key: value for key, value in given.items() if value is not None})
        for name, given in zip(instructions, arguments, strict=True)
    )


def _related(count: int, relation: str, wanted: int) -> bool:
    return count >= wanted if relation == "at least" else count < wanted


def _no_comma(answer: str) -> bool:
    return "," not in answer


def _number_words(answer: str, num_words: int, relation: str) -> bool:
    return _related(len(re.findall(r"\w+", answer)), relation, num_words)


def _number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Paragraphs are separated by ***; only the first or last may be empty."""
    parts = [part.strip() for part in answer.split("***")]
    while parts and not parts[0]:
        parts.pop(0)
    while parts and not parts[-1]:
        parts.pop()
    return all(parts) and len(parts) == num_paragraphs


def _paragraph_first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are separated by an empty line."""
    parts = [part.strip() for part in answer.split("\n\n") if part.strip()]
    if len(parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'\"").split("'")[0]
    return word.rstrip(string.punctuation).lower() == first_word.lower()


def _keywords(answer: str, keywords: Sequence[str]) -> bool:
    return all(word.lower() in answer.lower() for word in keywords)


def _keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _related(answer.lower().count(keyword.lower()), relation, frequency)


def _forbidden_words(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _related(answer.lower().count(letter.lower()), let_relation, let_frequency)


def _placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def _postscript(answer: str, postscript_marker: str) -> bool:
    """The marker starts a line or follows a space; spaces between its letters are ignored."""
    letters = [re.escape(letter) for letter in re.findall(r"[A-Za-z]", postscript_marker)]
    return re.search(r"(?:^|\s)" + r"\.?\s?".join(letters), answer, re.IGNORECASE) is not None


def _bullets(answer: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*\n]|-).*$", answer, re.MULTILINE)) == num_bullets


def _constrained(answer: str) -> bool:
    return any(f"My answer is {word}." in answer for word in ("yes", "no", "maybe"))


def _highlights(answer: str, num_highlights: int) -> bool:
    """*Marked* or **marked** on one line, not empty."""
    return len(re.findall(r"\*\*[^\n*]*[^\n*\s][^\n*]*\*\*|\*[^\n*]*[^\n*\s][^\n*]*\*", answer)) >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", answer)) >= num_sections


def _json(answer: str) -> bool:
    """The whole answer is JSON, optionally in a code fence."""
    text = re.sub(r"^```(?:json)?|```$", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _title(answer: str) -> bool:
    return any(found.strip() for found in re.findall(r"<<([^\n]+?)>>", answer))


def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******") if part.strip()]
    return len(parts) == 2 and parts[0] != parts[1]


def _repeat_prompt(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CHECKS: Mapping[str, Check] = {
    "punctuation:no_comma": _no_comma,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:nth_paragraph_first_word": _paragraph_first_word,
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
}
"""Checks by IFEval's instruction name: (answer, the instruction's arguments) -> True if followed."""
