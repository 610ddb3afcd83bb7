"""Groups of weights that share a scale: the forecast of their size."""

from dataclasses import replace

from tasks.shared.forecast import SAVED_BYTES, Forecast, Workload, forecast_reading
from tasks.shared.model.widths import GROUP_SIZES

SCALE_BITS = 16
SECONDS_PER_WEIGHT = 5e-7
"""Time to quantize, by measurement on two CPU cores."""


def forecast_packing(work: Workload, bits: int, group_size: int, symmetric: bool) -> Forecast:
    """Forecast a quantization to packed layers with 16-bit scales, bfloat16 embedding and head."""
    size = work.size()
    widths = (size.shape.width, size.shape.query, size.shape.feed_forward)
    fitting = [group for group in GROUP_SIZES if all(width % group == 0 for width in widths)]
    group = group_size or next(iter(fitting), GROUP_SIZES[-1])
    weight = (bits + (SCALE_BITS + (0 if symmetric else bits)) / group) / 8
    levels = f"int{bits}" if bits != 4 else "int4_symmetric" if symmetric else "int4_asymmetric"
    packed = replace(size, bytes=weight * (size.parameters - size.outer) + SAVED_BYTES * size.outer, levels=levels)
    return forecast_reading(work, SECONDS_PER_WEIGHT * size.parameters, size.parameters, packed)
