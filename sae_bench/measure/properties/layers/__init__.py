"""Persistence of features in later layers, and their direct effect on the logits.

    persistence              mean over features of the largest decoder cosine with a feature of a later layer's SAE
    persistent_share         features with such a cosine of 0.7 or more
    persistence_correlation  mean Pearson correlation, over tokens, of a feature and its nearest there
    direct_cosine            mean cos(D, T) over features and documents: D the direct effect of a feature's own vector
                             on the logits with the final norm's scale frozen, T the effect of removing the feature
    direct_share             sum D.T / sum ‖T‖²
    lens_kl                  mean KL(P || softmax(logits(x))), P the model's own next-token distribution, nats
    tuned_lens_kl            mean KL(P || softmax(logits(map(x)))), map an affine map fitted for the site on other
                             documents

D and T are centred over the vocabulary (`layers.direct_effects`). ``_sae`` reads the reconstruction in place of x, and
``_change`` is the difference. ``_floor``: as many random directions; for the correlation, another feature's nearest.
``_random``: random directions of the features' norms. ``_second``: the second next layer registered.

A persistence at its floor says that the next layer's SAE divides the space differently; a direct share near 0 that a
feature is an input to later layers and not yet a prediction; both rise with depth. A reconstruction whose lens KL rises
more than the model's own KL has lost information about the next token that the stream already has. Sources: tuned lens,
Belrose et al. (arXiv 2303.08112); features across layers, Balcells et al. (arXiv 2410.08869); MMCS, Sharkey (2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_bench.measure.measurement import Estimate, Measurement, Metric, Series, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.properties.layers.direct_effects import CONDITIONS, effect_estimates
from sae_bench.measure.properties.layers.persistence import NAMES as PERSISTENCE
from sae_bench.measure.properties.layers.persistence import measure_persistence
from sae_bench.measure.properties.layers.tuned_lens import NAMES as LENSES
from sae_bench.measure.properties.layers.tuned_lens import lens_estimates

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
ADDED = (*RESIDUAL, "hook_attn_out", "hook_mlp_out")
"Sites whose vectors are the residual stream, or are added to it."
LAYERS = {"": "the next layer", "_second": "the second next layer"}
_MEANINGS = {
    "persistence": ("cosine", "mean largest cosine of a feature with the SAE's of {}"),
    "persistence_floor": ("cosine", "mean largest cosine of random directions with the SAE's of {}"),
    "persistent_share": ("share", "share of features with a cosine of 0.7 or more in {}"),
    "persistent_share_floor": ("share", "share of random directions with a cosine of 0.7 or more in {}"),
    "persistence_correlation": ("", "mean correlation of a feature's code with its nearest feature's in {}"),
    "persistence_correlation_floor": ("", "mean correlation of a feature's code with another feature's nearest in {}"),
}
_LENS_MEANINGS = {
    "lens_kl": "KL from the model's output to the logit lens of x",
    "tuned_lens_kl": "KL from the model's output to a tuned lens of x, on other documents",
}
METRICS = (
    *(
        Metric(
            f"direct_cosine{condition}", "cosine", "reported", f"cosine of direct and total effect on the logits, {of}"
        )
        for condition, of in CONDITIONS.items()
    ),
    *(
        Metric(
            f"direct_share{condition}",
            "share",
            "reported",
            f"share of the total effect on the logits that is direct, {of}",
        )
        for condition, of in CONDITIONS.items()
    ),
    *(
        Metric(name + suffix, unit, "reported", meaning.format(which), noise_free=True)
        for suffix, which in LAYERS.items()
        for name, (unit, meaning) in _MEANINGS.items()
    ),
    *(
        Metric(name + suffix, "nats", "reported", meaning + of)
        for name, meaning in _LENS_MEANINGS.items()
        for suffix, of in {"": "", "_sae": ", of the reconstruction", "_change": ": reconstruction minus x"}.items()
    ),
)


def measure(bench: Bench) -> Measurement:
    """Measure persistence into registered later layers, effects of a few features, and lenses at every kept token."""
    kind = bench.site.kind
    estimates: dict[str, Estimate] = {}
    series: dict[str, Series] = {}
    notes: list[str] = []
    for (suffix, layer_name), related in zip(LAYERS.items(), (*bench.related.next_layers, None, None), strict=False):
        if related is None:
            undefined = Undefined(f"no SAE of {layer_name} is registered: next_layers=[...]")
            estimates |= {name + suffix: undefined for name in PERSISTENCE}
            continue
        persistence = measure_persistence(bench, related)
        estimates |= {name + suffix: estimate for name, estimate in persistence.estimates.items()}
        series |= {} if persistence.series is None else {f"persistence{suffix}": persistence.series}
        notes.append(persistence.note)
    if kind in ADDED:
        effects, effect_series, effect_notes = effect_estimates(bench)
        estimates, series, notes = {**estimates, **effects}, {**series, **effect_series}, [*notes, *effect_notes]
    else:
        undefined = Undefined(
            f"{bench.site} is not written to the residual stream, so its features have no direct effect"
        )
        estimates |= {
            name + condition: undefined for name in ("direct_cosine", "direct_share") for condition in CONDITIONS
        }
    if kind in RESIDUAL:
        estimates |= lens_estimates(bench)
    else:
        undefined = Undefined(f"{bench.site} is not the residual stream, so nothing can be read through a lens")
        estimates |= dict.fromkeys(LENSES, undefined)
    return Measurement(
        estimates,
        bench.clusters,
        series,
        settings={
            "include_bos": bench.include_bos,
            "next_layers": [[each.sha256, str(each.site)] for each in bench.related.next_layers[: len(LAYERS)]],
        },
        notes=tuple(notes),
    )


PROPERTY = Property(
    name="layers",
    question="Is a feature finished at its layer, and do later layers keep it?",
    primary_metric="direct_share",
    metrics=METRICS,
    limits=(),
    measure=measure,
    marker="geometry",
)
