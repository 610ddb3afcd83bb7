"""Questions to models in rounds, until the verdict on each candidate is certain."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tasks.evaluate.models_under_test.groups import Replies
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, RowPrompts
from tasks.evaluate.verdict.stopping import Rounds, Slice, round_ends, row_order, settled
from tasks.shared.errors import ConfigError, DataError
from tasks.shared.formats.rows import Row
from tasks.shared.formats.scores import Asking, ItemScore, Measure, read_scores, row_digest
from tasks.shared.isolation import Failure
from tasks.shared.paths import user_path

Prompts = Mapping[str, Sequence[RowPrompts]]
"""By model, in the order of asking."""


@dataclass(frozen=True)
class Asked:
    """Prompts and replies of every model.

    prompts: by model, a prefix of the order.
    """

    prompts: dict[str, list[RowPrompts]]
    replies: Replies

    def summary(self, rows: Sequence[Row], largest: Mapping[str, float]) -> Asking:
        """Return the order and how far each model got.

        rows: all, in the order of asking.  largest: weight of the heaviest group by measure.
        """
        counts = {name: len(found) for name, found in self.prompts.items()}
        return Asking(
            rows={row.id: row_digest(row) for row in rows[: max(counts.values())]}, counts=counts, available=len(rows), largest=dict(largest)
        )  # fmt: skip


def ask_in_rounds(
    models: Sequence[ModelUnderTest],
    rows: Sequence[Row],
    prompts: Prompts,
    ask: Callable[[Sequence[ModelUnderTest], Prompts], Replies],
    grade: Callable[[Prompts, Replies], list[ItemScore]],
    measures: Mapping[str, Measure],
    available: Mapping[Slice, int],
    largest: Mapping[str, float],
    rounds: Rounds,
) -> Asked:
    """Ask round after round until no candidate is open.

    rows: in the order of asking.  prompts: of every model, for these rows.  ask: put prompts to models.  grade: their items so far, in
    order.  available, largest: items of the whole split by slice, and weight of its heaviest group by measure.
    The baseline (the first model), its repeats and the reference take part as long as a candidate does; a model that fails leaves.
    """
    candidates = [model.name for model in models if model.role == "candidate"]
    alpha, open_ = rounds.threshold(len(candidates)), set(candidates)
    so_far = Asked({model.name: [] for model in models}, Replies({model.name: [] for model in models}, {}))
    start = 0
    for end in round_ends(len(rows), rounds.size, [row.group for row in rows]):
        failed = {name for name, found in so_far.replies.found.items() if isinstance(found, Failure)}
        left = [
            model for model in models if model.name not in failed and (model.role != "candidate" or model.name in open_)
        ]
        new = {model.name: list(prompts[model.name][start:end]) for model in left}
        replies = so_far.replies.extended(ask([model for model in left if new[model.name]], new))
        so_far = Asked({name: [*found, *new.get(name, ())] for name, found in so_far.prompts.items()}, replies)
        start = end
        items = grade(so_far.prompts, so_far.replies)
        open_ = {
            name
            for name in open_
            if not isinstance(so_far.replies.found[name], Failure)
            and not settled(items, measures, available, largest, models[0].name, name, rounds, alpha)
        }
        if candidates and not open_:
            break
    return so_far


def order_rows(rows: Sequence[Row], rounds: Rounds, seed: int) -> list[Row]:
    """Return the rows in the order of asking: those of earlier scores, then others at random.

    Raises DataError if a row of the earlier scores is missing or was changed, or a new row belongs to one of their groups; ConfigError
    for scores that were not asked in rounds.
    """
    known = {row.id: row for row in rows}
    first = _earlier(rounds.after, known) if rounds.after else []
    before = set(first)
    rest = row_order({row.id: row.group for row in rows if row.id not in before}, seed)
    return [known[key] for key in (*first, *rest)]


def kept_scale(largest: Mapping[str, float], rounds: Rounds) -> dict[str, float]:
    """Return the weight of the heaviest group by measure, as earlier scores fix it.

    largest: of this test split.
    Raises DataError if a group that was added is heavier, since it would change the evidence of earlier rows.
    """
    asking = read_scores(user_path(rounds.after)).summary.asking if rounds.after else None
    if asking is None:
        return dict(largest)
    heavier = [
        f"{name} ({largest[name]:g}, not {most:g})"
        for name, most in asking.largest.items()
        if largest.get(name, 0.0) > most
    ]
    if heavier:
        raise DataError(
            f"rounds.after: {rounds.after}", f"heavier groups than in the earlier test split: {', '.join(heavier)}",
            "new groups no larger than the largest of before", "smaller groups, or start anew (rounds.after='')",
        )  # fmt: skip
    return {**largest, **asking.largest}


def _earlier(after: str, known: Mapping[str, Row]) -> list[str]:
    """Return the ids of the rows of earlier scores, in their order."""
    folder = user_path(after)
    earlier = read_scores(folder).summary.asking
    if earlier is None:
        got, wanted = f"{folder}: scores that were not asked in rounds", "scores of a step with rounds.margins"
        raise ConfigError("rounds.after", got, wanted, "rounds.after=''")
    where, fix = f"rounds.after: {folder}", "restore the test split and only add to it, or start anew (rounds.after='')"
    changed = [key for key, digest in earlier.rows.items() if key not in known or row_digest(known[key]) != digest]
    if changed:
        got = f"{len(changed)} of its {len(earlier.rows)} rows are missing from the test split or were changed: {', '.join(changed[:3])}"
        raise DataError(where, got, "a test split that has them all, unchanged, and more", fix)
    groups = {known[key].group for key in earlier.rows} - {""}
    joined = [row.id for row in known.values() if row.id not in earlier.rows and row.group in groups]
    if joined:
        got = f"{len(joined)} new rows belong to groups that were asked already: {', '.join(joined[:3])}"
        raise DataError(where, got, "new rows in groups of their own", fix)
    return list(earlier.rows)
