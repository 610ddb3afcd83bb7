"""A session on an exported graph with a key-value cache, in this process."""

import os.path
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.shared.engines.engine import EngineName
from tasks.shared.engines.label_search import search_labels
from tasks.shared.engines.labels import LabelPrompt, Score, label_prompts
from tasks.shared.engines.memory import peak_memory
from tasks.shared.engines.protocol import Choices, Conversation, lacking
from tasks.shared.errors import ModelError
from tasks.shared.model.configuration import load_config
from tasks.shared.model.encoding import text_ids
from tasks.shared.model.generation import Written, stop_tokens
from tasks.shared.model.loading import load_tokenizer
from tasks.shared.model.prompts import render
from tasks.shared.progress import track
from tasks.shared.text.stops import cut_at

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


class CachedGraph(ABC):
    """A graph with the keys and values of the tokens that it has read last.

    ids: these tokens.
    """

    ids: Sequence[int] = ()

    @abstractmethod
    def read(self, new: Sequence[int], known: int) -> "np.ndarray":
        """Run new tokens after the `known` ones in the cache, and extend it.

        Returns the logits after the last one, (vocabulary,), float32.
        """

    @abstractmethod
    def crop(self, length: int) -> None:
        """Keep the first tokens of the cache; 0 empties it."""

    def forget(self) -> None:
        """Empty the cache, so that the next logits do not depend on what was asked before."""
        self.crop(0)
        self.ids = ()

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Return the logits after these tokens, (vocabulary,), float32.

        Runs those of them that the cache does not hold.
        """
        known = min(len(os.path.commonprefix([list(self.ids), list(ids)])), len(ids) - 1)
        if known < len(self.ids):
            self.crop(known)
            self.ids = self.ids[:known]
        scores = self.read(ids[known:], known)
        self.ids = list(ids)
        return scores

    def log_probabilities(self, ids: Sequence[int]) -> "np.ndarray":
        """Return the log-probabilities of the next token after these, (vocabulary,), nats, float64."""
        import numpy as np

        scores = self.logits(ids).astype(np.float64)
        shifted = scores - scores.max()
        logs: np.ndarray = shifted - np.log(np.exp(shifted).sum())
        return logs


@dataclass
class GraphSession:
    """A graph and its tokenizer in memory.

    engine, title: name of the engine here, and the one it is known by.
    context: largest number of tokens of prompt and answer.  ends: tokens that end an answer.
    Prompts run one at a time: int8 activations and padding would make an answer depend on the others of its batch.
    """

    engine: EngineName
    title: str
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
                f"logits in {self.title}",
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
            raise lacking(self.engine, "grammar")
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

        method = f"likeliest label by a search over its tokens with {self.title}'s log-probabilities"
        return search_labels(asked, labels, score_after, method)

    def next_token(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """Log-probabilities of the most likely next tokens."""
        found = self.graph.log_probabilities(ids)
        likely = (-found).argsort(kind="stable")[:top]
        return dict(zip(likely.tolist(), found[likely].tolist(), strict=True))

    def memory(self) -> int | None:
        """Peak resident bytes of this process."""
        return peak_memory()


def graph_session(engine: EngineName, title: str, graph: CachedGraph, folder: Path) -> GraphSession:
    """Return a session on a graph, with the tokenizer, context and end tokens of its folder."""
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(folder)
    positions = int(getattr(load_config(folder).get_text_config(), "max_position_embeddings", 0) or 0)
    settings = GenerationConfig.from_pretrained(folder)
    return GraphSession(engine, title, graph, tokenizer, positions, frozenset(stop_tokens(settings, tokenizer)))
