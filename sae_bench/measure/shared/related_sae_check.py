"""Check of the SAEs that a measured one is compared with: SAEs of later layers, and of other sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_bench.errors import MeasurementError

if TYPE_CHECKING:
    from sae_bench.engine.batch import RelatedSAE
    from sae_bench.engine.bench import Bench


def check_explained_variance(bench: Bench, related: RelatedSAE) -> None:
    """Raise a `MeasurementError` where a related SAE explains no variance of its site."""
    batch = next(iter(bench.batches()))
    x, xhat = batch.x[batch.keep].double(), bench.reconstruct(batch)[batch.keep].double()
    variance = float((x - bench.site_data.mean.to(x)).square().sum())
    explained = 1 - float((xhat - x).square().sum()) / variance if variance > 0 else 0.0
    if explained < 0:
        raise MeasurementError(
            f"SAE {related.name!r} explains {explained:.2f} of the variance at {bench.site}: it was trained on other "
            f"activations, so it cannot be compared; name an SAE of this model and of that site"
        )
