"""Choice of labels by an engine that scores next tokens and nothing else."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from tasks.shared.engines.labels import Found, LabelPrompt, Score, find_likeliest
from tasks.shared.engines.protocol import Choices
from tasks.shared.progress import track

SEARCH_STEPS = 256
"""Steps of a label search after which the best label so far is taken: about 3 s a row of an idle 135M model on two cores."""
Each = Callable[[Callable[[LabelPrompt], Found], Sequence[LabelPrompt]], Iterable[Found]]
"""Applies a function to all items and yields the results in order, as `map` does."""


def search_labels(
    asked: Sequence[LabelPrompt],
    labels: Sequence[str],
    score_after: Callable[[LabelPrompt], Score],
    method: str,
    each: Each = map,
) -> Choices:
    """Return the likeliest label of every prompt, by a search over the labels' tokens.

    asked: prompts with the tokens of `labels`, in their order.
    score_after: returns the function that scores next tokens after a prompt.
    method: how next tokens are scored, for notes, which add how many rows reached SEARCH_STEPS.
    each: applies the search to the prompts, several at once or one by one.
    """

    def choose(prompt: LabelPrompt) -> Found:
        return find_likeliest(prompt.labels, score_after(prompt), SEARCH_STEPS)

    found: Iterator[Found] = track(each(choose, asked), "labels", len(asked))
    results = list(found)
    cut = sum(not one.proven for one in results)
    note = (
        f"; for {cut} of {len(results)} rows it ended after {SEARCH_STEPS} steps, with the likeliest label until then"
    )
    return Choices([labels[one.label] for one in results], None, method + (note if cut else ""))
