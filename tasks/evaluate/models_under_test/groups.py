"""Answers of every model to rows of several tasks, each under a plan of its own."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.evaluate.grading.replies import Reply, truncation_notes
from tasks.evaluate.models_under_test.answering import (
    GenerationPlan,
    Predictions,
    generate_replies,
    label_notes,
    reading_notes,
)
from tasks.evaluate.models_under_test.isolated_runs import evaluate_each
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, RowPrompts
from tasks.shared.formats.rows import Row
from tasks.shared.isolation import Failure
from tasks.shared.technique import StepRun


@dataclass(frozen=True)
class Replies:
    """Replies of all models.

    found: by model, in the order of its prompts; a Failure for a model that failed on some of them.
    plans: of the first group, by model.
    """

    found: Mapping[str, list[Reply] | Failure]
    plans: Mapping[str, GenerationPlan]
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> dict[str, list[Reply]]:
        """Replies of the models that did not fail."""
        return {name: replies for name, replies in self.found.items() if not isinstance(replies, Failure)}

    def extended(self, later: "Replies") -> "Replies":
        """Return these replies and those of a later round.

        A model without replies in the later round keeps its own; one that failed in any round failed.
        """
        found: dict[str, list[Reply] | Failure] = dict(self.found)
        for name, replies in later.found.items():
            before = found.get(name, [])
            if not isinstance(before, Failure):
                found[name] = replies if isinstance(replies, Failure) else [*before, *replies]
        return Replies(found, self.plans or later.plans, list(dict.fromkeys([*self.notes, *later.notes])))


def reply_to_all(
    models: Sequence[ModelUnderTest],
    prompts: Mapping[str, Sequence[RowPrompts]],
    group_of: Callable[[Row], Hashable],
    plan_of: Callable[[ModelUnderTest, Sequence[RowPrompts]], GenerationPlan],
    run: StepRun,
) -> Replies:
    """Return every model's replies to its prompts, each group of rows under a plan of its own.

    prompts: by model.  group_of: equal for rows that one plan serves.  A model that fails is not loaded again for other groups.
    Raises ModelError if the baseline fails.
    """
    groups = dict.fromkeys(group_of(prompt.row) for found in prompts.values() for prompt in found)
    replies: dict[str, dict[int, Reply]] = {model.name: {} for model in models}
    failed: dict[str, Failure] = {}
    first: dict[str, GenerationPlan] = {}
    notes: list[str] = []
    for group in groups:
        places = {name: [place for place, prompt in enumerate(found) if group_of(prompt.row) == group] for name, found in prompts.items()}  # fmt: skip
        asked = [model for model in models if model.name not in failed and places[model.name]]
        plans = {model.name: plan_of(model, [prompts[model.name][place] for place in places[model.name]]) for model in asked}  # fmt: skip
        results = evaluate_each(asked, plans, generate_replies, Predictions, run)
        sound: dict[str, Predictions] = {}
        for name, result in results.items():
            if isinstance(result, Failure):
                failed[name] = result
            else:
                sound[name] = result
                replies[name].update(zip(places[name], result.replies, strict=True))
        first = first or plans
        notes += [*reading_notes(sound), *label_notes(sound)]
        limits = {plan.max_new_tokens for plan in plans.values()}
        notes += truncation_notes({name: result.replies for name, result in sound.items()}, max(limits, default=0))
    found = {name: failed.get(name) or [own[place] for place in sorted(own)] for name, own in replies.items()}
    return Replies(found, first, list(dict.fromkeys(notes)))
