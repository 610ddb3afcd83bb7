"""Checkpoints from which a killed training resumes to identical weights and curve.

The trainer's own checkpoints lack four things, which this module adds: the loss summed since the last log line, a flag for
the end of training, the order of rows in an interrupted epoch, and a mark of completeness.  A checkpoint is valid once it has
MARK, which is written after all its files have reached the disk.
"""

import hashlib
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import MachineError
from tasks.shared.files import flush_to_disk, write_text
from tasks.shared.technique import StepRun

if TYPE_CHECKING:
    from transformers import TrainerCallback

log = logging.getLogger(__name__)
MARK = "complete.json"
STATE = "trainer_state.json"
PREFIX = "checkpoint-"
Identity = Mapping[str, str]
"""Identity of a training as names and values, so that messages can list differences."""
SAMPLED = 1024
"""Number of values per tensor that identify a model."""


def last_checkpoint(folder: Path, identity: Identity | None = None) -> Path | None:
    """Return the newest usable checkpoint; delete unfinished, unreadable and foreign ones.

    identity: of this training (`identity_of`).
    A checkpoint whose best epoch is lost is unusable too, since training returns the best epoch.
    """
    if folder.exists() and not folder.is_dir():
        folder.unlink()
    found = sorted(folder.glob(f"{PREFIX}*"), key=_step, reverse=True)
    faults = {path: _fault(path, identity or {}) for path in found}
    for path in found:
        best = _best(path) if not faults[path] else None
        if best is not None and faults.get(best, "it is missing"):
            faults[path] = f"{best.name}, its best epoch, cannot be used"
    for path, fault in faults.items():
        if fault:
            log.warning("%s is not used: %s", path.name, fault)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    whole = [path for path in found if not faults[path]]
    if whole:
        log.info("resuming from %s", whole[0].name)
    return whole[0] if whole else None


def _step(path: Path) -> int:
    number = path.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() else -1


def _fault(path: Path, identity: Identity) -> str:
    """Reason why a checkpoint cannot be used, or "".

    The zip files' checksums are verified, once per resumed run.
    """
    try:
        mark = json.loads((path / MARK).read_text("utf-8"))
        files: Mapping[str, int] = mark["files"]
        if other := _differences(mark["identity"], identity):
            return f"it belongs to another training: {', '.join(other)}"
        json.loads((path / STATE).read_text("utf-8"))
        for name, size in files.items():
            file = path / name
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
            if file.suffix in {".pt", ".pth"}:
                with zipfile.ZipFile(file) as archive:
                    if (bad := archive.testzip()) is not None:
                        return f"{name} is damaged at {bad}"
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        return f"it cannot be read ({error})"
    return ""


def _differences(found: Identity, wanted: Identity) -> list[str]:
    """Differences between a checkpoint's identity and the wanted one, in words."""
    return [
        f"{name} {found.get(name, 'unknown')} -> {value}" for name, value in wanted.items() if found.get(name) != value
    ]


def identity_of(settings: Any, model: Any, rows: Sequence[Mapping[str, Any]], run: StepRun) -> Identity:
    """Identity of a training: settings, seed, weights and rows, by name.

    A checkpoint folder belongs to one step and key; the identity detects checkpoints that were moved or written by hand.
    The weights are identified by a sample of each tensor before training.
    """
    import numpy
    import torch

    seen = hashlib.sha256()
    for name, tensor in model.named_parameters():
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED)].float().contiguous().cpu()
        seen.update(f"{name} {tuple(tensor.shape)}".encode() + sample.view(torch.uint8).numpy().tobytes())
    data = hashlib.sha256()
    for row in rows:
        data.update(numpy.asarray([row["input_ids"], row["labels"]]).tobytes())
    named = {key: value for key, value in asdict(settings).items() if key not in settings.spec.unkeyed}
    shown = {"technique": type(settings).__name__, **{key: str(value) for key, value in named.items()}}
    marks = {"seed": str(run.seed), "sharding": run.compute.sharding if run.compute.processes > 1 else "none"}
    return shown | marks | {"weights": seen.hexdigest()[:12], "rows": data.hexdigest()[:12]}


def _best(path: Path) -> Path | None:
    """Checkpoint of the best epoch so far; None before the first evaluation."""
    step = json.loads((path / STATE).read_text("utf-8")).get("best_global_step")
    return path.with_name(f"{PREFIX}{step}") if step else None


def has_ended(checkpoint: Path) -> bool:
    """Return True if training had ended, or stopped early, when this checkpoint was written."""
    return bool(json.loads((checkpoint / MARK).read_text("utf-8"))["ended"])


def train(trainer: Any, checkpoint: Path | None) -> None:
    """Train from a checkpoint or from the start; a training that had ended is only read again."""
    if checkpoint is None or not has_ended(checkpoint):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return
    from transformers.trainer_callback import TrainerState

    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
    best = _best(checkpoint) if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(str(best or checkpoint))


