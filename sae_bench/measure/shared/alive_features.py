"""Features that fire on the corpus and write a direction, and the geometry of their directions."""

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
class DictionaryNeighbours:
    """Neighbours among the alive features and among all; features that write nothing are in neither."""

    alive: Neighbours
    every: Neighbours
    "Neighbours among all features; the object `alive` itself where no feature is dead."
    notes: tuple[str, ...]


def dictionary_neighbours(bench: Bench) -> DictionaryNeighbours:
    """Return the geometry of the bench's SAE, computed once for all properties."""
    return bench.shared("dictionary", lambda: _dictionary(bench))


def _dictionary(bench: Bench) -> DictionaryNeighbours:
    from sae_bench.measure.geometry import finite_norms, nearest_neighbours

    W_dec, firing = bench.sae.W_dec, bench.firing
    alive = firing.alive
    zero = finite_norms(W_dec).cpu() == 0
    check_alive(bench.sae, alive & ~zero, firing.tokens, "this SAE")
    among_alive, among_all = nearest_neighbours(W_dec, alive.to(W_dec.device))
    notes = [f"{int(alive.sum())} of {len(alive)} features fire on the {firing.tokens} kept tokens of the corpus"]
    if bool(zero.any()):
        named = zero.nonzero().flatten().tolist()
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        notes.append(
            f"{len(named)} decoder rows are zero and have no direction, so they are left out: "
            f"features {', '.join(map(str, named[:_NAMED]))}{more}"
        )
    return DictionaryNeighbours(among_alive, among_all, tuple(notes))


def check_alive(sae: Any, alive: Tensor, tokens: int, name: str) -> None:
    """Raise a `MeasurementError` when none of the features fires and writes."""
    if not bool(alive.any()):
        raise MeasurementError(
            f"all {len(alive)} features of {name} are dead: none fires on the {tokens} kept tokens of the corpus and "
            f"writes a direction, so there is no geometry to measure; check that {name} belongs to this model and site"
        )


def alive_indices(bench: Bench, related: RelatedSAE | None = None) -> Tensor:
    """Return int64 (n,) features that fire on the corpus and write a direction.

    ``related`` names the SAE of the bench where it is not the measured one; several SAEs of a run share its result.
    """
    name = "this SAE" if related is None else f"SAE {related.name!r}"
    alive = (
        bench.firing.alive
        if related is None
        else bench.site_data.shared(("alive", related.name, related.sha256), lambda: bench.firing.alive)
    )
    usable = alive & (bench.decoder_norms.cpu() > 0)
    check_alive(bench.sae, usable, len(bench.site_data.kept_positions), name)
    return usable.nonzero().flatten()


def has_decoder(sae: SAE) -> bool:
    """Return False for an object whose features have no known directions."""
    try:
        _ = sae.W_dec
    except MeasurementError:
        return False
    return True


def encoder_rows(sae: Any) -> Tensor | None:
    """Return (n, d_in) encoder directions of an SAE with a single encoder matrix; None for any other."""
    from torch import Tensor

    W_enc = getattr(sae, "W_enc", None)
    if W_enc is None and hasattr(sae, "tensors"):
        W_enc = sae.tensors().get("W_enc")
    if not isinstance(W_enc, Tensor) or tuple(W_enc.shape) != (int(sae.d_in), int(sae.d_sae)):
        return None
    return W_enc.detach().T
