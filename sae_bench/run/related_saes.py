"""Load SAEs that are compared with a registered one: of later layers (`layers`), or of other sizes (`width`).

Each is the id of a registered SAE, or a path. One that does not belong there is refused in one sentence, because every
number that it takes part in would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from sae_bench.engine.batch import RelatedSAE
from sae_bench.errors import LoadError
from sae_bench.model.language_model import Model
from sae_bench.registry.register import SAES
from sae_bench.registry.site import Site, parse_site
from sae_bench.registry.spec import SAESpec, id_from_target
from sae_bench.sae import SAE, check_outputs, weights_sha256

Field: TypeAlias = Literal["next_layers", "family"]

STREAM = {"hook_resid_pre": 0, "hook_resid_mid": 1, "hook_resid_post": 2}
"Order of the residual stream's sites within a block; what leaves a block is what enters the next one."


@dataclass(frozen=True, eq=False)
class MeasuredSAE:
    """The measured SAE, its site and its model."""

    spec: SAESpec
    sae: SAE
    model: Model
    model_name: str
    model_kwargs: Mapping[str, Any]
    site: Site
    "Site that it writes to, by the model's own name."
    source: Site
    "Site that it reads."


def load_related_saes(field: Field, measured: MeasuredSAE, read: Callable[[SAESpec], SAE]) -> tuple[RelatedSAE, ...]:
    """Return the SAEs that a field of the registration names; ``read`` loads one. The nearest layer comes first.

    A family may name the measured SAE itself, so that all of its members can be registered with one list. A
    `LoadError` for an SAE of another model, of a site that does not fit, or of another width.
    """
    related: list[RelatedSAE] = []
    if not getattr(measured.spec, field):
        return ()
    own = weights_sha256(measured.sae) if measured.sae.info.format != "object" else None
    for name in getattr(measured.spec, field):
        if field == "family" and name == measured.spec.id:
            continue
        what = f"{name!r}, which SAE {measured.spec.id!r} names in {field},"
        other = replace(_spec(name, measured.spec), dtype=measured.spec.dtype)
        try:
            sae = read(other)
            check_outputs(sae)
        except LoadError as error:
            raise LoadError(f"{what} cannot be used: {error}") from error
        _check_model(what, measured, other, sae)
        site = _family_site(what, measured, other, sae) if field == "family" else _next_site(what, measured, other, sae)
        shown = name if name in SAES else name.rstrip("/").rpartition("/")[2]
        digest = weights_sha256(sae)
        if field == "family" and digest == own:
            continue
        related.append(RelatedSAE(shown, sae, site, digest))
    return tuple(sorted(related, key=lambda each: _depth(each.site)) if field == "next_layers" else related)


def site_names(spec: SAESpec, sae: SAE) -> tuple[str | None, str | None]:
    """Return the sites that an SAE reads and writes: registration first, then its config; None if unknown."""
    if spec.output_site is not None:
        return spec.site or sae.site_in, spec.output_site
    # A transcoder's own config names its output; another site for an autoencoder moves both its ends.
    output = sae.site_out if sae.site_out != sae.site_in or spec.site is None else spec.site
    return spec.site or sae.site_in, output


def _spec(name: str, measured: SAESpec) -> SAESpec:
    return SAES[name] if name in SAES else SAESpec(id=id_from_target(name), path=name, origin=measured.origin)


def _check_model(what: str, measured: MeasuredSAE, other: SAESpec, sae: SAE) -> None:
    theirs, ours = (other.model, measured.model_name) if other.model else (sae.info.model, measured.sae.info.model)
    if theirs and ours and theirs != ours:
        raise LoadError(f"{what} is of model {theirs!r}, not of {ours!r}; name SAEs of one model")
    kwargs = other.model_kwargs or sae.info.model_kwargs
    if kwargs and dict(kwargs) != dict(measured.model_kwargs):
        raise LoadError(
            f"{what} was trained with the weight processing {dict(kwargs)}, but the model is measured with "
            f"{dict(measured.model_kwargs) or 'none'}; name SAEs of one weight processing"
        )


def _family_site(what: str, measured: MeasuredSAE, other: SAESpec, sae: SAE) -> Site:
    for name, ours, verb in zip(
        site_names(other, sae), (measured.source, measured.site), ("reads", "writes"), strict=True
    ):
        theirs = ours if name is None else measured.model.canonical(parse_site(name))
        if theirs != ours:
            raise LoadError(f"{what} {verb} {theirs}, not {ours}; a family is of one site")
    if (sae.d_in, sae.d_out) != (measured.sae.d_in, measured.sae.d_out):
        raise LoadError(
            f"{what} reads vectors of width {sae.d_in} and writes {sae.d_out}, not {measured.sae.d_in} and "
            f"{measured.sae.d_out}; a family is of one site"
        )
    return measured.site


def _next_site(what: str, measured: MeasuredSAE, other: SAESpec, sae: SAE) -> Site:
    read, written = site_names(other, sae)
    if read is None or written is None:
        raise LoadError(f"{what} does not say its site; register it with site=... and name its id instead of its path")
    site = measured.model.canonical(parse_site(written))
    if measured.model.canonical(parse_site(read)) != site:
        raise LoadError(f"{what} reads {read} and writes {written}; only an autoencoder's features can be compared")
    comparable = site.kind == measured.site.kind or {site.kind, measured.site.kind} <= set(STREAM)
    if not comparable or _depth(site) <= _depth(measured.site):
        raise LoadError(f"{what} is of {site}, which is not {measured.site.kind} of a layer behind {measured.site}")
    width = measured.model.width(site)
    if (sae.d_in, sae.d_out) != (width, width) or sae.d_out != measured.sae.d_out:
        raise LoadError(
            f"{what} reads vectors of width {sae.d_in} and writes {sae.d_out}, but {site} is {width} wide and SAE "
            f"{measured.spec.id!r} writes {measured.sae.d_out}; name SAEs of one model"
        )
    return site


def _depth(site: Site) -> int:
    return 2 * site.layer + STREAM.get(site.kind, 0)
