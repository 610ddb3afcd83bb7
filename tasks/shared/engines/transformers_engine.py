"""transformers as an engine: a model in this process, with all probabilities."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.engines.engine import EngineName
from tasks.shared.engines.label_proof import HALF_SLACK, SLACK, Step, proven_label, remaining_labels
from tasks.shared.engines.labels import label_prompts
from tasks.shared.engines.memory import peak_memory
from tasks.shared.engines.protocol import Capabilities, Choices, Conversation, Opening, lacking
from tasks.shared.model.bitsandbytes_layers import mixes_rows
from tasks.shared.model.encoding import text_ids
from tasks.shared.model.generation import Written, check_logits, write_answers
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.precision import fast_dtype
from tasks.shared.model.prompts import render
from tasks.shared.model.reusing import ReusingWriter, Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ALONE = "each alone and whole, since LLM.int8 lets the prompts of a batch change each other's answers"


@dataclass
class TransformersSession:
    """A model and its tokenizer in memory.

    reuse: see `Opening`.  alone: reason, for notes, why each prompt is read by itself; empty if prompts share passes.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    batch_size: int
    reuse: bool = False
    alone: str = ""
    url = ""

    @cached_property
    def context(self) -> int:
        """The model's number of positions; 0 if its configuration names none."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 0)

    def render(self, messages: Conversation, tools: str = "") -> str:
        """Render a conversation with the tokenizer's chat template."""
        return render(self.tokenizer, [dict(message) for message in messages], tools=tools)

    def tokens(self, text: str) -> list[int]:
        """Tokenize a text, without special tokens added."""
        return text_ids(self.tokenizer, text)

    def check(self, prompt: str) -> None:
        """Raise ModelError for logits that are not finite."""
        check_logits(self.model, self.tokenizer, prompt)

    def answer(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        grammar: str = "",
        labels: Sequence[str] = (),
        end: str = "\n",
    ) -> list[Written]:
        """Greedy answers in batches of prompts of similar length; a grammar is refused."""
        if grammar:
            raise lacking(TRANSFORMERS.name, "grammar")
        if not self.reuse:
            return write_answers(self.model, self.tokenizer, prompts, max_new_tokens, self.batch_size, stop)
        if not labels:
            return self._writer.write(prompts, max_new_tokens, stop)
        ids = [self.tokens(prompt) for prompt in prompts]
        asked = label_prompts(self.tokens, self.tokens, prompts, labels, end)
        paths = [remaining_labels(prompt, own) for prompt, own in zip(asked, ids, strict=True)]
        tokens = sorted({token for found in paths for path in found for token in path})
        watch = Watch(tokens, max((len(path) for found in paths for path in found), default=0))
        written = self._writer.write(prompts, max_new_tokens, stop, watch)
        slack = SLACK if str(self.model.dtype) == "torch.float32" else HALF_SLACK
        proven = [proven_label(found, _steps(watch, row), slack) if found else None for row, found in enumerate(paths)]
        return [
            answer if place is None else replace(answer, label=labels[place])
            for answer, place in zip(written, proven, strict=True)
        ]

    @property
    def reading(self) -> str:
        """Way in which prompts were read so far."""
        return self.alone or self._writer.method

    @cached_property
    def _writer(self) -> ReusingWriter:
        return ReusingWriter(self.model, self.tokenizer, self.batch_size)

    def choose(self, prompts: Sequence[str], labels: Sequence[str], end: str = "\n") -> Choices:
        """Most likely labels, from the log-likelihoods of all of them."""
        from tasks.shared.engines.label_scores import LabelScorer

        scorer = LabelScorer(
            self.model, max(1, self.batch_size // 4)
        )  # as many logits as a batch of answers needs memory
        scores = scorer.score(label_prompts(self.tokens, self.tokens, prompts, labels, end))
        return Choices([labels[max(range(len(labels)), key=row.__getitem__)] for row in scores], scores, scorer.method)

    def next_token(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """Log-probabilities of the most likely next tokens, in float32."""
        import torch

        running: Any = self.model
        with torch.inference_mode():
            logits = running(input_ids=torch.tensor([list(ids)], device=self.model.device), use_cache=False).logits[
                0, -1
            ]
        found = logits.float().log_softmax(-1).topk(min(top, logits.shape[-1]))
        return dict(zip(found.indices.tolist(), found.values.tolist(), strict=True))

    def memory(self) -> int | None:
        """Peak resident bytes of this process."""
        return peak_memory()


def _steps(watch: Watch, row: int) -> list[Step]:
    """Return the watched places of a row's answer."""
    return [Step(token, dict(zip(watch.tokens, scores, strict=True))) for token, scores in watch.of(row)]


class TransformersEngine:
    """Runs folders of safetensors, compressed ones too, and GGUF files after dequantizing them."""

    name: EngineName = "transformers"
    capabilities = Capabilities(
        reads=("dense", "packed", "bitsandbytes"), dequantizes=("gguf",), distribution=True, top_tokens=True, labels=True, batch=True, tools=True, stop=True,
        accelerator=True,
    )  # fmt: skip

    @contextmanager
    def open(self, weights: Path, opening: Opening) -> Iterator[TransformersSession]:
        """Load model and tokenizer into this process; see `fast_dtype` for the data type."""
        import torch

        torch.set_num_threads(opening.threads)
        model, tokenizer = load_model(weights, fast_dtype(opening.device), opening.device), load_tokenizer(weights)
        if mixes_rows(model):
            yield TransformersSession(model, tokenizer, batch_size=1, alone=ALONE)
        else:
            yield TransformersSession(model, tokenizer, opening.batch_size, opening.reuse)


TRANSFORMERS = TransformersEngine()
