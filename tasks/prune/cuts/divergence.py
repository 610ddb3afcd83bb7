"""Divergence of a model from itself after a cut, measured with the units switched off.

The one model in memory is neither copied nor written to: hooks hide what a cut removes, while it is measured.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.prune.cuts.size import Cut
from tasks.prune.selection.activations import BlockAxis, Gate, gated_input, last_projections
from tasks.prune.selection.layers import Reading, passed_over
from tasks.prune.selection.picks import Picks, choose, leading, rows_of
from tasks.prune.selection.shape import Shape
from tasks.shared.errors import TechniqueError
from tasks.shared.files import write_text
from tasks.shared.model.agreement import token_agreement
from tasks.shared.model.calibration import batches
from tasks.shared.model.head import check_head, output_head, sum_over_chunks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Meter:
    """Measures how far a model is from itself after a cut, each cut once.

    before: sizes of the model.
    scores: importance of the units, (units,) for each layer, by axis; of a cut, the units with the highest stay.
    folder: measurements so far, each in a file that is named by everything it was made from; other runs may share it.
    made_from: what tells the model from others.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        reading: Reading,
        before: Shape,
        scores: "Mapping[BlockAxis, Sequence[Tensor]]",
        folder: Path,
        made_from: str = "",
    ) -> None:
        self.model, self.reading, self.before = model, reading, before
        self.scores, self.folder, self.made_from = scores, folder, made_from
        self.found: dict[Cut, float] = {}

    def divergence(self, cut: Cut) -> float:
        """Return the mean KL divergence of the cut model from the whole one, in nats per token.

        Raises TechniqueError if it is not finite, or the model's head is not known.
        """
        if cut not in self.found:
            picks = self.picks(cut)
            file = self.folder / f"{self._identity(cut, picks)}.json"
            value = _read(file)
            if value is None:
                value = self._measure(cut, picks)
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps(value))
            self.found[cut] = value
        return self.found[cut]

    def picks(self, cut: Cut) -> list[Picks]:
        """Return the units that stay in every layer, dropped ones included."""
        import torch

        stacked = {axis: torch.stack(list(found)) for axis, found in self.scores.items()}
        return choose(replace(leading(self.before), **stacked), self.before, cut.shape)

    def _identity(self, cut: Cut, picks: Sequence[Picks]) -> str:
        """Digest of what a measurement depends on: model, text, and units that stay."""
        kept = [{axis: units.tolist() for axis, units in picks[layer].along().items()} for layer in cut.kept]
        content = json.dumps([self.made_from, self.reading, cut.dropped, kept], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _measure(self, cut: Cut, picks: Sequence[Picks]) -> float:
        import torch

        if not cut.kinds(self.before):
            return 0.0
        dense = self._dense
        total = 0.0
        with ExitStack() as stack, torch.inference_mode():
            stack.enter_context(passed_over(self.model, cut.dropped))
            for axis in self.scores:
                for layer, last in enumerate(last_projections(self.model, axis)):
                    mask = mask_of(picks[layer], axis)
                    if mask is not None and layer not in cut.dropped:
                        stack.callback(gated_input(last)(hiding(mask.to(self.model.device))).remove)
            for states, reference in zip(self._states(), dense, strict=True):
                total += float(self._divergences(states, reference))
        mean = total / sum(map(len, self.reading.ids))
        if not isfinite(mean):
            raise TechniqueError(
                "model", "logits that are not finite", "finite logits", "check the model with evaluate/perplexity"
            )
        return mean

    @cached_property
    def _dense(self) -> "list[Tensor]":
        """Last states of the whole model."""
        import torch

        check_head(self.model)
        with torch.inference_mode():
            return list(self._states())

    def _states(self) -> "Iterator[Tensor]":
        """Last states of the tokens without padding, (tokens, hidden) for each batch."""
        for batch in batches(*self.reading):
            placed = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            states = self.model.base_model(**placed, use_cache=False).last_hidden_state
            yield states[placed["attention_mask"] == 1]

    def _divergences(self, states: "Tensor", reference: "Tensor") -> "Tensor":
        """Sum of the divergences over the tokens; logits exist for a chunk of them at a time."""
        head = output_head(self.model)
        return sum_over_chunks(
            lambda logits, rows: token_agreement(head(rows), logits)[0].sum().view(1), head, states, reference
        )[0]


def hiding(mask: "Tensor") -> Gate:
    """Return a gate that sets the inputs of removed units to zero.

    mask: (columns,), False for these.
    """
    return lambda values: values.masked_fill(~mask, 0.0)


def mask_of(picks: Picks, axis: BlockAxis) -> "Tensor | None":
    """Return True for each input of the last projection that stays, or None if all do.

    Returns (columns,), bool.
    """
    import torch

    whole, size = picks.teacher, picks.teacher.head_dim
    kept = picks.neurons if axis == "neurons" else rows_of(picks.heads, size)
    columns = whole.intermediate if axis == "neurons" else whole.heads * size
    if len(kept) == columns:
        return None
    return torch.zeros(columns, dtype=torch.bool).index_fill_(0, kept, True)


def _read(file: Path) -> float | None:
    """Return a stored measurement; None if it is absent or was cut short."""
    try:
        return float(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError):
        return None
