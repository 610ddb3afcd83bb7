"""Forecast of a step: from model sizes, rows and compute to seconds, bytes and memory.

Times count 2 floating point operations per weight and token of a forward pass (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from tasks.shared.mixtures import expert_count
from tasks.shared.technique import Compute

BASE_BYTES = 6e8
"""Resident memory of a process that has loaded torch and transformers, and no model."""
COMPARED_COPIES = 6
"""Copies of one conversation's logits that a comparison with the source takes: logits, log-probabilities and products."""
LIGHT_BYTES = 8e8
"""Resident memory of a step that holds no model."""
SMALL_BYTES = 2e6
"""Bytes of an artifact that holds no model."""
GPU_BYTES = 1e9
"""GPU memory of a CUDA context, its kernels and a batch that is only read."""
START_S = 15.0
"""Seconds to import the libraries and load a model."""
REQUEST_S = 0.5
"""Seconds per request to an endpoint, with several in flight."""
ROW_TOKENS, LONG_ROW_TOKENS = 75, 180
"""Mean tokens of a conversation, and those of the longest, where nothing else is known."""
CHARACTERS_PER_TOKEN = 4
"""Of English text."""
ANSWER_TOKENS = 40
GENERATION_COST = 3
"""Cost of a generated token relative to a prompt token: decoding uses the processor less well than prefill."""
DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0}
"""Bytes of a weight in memory."""
SAVED_BYTES = 2.0
"""Bytes of a weight in an artifact: models are written in bfloat16."""


@dataclass(frozen=True)
class Dimensions:
    """Shape of a decoder: number of layers and widths of its matrices.

    heads: query heads.
    query, value: width of all query heads, and of all key or value heads.
    experts: feed-forward blocks of a layer that a router chooses from; 0 for a dense model.
    expert_width: neurons of each; those that all tokens share are not counted.
    """

    layers: int
    width: int
    feed_forward: int
    heads: int
    query: int
    value: int
    vocabulary: int
    experts: int = 0
    expert_width: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Dimensions":
        """Read the shape from a transformers configuration; sizes that it does not name are 0.

        config: that of the text model.
        """
        width = int(config.get("hidden_size") or config.get("n_embd") or 0)
        heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
        head = config.get("head_dim") or width // heads
        experts = expert_count(config)
        return cls(
            layers=int(config.get("num_hidden_layers") or config.get("n_layer") or 0),
            width=width,
            feed_forward=int(config.get("intermediate_size") or config.get("n_inner") or 4 * width),
            heads=heads,
            query=head * heads,
            value=head * int(config.get("num_key_value_heads") or heads),
            vocabulary=int(config.get("vocab_size") or 0),
            experts=experts,
            expert_width=int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 0)
            if experts
            else 0,
        )

    def with_layers(self, layers: int) -> "Dimensions":
        """Return the same widths with another number of layers."""
        return replace(self, layers=layers)

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices: four of attention, three of every feed-forward block."""
        neurons = self.experts * self.expert_width or self.feed_forward
        return 2 * self.width * self.query + 2 * self.width * self.value + 3 * self.width * neurons

    @property
    def layer_ends(self) -> int:
        """Rows plus columns of one layer's seven matrices: the parameters of rank-1 adapters."""
        return 2 * (self.width + self.query) + 2 * (self.width + self.value) + 3 * (self.width + self.feed_forward)


@dataclass(frozen=True)
class Size:
    """Size of a model.

    bytes: on disk.
    outer: parameters of embedding and head.
    levels: grid of the layers' weights (a `GridName` of tasks.shared.model.grids), int and the bits, nvfp4 or mxfp4; empty for weights on none.
    """

    parameters: float
    bytes: float
    outer: float
    shape: Dimensions
    levels: str = ""

    @property
    def layer(self) -> float:
        """Parameters of one decoder layer."""
        return (self.parameters - self.outer) / max(1, self.shape.layers)

    def reshaped(self, shape: Dimensions) -> "Size":
        """Return the size of the same architecture in another shape, saved in bfloat16."""
        layer = self.layer * shape.layer_parameters / max(1, self.shape.layer_parameters)
        outer = self.outer * shape.width / max(1, self.shape.width)
        parameters = outer + layer * shape.layers
        return Size(parameters, SAVED_BYTES * parameters, outer, shape)

    def with_layers(self, layers: int) -> "Size":
        """Return the size with another number of layers, saved in bfloat16."""
        return self.reshaped(self.shape.with_layers(max(0, layers)))

    def with_vocabulary(self, tokens: int) -> "Size":
        """Return the size with another number of tokens, saved in bfloat16."""
        outer = self.outer * tokens / max(1, self.shape.vocabulary)
        shape = replace(self.shape, vocabulary=tokens)
        return replace(self, parameters=self.parameters - self.outer + outer, outer=outer, shape=shape).saved()

    def saved(self) -> "Size":
        """Return the size of the same weights saved in bfloat16."""
        return replace(self, bytes=SAVED_BYTES * self.parameters, levels="")


