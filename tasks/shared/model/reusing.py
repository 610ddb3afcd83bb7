"""Greedy generation that reads what prompts share once, and drops answers as they end."""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.shared.model.encoding import text_ids
from tasks.shared.model.generation import Written, plain_greedy, stop_tokens
from tasks.shared.model.prompt_groups import Group, batch_groups, group_prompts, split_batch
from tasks.shared.progress import progress_bar
from tasks.shared.text.stops import cut_at

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
CHUNK = 8
"""Tokens after which answers that have ended leave a batch."""
CHECKED = 16
"""Likeliest tokens whose log-probabilities are compared."""
TOLERANCE = {"float32": 0.02, "bfloat16": 0.3, "float16": 0.1}
"""Largest difference of a log-probability in nats that counts as rounding."""
SHARED = "beginnings that prompts share are read once"
WHOLE = "every prompt is read whole, since this model computes otherwise after a beginning that was read before"


@dataclass
class Watch:
    """Log-probabilities of chosen tokens at the first places of every answer.

    tokens: ids to watch.  depth: places.  found: by row, (tokens,) at each place, in nats.  answers: tokens by row, up to the end.
    """

    tokens: Sequence[int]
    depth: int
    found: dict[int, list[list[float]]] = field(default_factory=dict)
    answers: dict[int, list[int]] = field(default_factory=dict)

    def record(self, rows: Sequence[int], scores: "Tensor") -> None:
        """Note the distribution of the next token.

        rows: indices of the prompts.  scores: (rows, vocabulary), logits.
        """
        if len(self.found.get(rows[0], ())) < self.depth:
            for row, values in zip(rows, scores.float().log_softmax(-1)[:, list(self.tokens)].tolist(), strict=True):
                self.found.setdefault(row, []).append(values)

    def of(self, row: int) -> list[tuple[int, list[float]]]:
        """Return the first tokens of a row's answer, each with the log-probabilities in its place."""
        return list(zip(self.answers[row], self.found.get(row, ()), strict=False))


