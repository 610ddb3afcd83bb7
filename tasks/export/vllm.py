"""A folder for vLLM: tensors checked against their format, matrices against its kernels."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.export import parity
from tasks.export.packed_schema import PackedLayer, packed_layers, read_config, schema_problems
from tasks.export.vllm_kernels import CUDA, DENSE, Kernel, head_problem, kernel_of, matrices_on_gpu, misfits
from tasks.shared.engines.protocol import Opening
from tasks.shared.engines.vllm_engine import VLLM
from tasks.shared.engines.vllm_server import find_vllm, vllm_version
from tasks.shared.errors import ConfigError, ModelError, ParityError, StillroomError, TechniqueError
from tasks.shared.files import write_text
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.model.masks import carry_masks
from tasks.shared.model.shared_layers import carry_shared
from tasks.shared.model.weight_files import loaded_files
from tasks.shared.model.widths import shortened
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun, Upstream

log = logging.getLogger(__name__)
RECORD = "vllm.json"
SERVED = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer*", "chat_template*",
    "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
)  # fmt: skip
"""Files beside the weights that vLLM reads; records of earlier steps are left out."""
KEYS = (".k_proj", ".qkv_proj", ".query_key_value")
"""Endings of layers that compute keys."""
SECONDS_PER_BYTE = 2e-9
"""Rough time to copy and to read headers."""
SHOWN = 5
"""Problems that an error names."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Vllm:
    """Copy a model into a folder that vLLM serves, or refuse what vLLM would misread."""

    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs that share each matrix; sizes on one of them are checked."""
    kernels: Literal["warn", "refuse"] = "warn"
    """What happens if vLLM's fast kernels do not take a matrix of this size: vLLM then needs another kernel, or does not load the model."""
    vllm_command: str = ""
    """The `vllm` executable of the environment with vLLM.  Given one, the folder is opened there, and its answers are compared with the source's."""
    prompts: Annotated[int, Field(ge=1, le=256)] = 16
    """Conversations to compare on in vLLM."""
    tokens: Annotated[int, Field(ge=1, le=128)] = 8
    """Tokens of each answer."""
    min_same_text: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least share of conversations that vLLM continues with the same text as the source, greedily."""
    limit_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds until vLLM must have loaded the folder."""

    spec: ClassVar[Spec] = Spec(
        summary="A folder for vLLM, with every tensor checked against its format and every matrix against vLLM's kernels",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "compressed-tensors"),
        unkeyed=frozenset({"limit_s"}),
        accepts="packed",
        gives="same",
    )

    def forecast(self, work: Workload) -> Forecast:
        """Forecast a copy of the files; with vLLM, the source in memory too."""
        size = work.size()
        held = size.parameters if self.vllm_command else 0
        return forecast_reading(work, SECONDS_PER_BYTE * size.bytes, held, size)

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield an error for weights that no kernel reads, and for a command that is not there."""
        for name in inputs.get("model", ()):
            bits = getattr(upstream[name].technique, "bits", None) if name in upstream else None
            if isinstance(bits, int) and bits not in (4, 8):
                yield ConfigError(
                    f"{where}.inputs.model", f"{name}, of {bits} bits", "4 or 8 bits: vLLM has no kernel for others", f"steps.{name}.bits=4"
                )  # fmt: skip
        if self.vllm_command:
            try:
                find_vllm(self.vllm_command)
            except ConfigError as error:
                yield error.within(where)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the folder, and vllm.json: kernels, least GPU, and the command that serves it.

        Returns size_bytes, packed_layers, slow_matrices and, with vLLM, same_text (0..1).
        Raises ModelError for files that differ from configuration or format, TechniqueError for weights that no kernel reads, and
        ParityError if vLLM answers otherwise than the source.
        """
        import torch

        from tasks.shared.model.inspection import find_fault
        from tasks.shared.model.sizes import weight_bytes

        torch.set_num_threads(run.compute.threads)
        given = inputs.one("model").path
        if not given.is_dir():
            raise ModelError(
                str(given), "a GGUF file", "a folder of safetensors: vLLM drops GGUF from its core", "quantize/cast makes a folder of it"
            )  # fmt: skip
        if (fault := find_fault(given)) is not None:
            raise fault
        model = architecture(given)
        settings = getattr(model.config, "quantization_config", None)
        layers = check_format(given, settings, model) if settings else {}
        slow = self.check_sizes(layers, model)
        copy_served(given, out)
        carried = carry_masks(given, out) | carry_shared(given, out)
        record = describe(layers, slow, self.tensor_parallel, settings)
        log.info("%s; %s", "; ".join(record["kernels"]), record["serve"])
        figures: Metrics = {"size_bytes": weight_bytes(out), "packed_layers": len(layers), "slow_matrices": len(slow)}
        figures |= carried
        if self.vllm_command:
            figures["same_text"] = same = self.ask(inputs, out, run)
            record["compared"] = {"conversations": self.prompts, "tokens": self.tokens, "same_text": same}
            record["compared"]["vllm"] = vllm_version(self.vllm_command)
        write_text(out / RECORD, json.dumps(record, indent=1))
        return figures

    def check_sizes(self, layers: Mapping[str, PackedLayer], model: Any) -> list[str]:
        """Return the matrices that the fast kernels do not take.

        Raises ConfigError for GPUs that cannot share the model, TechniqueError for such matrices with `kernels=refuse`.
        """
        gpus = self.tensor_parallel
        matrices = matrices_on_gpu(linear_shapes(model), gpus)
        uneven = [name for name, each in matrices.items() if each.outputs % 1 or each.inputs % 1]
        problem = head_problem(model.config.get_text_config(), gpus)
        if not problem and uneven:
            problem = f"{gpus} GPUs do not divide {shortened(uneven)}"
        if problem:
            wanted = "a number of GPUs that divides heads and widths"
            raise ConfigError("tensor_parallel", problem, wanted, "tensor_parallel=1")
        slow = list(misfits(layers, gpus))
        if slow:
            kernel = kernel_of(next(iter(layers.values())))
            assert isinstance(kernel, Kernel)
            sizes = f"outputs in multiples of {kernel.outputs} and inputs in multiples of {kernel.inputs}"
            got = f"{len(slow)} matrices have other sizes ({shortened(slow)})"
            if self.kernels == "refuse":
                fix = "kernels=warn; or prune/hidden and prune/width to such sizes"
                raise TechniqueError("kernels", got, f"{sizes}, for {kernel.title}", fix)
            log.warning(
                "%s takes %s; %s: vLLM needs another kernel for them, or refuses the model", kernel.title, sizes, got
            )
        return slow

    def ask(self, inputs: Inputs, out: Path, run: StepRun) -> float:
        """Open the folder in vLLM; return the share of texts that are the source's.

        Raises ParityError if it is too low.
        """
        from tasks.shared.model.loading import load_model, load_tokenizer

        source, corpus = inputs.one("model").path, inputs.get("calibration")
        model, tokenizer = load_model(source), load_tokenizer(source)
        texts, _ = parity.asked_texts(tokenizer, None if corpus is None else corpus.path, self.prompts)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        answers = parity.greedy_continuations(model, ids, self.tokens, tokenizer.pad_token_id)
        wanted = [str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip() for answer in answers]
        opening = Opening(
            run.compute.threads,
            context=max(map(len, ids)) + self.tokens,
            limit_s=self.limit_s,
            command=self.vllm_command,
        )
        del model
        with VLLM.open(out, opening) as session:
            found = [written.text for written in session.answer(texts, self.tokens)]
        same = sum(one == other for one, other in zip(wanted, found, strict=True)) / len(wanted)
        log.info(
            "vLLM %s writes the source's text in %.0f %% of %d conversations",
            vllm_version(self.vllm_command),
            100 * same,
            len(wanted),
        )
        if same < self.min_same_text:
            shutil.rmtree(out)
            out.mkdir()
            raise ParityError(
                out.name, f"the source's greedy text in {same:.1%} of conversations", f"min_same_text {self.min_same_text:.1%}",
                "other vLLM version or settings; lower min_same_text only if answers agree in meaning",
            )  # fmt: skip
        return same


