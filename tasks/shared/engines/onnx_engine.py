"""ONNX Runtime as an engine: a graph with a key-value cache, in this process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.shared.engines.engine import EngineName
from tasks.shared.engines.label_search import search_labels
from tasks.shared.engines.labels import LabelPrompt, Score, label_prompts
from tasks.shared.engines.memory import peak_memory
from tasks.shared.engines.onnx_graph import CachedGraph
from tasks.shared.engines.protocol import Capabilities, Choices, Conversation, Opening, lacking
from tasks.shared.errors import ModelError
from tasks.shared.model.configuration import load_config
from tasks.shared.model.encoding import text_ids
from tasks.shared.model.generation import Written, stop_tokens
from tasks.shared.model.loading import load_tokenizer
from tasks.shared.model.prompts import render
from tasks.shared.progress import track
from tasks.shared.text.stops import cut_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METHOD = "likeliest label by a search over its tokens with ONNX Runtime's log-probabilities"


@dataclass
class OnnxSession:
    """A graph and its tokenizer in memory.

    context: largest number of tokens of prompt and answer.  ends: tokens that end an answer.
    Prompts run one at a time: int8 activations and padding would make an answer depend on the others of its batch.
    """

    graph: CachedGraph
    tokenizer: "PreTrainedTokenizerBase"
    context: int
    ends: frozenset[int]
    url = ""

    def render(self, messages: Conversation, tools: str = "") -> str:
        """Render a conversation with the tokenizer's chat template."""
        return render(self.tokenizer, [dict(message) for message in messages], tools=tools)

    def tokens(self, text: str) -> list[int]:
        """Tokenize a text, without special tokens added."""
        return text_ids(self.tokenizer, text)

    def check(self, prompt: str) -> None:
        """Raise ModelError for logits that are not finite."""
        import numpy as np

        if not np.isfinite(self.graph.logits(self.tokens(prompt))).all():
            raise ModelError(
                "logits in ONNX Runtime",
                "not finite (NaN or infinity)",
                "finite numbers",
                "the model is broken: check the step that made it",
            )

    def answer(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        grammar: str = "",
        labels: Sequence[str] = (),
        end: str = "\n",
    ) -> list[Written]:
        """Greedy answers, each from an empty cache; a grammar is refused.

        labels, end: not looked at; no answer proves its label, and `choose` finds it.
        """
        if grammar:
            raise lacking(ONNXRUNTIME.name, "grammar")
        return [
            self.write(self.tokens(prompt), max_new_tokens, stop) for prompt in track(prompts, "answers", len(prompts))
        ]

    @property
    def reading(self) -> str:
        """Empty: prompts are read one by one."""
        return ""

    def write(self, ids: Sequence[int], max_new_tokens: int, stop: Sequence[str] = ()) -> Written:
        """Greedy answer to a prompt of these tokens; see `answer`."""
        self.graph.forget()
        new, text, cut = list[int](), "", False
        while len(new) < max_new_tokens and not cut and self.ends.isdisjoint(new):
            new.append(int(self.graph.logits([*ids, *new]).argmax()))
            if stop:
                text, cut = cut_at(str(self.tokenizer.decode(new, skip_special_tokens=True)), stop)
        text = text if stop else str(self.tokenizer.decode(new, skip_special_tokens=True))
        return Written(text.strip(), cut or not self.ends.isdisjoint(new))

    def choose(self, prompts: Sequence[str], labels: Sequence[str], end: str = "\n") -> Choices:
        """Most likely labels, by a pass per token of the chosen one; see `label_search`."""
        asked = label_prompts(self.tokens, self.tokens, prompts, labels, end)

        def score_after(prompt: LabelPrompt) -> Score:
            self.graph.forget()

            def score(path: Sequence[int], among: Sequence[int]) -> dict[int, float]:
                found = self.graph.log_probabilities([*prompt.ids, *path])
                return {token: float(found[token]) for token in among}

            return score

        return search_labels(asked, labels, score_after, METHOD)

    def next_token(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """Log-probabilities of the most likely next tokens."""
        found = self.graph.log_probabilities(ids)
        likely = (-found).argsort(kind="stable")[:top]
        return dict(zip(likely.tolist(), found[likely].tolist(), strict=True))

    def memory(self) -> int | None:
        """Peak resident bytes of this process."""
        return peak_memory()


class OnnxEngine:
    """Runs folders of `export/onnx` on the CPU; needs the extra `onnx`."""

    name: EngineName = "onnxruntime"
    capabilities = Capabilities(reads=("onnx",), top_tokens=True, labels=True, tools=True, stop=True)

    @contextmanager
    def open(self, weights: Path, opening: Opening) -> Iterator[OnnxSession]:
        """Load graph and tokenizer into this process."""
        from transformers import GenerationConfig

        graph, tokenizer = CachedGraph(weights, opening.threads), load_tokenizer(weights)
        positions = int(getattr(load_config(weights).get_text_config(), "max_position_embeddings", 0) or 0)
        settings = GenerationConfig.from_pretrained(weights)
        yield OnnxSession(graph, tokenizer, positions, frozenset(stop_tokens(settings, tokenizer)))


ONNXRUNTIME = OnnxEngine()