def resumable(base: type[Any]) -> type[Any]:
    """Return a trainer class that marks complete checkpoints and shuffles epochs reproducibly.

    base: from `trainer.objective_trainer`.  It needs `keeper` as a callback and save_total_limit=None: this class deletes
    checkpoints by step number, since clocks can be set back.
    """

    class Resumable(base):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            rows = self.train_dataset if train_dataset is None else train_dataset
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            lengths = [len(ids) for ids in rows["input_ids"]]
            return epoch_sampler(lengths, batch, self.args.data_seed, lambda: int(self.state.epoch or 0))

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            from safetensors import SafetensorError

            folder = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each process writes the state of its own random numbers
                _mark(folder, self)
            except (OSError, RuntimeError, SafetensorError) as error:  # all of them may mean a full disk
                raise _write_error(folder, error) from error
            if not self.is_world_process_zero():
                return
            keep = {folder, _best(folder)}
            for old in Path(self.args.output_dir).glob(f"{PREFIX}*"):
                if old not in keep:
                    shutil.rmtree(old, ignore_errors=True)

    return Resumable


def _mark(folder: Path, trainer: Any) -> None:
    """Flush every file to disk, then mark the checkpoint as complete.

    The mark contains the state that the trainer itself does not save.
    """
    alone = {"loss": trainer._tr_loss.item(), "terms": dict(trainer.tally.state())}
    everyone = gathered(trainer, alone)
    if not trainer.is_world_process_zero():
        return
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    for file in files:
        flush_to_disk(file)
    kept = {
        "files": {file.relative_to(folder).as_posix(): file.stat().st_size for file in files},
        "identity": dict(trainer.identity),
        "ended": trainer.control.should_training_stop,
        "logged": trainer._globalstep_last_logged,
        "everyone": everyone,
        "measured": trainer.measured,
        "awaited": trainer.awaited,
    }
    write_text(folder / MARK, json.dumps(kept))


def gathered(trainer: Any, own: Any) -> list[Any]:
    """Gather an object from every process, by rank."""
    from accelerate.utils import gather_object

    return list(gather_object([own]))


def anyone(trainer: Any, says: bool) -> bool:
    """Return True if `says` is true in any process, so that all or none write a checkpoint."""
    if trainer.accelerator.num_processes == 1:
        return says
    import torch

    return bool(trainer.accelerator.reduce(torch.tensor(float(says), device=trainer.args.device), "sum").item())


def _own_part(everyone: Sequence[Mapping[str, Any]], rank: int, count: int) -> tuple[float, dict[str, float]]:
    """Return loss and terms from which a process resumes, even with another number of processes.

    The loss is averaged over the processes, since each has multiplied its part by their number; the terms are added up.
    """
    if len(everyone) == count:
        return float(everyone[rank]["loss"]), dict(everyone[rank]["terms"])
    mean = sum(float(each["loss"]) for each in everyone) / len(everyone)
    names = everyone[0]["terms"] if rank == 0 else ()
    return mean, {name: sum(each["terms"][name] for each in everyone) for name in names}


def _write_error(folder: Path, error: Exception) -> MachineError:
    """Translate a failed write into an error, and delete the partial checkpoint."""
    free = shutil.disk_usage(folder.parent).free
    shutil.rmtree(folder, ignore_errors=True)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MachineError(
        str(folder),
        f"the checkpoint cannot be written, {free / 2**20:.0f} MiB free: {reason}",
        "room for three checkpoints: the last, the best and the next, each of weights and two moments in float32",
        "free space, or choose another disk (runtime.root=/big/disk); a rerun resumes from the last complete checkpoint",
    )


def epoch_sampler(lengths: list[int], batch: int, seed: int, epoch: Callable[[], int]) -> Any:
    """Return a sampler that groups rows by length, in an order determined by seed and epoch.

    The trainer's sampler draws from torch's global generator, but checkpoints within an epoch lack its state at the epoch's start.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class EpochSampler(LengthGroupedSampler):
        def __iter__(self) -> Any:
            self.generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch())
            return super().__iter__()

    return EpochSampler(batch, lengths=lengths)


def keeper(trainer: Any, every_s: float) -> "TrainerCallback":
    """Return a callback that requests a checkpoint every `every_s` seconds and restores state.

    It requests none at an epoch's last step, whose checkpoint is written after the evaluation and must not be written twice.
    """
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved = time.monotonic()
            checkpoint = Path(args.output_dir) / f"{PREFIX}{state.global_step}"
            if not state.global_step:
                return
            import torch

            kept = json.loads((checkpoint / MARK).read_text("utf-8"))
            loss, terms = _own_part(kept["everyone"], args.process_index, args.world_size)
            trainer._tr_loss = torch.tensor(loss, device=args.device)
            trainer._globalstep_last_logged = trainer.tally.since = kept["logged"]
            trainer.tally.sums, trainer.measured, trainer.awaited = terms, kept["measured"], kept["awaited"]
            best = _best(checkpoint)
            state.best_model_checkpoint = str(best) if best else None  # the folder may have moved

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            last = float(state.epoch).is_integer() or state.global_step >= state.max_steps
            if not last and anyone(trainer, time.monotonic() - self.saved >= every_s):
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved = time.monotonic()

    return Keeper()