def check_format(folder: Path, settings: Mapping[str, Any], model: Any) -> dict[str, PackedLayer]:
    """Return the packed layers of a folder.

    Raises ModelError for tensors that do not fit the format, TechniqueError for weights that vLLM has no kernel for.
    """
    config = read_config(folder, settings)
    layers = packed_layers(folder, config, model)
    keys = {name.rpartition(".")[0] for name in layers if name.endswith(KEYS)} if config.kv_cache_scheme else set()
    problems = [*schema_problems(folder, layers, sorted(keys)), *fused_problems(folder, layers)]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ModelError(
            str(folder), "; ".join(problems[:SHOWN]) + more, f"the tensors of {config.format}", "quantize the model again"
        )  # fmt: skip
    without = sorted({kernel for layer in layers.values() if isinstance(kernel := kernel_of(layer), str)})
    if without:
        wanted = "4-bit integers in groups of 32, 64 or 128, or 8 bits without zero points"
        fix = "quantize/gptq with bits=4 and group_size=32"
        raise TechniqueError(str(folder), f"vLLM has no kernel for {' or '.join(without)}", wanted, fix)
    return layers


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every linear layer but the head."""
    from torch.nn import Linear

    head = model.get_output_embeddings()
    parts = {name: part for name, part in model.named_modules() if isinstance(part, Linear) and part is not head}
    return {name: (part.out_features, part.in_features) for name, part in parts.items()}


def architecture(folder: Path) -> Any:
    """Return the model of a folder's configuration, without memory for weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.shared.model.configuration import load_config

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(folder))


