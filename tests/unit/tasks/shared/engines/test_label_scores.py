"""Scores of all labels in one pass: those of lm-evaluation-harness, in every kind of attention."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.shared.engines import label_scores
from tasks.shared.engines.label_scores import PLAIN, TREE, LabelScorer, parts_of, plain_scores
from tasks.shared.engines.labels import LabelPrompt, label_prompts
from tasks.shared.engines.transformers_engine import TransformersSession
from tasks.shared.errors import ModelError
from tests.tiny_llama import build_model, build_tokenizer

LABELS = [
    f"{kind}_{what}"
    for kind in ("card", "top_up", "refund", "lost or stolen")
    for what in ("arrival", "not_working", "fee", "limit")
]
LABELS += ["refund", "atm support", "退款"]
COMMON: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": 512,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "initializer_range": 0.1,
}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": COMMON, "mistral": COMMON | {"sliding_window": 24}, "qwen2": COMMON, "qwen3": COMMON, "gemma2": COMMON | {"sliding_window": 24},
    "gemma3_text": COMMON | {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": COMMON, "smollm3": COMMON, "olmo2": COMMON, "granite": COMMON, "gpt_neox": COMMON, "gpt2": GPT2,
}  # fmt: skip


def family(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **FAMILIES[kind])).eval()


def contexts(tokenizer: Any) -> list[str]:
    talks = [[{"role": "user", "content": f"Is the kettle {index} covered? " + "Yes. " * index}] for index in range(5)]
    return [tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in talks]


def harness_scores(model: Any, tokenizer: Any, prompts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
    """Log-likelihoods by lm-evaluation-harness."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, add_bos_token=False, softmax_dtype="float32")
    asked = [
        Instance("loglikelihood", {}, (prompt, label), place)
        for prompt in prompts
        for place, label in enumerate(labels)
    ]
    found = [value for value, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    return [found[start : start + len(labels)] for start in range(0, len(found), len(labels))]


@pytest.mark.parametrize(
    "labels", [list("abcdefgh"), LABELS, ["退", "退款", "退货"]], ids=["one token each", "many", "within characters"]
)
def test_scores_and_choices_are_the_harness_s(labels: list[str]) -> None:
    model, tokenizer = build_model(), build_tokenizer()
    nested = any(one != other and one.startswith(other) for one in labels for other in labels)
    prompts = contexts(tokenizer)
    wanted = harness_scores(model, tokenizer, prompts, [f"{label}\n" for label in labels] if nested else labels)
    found = TransformersSession(model, tokenizer, 16).choose(prompts, labels)
    assert found.scores is not None and found.method == TREE
    torch.testing.assert_close(torch.tensor(found.scores), torch.tensor(wanted), atol=1e-3, rtol=1e-4)
    assert found.labels == [labels[row.index(max(row))] for row in wanted]


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_scores_a_tree_as_it_scores_labels_alone(kind: str) -> None:
    model, tokenizer = family(kind), build_tokenizer()
    session = TransformersSession(model, tokenizer, 16)
    asked = label_prompts(session.tokens, session.tokens, contexts(tokenizer), LABELS, "\n")
    assert len(asked[-1].ids) > 30, "longer than the windows"
    scorer = LabelScorer(model, 4)
    found = scorer.score(asked)
    assert scorer.method == TREE
    wanted = [plain_scores(model, prompt.ids, prompt.labels, 8) for prompt in asked]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=2e-3, rtol=1e-3)


def test_a_row_costs_one_pass_whatever_the_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = build_model(), build_tokenizer()
    session, rows, forward = TransformersSession(model, tokenizer, 16), [], model.forward

    def count(**options: Any) -> Any:
        rows.append(options["input_ids"].shape[0])
        return forward(**options)

    monkeypatch.setattr(model, "forward", count)
    session.choose(contexts(tokenizer), list("abcdefgh"))
    assert sum(rows) == 5, "labels of one token need no tree"
    rows.clear()
    session.choose(contexts(tokenizer), LABELS)
    assert sum(rows) == 5 + 1 + 5, "and others one pass, and once a check: a tree, and some labels alone"


def test_many_labels_take_several_passes_and_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = build_model(), build_tokenizer()
    session = TransformersSession(model, tokenizer, 16)
    whole = session.choose(contexts(tokenizer), LABELS).scores
    monkeypatch.setattr(label_scores, "MOST_NODES", 20)
    assert [len(part) > 0 for part in parts_of([(1,) * 15, (2,) * 15, (3,)])] == [True, True]
    split = session.choose(contexts(tokenizer), LABELS).scores
    torch.testing.assert_close(torch.tensor(split), torch.tensor(whole), atol=1e-3, rtol=1e-4)


def test_a_model_that_ignores_the_mask_is_noticed_and_its_labels_are_scored_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokenizer = build_model(), build_tokenizer()
    session, forward = TransformersSession(model, tokenizer, 16), model.forward
    wanted = session.choose(contexts(tokenizer), LABELS)

    def blind(**options: Any) -> Any:
        mask = options["attention_mask"]
        return forward(**options | ({"attention_mask": None} if mask.dim() == 4 else {}))

    monkeypatch.setattr(model, "forward", blind)
    found = session.choose(contexts(tokenizer), LABELS)
    assert found.method == PLAIN and found.labels == wanted.labels
    torch.testing.assert_close(torch.tensor(found.scores), torch.tensor(wanted.scores), atol=1e-3, rtol=1e-4)


def test_scores_that_are_no_numbers_are_refused() -> None:
    model = build_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="log-likelihood of the labels"):
        LabelScorer(model, 4).score([LabelPrompt([3, 4], ((5, 6), (7, 8)))])


def test_the_template_of_a_question_is_text(tmp_path: Path) -> None:
    model, tokenizer = build_model(), build_tokenizer()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "{{ 1 + 1 }} {% what %} {x}"}], tokenize=False, add_generation_prompt=True
    )
    (wanted,) = harness_scores(model, tokenizer, [text], LABELS[:4])
    assert TransformersSession(model, tokenizer, 4).choose([text], LABELS[:4]).labels == [
        LABELS[wanted.index(max(wanted))]
    ]
