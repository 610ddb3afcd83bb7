"""Rules of advice: conditions on facts, and what follows from those that hold."""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flows.advising.situation import ASKED, Facts, Value
from flows.planning.catalog import Entry
from tasks.shared.technique import ChecksFamily, Refusal

NOT_MEASURED = "not measured here"


class Fact(str):
    """The name of a fact, where its value is meant."""


OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "in": lambda value, several: value in several,
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """A comparison of a fact with a value, or with another fact."""

    fact: str
    is_: str
    value: Value | tuple[str, ...] | Fact

    def holds(self, facts: Facts) -> bool | None:
        """Return True or False; None if a fact is not known."""
        found, wanted = facts[self.fact], facts[self.value] if isinstance(self.value, Fact) else self.value
        if found is None or wanted is None:
            return None
        return OPERATORS[self.is_](found, wanted)


@dataclass(frozen=True)
class Step:
    """A step that a rule adds to a recipe, or settings for one that an earlier rule added.

    technique: stage/name.  reads: steps by port; BASELINE and SOURCE stand for those that earlier rules chose.
    settings: values, or facts.  baseline: others are compared with it.  source: a student is made from it.  candidate: it may ship.
    """

    name: str
    technique: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    reads: Mapping[str, str | list[str]] = field(default_factory=dict)
    baseline: bool = False
    source: bool = False
    candidate: bool = False


BASELINE, SOURCE = "<baseline>", "<source>"


@dataclass(frozen=True)
class Rule:
    """A rule, its reasons, and the steps that follow from it.

    advice: do it, or do not (avoid).  when: all must hold.  title: a line; why: a sentence, with facts in braces.
    technique: that it is about, as stage/name; setting: of the technique, if the rule needs it.
    absent: what it is about, in words, where the project may lack it; without a technique, it does.
    source: paper, repository or page.  measured: the figure measured here, or NOT_MEASURED.  entry: heading of that figure in docs/log.
    """

    name: str
    advice: Literal["do", "avoid"]
    when: tuple[Condition, ...]
    title: str
    why: str
    source: str
    measured: str = NOT_MEASURED
    entry: str = ""
    technique: str = ""
    setting: str = ""
    absent: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def techniques(self) -> frozenset[str]:
        """Techniques that the rule is about, and those of its steps."""
        return frozenset({self.technique, *(step.technique for step in self.steps)} - {""})

    def exists(self, techniques: Mapping[str, Entry]) -> bool:
        """Return True if the project has every technique that the rule is about."""
        if not self.techniques <= set(techniques) or (self.absent and not self.technique):
            return False
        return not self.setting or self.setting in techniques[self.technique].technique.__dataclass_fields__


@dataclass(frozen=True)
class Advice:
    """Rules that apply: to do, in this order; to avoid; and those that the project lacks.

    refused: rules whose technique does not take this family of models, with the reason.
    open: rules that lack a fact, with the options that give it.
    """

    do: tuple[Rule, ...]
    avoid: tuple[Rule, ...]
    absent: tuple[Rule, ...]
    refused: tuple[tuple[Rule, Refusal], ...]
    open: tuple[tuple[Rule, tuple[str, ...]], ...]


def refusals(rules: Iterable[Rule], config: Mapping[str, Any], techniques: Mapping[str, Entry]) -> dict[str, Refusal]:
    """Return the techniques of rules that refuse models of this configuration, with the reason."""
    named = {name for rule in rules for name in rule.techniques if name in techniques}
    found: dict[str, Refusal] = {}
    for name in sorted(named):
        technique = techniques[name].technique()
        if isinstance(technique, ChecksFamily) and (refusal := technique.refuses(config)) is not None:
            found[name] = refusal
    return found


def apply(
    rules: Iterable[Rule], facts: Facts, techniques: Mapping[str, Entry], refused: Mapping[str, Refusal] | None = None
) -> Advice:
    """Sort the rules by what they say about these facts.

    A rule to avoid what the project lacks, or refuses for this model, is left out.  refused: as `refusals` returns them.
    """
    do: list[Rule] = []
    avoid: list[Rule] = []
    absent: list[Rule] = []
    unfit: list[tuple[Rule, Refusal]] = []
    undecided: list[tuple[Rule, tuple[str, ...]]] = []
    for rule in rules:
        held = [condition.holds(facts) for condition in rule.when]
        exists = rule.exists(techniques)
        reasons = [refused[name] for name in sorted(rule.techniques) if name in refused] if refused else []
        if False in held or ((reasons or not exists) and rule.advice == "avoid"):
            continue
        if None in held:
            undecided.append((rule, tuple(sorted(missing_options(rule, facts)))))
        elif not exists:
            absent.append(rule)
        elif reasons:
            unfit.append((rule, reasons[0]))
        else:
            (do if rule.advice == "do" else avoid).append(rule)
    return Advice(tuple(do), tuple(avoid), tuple(absent), tuple(unfit), tuple(undecided))


def missing_options(rule: Rule, facts: Facts) -> set[str]:
    """Options that give the facts that a rule lacks."""
    names = {condition.fact for condition in rule.when} | {
        str(condition.value) for condition in rule.when if isinstance(condition.value, Fact)
    }
    return {ASKED[name].option for name in names if facts[name] is None}


def filled(text: str, facts: Facts) -> str:
    """Text with the facts that it names in braces."""
    shown = {name: "unknown" if value is None else ASKED[name].format(value) for name, value in facts.items()}
    return text.format(**shown)