def fused_problems(folder: Path, layers: Mapping[str, PackedLayer]) -> Iterator[str]:
    """Yield matrices that vLLM fuses although their parts are not packed alike.

    Of NVFP4's global scales vLLM keeps the largest of the parts: with others the weights would be read wrong, without a word.
    """
    from safetensors import safe_open

    for name, matrix in matrices_on_gpu({name: layer.shape for name, layer in layers.items()}, 1).items():
        parts = [layers[part] for part in matrix.layers]
        if any(part.scheme != parts[0].scheme for part in parts):
            yield f"{name} has parts in different schemes"
        elif parts[0].format == "nvfp4-pack-quantized" and len(parts) > 1:
            wanted, scales = {f"{part}.weight_global_scale" for part in matrix.layers}, set()
            for file in loaded_files(folder):
                with safe_open(file, framework="pt") as tensors:
                    scales |= {
                        float(tensors.get_tensor(each).float().max()) for each in wanted.intersection(tensors.keys())
                    }
            if len(scales) > 1:
                yield f"{name} has parts with different global scales"


def copy_served(source: Path, out: Path) -> None:
    """Copy the files that vLLM reads: weights, configuration and tokenizer."""
    beside = {file for pattern in SERVED for file in source.glob(pattern) if file.is_file()}
    for file in {*beside, *loaded_files(source)}:
        shutil.copyfile(file, out / file.name)


def describe(
    layers: Mapping[str, PackedLayer], slow: list[str], gpus: int, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the content of vllm.json."""
    kernels = {kernel.title: kernel for layer in layers.values() if isinstance(kernel := kernel_of(layer), Kernel)} or {
        DENSE.title: DENSE
    }
    least = max(kernel.capability for kernel in kernels.values())
    shared = f" --tensor-parallel-size {gpus}" if gpus > 1 else ""
    cache = " --kv-cache-dtype fp8" if (settings or {}).get("kv_cache_scheme") else ""
    return {
        "kernels": [title + (f" (older GPUs: {kernel.below})" if kernel.below else "") for title, kernel in kernels.items()],
        "compute_capability": f"{least / 10:.1f}", "gpus": f"{CUDA[least]} and newer", "matrices_without_fast_kernel": slow,
        "serve": f"vllm serve FOLDER{shared}{cache}",
    }  # fmt: skip
