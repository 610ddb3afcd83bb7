"""Files of the traces, and the checks that they are worth training on."""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.shared.engines.sample_store import Sample
from tasks.shared.errors import ConfigError, DataError, EndpointError
from tasks.shared.formats.rows import Row, write_rows
from tasks.traces.acceptance import accepted_by, ballot, elect
from tasks.traces.account import Judged, card, is_accepted, usage
from tasks.traces.budget import CapReached, Purse
from tasks.traces.filter import ACCEPTED
from tasks.traces.reply import message_of, split_reply
from tasks.traces.settings import TeacherSettings
from tasks.traces.teacher import REFUSED, Job

FIXES = {
    "only reasoning": "raise max_tokens ({room} now), or switch the teacher's reasoning off with extra_body, for example "
    "{{chat_template_kwargs: {{enable_thinking: false}}}} or {{reasoning_effort: low}}",
    "unfinished": "raise max_tokens ({room} now)",
    "too long": "raise limits.max_words or max_tokens",
    "too short": "lower limits.min_words",
    "line break": "limits.line_breaks: true",
    "markup": "limits.markup: true",
    "template mark": "name the mark in `stop`, or mend the template of the server",
    "repeats": "limits.repetition: true",
    "fact": "hint: always, or a stronger teacher",
    "reasoning: too long": "raise reasoning.max_words",
    "no reasoning": "reasoning.ask: request, or a teacher that reasons",
    "number": "limits.inventions: true, or evidence that holds the number",
    "unsupported": "lower limits.support",
    "judge: unreadable": "accept: key, or a teacher that follows instructions",
}
"""Fixes by the most frequent reason for rejection.  {room}: token limit of a reply."""
EXAMPLE = 100
"""Characters of an example in messages."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Answers of the teacher.

    jobs: prompts to send, by row id.  judged: samples of those that were sent.  judgments: replies of the judge.
    capped: the error that ended the requests at the cap.
    """

    settings: TeacherSettings
    rows: Sequence[Row]
    jobs: Mapping[str, Job]
    judged: Judged
    judgments: Sequence[Sample]
    capped: CapReached | None = None

    @property
    def samples(self) -> list[Sample]:
        """All samples, in the order of the corpus."""
        return [sample for row in self.rows for sample in self.judged.get(row.id, ())]

    def check(self, step: str, purse: Purse) -> None:
        """Raise an error if the answers are not worth training on.

        EndpointError if every request was refused.  ConfigError if the budget ended early and `when_capped` is fail.
        DataError if too few answers were accepted.
        """
        samples = self.samples
        if samples and all(sample.rejection == REFUSED for sample in samples):
            fix = "check the settings of the step against what the endpoint accepts"
            raise EndpointError(step, f"it refused all {len(samples)} requests: {samples[-1].note}", "answers", fix)
        if self.capped is not None:
            self._check_cap(step, purse)
        asked = [tried for tried in self.judged.values() if tried]
        accepted = sum(map(is_accepted, asked))
        share = self.settings.min_acceptance
        if asked and share and accepted < max(1, math.ceil(share * len(asked) - 1e-9)):
            got = f"{accepted or 'none'} of {len(asked)} prompts have an accepted answer\n{self._reasons()}"
            wanted = f"an accepted answer for at least {share:.0%} of the prompts (min_acceptance)"
            raise DataError(
                step, got, wanted, f"{self._fix()}; all answers are kept, so only what changes is asked again"
            )

    def _check_cap(self, step: str, purse: Purse) -> None:
        done = len(self._finished())
        told = f"{done} of {len(self.jobs)} prompts are answered, for {purse.spent}; {self.capped.got if self.capped else ''}"
        more = f"; all of them would take about {purse.spent.times(len(self.jobs) / done)}" if done else ""
        if self.settings.when_capped == "publish" and done:
            log.warning("%s: the budget is used up: %s%s; the artifact is marked as incomplete", step, told, more)
            return
        fix = "raise the budget and run again: all answers are kept and none is paid twice"
        fix += "; or when_capped: publish, for an incomplete artifact" if done else ""
        raise ConfigError(f"{step}.budget", f"used up: {told}{more}", "a budget for all prompts", fix)

    def _finished(self) -> list[str]:
        """Rows whose prompts were asked to the end."""
        full = self.settings.samples
        return [
            name
            for name, tried in self.judged.items()
            if len(tried) == full
            or (tried and (tried[-1].rejection == REFUSED or not self.settings.vote and is_accepted(tried)))
        ]

    def _reasons(self) -> str:
        """Table of the reasons for rejection, most frequent first, each with an example."""
        rejected = [sample for sample in self.samples if sample.rejection != ACCEPTED]
        counts = Counter(sample.rejection for sample in rejected)
        lines = []
        for reason, count in counts.most_common(8):
            one = next(sample for sample in rejected if sample.rejection == reason)
            shown = one.note or (reason.startswith("reasoning") and one.reasoning) or one.text or one.reasoning
            lines.append(f"    {count} x {reason}, for example row {one.row}: {' '.join(shown.split())[:EXAMPLE]!r}")
        return "\n".join(lines)

    def _fix(self) -> str:
        counts = Counter(sample.rejection for sample in self.samples if sample.rejection != ACCEPTED)
        if not counts:
            return "min_acceptance: 0 takes what there is"
        rooms = sorted({job.sampling["max_tokens"] for job in self.jobs.values()})
        known = FIXES.get(counts.most_common(1)[0][0], "change the prompt, the teacher, `accept` or the limits")
        return f"{known.format(room=rooms[-1] if rooms else 0)} (min_acceptance: 0 takes what there is)"

    def write(self, out: Path) -> dict[str, Any]:
        """Write train.jsonl, samples.jsonl, usage.json and card.json; return their figures.

        Raises DataError if no row is left.
        """
        traced = [self._trace(row) for row in self.rows]
        kept = [row for row in traced if row is not None]
        if not kept:
            got = "no answer was accepted, and no row keeps a gold answer"
            raise DataError(str(out), got, "at least one row", "when_rejected: gold")
        complete = self.capped is None
        write_rows(out / "train.jsonl", kept)
        for name, samples in (("samples.jsonl", self.samples), ("judgments.jsonl", sorted(self.judgments, key=_place))):
            if samples or name == "samples.jsonl":
                (out / name).write_text("".join(sample.line() for sample in samples), encoding="utf-8")
        used = usage([*self.samples, *self.judgments], self.settings.prices, complete)
        deciders = {name: accepted_by(job.row, job.task, self.settings.accept) for name, job in self.jobs.items()}
        counts = {"complete": complete, **card(self.rows, kept, self.judged, deciders)}
        counts["prompts_not_asked_for_budget"] = len(self.jobs) - len(self._finished()) if self.capped else 0
        for name, content in (("usage.json", used), ("card.json", counts)):
            (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        log.info(
            "%d of %d prompts answered by the teacher, accepted by %s; dropped: %s",
            counts["teacher"],
            counts["prompts_asked"],
            counts["accepted_by"] or "nothing",
            counts["samples_dropped"],
        )
        figures = {name: counts[name] for name in ("rows", "teacher", "gold", "prompts_asked")}
        figures |= {name: used[name] for name in ("requests", "prompt_tokens", "completion_tokens", "cost")}
        return {**figures, "acceptance": counts["acceptance"]["all"], "complete": int(complete)}

    def _trace(self, row: Row) -> Row | None:
        """The row with its accepted answer, with its gold answer, or None if it has neither."""
        gold = row if row.answered else None
        job = self.jobs.get(row.id)
        if job is None:
            return gold
        wanted = self.settings.reasoning.wanted
        accepted = [sample for sample in self.judged.get(row.id, ()) if sample.rejection == ACCEPTED]
        replies = [split_reply(sample, job.task, wanted, job.stop) for sample in accepted]
        if not replies:
            return gold if self.settings.when_rejected == "gold" or not self.judged.get(row.id) else None
        chosen = 0
        if self.settings.vote:
            chosen, _ = elect([ballot(row, job.task, reply) for reply in replies])
        return row.with_answer(message_of(row, job.task, replies[chosen]), origin="teacher")


def _place(sample: Sample) -> tuple[str, int, str]:
    return sample.row, sample.sample, sample.digest
