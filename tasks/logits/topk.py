"""A teacher's soft targets, stored once: top-k tokens and the tail's mass.

Students then train without the teacher in memory.  The tail is stored as one more category, so that the targets are a
distribution; the renormalized top k make students overconfident (Anshumann et al. 2025, arXiv 2503.16870, section 3.2, which
samples instead).
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.errors import ConfigError, ModelError, TechniqueError
from tasks.shared.files import replacing, write_text
from tasks.shared.forecast import ANSWER_TOKENS, Forecast, Workload, forecast_reading
from tasks.shared.formats.rows import read_rows
from tasks.shared.formats.soft_targets import (
    SMALL,
    Positions,
    bytes_per_position,
    part_name,
    row_key,
    tail_shares,
    write_index,
)
from tasks.shared.model.encoding import Encoded, TooLong, collate, counted, encode, encode_fitting
from tasks.shared.model.head import CHUNK_ELEMENTS, check_head, output_head
from tasks.shared.model.loading import load_model, training_tokenizer
from tasks.shared.model.precision import DtypeSetting, chosen_dtype
from tasks.shared.model.turns import Turns, examples
from tasks.shared.progress import progress_bar
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from torch import Tensor

ACCOUNT = "tails.json"
"""File in scratch: per part, the tail mass at each temperature, summed over positions."""
PART_ROWS = 64
"""Conversations per part, the most work that a kill can lose."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TopK:
    """Run the teacher over every training answer and store its top-k distribution at each token."""

    spec: ClassVar[Spec] = Spec(
        summary="A teacher's top-k tokens and tail mass at every answer token, stored once for several temperatures",
        ports={"teacher": Port((Kind.MODEL,)), "data": Port((Kind.TRACES, Kind.CORPUS))},
        produces=Kind.LOGITS,
        libraries=("torch", "transformers", "tokenizers", "gguf", "safetensors"),
        device="accelerator",
        paper="Hinton et al. 2015, arXiv 1503.02531",
    )

    k: Annotated[int, Field(ge=1)] = 32
    """Tokens stored per position, which takes 4 k bytes (6 k for vocabularies over 65,536) plus 4 per temperature."""
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1.0,
        2.0,
        4.0,
        6.0,
        8.0,
        10.0,
    )
    """Temperatures at which students can be trained from these targets."""
    max_tokens: Annotated[int, Field(gt=8)] = 512
    """Most tokens of a conversation; longer ones are never truncated, as in training."""
    too_long: TooLong = "stop"
    """What to do about longer conversations: stop, or drop them; as in the step that trains on these targets."""
    turns: Turns = "all"
    """Turns of the assistant with targets: all, or the last only; as in the step that trains on them."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    """Conversations per forward pass."""
    dtype: DtypeSetting = "float32"
    """Data type of the teacher's weights and arithmetic.  auto: bfloat16 where the hardware is fast in it, else float32."""

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield problems: a temperature listed twice."""
        if len(set(self.temperatures)) < len(self.temperatures):
            yield ConfigError(f"{where}.temperatures", f"{list(self.temperatures)}", "every temperature once")

    def forecast(self, work: Workload) -> Forecast:
        """Forecast one pass of the teacher over the training rows, and the stored positions."""
        teacher = work.size("teacher")
        position = bytes_per_position(self.k, len(self.temperatures), teacher.shape.vocabulary)
        seconds = work.reading(teacher, work.rows.train * work.rows.tokens)
        disk = work.rows.train * ANSWER_TOKENS * position
        dtype = chosen_dtype(self.dtype, work.compute.device)
        return forecast_reading(work, seconds, teacher.parameters, disk=disk, dtype=dtype)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the parts, index.json and vocabulary.json to `out`.

        A killed run resumes after its last whole part.

        Raises DataError for rows that are too long, TechniqueError for a k without a tail, ModelError for logits that are not
        finite.
        """
        import torch

        torch.set_num_threads(run.compute.threads)
        source = inputs.one("teacher").path
        tokenizer = training_tokenizer(source)
        given = examples(read_rows(inputs.one("data").path / "train.jsonl"), tokenizer, self.turns)
        encoder = partial(encode, tokenizer=tokenizer, max_tokens=self.max_tokens)
        _, rows = encode_fitting(encoder, given, self.too_long)
        unique = {row_key(row["input_ids"], row["labels"]): row for row in rows}
        order = sorted(unique, key=lambda key: (len(unique[key]["input_ids"]), key))
        parts = [order[start : start + PART_ROWS] for start in range(0, len(order), PART_ROWS)]
        self._make_parts(source, [[unique[key] for key in part] for part in parts], tokenizer.pad_token_id, run)
        places = {}
        for number, part in enumerate(parts):
            os.link(run.scratch / part_name(number), out / part_name(number))
            start = 0
            for key in part:
                count = count_answer(unique[key])
                places[key] = Positions(part_name(number), start, count)
                start += count
        vocabulary = tokenizer.get_vocab()
        positions = sum(place.count for place in places.values())
        sums = json.loads((run.scratch / ACCOUNT).read_text("utf-8")).values()
        shares = [round(sum(column) / positions, 4) for column in zip(*sums, strict=True)]
        tails = dict(zip(self.temperatures, shares, strict=True))
        write_index(out, places, tails, self.k, vocabulary)
        return {
            "rows": len(rows),
            "positions": positions,
            "bytes_per_position": bytes_per_position(self.k, len(self.temperatures), len(vocabulary)),
            **{f"tail_at_{temperature:g}": share for temperature, share in tails.items()},
        }

    def _make_parts(self, source: Path, parts: Sequence[Sequence[Encoded]], pad: int, run: StepRun) -> None:
        """Write the parts that scratch lacks, each by one rename.

        The teacher is loaded only if a part is missing.
        """
        from safetensors.torch import save_file

        account = run.scratch / ACCOUNT
        sums: dict[str, list[float]] = json.loads(account.read_text("utf-8")) if account.exists() else {}
        missing = [n for n in range(len(parts)) if str(n) not in sums or not (run.scratch / part_name(n)).exists()]
        if not missing:
            return
        model = load_model(source, chosen_dtype(self.dtype, run.compute.device), run.compute.device)
        check_head(model)
        with progress_bar("soft targets", len(parts)) as advance:
            advance(len(parts) - len(missing))
            for number in missing:
                tensors = self._targets(model, parts[number], pad)
                with replacing(run.scratch / part_name(number)) as temporary:
                    save_file(tensors, temporary)
                shares = tail_shares(tensors["top"], tensors["tails"], self.temperatures)
                sums[str(number)] = shares.double().sum(dim=0).tolist()
                write_text(account, json.dumps(sums))
                advance(1)

    def _targets(self, model: Any, rows: Sequence[Encoded], pad: int) -> "dict[str, Tensor]":
        """Compute ids, top and tails of conversations, concatenated."""
        import torch

        found: list[tuple[Tensor, Tensor, Tensor]] = []
        head = output_head(model)
        with torch.inference_mode():
            for start in range(0, len(rows), self.batch_size):
                batch = {
                    name: tensor.to(model.device)
                    for name, tensor in collate(rows[start : start + self.batch_size], pad).items()
                }
                hidden = model.base_model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).last_hidden_state
                states, _ = counted(hidden, batch["labels"])
                for part in states.split(max(1, CHUNK_ELEMENTS // model.config.get_text_config().vocab_size)):
                    found.append(top_and_tails(head(part), self.k, self.temperatures))
        ids, top, tails = (torch.cat(column).cpu() for column in zip(*found, strict=True))
        if not bool(torch.isfinite(top).all()):
            raise ModelError("teacher", "its logits are not finite", "finite logits", "evaluate it, or dtype: float32")
        small = model.config.get_text_config().vocab_size <= SMALL
        return {
            "ids": ids.to(torch.uint16 if small else torch.int32).contiguous(),
            "top": top.half().contiguous(),
            "tails": tails.contiguous(),
        }


def count_answer(row: Encoded) -> int:
    """Number of labeled tokens of a conversation, without the very first token."""
    return sum(label >= 0 for label in row["labels"][1:])


def top_and_tails(logits: "Tensor", k: int, temperatures: Sequence[float]) -> "tuple[Tensor, Tensor, Tensor]":
    """Select the top-k tokens, their log-probabilities, and the tail at each temperature.

    logits: (tokens, vocabulary) float32.  Returns ids (tokens, k) int64, top (tokens, k), tails (tokens, temperatures):
    log of the sum of exp(log-probability / temperature) over all other tokens, at log-probabilities of temperature 1.
    Raises TechniqueError if k tokens are the whole vocabulary.
    """
    import torch

    if k >= logits.shape[-1]:
        raise TechniqueError("k", str(k), f"fewer than the {logits.shape[-1]} tokens of the vocabulary")
    logs = torch.log_softmax(logits, dim=-1)
    top, ids = logs.topk(k, dim=-1)
    rest = logs.scatter(-1, ids, -torch.inf)
    tails = torch.stack([torch.logsumexp(rest / temperature, dim=-1) for temperature in temperatures], dim=-1)
    return ids, top, tails
