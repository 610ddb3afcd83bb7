"""Chat templates of known families (tests/templates), each with the tokens that it needs."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tasks.shared.model.prompts import settle_template
from tests.tiny_llama import sentences

FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Family:
    """A template's surroundings.

    specials: special tokens.  end: the token that ends a turn.  eos: the tokenizer's end of text before `settle_template`.
    head: text that is learned before an answer.  split: True if earlier turns are written otherwise than the last.
    system: True if it takes a system turn.  prefixed: True if the tokenizer puts a space before texts, as Llama 2's.
    added: True if the rendering has no end of turn.  rewritten: True if a prompt ends otherwise than a conversation.
    """

    name: str
    specials: tuple[str, ...]
    end: str
    eos: str = ""
    bos: str | None = None
    head: str = ""
    split: bool = False
    system: bool = True
    prefixed: bool = False
    added: bool = False
    rewritten: bool = False


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADER = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = (
    Family("chatml", IM, "<|im_end|>"),
    Family("chatml", IM, "<|im_end|>", eos="<|endoftext|>"),
    Family("generation_marks", IM, "<|im_end|>", eos="<|endoftext|>"),
    Family("computed_clock", IM, "<|im_end|>"),
    Family("qwen3", IM, "<|im_end|>", head="<think>\n\n</think>\n\n", split=True),
    Family("smollm3", IM, "<|im_end|>"),
    Family("llama3", HEADER, "<|eot_id|>", eos="<|end_of_text|>", bos="<|begin_of_text|>"),
    Family("gemma", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<eos>", "<bos>", system=False),
    Family("mistral", ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", bos="<s>", head=" ", system=False),
    Family("mistral", ("<s>", "</s>"), "</s>", bos="<s>", head=" ", system=False, prefixed=True),
    Family("llama2", ("<s>", "</s>"), "</s>", bos="<s>", head=" ", prefixed=True),
    Family("zephyr", ("<s>", "</s>"), "</s>"),
    Family("vicuna", ("<s>", "</s>"), "</s>", head=" ", prefixed=True),
    Family("phi3", ("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"), "<|end|>", "<|endoftext|>"),
    Family("granite", ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), "<|end_of_text|>"),
    Family(
        "deepseek_r1", ("<|User|>", "<|Assistant|>", "<|end_of_sentence|>", "<|begin|>"), "<|end_of_sentence|>", bos="<|begin|>",
        head="\n</think>\n\n", split=True, rewritten=True,
    ),
    Family(
        "harmony", ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"), "<|return|>", head="<|channel|>final<|message|>",
        split=True,
    ),
    Family("glm", ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"), "<|endoftext|>", added=True, split=True),
    Family("alpaca", ("<s>", "</s>"), "</s>", added=True, split=True),
)  # fmt: skip


def named(family: Family) -> str:
    """Readable name of a test case."""
    return "-".join(filter(None, (family.name, family.eos.strip("<|>"), "prefixed" if family.prefixed else "")))


def tokenizer_of(family: Family, settled: bool = True) -> Any:
    """A tokenizer with the family's template and special tokens, as `load_tokenizer` returns it or as the maker ships it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_core(family.specials, family.prefixed),
        eos_token=family.eos or family.end,
        bos_token=family.bos,
    )
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = (FOLDER / f"{family.name}.jinja").read_text("utf-8").removesuffix("\n")
    if settled:
        settle_template(tokenizer)
    return tokenizer


@cache
def _core(specials: tuple[str, ...], prefixed: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(byte_fallback=prefixed))
    if prefixed:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = [chr(code) for code in range(10, 127)] + ["▁"]
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    spelled = [f"<0x{byte:02X}>" for byte in range(256)] if prefixed else []
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*specials, *spelled], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(sentences(200, seed=1), trainer)
    core.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in specials])
    return core
