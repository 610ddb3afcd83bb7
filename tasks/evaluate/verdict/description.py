"""Model descriptions in the verdict: origin, size, scores overall and by slice, figures."""

import logging
from collections.abc import Mapping, Sequence
from statistics import fmean

from tasks.evaluate.models_under_test.model_under_test import CLOSED_BOOK, MODEL_PORTS, ModelUnderTest
from tasks.evaluate.verdict.comparison import score
from tasks.evaluate.verdict.cost import Prices, compare_costs, cost_per_1000
from tasks.evaluate.verdict.evidence import Evidence
from tasks.evaluate.verdict.slices import slices_of
from tasks.shared.errors import StillroomError
from tasks.shared.formats.records import Figure
from tasks.shared.formats.scores import ItemScore, Measure
from tasks.shared.formats.verdict import ModelMeasures, Score
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.store.lineage import made_from
from tasks.shared.technique import Inputs

log = logging.getLogger(__name__)


def describe_models(
    models: Sequence[ModelUnderTest],
    inputs: Inputs,
    evidence: Evidence,
    dimensions: Sequence[str],
    gated: frozenset[str],
    seed: int,
) -> dict[str, ModelMeasures]:
    """Return the descriptions of all models by name.

    A reference appears under each name that it was evaluated with (with the article, and closed-book).
    dimensions: tags to slice by.  gated: measures with a margin; other measures are sliced only if binary.
    """
    known = {model.name: model for model in models}
    artifacts = {artifact.name: artifact for port in MODEL_PORTS for artifact in inputs.many(port)}
    names = [name for name in dict.fromkeys([*known, *evidence.names()]) if name.removesuffix(CLOSED_BOOK) in known]
    found = {}
    for name in names:
        model = known[name.removesuffix(CLOSED_BOOK)]
        others = {other.name: other.digest for other in known.values() if other.name != model.name}
        found[name] = ModelMeasures(
            role=model.role, kind=model.kind, format=model.format, engine=evidence.engines(name, gated),
            speed_engine=evidence.speed_engine(name), digest=model.digest,
            made_from=made_from(artifacts[model.name], others), parameters=_parameters(model),
            size_bytes=0 if model.failure else weight_bytes(model.weights), scores=_scores(name, evidence, seed),
            slices=_slices(name, evidence, dimensions, gated, seed), figures=evidence.figures(name), failures=evidence.failures(name),
        )  # fmt: skip
    return found


def with_costs(
    models: Mapping[str, ModelMeasures], baseline: str, measures: Sequence[str], prices: Prices
) -> dict[str, ModelMeasures]:
    """Return the models with cost per 1,000 answers and per quality point, where known.

    measures: shares where higher is better; a model's quality is their mean.
    """
    costs = {name: cost_per_1000(name, model.figures, prices) for name, model in models.items()}
    quality = {
        name: fmean(model.scores[measure].value for measure in measures)
        for name, model in models.items()
        if measures and model.scores.keys() >= set(measures)
    }
    found = dict(models)
    for name, cost in costs.items():
        if cost is None:
            continue
        figures = {**models[name].figures, "cost_per_1000": cost}
        before = costs.get(baseline)
        if before is not None and {name, baseline} <= quality.keys():
            traded = compare_costs(cost.value, before.value, quality[name], quality[baseline])
            for figure, value in (("cost_per_point", traded.cost_per_point), ("price_of_point", traded.price_of_point)):
                if value is not None:
                    figures[figure] = Figure(
                        value=value, unit=prices.currency, better="lower" if figure == "cost_per_point" else None
                    )
        found[name] = models[name].model_copy(update={"figures": figures})
    return found


def _parameters(model: ModelUnderTest) -> int | None:
    """Parameter count; None if the weights' headers are unreadable.

    Such a model has failed already, and must not stop the verdict on the others.
    """
    try:
        return None if model.failure else parameter_count(model.weights)
    except (StillroomError, ValueError, LookupError, TypeError, OSError) as error:  # a truncated header
        log.warning("cannot count the parameters of %s: %s", model.name, error)
        return None


def _scores(model: str, evidence: Evidence, seed: int) -> dict[str, Score]:
    cells = {
        name: _score(about, evidence.items_of(name), model, seed) for name, (_, about) in evidence.measures.items()
    }
    return {name: cell for name, cell in cells.items() if cell is not None}


def _score(measure: Measure, items: Sequence[ItemScore], model: str, seed: int) -> Score | None:
    own = [item for item in items if model in item.values]
    return score(measure, [item.values[model] for item in own], [item.weight for item in own], seed) if own else None


def _slices(
    model: str, evidence: Evidence, dimensions: Sequence[str], gated: frozenset[str], seed: int
) -> dict[str, dict[str, dict[str, Score]]]:
    found: dict[str, dict[str, dict[str, Score]]] = {}
    measures: Mapping[str, tuple[str, Measure]] = evidence.measures
    for name, (_, about) in measures.items():
        if not about.binary and name not in gated:
            continue
        for dimension, value, members in slices_of(evidence.items_of(name), dimensions):
            cell = _score(about, members, model, seed)
            if cell is not None:
                found.setdefault(dimension, {}).setdefault(value, {})[name] = cell
    return found