@dataclass
class ReusingWriter:
    """Answers of one model.

    method: how prompts were read, for notes; empty before the first answer.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    batch_size: int
    method: str = ""

    def write(
        self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = (), watch: Watch | None = None
    ) -> list[Written]:
        """Return greedy continuations of rendered prompts: those of `write_answers` up to rounding."""
        import torch

        ids = [text_ids(self.tokenizer, prompt) for prompt in prompts]
        found: dict[int, Written] = {}
        with progress_bar("answers", len(prompts)) as advance, plain_greedy(self.model), torch.inference_mode():
            groups = self._groups(ids)
            for batch in batch_groups(groups, ids, self.batch_size):
                found |= self._answer(split_batch(batch, ids), ids, max_new_tokens, stop, watch)
                advance(sum(len(group.rows) for group in batch))
        return [found[index] for index in range(len(prompts))]

    def _groups(self, prompts: Sequence[Sequence[int]]) -> list[Group]:
        """Return groups with shared beginnings if a check shows that the model supports them."""
        groups = group_prompts(prompts)
        first = next((group for group in groups if group.shared), None)
        if first is not None and not self.method:
            self.method = SHARED if self._agrees(prompts[first.rows[0]], first.shared) else WHOLE
            if self.method == WHOLE:
                log.info(WHOLE)
        if first is None or self.method == SHARED:
            return groups
        return [Group((index,)) for index in range(len(prompts))]

    def _agrees(self, prompt: Sequence[int], shared: int) -> bool:
        """Return True if a prompt in two parts, both padded, is continued as the whole one."""
        import torch

        model: Any = self.model
        whole = model(torch.tensor([list(prompt)], device=model.device), use_cache=False).logits[0, -1]
        try:
            cache = self._read([prompt[:shared]], [1], shared + 3)
            if cache is None:
                return False
            ids, mask = self._pad([prompt[:shared]], shared + 3)
            rest, seen = self._pad([prompt[shared:]], len(prompt) - shared + 2)
            mask = torch.cat([mask, seen], 1)
            options = {"position_ids": _positions(mask)[:, -rest.shape[1] :]} if _takes_positions(model) else {}
            parts = model(rest, attention_mask=mask, past_key_values=cache, use_cache=True, **options).logits[0, -1]
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            log.debug("a prompt in two parts: %s", error)
            return False
        first, second = whole.float().log_softmax(-1), parts.float().log_softmax(-1)
        top = first.topk(min(CHECKED, first.shape[0])).indices
        allowed = TOLERANCE.get(str(model.dtype).removeprefix("torch."), 0.3)
        return bool((first - second)[top].abs().max() <= allowed)

    def _read(self, beginnings: Sequence[Sequence[int]], counts: Sequence[int], width: int) -> Any:
        """Return the keys and values of beginnings, a row per prompt; None for another state.

        counts: prompts by beginning.  width: tokens, padding on the left included.
        Layers that see a window only count padding between the two parts, so only models that see everything are served.
        """
        import torch
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        model: Any = self.model
        cache = DynamicCache(config=model.config)
        ids, mask = self._pad(beginnings, width)
        options = {"position_ids": _positions(mask)} if _takes_positions(model) else {}
        model(ids, attention_mask=mask, past_key_values=cache, use_cache=True, **_few_logits(model), **options)
        if not all(type(layer) is DynamicLayer for layer in cache.layers) or cache.get_seq_length() != width:
            return None
        rows = [place for place, count in enumerate(counts) for _ in range(count)]
        if rows != list(range(len(beginnings))):
            cache.batch_select_indices(torch.tensor(rows, device=model.device))
        return cache

    def _pad(self, rows: Sequence[Sequence[int]], width: int) -> "tuple[Tensor, Tensor]":
        """Token ids and mask, (rows, width), padded on the left."""
        import torch

        pad = int(self.tokenizer.pad_token_id)
        ids = [[pad] * (width - len(row)) + list(row) for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _answer(
        self,
        batch: Sequence[Group],
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: Sequence[str],
        watch: Watch | None,
    ) -> dict[int, Written]:
        """Return the answers of one batch, by row."""
        import torch

        rows = [row for group in batch for row in group.rows]
        starts = [group.shared for group in batch for _ in group.rows]
        ends = [prompts[row][start:] for row, start in zip(rows, starts, strict=True)]
        ids, mask = self._pad(ends, max(map(len, ends)))
        cache = None
        if batch[0].shared:
            beginnings = [prompts[group.rows[0]][: group.shared] for group in batch]
            width = max(map(len, beginnings))
            cache = self._read(beginnings, [len(group.rows) for group in batch], width)
            before, seen = self._pad([prompts[row][:start] for row, start in zip(rows, starts, strict=True)], width)
            ids, mask = torch.cat([before, ids], 1), torch.cat([seen, mask], 1)
        new = self._decode(rows, ids, mask, cache, max_new_tokens, stop, watch)
        stops, found = set(stop_tokens(self.model.generation_config, self.tokenizer)), {}
        for row in rows:
            text, cut = cut_at(self._text(new[row]), stop)
            found[row] = Written(text.strip(), cut or not stops.isdisjoint(new[row]))
            if watch is not None:
                end = next((place for place, token in enumerate(new[row], 1) if token in stops), len(new[row]))
                watch.answers[row] = new[row][:end]
        return found

    def _decode(
        self,
        rows: Sequence[int],
        ids: "Tensor",
        mask: "Tensor",
        cache: Any,
        limit: int,
        stop: Sequence[str],
        watch: Watch | None,
    ) -> dict[int, list[int]]:
        """Return new tokens by row.

        ids, mask: (rows, tokens).  cache: of the first tokens, if they were read.
        """
        import torch
        from transformers import LogitsProcessorList

        generating: Any = self.model
        stops, pad = stop_tokens(self.model.generation_config, self.tokenizer), self.tokenizer.pad_token_id
        options: dict[str, Any] = {"stop_strings": list(stop), "tokenizer": self.tokenizer} if stop else {}
        found: dict[int, list[int]] = {row: [] for row in rows}
        live, made = list(rows), 0
        step = CHUNK if self.method == SHARED else limit  # the check showed a cache whose rows can be chosen
        while live and made < limit:
            if watch is not None and made < watch.depth:
                options["logits_processor"] = LogitsProcessorList([_recorder(watch, live)])
            else:
                options.pop("logits_processor", None)
            result = generating.generate(
                input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=min(step, limit - made), do_sample=False,
                eos_token_id=stops, pad_token_id=pad, return_dict_in_generate=True, **options,
            )  # fmt: skip
            new = result.sequences[:, ids.shape[1] :]  # (live, at most step)
            for row, tokens in zip(live, new.tolist(), strict=True):
                found[row] += tokens
            made += new.shape[1]
            keep = [place for place, row in enumerate(live) if not self._ended(found[row], stops, stop)]
            cache, chosen = result.past_key_values, torch.tensor(keep, dtype=torch.long, device=ids.device)
            ids, mask = result.sequences[chosen], torch.cat([mask, torch.ones_like(new)], 1)[chosen]
            if 0 < len(keep) < len(live):
                cache.batch_select_indices(chosen)
            live = [live[place] for place in keep]
        return found

    def _ended(self, tokens: Sequence[int], stops: Sequence[int], stop: Sequence[str]) -> bool:
        """Return True for an answer that ended: by a token, a string, or padding after either."""
        return (
            not set(stops).isdisjoint(tokens)
            or tokens[-1] == self.tokenizer.pad_token_id
            or (bool(stop) and cut_at(self._text(tokens), stop)[1])
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _recorder(watch: Watch, rows: Sequence[int]) -> Callable[["Tensor", "Tensor"], "Tensor"]:
    """Return a logits processor that notes the scores and leaves them as they are."""

    def record(_: "Tensor", scores: "Tensor") -> "Tensor":
        watch.record(rows, scores)
        return scores

    return record


def _positions(mask: "Tensor") -> "Tensor":
    """Positions without padding, as `generate` counts them."""
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)


def _takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(type(model).forward).parameters


def _few_logits(model: Any) -> dict[str, int]:
    """Option that computes no logits of a text that is only read."""
    return {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
