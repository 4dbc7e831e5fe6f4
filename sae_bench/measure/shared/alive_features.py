"""What `orthogonality`, `superposition` and `stability` look at: the directions of the features that live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_bench.errors import MeasurementError

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import RelatedSAE
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.geometry import Neighbours
    from sae_bench.sae import SAE

_NAMED = 10


@dataclass(frozen=True, eq=False)
class LiveFeatures:
    """Neighbours among the alive features and among all; features that write nothing are in neither."""

    alive: Neighbours
    every: Neighbours
    "The same object as `alive` where no feature is dead."
    notes: tuple[str, ...]


def dictionary(bench: Bench) -> LiveFeatures:
    """The geometry of the bench's SAE, computed once for all properties that ask."""
    return bench.shared("dictionary", lambda: _dictionary(bench))


def _dictionary(bench: Bench) -> LiveFeatures:
    from sae_bench.measure.geometry import finite_norms, neighbours

    W_dec, firing = bench.sae.W_dec, bench.firing
    alive = firing.alive
    zero = finite_norms(W_dec).cpu() == 0
    check_alive(bench.sae, alive & ~zero, firing.tokens, "this SAE")
    among_alive, among_all = neighbours(W_dec, alive.to(W_dec.device))
    notes = [f"{int(alive.sum())} of {len(alive)} features fire on the {firing.tokens} kept tokens of the corpus"]
    if bool(zero.any()):
        named = zero.nonzero().flatten().tolist()
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        notes.append(
            f"{len(named)} decoder rows are zero and have no direction, so they are left out: "
            f"features {', '.join(map(str, named[:_NAMED]))}{more}"
        )
    return LiveFeatures(among_alive, among_all, tuple(notes))


def check_alive(sae: Any, alive: Tensor, tokens: int, what: str) -> None:
    """A `MeasurementError` when none of the features fires and writes."""
    if not bool(alive.any()):
        raise MeasurementError(
            f"all {len(alive)} features of {what} are dead: none fires on the {tokens} kept tokens of the corpus and "
            f"writes a direction, so there is no geometry to measure; check that {what} belongs to this model and site"
        )


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


def encoder_rows(sae: Any) -> Tensor | None:
    """(n, d_in) encoder directions of an SAE that has a single encoder matrix; None for any other."""
    from torch import Tensor

    W_enc = getattr(sae, "W_enc", None)
    if W_enc is None and hasattr(sae, "tensors"):
        W_enc = sae.tensors().get("W_enc")
    if not isinstance(W_enc, Tensor) or tuple(W_enc.shape) != (int(sae.d_in), int(sae.d_sae)):
        return None
    return W_enc.detach().T