NOTHING = Size(0, 0, 0, Dimensions(0, 0, 0, 0, 0, 0, 0))
"""Size of an absent model."""


@dataclass(frozen=True)
class Rows:
    """Conversations in the training and test splits of a corpus, and their tokens.

    longest: tokens of the longest.  tokens: their mean.
    """

    train: int = 500
    test: int = 500
    longest: int = LONG_ROW_TOKENS
    tokens: int = ROW_TOKENS


@dataclass(frozen=True)
class Workload:
    """Everything known about a step before it runs.

    sizes: models by port, in the recipe's order.
    rows: of the corpora that the step reads, directly or indirectly.
    compute: threads, device and processes.  On CUDA, each process has a GPU.
    flops: floating point operations per second of all processes together.
    """

    sizes: Mapping[str, tuple[Size, ...]]
    rows: Rows
    compute: Compute
    flops: float

    def size(self, port: str = "model") -> Size:
        """Size of the first model of a port; `NOTHING` if there is none."""
        return next(iter(self.sizes.get(port, ())), NOTHING)

    @property
    def models(self) -> tuple[Size, ...]:
        """Sizes of all models that the step reads."""
        return tuple(size for sizes in self.sizes.values() for size in sizes)

    def reading(self, size: Size, tokens: float) -> float:
        """Seconds for a forward pass over `tokens` tokens."""
        return 2 * size.parameters * tokens / self.flops

    def test_rows(self, limit: int) -> int:
        """Number of test rows that a step with this `limit` uses; 0 means all."""
        return min(limit or self.rows.test, self.rows.test)


@dataclass(frozen=True)
class Forecast:
    """Forecast of one step.

    memory: peak bytes of all its processes together.
    gpu_memory: peak bytes on each GPU.
    size: size of the model that the step writes; None if it writes none.
    disk: bytes of the artifact without its model.
    rows: rows of the corpus that the step writes; None if it writes none.
    savings: overrides that lower the memory, with `{step}` for the step's name.
    """

    seconds: float
    memory: float
    gpu_memory: float = 0.0
    size: Size | None = None
    disk: float = SMALL_BYTES
    rows: Rows | None = None
    savings: tuple[str, ...] = ()


@runtime_checkable
class Forecasts(Protocol):
    """A technique that can forecast its work."""

    def forecast(self, work: Workload) -> Forecast:
        """Return seconds, bytes and memory of the step, and the size of the model it writes."""
        ...


def forecast_light(seconds: float, rows: Rows | None = None, held: float = 0.0) -> Forecast:
    """Forecast for steps that compute little.

    rows: rows of the corpus that the step writes.
    held: bytes of a model in memory.
    """
    return Forecast(seconds, LIGHT_BYTES + held, disk=SMALL_BYTES, rows=rows)


def forecast_reading(
    work: Workload,
    seconds: float,
    parameters: float,
    size: Size | None = None,
    disk: float = SMALL_BYTES,
    dtype: str = "float32",
) -> Forecast:
    """Forecast for steps that run models over text or change their weights.

    seconds: beyond imports and loading the first model.
    parameters: of all models in memory at the same time.
    size: size of the model that the step writes.
    dtype: dtype of the weights in memory.
    """
    weights = DTYPE_BYTES[dtype] * parameters
    on_gpu = work.compute.device == "cuda"
    return Forecast(
        seconds=START_S + seconds,
        memory=BASE_BYTES + (weights if on_gpu else 2 * weights),  # on a CPU, loading and saving need two copies
        gpu_memory=weights + GPU_BYTES if on_gpu else 0.0,
        size=size,
        disk=disk,
    )


def with_compared(forecast: Forecast, work: Workload, rows: int, max_tokens: int) -> Forecast:
    """Add the memory of a comparison with the source to a forecast: float32 logits on the CPU.

    The source's logits are held for all conversations, the model's for one.
    rows, max_tokens: conversations, and most tokens of each.
    """
    longest = min(max_tokens, work.rows.longest)
    logits = (rows + COMPARED_COPIES) * longest * work.size().shape.vocabulary
    return replace(forecast, memory=forecast.memory + DTYPE_BYTES["float32"] * logits)


def forecast_default(work: Workload) -> Forecast:
    """Forecast for techniques without their own: one pass over the rows, first model written."""
    size = next(iter(work.models), NOTHING)
    seconds = 0.1 * work.reading(size, work.rows.train * work.rows.tokens)
    return forecast_reading(work, seconds, size.parameters, size.saved() if size.parameters else None)
