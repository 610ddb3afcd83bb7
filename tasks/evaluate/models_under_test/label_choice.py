"""Intent accuracy: which label a model finds likeliest as the first line of its answer.

In transformers: EleutherAI's lm-evaluation-harness on a local multiple-choice task (log-likelihood of every label).
In llama.cpp, whose server gives no log-probabilities of a prompt, one of two roads, both greedy:
- every label is one token (the rule for our corpora): the same logit bias on each of these tokens and one decoded token.  An equal
  shift keeps the labels' order and lifts them above all others, so the choice is exactly the likeliest label, as in the harness.
- otherwise a GBNF grammar that admits the labels and nothing else.  Greedy decoding takes the likeliest token at each step, which
  can differ from the likeliest whole label.

A label that begins another one ("refund", "refund_status") would always be likelier than that one in the harness, and hardly ever
chosen under a grammar, where a model would have to end its answer there.  So labels of more than one token then end with the line
break that ends them in an answer too.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.evaluate.models_under_test.harness import quiet_harness
from tasks.shared.engines.llama_client import LlamaClient
from tasks.shared.errors import ModelError
from tasks.shared.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TASK = "support_intent"
BIAS = 100.0
"""Added to a label's logit: more than logits differ by, little enough that float32 keeps five decimals."""


def harness_choices(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    contexts: Sequence[str],
    labels: Sequence[str],
    scratch: Path,
    batch_size: int = 16,
) -> list[str]:
    """The likeliest label after each rendered context, by lm-evaluation-harness, in order.

    The harness moves a context's trailing line break into the continuation; all labels of a context then still share every token
    but the last, and one forward pass scores them all.  That holds for labels of one token each; in a vocabulary that cuts them into
    more, every label costs a pass of its own, and the label's log-likelihood is the sum over its tokens.
    Raises ModelError if a log-likelihood is not a number.
    """
    single = single_tokens(lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), labels)
    write_task(scratch, contexts, labels if single else close_labels(labels))
    with quiet_harness():
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False)
        tasks = TaskManager(include_path=str(scratch), include_defaults=False).load([TASK])
        result = evaluate(
            wrapped, tasks, log_samples=True, bootstrap_iters=0, apply_chat_template=False, verbosity="ERROR"
        )
    if result is None:
        raise ModelError(
            "lm-evaluation-harness", "no result: this is not the first process of its group", "one process"
        )
    samples = sorted(result["samples"][TASK], key=lambda sample: sample["doc_id"])
    scores = [[float(response[0]) for response in sample["filtered_resps"]] for sample in samples]  # (items, labels)
    if len(scores) != len(contexts) or any(value != value for row in scores for value in row):
        raise ModelError(
            "log-likelihood of the labels", "not a number, or items are missing", "finite scores for every item"
        )
    return [labels[max(range(len(labels)), key=row.__getitem__)] for row in scores]


def write_task(folder: Path, contexts: Sequence[str], labels: Sequence[str]) -> None:
    """A local harness task: one JSON line per context, and the YAML (JSON is YAML) that reads it.

    The target is always 0: the choice is read from the samples, and graded with all other measures in one place.
    The folder is emptied: its data cache tells files apart by their dates, and a kill may have cut it short.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = folder / f"{TASK}.jsonl"
    data.write_text(
        "".join(json.dumps({"context": context, "choices": list(labels), "target": 0}) + "\n" for context in contexts),
        encoding="utf-8",
    )
    task = {
        "task": TASK, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "target",
        "target_delimiter": "", "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}], "metadata": {"version": 1},
    }  # fmt: skip
    (folder / f"{TASK}.yaml").write_text(json.dumps(task), encoding="utf-8")


def label_tokens(client: LlamaClient, labels: Sequence[str]) -> list[int] | None:
    """Token id of every label in llama.cpp; see `single_tokens`."""
    return single_tokens(client.tokens, labels)


def single_tokens(encode: Callable[[str], list[int]], labels: Sequence[str]) -> list[int] | None:
    """Token id of every label at the start of a line; None unless each is one token and all differ."""
    lead = encode("assistant\n")
    found = [encode("assistant\n" + label) for label in labels]
    if any(len(ids) != len(lead) + 1 or ids[:-1] != lead for ids in found) or len({ids[-1] for ids in found}) < len(
        labels
    ):
        return None
    return [ids[-1] for ids in found]


def close_labels(labels: Sequence[str]) -> list[str]:
    """The labels, each with a line break at its end if one of them begins another."""
    begins = any(other != label and other.startswith(label) for label in labels for other in labels)
    return [f"{label}\n" for label in labels] if begins else list(labels)


def grammar_of(labels: Sequence[str]) -> str:
    """GBNF that admits exactly the labels."""
    return "root ::= " + " | ".join(json.dumps(label, ensure_ascii=False) for label in labels)


def llama_choices(
    client: LlamaClient,
    prompts: Sequence[str],
    labels: Sequence[str],
    road: Literal["auto", "bias", "grammar"] = "auto",
) -> list[str]:
    """The label that llama.cpp chooses after each prompt, in order.  road: see the module's text; auto takes bias where it can."""
    ids = None if road == "grammar" else label_tokens(client, labels)
    if ids is None and road == "bias":
        raise ModelError("labels", "not one distinct token each", "single-token labels, or the grammar road")
    spelt = close_labels(labels)
    options: dict[str, Any] = (
        {"grammar": grammar_of(spelt)} if ids is None else {"logit_bias": [[token, BIAS] for token in ids]}
    )
    longest = 1 if ids else max(len(client.tokens(label)) for label in spelt) + 4

    def choose(prompt: str) -> str:
        return str(client.complete(prompt, longest, **options)["text"]).strip()

    return list(track(client.each(choose, prompts), "labels", len(prompts)))
