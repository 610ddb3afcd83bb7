"""What is learned of a conversation, for the chat templates of known families."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import GenerationConfig

from tasks.shared.errors import DataError, ModelError
from tasks.shared.formats.rows import Message, Row, ToolCall
from tasks.shared.model.encoding import IGNORED, encode
from tasks.shared.model.generation import stop_tokens
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.prompts import render, settle_template
from tasks.shared.model.saving import save_model
from tasks.shared.model.turns import examples
from tests.chat_templates import FAMILIES, Family, named, tokenizer_of
from tests.tiny_llama import build_model, make_row

ANSWERS = ("Returns are accepted.", "Yes:\n\n- within 45 days\n- 3.95 postage")


@pytest.fixture(params=FAMILIES, ids=named)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


def talk(family: Family, turns: int = 2) -> Row:
    system = [("system", "Be short.")] if family.system else []
    spoken = [
        (role, text)
        for ask, answer in zip(("What?", "Sure?"), ANSWERS, strict=True)
        for role, text in (("user", ask), ("assistant", answer))
    ]
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
    assert [tokenizer.decode(part) for part in parts] == [
        head + answer + _gap(family) + family.end for answer in ANSWERS
    ]
    for each, number in zip(examples([row], tokenizer, "all", apart=True), (1, 2), strict=True):
        alone = learned(tokenizer, talk(family, number).model_copy(update={"messages": each.messages}))
        assert alone == learned(tokenizer, examples([talk(family, number)], tokenizer, "last")[0])


def test_generation_stops_where_the_turn_ends(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    settings = GenerationConfig(eos_token_id=tokenizer.pad_token_id)
    assert tokenizer.convert_tokens_to_ids(family.end) in stop_tokens(settings, tokenizer)


def test_a_settled_template_stays_as_it_is(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    before = tokenizer.chat_template, tokenizer.eos_token
    settle_template(tokenizer)
    assert (tokenizer.chat_template, tokenizer.eos_token) == before


def test_the_last_turn_alone_is_learned_where_asked(family: Family) -> None:
    tokenizer, row = tokenizer_of(family), talk(family)
    (last,) = examples([row], tokenizer, "last")
    text, (part,) = learned(tokenizer, last)
    assert ANSWERS[1] in tokenizer.decode(part) and ANSWERS[0] in text


def of(name: str) -> Any:
    """The tokenizer of a family, by its template's name."""
    return tokenizer_of(next(family for family in FAMILIES if family.name == name))


def texts(tokenizer: Any, rows: list[Row]) -> list[str]:
    """Learned texts of all rows, in order."""
    return [tokenizer.decode(part) for row in rows for part in learned(tokenizer, row)[1]]


CHAT = [
    ("user", "a?"),
    ("assistant", "One."),
    ("user", "b?"),
    ("assistant", "Two."),
    ("user", "c?"),
    ("assistant", "Three."),
]


def test_a_message_decides_for_itself() -> None:
    tokenizer, row = of("chatml"), make_row(CHAT)

    def learning(*flags: bool | None) -> Row:
        marks = iter(flags)
        messages = (m.model_copy(update={"learn": next(marks)}) if m.role == "assistant" else m for m in row.messages)
        return row.model_copy(update={"messages": tuple(messages)})

    for flags, turns, wanted in (
        ((None, False, None), "all", ["One.", "Three."]),
        ((True, None, None), "last", ["One.", "Three."]),
        ((True, None, False), "last", ["One."]),
    ):
        found = texts(tokenizer, examples([learning(*flags)], tokenizer, turns))  # type: ignore[arg-type]
        assert found == [f"{text}<|im_end|>" for text in wanted]


def test_a_thread_that_ends_with_the_user_and_a_greeting_are_normal() -> None:
    tokenizer = of("chatml")
    row = make_row([("assistant", "Hello!"), *CHAT[:2], ("user", "Thanks.")])
    (one,) = examples([row], tokenizer, "all")
    assert texts(tokenizer, [one]) == ["One.<|im_end|>"] and one.messages[-1].content == "One."
    with pytest.raises(DataError, match="r0"):
        encode(examples([make_row(CHAT[:1])], tokenizer, "all"), tokenizer, 512)


def test_turns_are_joined_only_where_the_template_demands_it(caplog: pytest.LogCaptureFixture) -> None:
    row = make_row(
        [("assistant", "Hello!"), ("user", "a?"), ("user", "And b?"), ("assistant", "One."), ("assistant", "Two.")]
    )
    free, strict = of("chatml"), of("gemma")
    caplog.clear()  # what loading said of the templates, if an earlier test left the level at INFO
    with caplog.at_level("INFO"):
        assert texts(free, examples([row], free, "all")) == ["One.<|im_end|>", "Two.<|im_end|>"]
        assert "joined" not in caplog.text
        found = examples([row], strict, "all")
    assert texts(strict, found) == ["One.\n\nTwo.<end_of_turn>"] and "1 of 1 conversations" in caplog.text
    prompt = render(strict, row.chat[:3])
    assert "a?\n\nAnd b?" in prompt and "Hello!" not in prompt
    raw = strict.apply_chat_template(row.chat, tokenize=False)
    assert raw == render(strict, row.chat, False), "as engines render it that get the messages as they are"


