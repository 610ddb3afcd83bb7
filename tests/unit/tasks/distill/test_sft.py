"""Fine-tuning: only the answer counts, groups stay whole, a killed run goes on, nonsense stops."""

import csv
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.losses.answers import answer_loss
from tasks.distill.sft import SFT
from tasks.distill.training.validation import split_groups
from tasks.shared.errors import DataError, ModelError, TechniqueError
from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.model.encoding import IGNORED, encode
from tasks.shared.model.loading import load_model
from tasks.shared.model.turns import examples
from tasks.shared.technique import Artifact, Inputs, Kind
from tasks.shared.text.answer_format import join_answer
from tests.settings_case import Case
from tests.support_rows import support_row
from tests.tiny_llama import build_model, build_tokenizer, empty_run, save_tiny, sentences
from tests.training_changes import OPTION_CHANGES, TRAINING_CHANGES

TALKING = 9
"""Index of the row with an earlier turn of the assistant."""


def make_rows(count: int = 24) -> list[Row]:
    asks, answers = sentences(count, seed=5), sentences(count, seed=6)
    system = Message(role="system", content="You are the support bot.")
    earlier = (Message(role="user", content=asks[0]), Message(role="assistant", content=answers[0]))
    return [
        support_row(
            id=f"r{index}",
            kind="faq",
            intent="returns",
            group=f"g{index // 2}",
            accept=(("45 days",),),
            source="teacher" if index % 3 else "gold",
            messages=(
                system,
                *(earlier if index == TALKING else ()),
                Message(role="user", content=asks[index]),
                Message(role="assistant", content=join_answer("returns", answers[index])),
            ),
        )
        for index in range(count)
    ]


def make_inputs(folder: Path, rows: int = 24, **overrides: Any) -> Inputs:
    traces = folder / "traces"
    traces.mkdir()
    write_rows(traces / "train.jsonl", make_rows(rows))
    model = save_tiny(folder / "model", build_model(**overrides))
    return Inputs(
        {"model": (Artifact("teacher", Kind.MODEL, model),), "data": (Artifact("traces", Kind.TRACES, traces),)}
    )


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return make_inputs(tmp_path)


def losses(out: Path) -> list[float]:
    with (out / "loss.csv").open() as stream:
        return [float(row["train_loss"]) for row in csv.DictReader(stream) if row["train_loss"]]


def weights(out: Path) -> dict[str, Any]:
    return load_model(out).state_dict()


def test_every_answer_counts_or_the_last_alone() -> None:
    tokenizer = build_tokenizer()
    turns = (
        Message(role="user", content="It drips."),
        Message(role="assistant", content="First step."),
        Message(role="user", content="Still drips."),
        Message(role="assistant", content="repair\nSecond step."),
    )
    row = make_rows(1)[0].model_copy(update={"messages": turns})
    for kind, wanted in (
        ("all", "First step.<|im_end|>repair\nSecond step.<|im_end|>"),
        ("last", "repair\nSecond step.<|im_end|>"),
    ):
        (encoded,) = encode(examples([row], tokenizer, kind), tokenizer, 512)  # type: ignore[arg-type]
        pairs = zip(encoded["input_ids"], encoded["labels"], strict=True)
        assert tokenizer.decode([token for token, label in pairs if label != IGNORED]) == wanted
        assert "First step." in tokenizer.decode(encoded["input_ids"])


def test_a_template_that_rewrites_the_answer_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    with pytest.raises(ModelError, match="chat template"):
        encode(make_rows(2), tokenizer, 512)


def test_groups_are_never_split() -> None:
    training, validation = split_groups(make_rows(), 0.3, seed=1)
    assert validation and not {row.group for row in training} & {row.group for row in validation}
    assert split_groups(make_rows(), 0.3, seed=1)[1] == validation
    assert split_groups(make_rows(), 0.0, seed=1)[1] == []


def test_too_long_rows_are_named() -> None:
    with pytest.raises(DataError, match="r0"):
        encode(make_rows(2), build_tokenizer(), 16)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="two rows"):
        split_groups(make_rows(1), 0.0, seed=0)


