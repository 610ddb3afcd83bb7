"""Log-likelihoods of many labels after one prompt, in one forward pass of transformers.

The prompt and the tree of all labels are one sequence: every token of the tree sees the prompt and the tokens above it (a mask) and
has the position that it has in its own label.  So a row costs the tokens of its prompt and of the tree, whatever the number of labels
(Cai et al. 2024, "Medusa", arXiv 2401.10774, section 2.1, verify drafts in this way).
"""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tasks.shared.engines.labels import LabelPrompt, LabelTree, grow_tree
from tasks.shared.errors import ModelError
from tasks.shared.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
MOST_NODES = 512
"""Tokens of a tree in one pass; more labels take several passes."""
LOGITS_BYTES = 2**28
"""Memory for the float32 logits of one pass."""
CHECKED_LABELS = 4
TOLERANCE = {"float32": 0.02, "bfloat16": 0.3, "float16": 0.1}
"""Largest difference in nats, plus 2 %, between a tree's log-likelihoods and plain ones that counts as rounding."""
TREE = "log-likelihood of every label, all labels of a row in one pass"
PLAIN = "log-likelihood of every label, a pass per label, since this model does not take a mask of its own"


class LabelScorer:
    """Scores of labels by one model, in trees if its first prompt shows that it supports them.

    method: description for notes.
    """

    def __init__(self, model: "PreTrainedModel", batch_size: int) -> None:
        self.model, self.batch_size, self.method = model, batch_size, TREE
        self._checked = False

    def score(self, prompts: Sequence[LabelPrompt]) -> list[list[float]]:
        """Return (prompts, labels) log-likelihoods in nats.

        Prompts of similar length and with the same labels share a pass.  Raises ModelError for a log-likelihood that is not a number.
        """
        found: dict[int, list[float]] = {}
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(prompt.labels, []).append(index)
        with progress_bar("labels", len(prompts)) as advance:
            for labels, indices in groups.items():
                trees = [grow_tree(part) for part in parts_of(labels)]
                ordered = sorted(indices, key=lambda index: len(prompts[index].ids))
                for chosen in self._batches(ordered, max(len(tree.tokens) for tree in trees) + 1):
                    ids = [prompts[index].ids for index in chosen]
                    rows = [self._score_tree(ids, tree) for tree in trees]
                    for place, index in enumerate(chosen):
                        found[index] = [value for part in rows for value in part[place]]
                    advance(len(chosen))
        if any(value != value for row in found.values() for value in row):
            raise ModelError(
                "log-likelihood of the labels",
                "not a number",
                "finite scores for every row",
                "the model is broken: check the step that made it",
            )
        return [found[index] for index in range(len(prompts))]

    def _batches(self, indices: Sequence[int], positions: int) -> Iterator[Sequence[int]]:
        width = int(self.model.get_output_embeddings().weight.shape[0])
        size = max(1, min(self.batch_size, LOGITS_BYTES // (4 * width * positions)))
        return (indices[start : start + size] for start in range(0, len(indices), size))

    def _score_tree(self, prompts: Sequence[Sequence[int]], tree: LabelTree) -> list[list[float]]:
        if not self._checked and not tree.is_chain:
            self._checked = True
            if not self._agrees(prompts[0], tree):
                self.method = PLAIN
                log.info("labels are scored one by one, since this model ignores custom attention masks")
        if self.method == PLAIN and not tree.is_chain:
            return [plain_scores(self.model, prompt, _spell(tree), self.batch_size) for prompt in prompts]
        return tree_scores(self.model, prompts, tree)

    def _agrees(self, prompt: Sequence[int], tree: LabelTree) -> bool:
        """Return True if some labels of the tree score as they do alone."""
        import torch

        spelled = _spell(tree)
        step = max(1, len(spelled) // CHECKED_LABELS)
        try:
            (found,) = tree_scores(self.model, [prompt], tree)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            log.debug("a tree of labels: %s", error)
            return False
        plain = plain_scores(self.model, prompt, spelled[::step], self.batch_size)
        allowed = TOLERANCE.get(str(self.model.dtype).removeprefix("torch."), 0.3)
        pairs = zip(found[::step], plain, strict=True)
        return all(abs(first - second) <= allowed + 0.02 * abs(second) for first, second in pairs if second == second)


def parts_of(labels: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Split labels, in order, into parts whose trees have at most MOST_NODES tokens.

    A single label may have more.
    """
    parts: list[list[tuple[int, ...]]] = [[]]
    nodes: set[tuple[int, ...]] = set()
    for label in labels:
        own = {label[:length] for length in range(1, len(label))}
        if parts[-1] and len(nodes | own) > MOST_NODES:
            parts.append([])
            nodes = set()
        parts[-1].append(label)
        nodes |= own
    return parts


def _spell(tree: LabelTree) -> list[list[int]]:
    """Token ids of each label of a tree."""
    return [[tree.edges[edge][1] for edge in path] for path in tree.paths]


def tree_scores(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], tree: LabelTree) -> list[list[float]]:
    """Return (prompts, labels) log-likelihoods in nats, from one forward pass over all prompts.

    prompts: token ids, padded on the left.
    """
    import torch

    width, count = max(map(len, prompts)), len(tree.tokens)
    pads = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * pad + [*prompt, *tree.tokens] for pad, prompt in zip(pads, prompts, strict=True)])
    depths = tree.depths()
    positions = torch.tensor([
        [0] * pad + [*range(width - pad), *(width - pad + depth for depth in depths)] for pad in pads
    ])  # fmt: skip
    device, running = model.device, _callable(model)
    mask = _plain_mask(pads, width + count) if tree.is_chain else _tree_mask(model, pads, width, tree, positions)
    options = {"logits_to_keep": count + 1} if running._supports_logits_to_keep() else {}
    with torch.inference_mode():
        logits = running(
            input_ids=ids.to(device), attention_mask=_to(mask, device), position_ids=positions.to(device), use_cache=False, **options
        ).logits[:, -(count + 1) :]  # (prompts, 1 + nodes, vocabulary)  # fmt: skip
        before, tokens = (torch.tensor(column, device=device) for column in zip(*tree.edges, strict=True))
        found = []
        for row in logits:
            scores = row.float()
            edges = scores[before + 1, tokens] - scores.logsumexp(-1)[before + 1]  # (edges,)
            values = edges.tolist()
            found.append([sum(values[edge] for edge in path) for path in tree.paths])
    return found


def plain_scores(
    model: "PreTrainedModel", prompt: Sequence[int], labels: Sequence[Sequence[int]], batch_size: int
) -> list[float]:
    """Return the labels' log-likelihoods in nats, each label in a row of its own.

    Rows are padded on the right.
    """
    import torch

    found = []
    for start in range(0, len(labels), batch_size):
        part = labels[start : start + batch_size]
        rows = [[*prompt, *label[:-1]] for label in part]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        with torch.inference_mode():
            logits = _callable(model)(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, len(prompt) - 1 :]
        for row, label in zip(logits, part, strict=True):
            scores = row[: len(label)].float().log_softmax(-1)  # (label, vocabulary)
            found.append(float(scores.gather(1, torch.tensor([list(label)], device=model.device).T).sum()))
    return found


def _plain_mask(pads: Sequence[int], length: int) -> "Tensor":
    import torch

    return torch.tensor([[0] * pad + [1] * (length - pad) for pad in pads])


def _tree_mask(
    model: "PreTrainedModel", pads: Sequence[int], width: int, tree: LabelTree, positions: "Tensor"
) -> "Tensor | dict[str, Tensor]":
    """Additive attention mask, (prompts, 1, length, length).

    0 where a token sees another, the smallest number elsewhere.
    A dict by kind of layer for models in which some layers see a window only.
    """
    import torch

    length = width + len(tree.tokens)
    seen = torch.tril(torch.ones(length, length, dtype=torch.bool))
    seen[width:, width:] = False
    for node, line in enumerate(tree.lineages()):
        seen[width + node, [width + above for above in line]] = True
    batch = seen.expand(len(pads), length, length).clone()
    for row, pad in enumerate(pads):
        batch[row, :, :pad] = False
    batch |= torch.eye(length, dtype=torch.bool)  # padding sees itself: a row that sees nothing gives NaN
    config: Any = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not window or length <= window:
        return _additive(batch, model)
    near = batch & (positions[:, :, None] - positions[:, None, :] < window)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if "full_attention" not in kinds:
        return _additive(near, model)
    return {"full_attention": _additive(batch, model), "sliding_attention": _additive(near, model)}


def _additive(seen: "Tensor", model: "PreTrainedModel") -> "Tensor":
    import torch

    blank = torch.zeros(seen.shape, dtype=model.dtype)
    return blank.masked_fill(~seen, torch.finfo(model.dtype).min)[:, None]


def _to(mask: "Tensor | dict[str, Tensor]", device: Any) -> Any:
    return {kind: part.to(device) for kind, part in mask.items()} if isinstance(mask, dict) else mask.to(device)


def _callable(model: "PreTrainedModel") -> Any:
    return model
