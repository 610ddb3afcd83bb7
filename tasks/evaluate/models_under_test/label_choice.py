"""Label choice: the most likely intent label as the first line of a model's answer.

In transformers: EleutherAI's lm-evaluation-harness on a local multiple-choice task (log-likelihood of every label).
In llama.cpp, whose server returns no log-probabilities of a prompt, one of two greedy methods:
- bias: every label is one token (the rule for our corpora).  The same logit bias on each of these tokens, and one decoded token.
  An equal shift keeps the labels' order and lifts them above all other tokens, so the choice is exactly the most likely label.
- grammar: otherwise, a GBNF grammar that admits the labels and nothing else.  Greedy decoding takes the most likely token at each
  step, which can differ from the most likely whole label.

A label that is a prefix of another ("refund", "refund_status") would always win in the harness, and would hardly ever be chosen
under a grammar, where the model would have to end its answer there.  So labels of more than one token then include the line break
that ends them in an answer.
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
"""Added to a label's logit: larger than any difference between logits, small enough that float32 keeps five decimals."""


def harness_choices(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    contexts: Sequence[str],
    labels: Sequence[str],
    scratch: Path,
    batch_size: int = 16,
) -> list[str]:
    """Return the most likely label after each rendered context, in order, by the harness.

    The harness moves a context's trailing line break into the continuation.  Labels of one token then share every token but the last,
    and one forward pass scores them all; in a vocabulary that splits labels, each label costs a pass of its own, and its score is the
    sum of its tokens' log-likelihoods.
    batch_size: requests per forward pass.  Raises ModelError if a log-likelihood is NaN.
    """
    single = single_tokens(lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), labels)
    write_task(scratch, contexts, labels if single else terminate_labels(labels))
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
        raise ModelError("lm-evaluation-harness", "no result: this process is not rank 0", "a single process")
    samples = sorted(result["samples"][TASK], key=lambda sample: sample["doc_id"])
    scores = [[float(response[0]) for response in sample["filtered_resps"]] for sample in samples]  # (items, labels)
    if len(scores) != len(contexts) or any(value != value for row in scores for value in row):
        raise ModelError(
            "log-likelihood of the labels", "not a number, or items are missing", "finite scores for every item"
        )
    return [labels[max(range(len(labels)), key=row.__getitem__)] for row in scores]


def write_task(folder: Path, contexts: Sequence[str], labels: Sequence[str]) -> None:
    """Write a local harness task: one JSON line per context, and a YAML file that reads it.

    The target is always 0: choices are read from the samples and graded elsewhere, with all other measures.
    The folder is emptied first: the harness's data cache tells files apart by date, and a kill may have truncated one.
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
    """Return the token id of every label in llama.cpp; see `single_tokens`."""
    return single_tokens(client.tokens, labels)


def single_tokens(encode: Callable[[str], list[int]], labels: Sequence[str]) -> list[int] | None:
    """Return each label's token id at a line start; None unless each is one distinct token."""
    lead = encode("assistant\n")
    found = [encode("assistant\n" + label) for label in labels]
    if any(len(ids) != len(lead) + 1 or ids[:-1] != lead for ids in found) or len({ids[-1] for ids in found}) < len(
        labels
    ):
        return None
    return [ids[-1] for ids in found]


def terminate_labels(labels: Sequence[str]) -> list[str]:
    """Return the labels, each with a final line break if one label is a prefix of another."""
    begins = any(other != label and other.startswith(label) for label in labels for other in labels)
    return [f"{label}\n" for label in labels] if begins else list(labels)


def label_grammar(labels: Sequence[str]) -> str:
    """Return a GBNF grammar that admits exactly the labels."""
    return "root ::= " + " | ".join(json.dumps(label, ensure_ascii=False) for label in labels)


def llama_choices(
    client: LlamaClient,
    prompts: Sequence[str],
    labels: Sequence[str],
    method: Literal["auto", "bias", "grammar"] = "auto",
) -> list[str]:
    """Return the label that llama.cpp chooses after each prompt, in order.

    method: see the module docstring; auto takes bias where every label is one token.  Raises ModelError if bias is impossible.
    """
    ids = None if method == "grammar" else label_tokens(client, labels)
    if ids is None and method == "bias":
        raise ModelError("labels", "not one distinct token each", "single-token labels, or method: grammar")
    spelled = terminate_labels(labels)
    options: dict[str, Any] = (
        {"grammar": label_grammar(spelled)} if ids is None else {"logit_bias": [[token, BIAS] for token in ids]}
    )
    longest = 1 if ids else max(len(client.tokens(label)) for label in spelled) + 4

    def choose(prompt: str) -> str:
        return str(client.complete(prompt, longest, **options)["text"]).strip()

    return list(track(client.each(choose, prompts), "labels", len(prompts)))
