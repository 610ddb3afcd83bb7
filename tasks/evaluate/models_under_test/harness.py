"""EleutherAI's lm-evaluation-harness on a loaded model, with a persistent answer cache."""

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.model.generation import plain_greedy

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Silence the harness and `datasets`, and keep both offline unless HF_HUB_OFFLINE=0 is set.

    No progress bars or log messages; errors still propagate.
    """
    os.environ["HF_DATASETS_OFFLINE"] = os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets

    datasets.disable_progress_bars()
    harness = logging.getLogger("lm_eval")
    before, harness.disabled = harness.level, False
    harness.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        harness.setLevel(before)


class AnswerCache(dict[str, Any]):
    """Answers by request digest, appended to a JSON-lines file as soon as they arrive.

    A line truncated by a kill is skipped, and its request is evaluated again.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        file.parent.mkdir(parents=True, exist_ok=True)
        for line in file.read_bytes().splitlines() if file.is_file() else ():
            with contextlib.suppress(ValueError, TypeError):
                key, answer = json.loads(line)
                super().__setitem__(key, answer)
        self.stream = file.open("a", encoding="utf-8", buffering=1)

    def __setitem__(self, key: str, answer: Any) -> None:
        """Store an answer; an existing one stays."""
        if key not in self:
            super().__setitem__(key, answer)
            self.stream.write(f"\n{json.dumps([key, answer])}\n")

    def commit(self) -> None:
        """Flush written lines to the operating system."""
        self.stream.flush()


@contextlib.contextmanager
def harness_model(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int, cache_file: Path
) -> Iterator["LM"]:
    """Yield the model wrapped for the harness, with answers cached in `cache_file`.

    A killed run resumes where it stopped, and a larger limit or an added task evaluates only the new requests.  The file belongs to
    one model and one set of generation settings.  It replaces the harness's own request cache (pickles in a database) with JSON lines.
    """
    with quiet_harness():
        from lm_eval.api.model import CachingLM
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
    answers = AnswerCache(cache_file)

    class CachedModel(CachingLM):
        def __init__(self) -> None:
            self.lm, self.cache_db, self.dbdict = lm, str(cache_file), answers
            lm.set_cache_hook(self.get_cache_hook())

    try:
        with plain_greedy(model):
            yield CachedModel()
    finally:
        answers.stream.close()
