"""Losses of every SAE of one family on the documents measured, with a table and a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_bench.measure.measurement import Ratio, Series
from sae_bench.measure.tables import finite_cell
from sae_bench.measure.uncertainty import standard_error

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats

QUANTITIES = ("kl", "explained_variance", "ce_recovered")


@dataclass(frozen=True, eq=False)
class FamilyMember:
    """Losses of one SAE of the family."""

    name: str
    features: int
    l0: Ratio
    kl: Ratio
    explained_variance: Ratio
    ce_recovered: Ratio

    def of(self, quantity: str) -> Ratio:
        """Return one of `QUANTITIES`."""
        value: Ratio = getattr(self, quantity)
        return value


def measure_family(bench: Bench) -> list[FamilyMember]:
    """Return this SAE and its family, in order of registration; results are shared with the rest of the family."""
    from sae_bench.measure.shared.related_sae_check import check_explained_variance

    sums = bench.site_data.shared(("width: loss", bench.n_documents), lambda: _loss(bench))
    members = [_member(bench, "this SAE", _sums(bench), sums)]
    for related in bench.related.family:
        other = bench.related_bench(related)
        check_explained_variance(other, related)
        key = ("width", related.name, related.sha256, bench.n_documents)
        tables = bench.site_data.shared(key, lambda other=other: _sums(other))  # type: ignore[misc]
        members.append(_member(other, related.name, tables, sums))
    return members


def _member(bench: Bench, name: str, sums: dict[str, Floats], loss: dict[str, Floats]) -> FamilyMember:
    count = bench.per_cluster(bench.keep)
    return FamilyMember(
        name,
        int(bench.sae.d_sae),
        l0=Ratio(sums["l0"], count),
        kl=Ratio(sums["kl"], count),
        explained_variance=Ratio(sums["variance"] - sums["error"], sums["variance"]),
        ce_recovered=Ratio(loss["ablated"] - sums["ce"], loss["ablated"] - loss["clean"]),
    )


def _sums(bench: Bench) -> dict[str, Floats]:
    """Return (clusters,) sums over kept tokens of one SAE."""
    mean = bench.site_data.mean.to(bench.settings.device)

    def tokens(batch: Batch) -> dict[str, Tensor]:
        xhat = bench.reconstruct(batch)
        outcome = bench.intervene(batch, xhat)
        return {
            "l0": bench.l0_per_token(batch),
            "error": (xhat.double() - batch.x).square().sum(-1),
            "variance": (batch.x.double() - mean).square().sum(-1),
            "kl": outcome.kl,
            "ce": outcome.ce,
        }

    return {name: bench.per_cluster(family_table) for name, family_table in bench.collect(tokens, "width").items()}


def _loss(bench: Bench) -> dict[str, Floats]:
    """Return (clusters,) summed next-token losses of the clean model and with the site at its mean."""
    mean = bench.site_data.mean

    def tokens(batch: Batch) -> dict[str, Tensor]:
        ablated = mean.to(batch.x).expand_as(batch.x)
        return {"clean": bench.intervene(batch, None).ce, "ablated": bench.intervene(batch, ablated).ce}

    return {name: bench.per_cluster(family_table) for name, family_table in bench.collect(tokens, "width").items()}


def family_table(sizes: Sequence[FamilyMember], matched: Sequence[FamilyMember]) -> Series:
    """Return the whole family, one row per SAE."""
    columns: dict[str, list[Any]] = {
        "SAE": [size.name for size in sizes],
        "features": [size.features for size in sizes],
        "l0": [size.l0.value for size in sizes],
        **{name: [finite_cell(size.of(name).value) for size in sizes] for name in QUANTITIES},
        "compared": ["yes" if size in matched else "no, of another L0" for size in sizes],
    }
    return Series("table", columns, "The family, by registration")


def kl_curve(matched: Sequence[FamilyMember]) -> Series:
    """Return the KL of the SAEs at matched L0, with standard errors."""
    ordered = sorted(matched, key=lambda size: size.features)
    errors = [standard_error(size.kl) or 0.0 for size in ordered]
    values = [size.kl.value for size in ordered]
    columns: dict[str, list[Any]] = {
        "x": [size.features for size in ordered],
        "KL": values,
        "one standard error less": [value - error for value, error in zip(values, errors, strict=True)],
        "one standard error more": [value + error for value, error in zip(values, errors, strict=True)],
    }
    return Series("curve", columns, "KL by size of the dictionary, at matched L0", "features", log_x=True)
