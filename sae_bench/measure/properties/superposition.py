"""Cost of more features than dimensions in one space: interference, capacity and scale equivariance.

    rms_cosine           root mean square cosine of two features; 1/sqrt(d) for random directions
    interference_excess  variance that active features read of each other's writing, over what random directions give:
                         sum_i sum_{j != i} f_j^2 (d_i . d_j)^2  /  sum_i sum_{j != i} f_j^2 / d, i and j active
    active_capacity      d / interference_excess: equally strong active features at which crosstalk is as strong as one
    scale_equivariance   1 - |enc(a x) / a - enc(x)|^2 / |enc(x)|^2 over a in `SCALES`; 1 when codes scale with x

Codes have decoder norms folded in, on the active sets that occur in the corpus. That l of n features can be active
while l < d / (8 ln n) (Linsefors) is a worst case over all sets; for typical ones l < d (Drori): both are reported.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.measurement import Estimate, Exact, Measurement, Metric, Ratio, Series, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.shared.alive_features import dictionary_neighbours
from sae_bench.measure.tables import histogram_columns
from sae_bench.measure.uncertainty import ratio_or_undefined

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats
    from sae_bench.measure.geometry import Neighbours
    from sae_bench.sae.sparse_codes import SparseCodes

SCALES = (0.5, 0.75, 1.25, 1.5, 2.0)
"Factors that activations are multiplied with."
_WORK = 1e12
"Most multiplications for crosstalk at every position; with more, it is measured on one of two, three ... positions."

METRICS = (
    Metric("rms_cosine", "cosine", "reported", "root mean square cosine of two features", noise_free=True),
    Metric(
        "rms_cosine_floor",
        "cosine",
        "reported",
        "root mean square cosine of two random directions, 1/sqrt(d)",
        noise_free=True,
    ),
    Metric("coherence", "cosine", "reported", "largest absolute cosine of two features", noise_free=True),
    Metric("welch_bound", "cosine", "reported", "smallest coherence that so many directions can have", noise_free=True),
    Metric(
        "interference_excess", "ratio", "lower", "crosstalk of active features over random directions'", noise_free=True
    ),
    Metric(
        "active_capacity",
        "features",
        "reported",
        "active features whose crosstalk is as strong as one",
        noise_free=True,
    ),
    Metric("worst_case_capacity", "features", "reported", "d / (8 ln n), for any set of features", noise_free=True),
    Metric(
        "scale_equivariance",
        "share",
        "higher",
        "agreement of the codes of a scaled x with the scaled codes of x",
        noise_free=True,
    ),
)


def measure(bench: Bench) -> Measurement:
    """Measure cosines of alive features, crosstalk on the measured tokens, and codes of scaled activations."""
    geometry = dictionary_neighbours(bench)
    stride = _stride(bench, geometry.alive.d)
    directions = _unit_rows(bench)
    tables = bench.collect(lambda batch: _tokens(bench, batch, directions, stride), "superposition")
    sums = {name: bench.per_cluster(table) for name, table in tables.items()}
    notes = geometry.notes
    if stride > 1:
        notes = (
            *notes,
            f"crosstalk is measured on one of {stride} positions, because many features are active at once",
        )
    return Measurement(
        {
            **_weights(geometry.alive),
            **_crosstalk(sums, geometry.alive.d),
            "scale_equivariance": _equivariance(sums, SCALES),
        },
        bench.clusters,
        {"scale_equivariance": _curve(sums), "interference_excess": _histogram(tables)},
        notes=notes,
    )


def _weights(neighbours: Neighbours) -> dict[str, Estimate]:
    from sae_bench.measure.geometry import rms_cosine, welch_bound

    n, d = neighbours.n, neighbours.d
    undefined = Undefined("a single feature shares its space with no other")
    return {
        "rms_cosine": Exact(rms_cosine(neighbours)) if n > 1 else undefined,
        "rms_cosine_floor": Exact(1 / math.sqrt(d)),
        "coherence": Exact(neighbours.coherence) if n > 1 else undefined,
        "welch_bound": Exact(welch_bound(n, d)) if n > 1 else undefined,
        "worst_case_capacity": Exact(d / (8 * math.log(n))) if n > 1 else undefined,
    }


def _crosstalk(sums: dict[str, Floats], d: int) -> dict[str, Estimate]:
    read, random = sums["read"], sums["random"]
    if random.sum() == 0:
        no_pairs = Undefined("no token of the documents measured has two active features")
        return {"interference_excess": no_pairs, "active_capacity": no_pairs}
    orthogonal = "active features are orthogonal: however many there are, they do not disturb each other"
    return {
        "interference_excess": Ratio(read, random),
        "active_capacity": ratio_or_undefined(d * random, read, orthogonal),
    }


def _equivariance(sums: dict[str, Floats], scales: tuple[float, ...]) -> Estimate:
    code_power = sums["power"]
    if code_power.sum() == 0:
        return Undefined("no feature fires on the documents measured")
    lost = sum(sums[f"lost_{scale}"] for scale in scales) / len(scales)
    return Ratio(code_power - lost, code_power)


def _curve(sums: dict[str, Floats]) -> Series:
    values = [getattr(_equivariance(sums, (scale,)), "value", math.nan) for scale in SCALES]
    points = [(scale, value) for scale, value in zip(SCALES, values, strict=True) if math.isfinite(value)]
    columns = {"x": [scale for scale, _ in points], "equivariance": [value for _, value in points]}
    return Series("curve", columns, "Codes of a times x against a times codes of x", "a")


def _histogram(tables: dict[str, Tensor]) -> Series:
    """Return crosstalk of every token that was sampled; values outside the axis are counted in its last bins."""
    random = tables["random"].numpy()
    excess = tables["read"].numpy()[random > 0] / random[random > 0]
    edges = np.geomspace(1e-2, 1e3, 61)
    columns = histogram_columns(edges, {"tokens": excess})
    return Series("histogram", columns, "Crosstalk of a token over random directions'", "ratio", log_x=True)


TABLES = ("read", "random", "power", *(f"lost_{scale}" for scale in SCALES))


def _tokens(bench: Bench, batch: Batch, directions: Tensor, stride: int) -> dict[str, Tensor]:
    """Return (docs, pos) tables of one batch."""
    import torch

    from sae_bench.measure.geometry import code_power, crosstalk
    from sae_bench.sae.sparse_codes import SparseCodes

    parts = [codes.times(bench.decoder_norms) for codes in bench.sparse_codes(batch)]
    codes = SparseCodes.join(parts)  # of the kept positions, in their order
    # Shifted from document to document, so that no position of the text is favoured.
    document = torch.tensor(batch.documents, device=batch.keep.device)[:, None]
    position = torch.arange(batch.keep.shape[1], device=batch.keep.device)
    sampled = batch.keep & ((document + position) % stride == 0)
    tables = {name: torch.zeros(batch.keep.shape, dtype=torch.float64, device=batch.x.device) for name in TABLES}
    tables["read"][sampled], tables["random"][sampled] = crosstalk(
        codes, directions, sampled[batch.keep].nonzero().flatten()
    )
    tables["power"][batch.keep] = code_power(codes)
    for scale in SCALES:
        # A document at a time: a feature near its threshold must not fire in one batch only.
        for row, keep, x, code in zip(tables[f"lost_{scale}"], batch.keep, batch.source, parts, strict=True):
            row[keep] = _lost(bench, x[keep], code, scale)
    return tables


def _lost(bench: Bench, x: Tensor, codes: SparseCodes, scale: float) -> Tensor:
    """Return float64 (tokens,) squared distance of the codes of ``scale`` times x, over ``scale``, from those of x."""
    import torch

    from sae_bench.sae import encode_sparse

    with torch.no_grad():
        difference = encode_sparse(bench.sae, x * scale).times(bench.decoder_norms / scale).dense()  # (tokens, n)
    difference[codes.token, codes.feature] -= codes.value
    return difference.square_().sum(-1, dtype=torch.float64)


def _unit_rows(bench: Bench) -> Tensor:
    """Return float32 (n, d) unit decoder rows, 0 for rows that write nothing."""
    from sae_bench.sae import unit_directions

    return unit_directions(bench.sae).detach()


def _stride(bench: Bench, d: int) -> int:
    l0 = float(bench.firing.count.sum()) / bench.firing.tokens
    return max(1, math.ceil(2 * float(bench.keep.sum()) * l0**2 * d / _WORK))


PROPERTY = Property(
    name="superposition",
    question="How much do active features disturb each other, and do codes scale with the activation?",
    primary_metric="interference_excess",
    metrics=METRICS,
    limits=(),
    measure=measure,
    marker="geometry",
    needs_model=False,
)
