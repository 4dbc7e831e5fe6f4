"""Rescale an SAE: fold per-feature scales into its decoder and save it in SAELens' format.

The encoder is left alone, so the same features fire as before; only how much each of them writes has changed.
`calibrated_loss` is the training objective that has the same scales in it (Drori's comment on Gated SAEs, 2024): an
SAE trained with it needs no rescaling afterwards.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import Progress
from sae_bench.errors import MeasurementError, UsageError
from sae_bench.measure.measurement import Measurement, Ratio, Undefined
from sae_bench.measure.properties import load_property
from sae_bench.measure.shared.scales import fit_sae_scales
from sae_bench.registry.spec import SAESpec
from sae_bench.run.load import Loader
from sae_bench.sae import SAE, LinearDecoderSAE
from sae_bench.sae.formats import read_sae, write_sae_lens


@dataclass(frozen=True)
class RescaledSAE:
    """An SAE that was rescaled, saved, read back and measured again."""

    folder: Path
    before: Measurement
    "`shrinkage` of the SAE as it was."
    after: Measurement
    "`shrinkage` of what is in `folder`, on the same documents."

    @property
    def better(self) -> bool:
        """Return True when the KL fell on odd documents, which the scales were not fitted on."""
        return _value(self.after, "kl_heldout") < _value(self.before, "kl_heldout")

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the outcome as lines for a terminal."""
        lines = [f"{self.folder}: every decoder row times the scale of its feature, in SAELens' format"]
        for metric, words in (
            ("gamma_centred", "gamma_centred"),
            ("mse_heldout", "squared error on odd documents"),
            ("kl_heldout", "KL on odd documents"),
        ):
            was, now = _value(self.before, metric), _value(self.after, metric)
            change = f" ({now / was - 1:+.1%})" if was > 0 else ""
            lines.append(f"  {words}: {was:.4g} -> {now:.4g}{change}")
        lines.extend(f"  {note}" for note in self.before.notes)
        if not self.better:
            lines.append("  the KL did not fall: there is no reason to prefer the rescaled SAE")
        return tuple(lines)


@dataclass(frozen=True, eq=False)
class CalibratedLoss:
    """The terms of `calibrated_loss`, each a scalar with its gradients."""

    encoder: Tensor
    "Mean squared error norm of the unscaled reconstruction; the decoder gets no gradient from it."
    decoder: Tensor
    "Mean squared error norm with every code times its scale."
    sparsity: Tensor
    "Mean L1 norm of the codes times its coefficient; the scales are not in it, so they undo what it takes away."

    @property
    def total(self) -> Tensor:
        """Return the sum of the terms, which training minimises."""
        return self.encoder + self.decoder + self.sparsity


def calibrated_loss(
    x: Tensor, codes: Tensor, scales: Tensor, W_dec: Tensor, b_dec: Tensor, sparsity: float
) -> CalibratedLoss:
    """Return the terms of ``‖stop(decode)(f) - x‖² + ‖decode(t f) - x‖² + sparsity ‖f‖₁``, means over tokens.

    Args:
        x: activations (tokens, d).
        codes: f, (tokens, n) and not negative.
        scales: t, (n,), learned; for fixed codes and decoder the best ones are the t* of `shrinkage`.
        W_dec: decoder rows (n, d).
        b_dec: decoder bias (d,).
        sparsity: coefficient of the L1 norm.
    """
    unscaled = codes @ W_dec.detach() + b_dec.detach()
    scaled = (scales * codes) @ W_dec + b_dec
    return CalibratedLoss(
        encoder=(unscaled - x).square().sum(-1).mean(),
        decoder=(scaled - x).square().sum(-1).mean(),
        sparsity=sparsity * codes.abs().sum(-1).mean(),
    )


def rescale(sae: SAE, scales: Tensor) -> LinearDecoderSAE:
    """Return the SAE with decoder row i times ``scales[i]`` (n,); its codes stay the same.

    A `UsageError` for an SAE that is not made of tensors, or for scales that do not fit it or are not finite.
    """
    if not isinstance(sae, LinearDecoderSAE):
        raise UsageError(
            f"a {sae.info.architecture} SAE of format {sae.info.format} gives no access to its decoder, so it cannot "
            f"be rescaled; only SAEs read from files can"
        )
    if tuple(scales.shape) != (sae.d_sae,):
        raise UsageError(f"scales of shape {tuple(scales.shape)} do not fit an SAE of {sae.d_sae} features")
    if not bool(torch.isfinite(scales).all()):
        raise UsageError("a scale is NaN or infinite; fit the scales again")
    rows = sae.W_dec.double() * scales.to(sae.W_dec.device).double().unsqueeze(1)
    return dataclasses.replace(sae, W_dec=rows.to(sae.W_dec.dtype))


def rescale_bench(bench: Bench, out: Path) -> RescaledSAE:
    """Fit the scales of a bench's SAE, fold them in, save the result in ``out`` and measure what was saved.

    ``out`` is made; a `UsageError` when it is there already and not empty, or when the SAE cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already; name a folder that does not")
    before = load_property("shrinkage").measure(bench)
    write_sae_lens(rescale(bench.sae, fit_sae_scales(bench).per_feature), out)
    dtype = str(bench.sae.W_dec.dtype).removeprefix("torch.")
    saved = dataclasses.replace(bench, sae=read_sae(str(out), device=bench.settings.device, dtype=dtype))
    return RescaledSAE(out, before, load_property("shrinkage").measure(saved))


def rescale_target(
    spec: SAESpec, out: Path, settings: Settings | None = None, progress: Progress | None = None
) -> RescaledSAE:
    """Rescale a registered SAE, or a target with its model, site and corpus in a spec of its own."""
    return rescale_bench(Loader(settings or Settings(), progress).bench(spec), out)


def _value(measurement: Measurement, name: str) -> float:
    estimate = measurement.estimates[name]
    if isinstance(estimate, Undefined):
        raise MeasurementError(
            f"shrinkage.{name} has no value here ({estimate.full_reason}), so nothing can be rescaled"
        )
    assert isinstance(estimate, Ratio)
    return estimate.value
