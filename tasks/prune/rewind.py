"""Rewinding: the masks of a pruned model on the weights of an early step of its training.

Source: Frankle and Carbin 2019, arXiv 1803.03635 (lottery tickets); Frankle et al. 2020, arXiv 1912.05671 (rewinding to an early step).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.prune.masking.settings import ZEROS_ARE_STORED
from tasks.shared.errors import ConfigError, ModelError, StillroomError, TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.model.dense import check_dense
from tasks.shared.model.early import EARLY_FOLDER
from tasks.shared.model.masks import clear, read_masks, write_masks, zeros_of
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

SECONDS_PER_WEIGHT = 1e-7
"""Time to load two models and save one, by measurement on a CPU."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Rewind:
    """Early weights of a training, at zero where a model pruned after it is."""

    spec: ClassVar[Spec] = Spec(
        summary="Masks of a pruned model on the early weights of its training (lottery tickets), to be trained again",
        ports={"model": Port((Kind.MODEL,)), "early": Port((Kind.MODEL,))},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        accepts="dense",
        gives="dense",
        paper="Frankle et al. 2020, arXiv 1912.05671",
        caveat=ZEROS_ARE_STORED,
    )

    def forecast(self, work: Workload) -> Forecast:
        """Forecast seconds by the number of weights, and a file as large as a dense one."""
        size = work.size()
        return forecast_reading(work, SECONDS_PER_WEIGHT * size.parameters, size.parameters, size.saved())

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield an error for a training that keeps no early weights."""
        for name in inputs.get("early", ()):
            technique: Any = upstream[name].technique if name in upstream else None
            if technique is not None and not getattr(technique, "early_step", 0):
                yield ConfigError(
                    f"{where}.inputs.early", f"{name}, which keeps no early weights", "a training with early_step", _fix(name)
                )  # fmt: skip

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the masked early model and masks.json to `out`.

        Returns masked_sparsity.
        Raises TechniqueError for a model without masks or an artifact without early weights, ModelError if the two do not fit.
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model

        torch.set_num_threads(run.compute.threads)
        pruned, trained = inputs.one("model").path, inputs.one("early")
        early = trained.path / EARLY_FOLDER
        if not early.is_dir():
            raise TechniqueError(
                "inputs.early", f"{trained.name}, without early weights", "a training with early_step", _fix(trained.name)
            )  # fmt: skip
        check_dense(pruned)
        masks = read_masks(pruned)
        if masks is None:
            raise TechniqueError(
                "inputs.model", f"{pruned.name}, without masks", "a model pruned by masks", "prune/magnitude before this step"
            )  # fmt: skip
        zeros = zeros_of(load_model(pruned), masks)
        model = load_model(early)
        weights = dict(model.named_parameters())
        odd = [name for name, places in zeros.items() if name not in weights or weights[name].shape != places.shape]
        if odd:
            raise ModelError(
                str(early), f"{len(odd)} of {len(zeros)} masked matrices are missing or have another shape, such as {odd[0]}",
                "the early weights of the training that the pruned model comes from", "inputs.early: that training",
            )  # fmt: skip
        for name, places in zeros.items():
            clear(weights[name].detach(), places)
        save_model(model, load_tokenizer(early, chat=False), out)
        return {"masked_sparsity": round(write_masks(out, masks.tensors, masks.pattern).sparsity, 4)}


def _fix(name: str) -> str:
    return f"steps.{name}.early_step=20"