def test_the_developer_is_the_system_where_a_template_knows_no_developer() -> None:
    assert "<|im_start|>system\nBe short." in render(of("chatml"), [{"role": "developer", "content": "Be short."}])
    knows = of("chatml")
    knows.chat_template = "{% if messages[0].role == 'developer' %}D{% endif %}" + knows.chat_template
    assert render(knows, [{"role": "developer", "content": "Be short."}]).startswith("D<|im_start|>developer")


TOOLS = '[{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]'
CALL = Message(role="assistant", tool_calls=(ToolCall(id="1", name="find", arguments='{"order": 4417}'),))


def test_tool_calls_are_learned_and_tools_are_in_the_prompt() -> None:
    row = make_row([("user", "Where is 4417?")], tools=TOOLS)
    result, answer = (
        Message(role="tool", content="on its way", tool_call_id="1"),
        Message(role="assistant", content="Soon."),
    )
    row = row.model_copy(update={"messages": (*row.messages, CALL, result, answer)})
    for name, call in (("qwen3", '<tool_call>\n{"name": "find", "arguments": {"order": 4417}}\n</tool_call><|im_end|>'),
                       ("llama3", '{"name": "find", "parameters": {"order": 4417}}<|eot_id|>')):  # fmt: skip
        tokenizer = of(name)
        found = texts(tokenizer, examples([row], tokenizer, "all"))
        assert [text.removeprefix("<think>\n\n</think>\n\n") for text in found] == [call, f"Soon.{tokenizer.eos_token}"]
        assert '"find"' in render(tokenizer, row.prompt, tools=TOOLS)


def test_a_template_that_leaves_tools_or_calls_out_says_so(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = of("zephyr")
    row = make_row([("user", "Where?"), ("assistant", "Here.")], tools=TOOLS)
    with caplog.at_level("WARNING"):
        examples([row, row], tokenizer, "all")
    assert "tools of 2 conversations" in caplog.text
    called = row.model_copy(update={"messages": (row.messages[0], CALL)})
    with pytest.raises(ModelError, match="tool call find"):
        encode([called], tokenizer, 512)


def test_reasoning_is_learned_or_its_loss_is_an_error() -> None:
    row = make_row([("user", "What?"), ("assistant", "<think>\nHm.\n</think>\n\nThat.")])
    for name, wanted in (("chatml", "<think>\nHm.\n</think>\n\nThat."), ("qwen3", "<think>\nHm.\n</think>\n\nThat."),
                         ("deepseek_r1", "Hm.\n</think>\n\nThat.")):  # fmt: skip
        tokenizer = of(name)
        assert texts(tokenizer, [row]) == [wanted + tokenizer.eos_token]
    dropping = of("deepseek_r1")
    dropping.chat_template = dropping.chat_template.replace("<think>\\n'", "'")
    with pytest.raises(ModelError, match="drops the reasoning"):
        encode([row], dropping, 512)


@pytest.mark.parametrize("answer", ["end", "<", "think", "Sure!\n\n```py\nx = 1\n```", "好的。", "  spaced  ", "</s>x"])
@pytest.mark.parametrize("name", ["qwen3", "gemma", "mistral", "phi3"])
def test_odd_answers_are_learned_verbatim(name: str, answer: str) -> None:
    tokenizer = of(name)
    (text,) = texts(tokenizer, [make_row([("user", "end < think?"), ("assistant", answer)])])
    assert answer.strip() in text and text.endswith(tokenizer.eos_token)


def test_an_answer_that_the_template_rewrites_is_refused() -> None:
    tokenizer = of("chatml")
    for change in ("| upper", "| length | string", "[:2]"):
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] " + change + " }}{% endfor %}"
        with pytest.raises(ModelError, match="chat template"):
            encode([make_row(CHAT[:2])], tokenizer, 512)


def test_phi_keeps_what_it_writes_after_a_conversation() -> None:
    family = next(family for family in FAMILIES if family.name == "phi3")
    before, after = tokenizer_of(family, settled=False), tokenizer_of(family)
    chat = talk(family).chat
    assert before.apply_chat_template(chat, tokenize=False) == after.apply_chat_template(chat, tokenize=False)
    assert (before.eos_token, after.eos_token) == ("<|endoftext|>", "<|end|>")


def test_a_saved_model_stops_at_the_end_of_a_turn(tmp_path: Path) -> None:
    tokenizer = of("gemma")
    eos, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<eos>", "<end_of_turn>"))
    for given, saved in (([eos, end], [eos, end]), (eos, end)):
        model = build_model(num_hidden_layers=1, vocab_size=len(tokenizer))
        model.generation_config.eos_token_id = given
        save_model(model, tokenizer, tmp_path / str(saved))
        assert load_model(tmp_path / str(saved)).generation_config.eos_token_id == saved  # type: ignore[union-attr]
        again = load_tokenizer(tmp_path / str(saved))
        assert (again.eos_token, again.chat_template) == ("<end_of_turn>", tokenizer.chat_template)


def test_an_end_of_turn_that_is_not_marked_as_special_is_learned() -> None:
    family = Family("chatml", ("<|endoftext|>",), "<|im_end|>", eos="<|endoftext|>")
    tokenizer = tokenizer_of(family, settled=False)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<|im_start|>", "<|im_end|>")])
    settle_template(tokenizer)
    assert tokenizer.eos_token == "<|im_end|>" and texts(tokenizer, [make_row(CHAT[:2])]) == ["One.<|im_end|>"]