def test_training_lowers_the_loss_and_writes_a_loadable_model(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, run = empty_run(tmp_path)
    metrics = SFT(epochs=6, learning_rate=3e-3, batch_size=4, precision="float32")(inputs, out, run)
    curve = losses(out)
    assert curve[-1] < 0.8 * curve[0]
    assert metrics["epochs"] <= 6 and math.isfinite(float(metrics["validation_loss"]))
    assert weights(out)["model.embed_tokens.weight"].shape == (512, 64)
    assert "missing keys" not in caplog.text  # of the best epoch, whose head is the embedding
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["tie_word_embeddings"] and config["use_cache"]


def test_the_same_seed_gives_the_same_model(inputs: Inputs, tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        out, run = empty_run(tmp_path, name)
        SFT(epochs=1, batch_size=4, precision="float32", validation=0)(inputs, out, run)
        made.append(weights(out))
    assert all((made[0][key] == made[1][key]).all() for key in made[0])


def test_a_loss_that_is_no_number_stops_with_advice(inputs: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    with pytest.raises(TechniqueError, match="a smaller step"):
        SFT(epochs=3, learning_rate=1e12, batch_size=4, precision="float32", warmup_ratio=0, validation=0)(
            inputs, out, run
        )


def test_the_answers_loss_is_the_models_own_on_counted_tokens() -> None:
    import torch

    model = build_model()
    ids = torch.randint(3, 512, (3, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :7] = IGNORED
    labels[1, 9:] = IGNORED
    hidden = model.base_model(ids).last_hidden_state
    ours = answer_loss(hidden, model.get_output_embeddings(), labels)
    torch.testing.assert_close(ours, model(ids, labels=labels).loss)
    counted = int((labels[:, 1:] != IGNORED).sum())
    halves = sum(
        answer_loss(hidden[part], model.get_output_embeddings(), labels[part], counted) for part in ([0], [1, 2])
    )
    torch.testing.assert_close(halves, ours, msg="two parts with the whole's count add up to the whole")


def test_nothing_counted_is_a_zero_loss_with_a_zero_gradient() -> None:
    import torch

    hidden = torch.randn(2, 5, 4, requires_grad=True)
    loss = answer_loss(hidden, torch.nn.Linear(4, 9), torch.full((2, 5), IGNORED))
    loss.backward()
    assert loss.item() == 0 and hidden.grad is not None and not hidden.grad.any()


def test_frozen_layers_stay_as_they_are(inputs: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    SFT(epochs=1, batch_size=4, learning_rate=1e-2, frozen_layers=2, precision="float32", validation=0)(
        inputs, out, run
    )
    before = load_model(inputs.one("model").path, "bfloat16").state_dict()
    after = load_model(out, "bfloat16").state_dict()
    changed = {key for key in before if (before[key] != after[key]).any()}
    assert changed and not any(
        key.startswith(("model.embed", "model.layers.0.", "model.layers.1.", "lm_head")) for key in changed
    )
    with pytest.raises(TechniqueError, match="frozen_layers"):
        SFT(frozen_layers=4)(inputs, *empty_run(tmp_path, "all"))


CHANGES = {**TRAINING_CHANGES, **OPTION_CHANGES}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    inputs = make_inputs(folder, rows=12, num_hidden_layers=2)
    yield Case(folder, inputs, {"epochs": 1, "batch_size": 2, "precision": "float32", "learning_rate": 3e-3})


def test_recomputed_activations_train_frozen_layers_the_same(inputs: Inputs, tmp_path: Path) -> None:
    made = []
    for checkpointing in (False, True):
        out, run = empty_run(tmp_path, str(checkpointing))
        settings = {"epochs": 1, "batch_size": 4, "precision": "float32", "validation": 0, "frozen_layers": 2}
        SFT(gradient_checkpointing=checkpointing, **settings)(inputs, out, run)
        made.append(weights(out))
    assert all((made[0][key] == made[1][key]).all() for key in made[0])
