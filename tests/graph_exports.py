"""What the tests of all exports of a graph share: a recipe, its plan, and an engine asked beside transformers."""

from pathlib import Path
from typing import Any

import pytest

from flows.planning.plan import build_plan
from tasks.shared.engines.protocol import Engine, Opening
from tasks.shared.engines.transformers_engine import TransformersSession
from tasks.shared.errors import ErrorList, TechniqueError
from tasks.shared.model.loading import load_model, load_tokenizer

LOOSE = {"prompts": 4, "tokens": 4, "min_top1": 0.0, "max_kl": 99.0}
WHOLE = {"scheme": "float32", "embedding": "float32"}


def recipe(folder: Path, target: str, **settings: Any) -> dict[str, Any]:
    """A corpus, the export of a model, and an evaluation of both."""
    inputs = {"baseline": "models.student", "candidates": ["graph"], "data": "corpus"}
    return {
        "name": "trial",
        "seed": 0,
        "models": {"student": {"path": str(folder)}},
        "steps": {
            "corpus": {"_target_": "tasks.curate.support.Support"},
            "graph": {"_target_": target, "inputs": {"model": "models.student"}, **settings},
            "answers": {"_target_": "tasks.evaluate.generation.Generation", "inputs": inputs},
        },
    }


def problems(config: dict[str, Any]) -> list[str]:
    """The plan's errors."""
    try:
        build_plan(config)
    except ErrorList as error:
        return [str(one) for one in error.errors]
    return []


def check_engine(engine: Engine, title: str, graph: Path, source: Path) -> None:
    """An engine answers, chooses and scores as transformers does."""
    other = TransformersSession(load_model(source), load_tokenizer(source), 4)
    talks = [
        [{"role": "user", "content": text}] for text in ("Is the kettle covered?", "Can I return the 退款 grinder?")
    ]
    labels = ["returns", "refund", "refund_status", "退款", "kettle"]
    with engine.open(graph, Opening(1)) as session:
        prompts = [session.render(talk) for talk in talks]
        assert prompts == [other.render(talk) for talk in talks] and session.context == other.context == 512
        assert session.tokens(prompts[0]) == other.tokens(prompts[0]) and (session.memory() or 0) > 1e6
        session.check(prompts[0])
        answers = session.answer(prompts, 12)
        assert answers == other.answer(prompts, 12) and all(answer.text for answer in answers)
        stop = answers[0].text[-1]
        assert session.answer(prompts[:1], 12, [stop]) == other.answer(prompts[:1], 12, [stop])
        ours, theirs = session.choose(prompts, labels), other.choose(prompts, labels)
        assert ours.labels == theirs.labels and title in ours.method
        ids = session.tokens(prompts[1])
        for given in (ids, ids[:-3], [*ids[:-3], 5, 6]):  # a longer and a shorter common beginning than the cache's
            found, wanted = session.next_token(given, 5), other.next_token(given, 5)
            assert list(found) == list(wanted) and list(found.values()) == pytest.approx(list(wanted.values()), abs=1e-4)  # fmt: skip
        with pytest.raises(TechniqueError, match="lacks `grammar`"):
            session.answer(prompts, 2, grammar="root ::= x")
