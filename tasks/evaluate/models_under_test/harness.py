"""EleutherAI's lm-evaluation-harness around a model of ours: quiet, and with what was asked before kept."""

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
    """No network unless HF_HUB_OFFLINE=0 stands in the environment, no bars, no notes from the harness and from datasets.

    Errors still propagate.
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


class KeptAnswers(dict[str, Any]):
    """Answers by the digest of their request, each a line of a JSON-lines file as soon as it is there.

    A line that a kill cut short is passed over, and asked again.
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
        """Keep it; what is known stays as it is."""
        if key not in self:
            super().__setitem__(key, answer)
            self.stream.write(f"\n{json.dumps([key, answer])}\n")

    def commit(self) -> None:
        """Hand what is written to the system."""
        self.stream.flush()


@contextlib.contextmanager
def harness_model(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int, answered: Path
) -> Iterator["LM"]:
    """The model as the harness asks it, with every answer kept in the file `answered` and read from there.

    So a run that was killed goes on where it was, and a larger limit or one more task asks only what is new.  The file belongs to
    one model, asked in one way.  It is the harness's own request cache with lines of JSON in place of pickles in a database.
    """
    with quiet_harness():
        from lm_eval.api.model import CachingLM
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
    answers = KeptAnswers(answered)

    class Kept(CachingLM):
        def __init__(self) -> None:
            self.lm, self.cache_db, self.dbdict = lm, str(answered), answers
            lm.set_cache_hook(self.get_cache_hook())

    try:
        with plain_greedy(model):
            yield Kept()
    finally:
        answers.stream.close()
