"""llama.cpp as an engine: its server on loopback, for one GGUF file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from math import inf, isfinite
from pathlib import Path
from typing import Any

from tasks.shared.engines.engine import EngineName
from tasks.shared.engines.label_proof import SLACK, Step, proven_label, remaining_labels
from tasks.shared.engines.label_search import search_labels
from tasks.shared.engines.labels import LabelPrompt, Score, label_prompts
from tasks.shared.engines.llama_client import LlamaClient
from tasks.shared.engines.memory import peak_memory
from tasks.shared.engines.protocol import Capabilities, Choices, Conversation, Opening
from tasks.shared.errors import EndpointError, ModelError
from tasks.shared.model.generation import Written
from tasks.shared.progress import track

BIAS = 1e4
"""Added to a token's logit: lifts it above all others."""
LABEL_BIAS = 100.0
"""The same for several tokens whose order must stay: small enough that float32 keeps five decimals."""
SEARCH_TOP = 64
"""Log-probabilities requested per step of a label search."""
WHOLE_VOCABULARY = 1 << 20
METHOD = "likeliest label by a search over its tokens with llama.cpp's log-probabilities"


@dataclass
class LlamaSession:
    """One running server.

    url: ends in /v1.  pid: of its process.  context: tokens of prompt and answer.  reverse: see `Opening`.
    """

    url: str
    pid: int
    context: int
    parallel: int = 1
    reverse: bool = False

    @cached_property
    def client(self) -> LlamaClient:
        """The server's client."""
        return LlamaClient(self.url, self.parallel)

    def render(self, messages: Conversation, tools: str = "") -> str:
        """Render a conversation with the file's chat template; ChatML if it has none."""
        return self.client.render(messages, tools)

    def tokens(self, text: str) -> list[int]:
        """Tokenize a text in llama.cpp."""
        return self.client.tokens(text)

    def check(self, prompt: str) -> None:
        """Raise ModelError unless llama.cpp returns a finite log-probability after the prompt.

        Its server reports log-probabilities of decoded tokens only, so one token is decoded.
        """
        found = (self.client.complete(prompt, 1, logprobs=1).get("logprobs") or {}).get("content") or []
        # It reports none for a token that ends inside a character.
        value = found[0].get("logprob") if found else max(self.next_token(self.client.tokens(prompt, True), 1).values())
        if not isinstance(value, int | float) or not isfinite(value):
            raise ModelError(
                "log-probability of a token in llama.cpp",
                f"{value}",
                "a number",
                "the model is broken: check the step that made it",
            )

    @property
    def reading(self) -> str:
        """Empty: the server's prefix cache is always on."""
        return ""

    def answer(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        grammar: str = "",
        labels: Sequence[str] = (),
        end: str = "\n",
    ) -> list[Written]:
        """Greedy answers, sorted so that prompts with one beginning share the prefix cache."""
        order = sorted(range(len(prompts)), key=lambda index: prompts[index], reverse=self.reverse)
        options: dict[str, Any] = ({"stop": list(stop)} if stop else {}) | ({"grammar": grammar} if grammar else {})
        whole = partial(self.client.tokens, whole=True)
        asked = label_prompts(whole, self.client.tokens, prompts, labels, end) if labels else []
        if labels:
            options["logprobs"] = SEARCH_TOP

        def write(index: int) -> Written:
            found = self.client.complete(prompts[index], max_new_tokens, **options)
            text = str(found["text"])
            place = None
            if labels and (paths := remaining_labels(asked[index], whole(prompts[index]))):
                place = proven_label(paths, answer_steps(found), SLACK)
            name = "" if place is None else labels[place]
            return Written(text.strip(), found.get("finish_reason") == "stop", name)

        found: dict[int, Written] = {}
        for index, written in zip(order, track(self.client.each(write, order), "answers", len(order)), strict=True):
            found[index] = written
        return [found[index] for index in range(len(prompts))]

    def choose(self, prompts: Sequence[str], labels: Sequence[str], end: str = "\n") -> Choices:
        """Most likely labels, by a request per token of the chosen one.

        Where the model is not sure, there are up to SEARCH_STEPS.
        """
        asked = label_prompts(lambda text: self.client.tokens(text, True), self.client.tokens, prompts, labels, end)

        def score_after(prompt: LabelPrompt) -> Score:
            return lambda path, among: self.among([*prompt.ids, *path], among)

        return search_labels(asked, labels, score_after, METHOD, self.client.each)

    def next_token(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """Log-probabilities of the most likely next tokens.

        The server is made to emit a token that is whole text, because it reports no probabilities for one that ends inside a
        character; the reported distribution is the model's own, before that bias.
        """
        found = self._distribution(ids, top, [[self._plain, BIAS]])
        if not found:
            raise EndpointError(
                f"{self.client.root}/completion", "no token probabilities", "completion_probabilities[0]"
            )
        return {int(entry["id"]): _number(entry) for entry in found["top_logprobs"]}

    def among(self, ids: Sequence[int], tokens: Sequence[int]) -> dict[int, float]:
        """Log-probabilities of the likeliest of given next tokens, and of the vocabulary's top ones.

        An equal bias keeps the tokens' order and lifts them above all others, so that the server emits the likeliest of them.
        """
        found = self._distribution(ids, SEARCH_TOP, [[token, LABEL_BIAS] for token in tokens])
        if not found:  # the likeliest one ends inside a character
            everything = self.next_token(ids, WHOLE_VOCABULARY)
            return {token: everything.get(token, -inf) for token in tokens}
        top = {int(entry["id"]): _number(entry) for entry in found["top_logprobs"]}
        return top | {int(found["id"]): _number(found)}

    def memory(self) -> int | None:
        """Peak resident bytes of the server."""
        return peak_memory(self.pid)

    def _distribution(self, ids: Sequence[int], top: int, bias: Sequence[Sequence[float]]) -> dict[str, Any]:
        body = {
            "prompt": list(ids), "n_predict": 1, "n_probs": top, "temperature": 0.0, "cache_prompt": True,
            "post_sampling_probs": False, "logit_bias": list(bias),
        }  # fmt: skip
        reported = self.client.post("/completion", body).get("completion_probabilities") or [{}]
        return dict(reported[0]) if reported[0].get("top_logprobs") else {}

    @cached_property
    def _plain(self) -> int:
        return self.client.tokens("a")[-1]


def answer_steps(choice: Mapping[str, Any]) -> list[Step]:
    """Return the tokens of a completion with the log-probabilities that it reports.

    Empty if tokens are missing, as those are that end inside a character.
    """
    entries = (choice.get("logprobs") or {}).get("content") or []
    spelled = b"".join(bytes(entry.get("bytes") or ()) for entry in entries)
    if not spelled.startswith(str(choice["text"]).encode()):
        return []
    steps = []
    for entry in entries:
        scores = {int(other["id"]): _number(other) for other in entry.get("top_logprobs") or ()}
        steps.append(
            Step(int(entry["id"]), scores | {int(entry["id"]): _number(entry)}, min(scores.values(), default=0.0))
        )
    return steps


def _number(entry: Mapping[str, Any]) -> float:
    """Log-probability of an entry; JSON has null for minus infinity."""
    value = entry.get("logprob")
    return -inf if value is None else float(value)


class LlamaEngine:
    """Serves GGUF files on the CPU."""

    name: EngineName = "llama.cpp"
    capabilities = Capabilities(
        reads=("gguf",), top_tokens=True, labels=True, grammar=True, tools=True, stop=True, stream=True, slots="fixed"
    )

    @contextmanager
    def open(self, weights: Path, opening: Opening) -> Iterator[LlamaSession]:
        """Start the server; see `llama_server.start`."""
        from tasks.shared.engines.llama_server import start

        with start(
            weights, threads=opening.threads, parallel=opening.parallel, context=opening.context, limit=opening.limit_s
        ) as server:
            yield LlamaSession(server.url, server.pid, opening.context, opening.parallel, opening.reverse)


LLAMA_CPP = LlamaEngine()
