"""Small tokenizers of the families that are met: trained in code on the sentences of tests/tiny_llama.py."""

import json
from typing import Any

from tests.tiny_llama import SPECIAL, build_tokenizer, sentences

BEGIN = "<s>"


def wrap(content: dict[str, Any], **specials: str) -> Any:
    """A transformers tokenizer of the contents of a tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **specials)


def llama3_like() -> Any:
    """Byte-level, whole words before merges, special tokens above the vocabulary with free places, a template that puts one first."""
    content = json.loads(build_tokenizer().backend_tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for special in SPECIAL:
        del vocab[special]
    words = dict.fromkeys(
        ["Ġunreachable", "4242", *vocab]
    )  # no merges build these: they are found whole, or not at all
    content["model"] |= {
        "vocab": {word: place for place, word in enumerate(words)},
        "ignore_merges": True,
        "unk_token": None,
    }
    names = [*SPECIAL, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>", BEGIN]
    content["added_tokens"] = [
        {"id": len(words) + place, "content": name, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for place, name in enumerate(names)
    ]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BEGIN: {"id": BEGIN, "ids": [len(words) + names.index(BEGIN)], "tokens": [BEGIN]}},
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content["post_processor"] = {"type": "Sequence", "processors": [level, template]}
    return wrap(content, bos_token=BEGIN, eos_token=SPECIAL[2], pad_token=SPECIAL[0])


def sentencepiece_like(prefix: bool = False, fallback: bool = True) -> Any:
    """BPE over ▁ with byte fallback and no pre-tokenizer, as Gemma's; prefix: with a space put first, as Llama 2's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    core.train_from_iterator(
        [*sentences(200, seed=1), "é ü ß"], trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    if prefix:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split(
        "\0", "isolated"
    )  # nothing else may stand there: the whole text is one word
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    content = json.loads(core.to_str())
    specials = ["<unk>", BEGIN, "</s>", *SPECIAL]
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    names = [*specials, *spelled, *content["model"]["vocab"]]
    content["model"] |= {
        "vocab": {name: place for place, name in enumerate(names)},
        "byte_fallback": fallback,
        "unk_token": "<unk>",
        "fuse_unk": True,
    }
    content["pre_tokenizer"] = None
    content["added_tokens"] = [
        {"id": place, "content": name, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for place, name in enumerate(specials)
    ]
    return wrap(content, bos_token=BEGIN, eos_token="</s>", unk_token="<unk>", pad_token="</s>")


def gemma_of_a_gguf() -> Any:
    """What transformers makes of a Gemma GGUF: its class around scores (Unigram), which it takes for merges when it is read back."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import GemmaTokenizer

    vocab = json.loads(sentencepiece_like().backend_tokenizer.to_str())["model"]["vocab"]
    scores = [(name, -float(place)) for place, name in enumerate(vocab)]
    core = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    core.normalizer, core.decoder = normalizers.Replace(" ", "▁"), decoders.Replace("▁", " ")
    return GemmaTokenizer(tokenizer_object=core)
