"""What `layers` and `width` ask of the SAEs that stand beside the measured one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_bench.errors import MeasurementError
from sae_bench.measure.shared.live_features import check_alive

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import RelatedSAE
    from sae_bench.engine.bench import Bench
    from sae_bench.sae import SAE


def alive_rows(bench: Bench, companion: RelatedSAE | None = None) -> Tensor:
    """int64 (n,) features that fire on the corpus and write a direction; a `MeasurementError` where there is none.

    ``companion`` says that the bench is its: several SAEs of a run read the same one, so it is looked at once.
    """
    what = "this SAE" if companion is None else f"SAE {companion.name!r}"
    alive = (
        bench.firing.alive
        if companion is None
        else bench.site_data.shared(("alive", companion.name, companion.sha256), lambda: bench.firing.alive)
    )
    usable = alive & (bench.decoder_norms.cpu() > 0)
    check_alive(bench.sae, usable, len(bench.site_data.kept_positions), what)
    return usable.nonzero().flatten()


def shows_decoder(sae: SAE) -> bool:
    """False for an object whose features have no known directions."""
    try:
        _ = sae.W_dec
    except MeasurementError:
        return False
    return True


def check_explains(bench: Bench, companion: RelatedSAE) -> None:
    """A `MeasurementError` where a companion explains nothing of its site: it was trained on other activations."""
    batch = next(iter(bench.batches()))
    x, xhat = batch.x[batch.keep].double(), bench.reconstruct(batch)[batch.keep].double()
    variance = float((x - bench.site_data.mean.to(x)).square().sum())
    explained = 1 - float((xhat - x).square().sum()) / variance if variance > 0 else 0.0
    if explained < 0:
        raise MeasurementError(
            f"SAE {companion.name!r} explains {explained:.2f} of the variance at {bench.site}: it was trained on other "
            f"activations, so it says nothing here; name an SAE of this model and of that site"
        )
