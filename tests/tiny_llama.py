"""A Llama of 0.2M random weights, a byte-level tokenizer trained in code, and a small corpus: models for tests."""

import atexit
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.model.saving import save_model
from tasks.shared.model.template_edits import CHATML
from tasks.shared.technique import Artifact, Compute, Inputs, Kind, StepRun
from tasks.shared.text.answer_format import join_answer
from tests.support_rows import support_row

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = "returns are accepted within 45 days of delivery and the kettle's warranty lasts 24 months; postage costs 3.95, or nothing above 60"
WORDS = TEXT.split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Word salad with apostrophes, digits and punctuation, so that pre-tokenizers have something to split."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 14))).capitalize() + "." for _ in range(count)]


def build_tokenizer(vocabulary: int = 512) -> Any:
    """Byte-level BPE with ChatML markup; ids 0 to 2 are special."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained_core(vocabulary)),
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        unk_token=SPECIAL[0],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@cache
def trained_core(vocabulary: int) -> str:
    """The tokenizer as JSON, trained once."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*sentences(400, seed=1), "system user assistant"], trainer)
    return str(core.to_str())


def build_model(seed: int = 0, **overrides: Any) -> Any:
    """LlamaForCausalLM in float32: hidden 64, 4 layers, 4 heads with 2 key-value heads, vocabulary 512, tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
        "max_position_embeddings": 512, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(settings | overrides))).eval()


def overflowing_model() -> Any:
    """`build_model` with finite weights whose logits are not."""
    import torch

    model = build_model()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e4)
        model.model.norm.weight.fill_(3e36)
    return model


@cache
def trained_state(steps: int = 60) -> dict[str, Any]:
    """Weights of `build_model` trained on conversations like the corpus': columns of its inputs differ in size, as in a real model."""
    import torch

    from tasks.shared.model.calibration import calibration_ids

    torch.set_num_threads(1)  # two wait for each other on a busy machine
    model, tokenizer = build_model(initializer_range=0.02).train(), build_tokenizer()
    ids = calibration_ids(tokenizer, chats(160), 48)
    batch = torch.tensor([(row + [0] * 48)[:48] for row in ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = batch[torch.randint(len(batch), (16,), generator=generator)]
        model(rows, labels=torch.where(rows == 0, -100, rows)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


def one_layer_inputs(folder: Path) -> Inputs:
    """A model of one layer and a corpus: enough for a technique that treats all layers alike."""
    return inputs_of(save_tiny(folder / "model", build_model(num_hidden_layers=1)), write_corpus(folder / "corpus"))


def trained_model() -> Any:
    """A trained tiny model; training takes seconds, once per process."""
    model = build_model()
    model.load_state_dict(trained_state())
    return model


def save_tiny(folder: Path, model: Any = None) -> Path:
    """A tiny model folder in float32, tokenizer included; the one of `build_model()` is made once and copied."""
    import torch

    if model is not None:
        save_model(model, build_tokenizer(), folder, dtype="float32")
        return folder
    saved, state = saved_tiny()
    shutil.copytree(saved, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    torch.set_rng_state(state)
    return folder


@cache
def saved_tiny() -> tuple[Path, Any]:
    """The folder to copy, and the state in which building its model leaves the random numbers."""
    import torch

    base = tempfile.mkdtemp(prefix="tiny-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    model = build_model()
    state = torch.get_rng_state()
    save_model(model, build_tokenizer(), Path(base) / "model", dtype="float32")
    return Path(base) / "model", state


def chats(count: int) -> list[Row]:
    """Conversations to train on, each a phrasing group of its own."""
    asks, answers = sentences(count, seed=5), sentences(count, seed=6)
    return [
        support_row(
            id=f"r{index}", group=f"g{index}", accept=(("45 days",),),
            messages=(Message(role="user", content=ask), Message(role="assistant", content=join_answer("returns", answer))),
        )
        for index, (ask, answer) in enumerate(zip(asks, answers, strict=True))
    ]  # fmt: skip


def make_row(turns: Sequence[tuple[str, str]], **fields: Any) -> Row:
    """A conversation of (role, content) pairs."""
    messages = tuple(Message(role=role, content=content) for role, content in turns)  # type: ignore[arg-type]
    return Row(**{"id": "r0", "group": "g0", "messages": messages} | fields)


def write_corpus(folder: Path, rows: int = 24) -> Path:
    """A corpus folder with a calibration split."""
    folder.mkdir(parents=True, exist_ok=True)
    asks, answers = sentences(rows, seed=2), sentences(rows, seed=3)
    made = [
        support_row(
            id=f"r{index}", group=f"g{index}", accept=(("45 days",),),
            messages=(
                Message(role="system", content="You are the support bot."),
                Message(role="user", content=ask),
                Message(role="assistant", content=join_answer("returns", answer)),
            ),
        )
        for index, (ask, answer) in enumerate(zip(asks, answers, strict=True))
    ]  # fmt: skip
    write_rows(folder / "calibration.jsonl", made)
    return folder


def inputs_of(model: Path, corpus: Path | None = None) -> Inputs:
    """The ports `model` and, if given, `calibration`."""
    ports = {"model": (Artifact("model", Kind.MODEL, model),)}
    if corpus is not None:
        ports["calibration"] = (Artifact("corpus", Kind.CORPUS, corpus),)
    return Inputs(ports)


def empty_run(folder: Path, step: str = "step") -> tuple[Path, StepRun]:
    """An empty output folder and a run whose scratch is beside it."""
    out, scratch = folder / f"{step}-out", folder / f"{step}-scratch"
    out.mkdir()
    scratch.mkdir()
    return out, StepRun(step=step, seed=0, scratch=scratch, compute=Compute(threads=1))


def with_compute(run: StepRun, **changes: object) -> StepRun:
    """The same run with other threads, device, processes, sharding or checkpoints."""
    return replace(run, compute=replace(run.compute, **changes))  # type: ignore[arg-type]
