"""Check of configuration, tensor names and shapes, and tokenizer, without reading weights.

The plan runs it in a child process, since it needs torch.  An edit here re-keys no training.
"""

import logging
from pathlib import Path
from typing import Any

from tasks.shared.errors import ModelError
from tasks.shared.model.bitsandbytes_layers import loading_options, refuse_broken_layers
from tasks.shared.model.configuration import BITSANDBYTES, load_config
from tasks.shared.model.loading import load_tokenizer
from tasks.shared.model.strict import check_gguf_tensors, one_message, refuse_misfit
from tasks.shared.model.weights import check_source, is_gguf, quantization, quick_gguf
from tasks.shared.progress import no_foreign_bars


def find_fault(path: Path) -> ModelError | None:
    """Return the error that loading the model and its tokenizer would raise, or None.

    Tensors are compared by name and shape: transformers itself loads the files onto the meta device, which holds no data; those of
    bitsandbytes are read in full, since the scales of a matrix are in a tensor's content.
    Logs nothing below an error: what loading chooses, such as a pad token, is logged by the steps that load the model.
    """
    ours = logging.getLogger("tasks")  # not transformers', whose report of misfits is read
    before = ours.level
    ours.setLevel(logging.ERROR)
    try:
        _check(path)
    except ModelError as error:
        return error
    finally:
        ours.setLevel(before)
    return None


def _check(path: Path) -> None:
    check_source(path)
    with no_foreign_bars(), one_message(path):
        _compare_tensors(path)
        load_tokenizer(path, chat=False)


def _compare_tensors(path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    if is_gguf(path):
        with quick_gguf():
            check_gguf_tensors(path, load_config(path))
        return
    load: Any = AutoModelForCausalLM.from_pretrained  # typed without the loading information that it returns as well
    by_bitsandbytes = quantization(path) == BITSANDBYTES
    options = loading_options("cpu") if by_bitsandbytes else {"device_map": {"": "meta"}}
    model, info = load(
        path, config=load_config(path), use_safetensors=True, trust_remote_code=False, dtype=torch.float32,
        output_loading_info=True, ignore_mismatched_sizes=True, **options,
    )  # fmt: skip
    refuse_misfit(path, info)
    if by_bitsandbytes:
        refuse_broken_layers(path, model)
