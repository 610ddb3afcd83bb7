"""Check before a run that the plan's source models can be loaded in full.

What the file headers show is checked whenever a plan is built (`check_source`).  The rest needs torch, so it runs in a child process,
once per content of headers, configuration and tokenizer: a model that passed is noted in the store.
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.planning.session import shared_root
from flows.planning.steps import Plan, Source
from tasks.shared.errors import ErrorList, ModelError
from tasks.shared.files import write_text
from tasks.shared.isolation import Failure, run_isolated
from tasks.shared.model.configuration import config_notes, read_config
from tasks.shared.model.gguf_files import read_gguf_header
from tasks.shared.model.inspection import find_fault
from tasks.shared.model.weight_files import TEXT_FILES, tensors_of
from tasks.shared.paths import sha256_file
from tasks.shared.store.artifacts import Store
from tasks.shared.store.keys import code_digest, digest_json, library_versions
from tasks.shared.technique import Kind

log = logging.getLogger("stillroom")
LIBRARIES = ("torch", "transformers", "compressed-tensors", "gguf")
READS_WITH_TRANSFORMERS = frozenset({Kind.MODEL, Kind.ENGINE, Kind.LOGITS})
"""Kinds whose makers load their models with transformers; the others run a GGUF file in llama.cpp."""


def check_models(plan: Plan, root: Path, quiet: bool = False) -> None:
    """Raise ErrorList for source models that cannot be loaded in full; log unused files.

    root: the run's folder, in whose store the models that passed are noted.  quiet: log nothing, as for a plan that is only shown.
    """
    level = logging.DEBUG if quiet else logging.INFO
    home, problems = Store(root, shared_root(root)).home, []
    for source in plan.sources.values():
        if source.path.is_dir():
            for note in config_notes(source.path, read_config(source.path)):
                log.log(level, "%s", note)
        if (source.path.is_dir() or _loaded(plan, source)) and (fault := _fault(source, home, level)) is not None:
            problems.append(fault)
    if problems:
        raise ErrorList(problems)


def _loaded(plan: Plan, source: Source) -> bool:
    """Return True if a step loads this GGUF with transformers."""
    return any(source.name in step.needs and step.kind in READS_WITH_TRANSFORMERS for step in plan.steps)


def _fault(source: Source, home: Path, level: int) -> ModelError | None:
    """Return the model's fault; skip the search if the same model has passed before."""
    note = home / ".checked" / digest_json(_identity(source.path))
    if note.exists():
        return None
    log.log(level, "%s: comparing its tensors with its configuration", source.name)
    found = run_isolated(find_fault, source.path)
    if isinstance(found, Failure):
        return ModelError(str(source.path), f"it cannot be checked: {found.reason}", "a model that loads")
    if found is None:
        with suppress(OSError):  # a folder that may not be written: the check is repeated
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, str(source.path))
    return found


def _identity(path: Path) -> list[Any]:
    """Content that the check depends on: headers, texts, our code and the libraries."""
    code = [code_digest("tasks.shared.model.inspection"), library_versions(LIBRARIES)]
    if path.is_file():
        header, state = read_gguf_header(path), path.stat()
        return [*code, header.fields, header.tensors, state.st_size, state.st_mtime_ns]
    texts = sorted({file for pattern in TEXT_FILES for file in path.glob(pattern)})
    tensors = {name: [tensor.dtype, *tensor.shape] for name, tensor in tensors_of(path).items()}
    return [*code, tensors, {file.name: sha256_file(file) for file in texts}]
