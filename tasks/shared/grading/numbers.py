r"""Numbers in answers: the value that an answer ends with.

After `####` (GSM8K) or in `\boxed{}` (MATH) if the answer has such a mark, else the last number of the text.
1,234 is one thousand two hundred thirty-four, and 1.234 a little more than one.  A comma is decimal where it cannot separate thousands:
3,5 and 1.234,50, but not (3,5), a pair.
"""

import math
import re
import unicodedata
from collections.abc import Iterator

MARKED = re.compile(r"####\s*([^\n]*)")
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
FRACTION = re.compile(r"([-+]?)\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
SPACES = "\u00a0\u202f\u2009'’_"
"""Characters that can only separate thousands between digits; a plain space may also separate two numbers."""
DIGITS = (
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!,?\d)"  # 1,234,567.8
    r"|\d{1,3}(?:\.\d{3})+,\d+(?![\d.])"  # 1.234.567,8
    r"|\d{1,3}(?:\.\d{3}){2,}(?![\d.])"  # 1.234.567
    r"|\d{1,3}(?: \d{3})+,\d+(?!\d)"  # 1 234,5
    r"|\d{1,3}(?: \d{3}){2,}(?!\d)"  # 1 234 567
    r"|\d+,\d+(?!,?\d)"  # 3,5
    r"|\d+\.\d+|\.\d+|\d+"
)
NUMBER = re.compile(
    r"(?:(?<![A-Za-z0-9_.])|(?<=USD)|(?<=EUR)|(?<=GBP)|(?<=Rs)|(?<=Rs\.))"
    r"(?P<sign>[-+](?=[$€£¥]?[\d.]))?[$€£¥]?(?:(?P<whole>\d+) +(?=\d+/\d))?(?P<value>"
    + DIGITS
    + r")(?P<power>[eE][-+]?\d+)?"
    r"(?:\s?/\s?(?P<below>\d+(?:\.\d+)?)(?![\d/]))?\s*(?P<percent>%|per ?cent\b)?",
)


def last_number(text: str) -> "tuple[float, bool] | None":
    """Return the number that the text ends with, and True if it is written in percent.

    None without a number.
    """
    marked, boxed = MARKED.findall(text), boxed_text(text)
    if marked and (found := list(_numbers(marked[-1]))):
        return found[0]
    for part in (boxed, text):
        if found := list(_numbers(part)):
            return found[-1]
    return None


def nearest_reading(text: str, value: float) -> float | None:
    """Return the text's last number; None if there is none.

    value: of the two readings of 25 %, 25 and 0.25, the nearer one is returned.
    """
    found = last_number(text)
    if found is None:
        return None
    number, percent = found
    return min((number, number / 100), key=lambda reading: abs(reading - value)) if percent else number


def boxed_text(text: str) -> str:
    r"""Return the content of the last `\boxed{...}`, with inner braces; "" without one."""
    begins = [match.end() for match in BOXED.finditer(text)]
    if not begins:
        return ""
    depth = 1
    for place in range(begins[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begins[-1] : place]
    return text[begins[-1] :]


def _plain(text: str) -> str:
    """Text with LaTeX, signs and separators of thousands in their plain forms."""
    text = "".join(f" {char}" if unicodedata.decomposition(char).startswith("<fraction>") else char for char in text)
    text = re.sub(rf"(?<=\d)[{SPACES}](?=\d{{3}}(?!\d))", "", text)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/").replace("\u2212", "-")
    for mark, plain in (("{,}", ","), (r"\!", ""), (r"\%", "%"), (r"\$", "$"), ("*", " "), (r"\,", "")):
        text = text.replace(mark, plain)
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1", text)
    return FRACTION.sub(r"\1\2/\3", text)


def _numbers(text: str) -> Iterator[tuple[float, bool]]:
    text, place = _plain(text), 0
    while match := NUMBER.search(text, place):
        digits, place = match["value"], match.end()
        if re.fullmatch(r"\d+,\d+", digits) and _listed(text, match):
            first = digits.partition(",")[0]
            yield _signed(match["sign"], float(first)), False
            place = match.start("value") + len(first) + 1
            continue
        value = float(_unseparated(digits) + (match["power"] or ""))
        if match["below"]:
            below = float(match["below"])
            value = (float(match["whole"] or 0) + value / below) if below else math.inf
        if math.isfinite(value):
            yield _signed(match["sign"], value), bool(match["percent"])


def _signed(sign: str | None, value: float) -> float:
    return -value if sign == "-" else value


def _listed(text: str, match: "re.Match[str]") -> bool:
    """Return True if the two numbers of "3,5" are a pair in brackets, or part of a longer list."""
    if re.fullmatch(r"[1-9]\d{0,2},\d{3}", match["value"]):
        return False
    before, after = text[: match.start()][-1:], text[match.end("value") :][:1]
    return before == "," or (before in tuple("([{") and after in tuple(")]}"))


def _unseparated(digits: str) -> str:
    """Digits with a decimal point and no separators of thousands."""
    digits = digits.replace(" ", "")
    if "," not in digits:
        return digits.replace(".", "") if digits.count(".") > 1 else digits
    if "." in digits:
        thousands, decimal = (",", ".") if digits.rindex(".") > digits.rindex(",") else (".", ",")
        return digits.replace(thousands, "").replace(decimal, ".")
    if re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", digits):
        return digits.replace(",", "")
    return digits.replace(",", ".")
