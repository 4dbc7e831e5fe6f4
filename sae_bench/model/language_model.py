"""A language model: capture the activation of a site, and run on from the site with its value replaced.

An intervention changes nothing before its block, so `Model.resume` runs nothing before it: the blocks there return
their input, the site's block receives its recorded input, the rest runs as always.

Shapes: b documents, p positions, d site width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sae_bench.errors import LoadError, MeasurementError, near
from sae_bench.model.files import content_sha256
from sae_bench.model.forward import ForwardPasses, StopForward, attached_hook
from sae_bench.model.unembed import Unembedding
from sae_bench.registry.site import INPUTS, KINDS, Site


@dataclass(frozen=True, eq=False)
class SiteCapture:
    """Activation of a site and input of its block, captured in one pass."""

    value: Tensor
    "(b, p, d) float32; heads of ``attn.hook_z`` lie side by side."
    block_input: Tensor
    "(b, p, d_model) float32, the residual stream before the site's block."


class Model:
    """A TransformerBridge (or, on TransformerLens 3, a HookedTransformer) as the engine uses it."""

    def __init__(
        self,
        bridge: Any,
        *,
        name: str,
        processing: Mapping[str, Any] | None = None,
        tokenizer_sha256: str | None = None,
        weights: Callable[[], str] | None = None,
    ) -> None:
        self.bridge = bridge
        self.name = name
        config = bridge.cfg
        self.d_model = int(config.d_model)
        self.n_layers = int(config.n_layers)
        self.d_vocab = int(config.d_vocab_out if getattr(config, "d_vocab_out", -1) > 0 else config.d_vocab)
        self.context = int(config.n_ctx)
        parameter = next(bridge.parameters())
        self.device = str(parameter.device)
        self.dtype = str(parameter.dtype).removeprefix("torch.")
        self.tokenizer_sha256 = tokenizer_sha256
        self._torch_dtype = parameter.dtype
        self._processing = dict(processing or {})
        self._weights = weights or (lambda: content_sha256(bridge))
        self.unembedding = Unembedding(bridge, self.d_vocab)
        self.passes = ForwardPasses(bridge, self.unembedding, parameter.device)
        bridge.eval()

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer; None when the model came without one."""
        return self.bridge.tokenizer

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Hash of the weights and their processing: equal for two results of the same model, whatever its path."""
        return {"weights": self._weights(), "processing": dict(sorted(self._processing.items()))}

    @property
    def embedding(self) -> Tensor | None:
        """(V, d_model) rows of the token embedding, in the model's precision; None where it shows no such matrix."""
        matrix = getattr(self.bridge, "W_E", None)
        if not isinstance(matrix, Tensor) or matrix.shape != (self.d_vocab, self.d_model):
            return None
        return matrix.detach()

    def sites(self) -> list[str]:
        """Return names of the sites this model has, by block."""
        hooks = self._hooks
        names = [str(Site(layer, kind)) for layer in range(self.n_layers) for kind in KINDS]
        return [name for name in names if name in hooks]

    def canonical(self, site: Site) -> Site:
        """Return ``site`` by the name that TransformerLens gives it in this model.

        Where no norm follows a module, its output is added to the residual as it is, and two names mean one site.
        """
        plain = {"mlp.hook_out": ("hook_mlp_out", "ln2_post"), "attn.hook_out": ("hook_attn_out", "ln1_post")}
        if site.kind not in plain:
            return site
        kind, norm = plain[site.kind]
        normed = any(name.startswith(f"blocks.{site.layer}.{norm}.") for name in self._hooks)
        return site if normed else Site(site.layer, kind)

    def width(self, site: Site) -> int:
        """Return width of the site's activation; all heads together for ``attn.hook_z`` unless it names one."""
        self._hook(site)
        config = self.bridge.cfg
        if site.kind == "attn.hook_z":
            heads = int(config.n_heads)
            if site.head is None:
                return heads * int(config.d_head)
            if site.head >= heads:
                raise LoadError(
                    f"site {site} names head {site.head}, but model {self.name!r} has heads 0 to {heads - 1}"
                )
            return int(config.d_head)
        return int(config.d_mlp) if site.kind == "mlp.hook_post" else self.d_model

    def logits(self, tokens: Tensor) -> Tensor:
        """Return (b, p, V) float32 logits of a full pass."""
        with torch.no_grad():
            return self.passes.logits(tokens)

    def capture(self, tokens: Tensor, site: Site) -> SiteCapture:
        """Capture the site's activation and its block's input; nothing after the site is run."""
        captured: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], None]:
            def read(tensor: Tensor) -> None:
                if name == "value" and site.head is not None:
                    tensor = tensor[:, :, site.head]
                # A copy, because some models go on to change the residual stream in place.
                captured[name] = tensor.detach().flatten(2).to(torch.float32, copy=True)
                if "value" in captured:
                    raise StopForward

            return read

        with (
            torch.no_grad(),
            suppress(StopForward),
            attached_hook(self._hook(Site(site.layer, KINDS[0])), keep("block_input")),
            attached_hook(self._hook(site), keep("value")),
        ):
            self.passes.logits(tokens)
        if "value" not in captured or "block_input" not in captured:
            raise _no_hook_fired(site)
        return SiteCapture(value=captured["value"], block_input=captured["block_input"])

    def resume(
        self,
        tokens: Tensor,
        block_input: Tensor,
        site: Site,
        value: Tensor | None,
        *,
        select: Tensor | None = None,
        options: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Run on from the site with ``value`` (b, p, d) there: logits; None leaves the block's own value.

        (b, p, V) float32; with ``select``, bool (b, p), only the rows where it is true are computed, (n, V).
        ``options`` are further arguments of the model's forward pass (an attention mask, position ids).
        """
        with torch.no_grad(), self._intervention(block_input, site, value):
            return self.passes.logits(tokens, select, options)

    def gradient(
        self,
        tokens: Tensor,
        block_input: Tensor,
        site: Site,
        value: Tensor,
        objective: Callable[[Tensor], Tensor],
        *,
        select: Tensor | None = None,
    ) -> Tensor:
        """Differentiate the sum of ``objective(logits)`` by ``value`` at the site: (b, p, d) float32; see `resume`."""
        value = value.detach().clone().requires_grad_()
        with torch.enable_grad(), self._intervention(block_input, site, value):
            (gradient,) = torch.autograd.grad(objective(self.passes.logits(tokens, select)).sum(), value)
        return gradient

    def logit_blocks(
        self, tokens: Tensor, block_input: Tensor, site: Site, value: Tensor | None, *, select: Tensor, entries: int
    ) -> Iterator[Tensor]:
        """Yield the logits of `resume` at the true entries of ``select`` (b, p), some rows at a time: (k, V) float32.

        About ``entries`` logits are in memory at once: a block is overwritten by the next one.
        """
        if not self.unembeds_alone:
            step = max(1, entries // (tokens.shape[1] * self.d_vocab))
            for first in range(0, len(tokens), step):
                rows = slice(first, first + step)
                part = None if value is None else value[rows]
                if bool(select[rows].any()):
                    yield self.resume(tokens[rows], block_input[rows], site, part, select=select[rows])
            return
        read = self._input_of(self.bridge.unembed, tokens, block_input, site, value)[select.to(self.device)]
        with torch.no_grad():
            yield from self.unembedding.blocks(read, entries)

    def final_residual(self, tokens: Tensor, block_input: Tensor, site: Site, value: Tensor | None) -> Tensor:
        """Run on from the site with ``value`` there: (b, p, d_model) float32 residual stream before the final norm."""
        # A copy, because some models go on to change the residual stream in place.
        return self._input_of(self.bridge.ln_final, tokens, block_input, site, value).to(torch.float32, copy=True)

    def _input_of(
        self, module: nn.Module, tokens: Tensor, block_input: Tensor, site: Site, value: Tensor | None
    ) -> Tensor:
        """Run on from the site with ``value`` there up to ``module``: its input, (b, p, d_model)."""
        with self._intervention(block_input, site, value):
            read = self.passes.input_of(module, tokens)
        if read is None:
            raise MeasurementError(
                f"model {self.name!r} never called its {type(module).__name__}, so its input cannot be captured"
            )
        return read

    @cached_property
    def unembeds_alone(self) -> bool:
        """True when the unembedding alone gives the logits of a whole pass: some models change them afterwards."""
        tokens = torch.tensor([[0, 1]]).clamp(max=self.d_vocab - 1)
        read = self.passes.input_of(self.bridge.unembed, tokens)
        if read is None or read.shape != (1, 2, self.d_model):
            return False
        with torch.no_grad():
            whole, alone = self.logits(tokens)[0], self.unembedding.logits(read[0])
        size = float(whole.abs().max())
        return torch.allclose(alone, whole, rtol=0, atol=8 * torch.finfo(self._torch_dtype).eps * size)

    @contextmanager
    def _intervention(self, block_input: Tensor, site: Site, value: Tensor | None) -> Iterator[None]:
        """Skip the blocks before the site and put ``value`` at it, within the block."""
        if site.kind in INPUTS:
            raise MeasurementError(
                f"{site} cannot be intervened on: the model does not read this hook back; choose the site that the "
                f"transcoder writes"
            )
        fired: set[str] = set()

        def put(name: str, replacement: Tensor) -> Callable[[Tensor], Tensor]:
            def replace(tensor: Tensor) -> Tensor:
                fired.add(name)
                value = replacement.to(device=tensor.device, dtype=tensor.dtype)
                if name == str(site) and site.head is not None:
                    heads = tensor.clone()
                    heads[:, :, site.head] = value
                    return heads
                return value.reshape(tensor.shape)

            return replace

        entry = Site(site.layer, KINDS[0])
        values = {str(entry): block_input}
        if value is not None:
            values[str(site)] = value
        with ExitStack() as stack:
            stack.enter_context(self.passes.skip_blocks(site.layer))
            for name, replacement in values.items():
                hook = self._hook(site if name == str(site) else entry)
                stack.enter_context(attached_hook(hook, put(name, replacement)))
            yield
        if fired != set(values):
            raise _no_hook_fired(site)

    def norm_scale(self, resid: Tensor) -> Tensor:
        """Return the divisor of the final norm for residual vectors (..., d_model): (..., 1) float32."""
        scales: list[Tensor] = []
        with torch.no_grad(), attached_hook(self.bridge.ln_final.hook_scale, lambda scale: scales.append(scale)):
            self.bridge.ln_final(self._rows(resid))
        if not scales:
            raise MeasurementError(f"the final norm of model {self.name!r} has no hook that shows its scale")
        return scales[0].float().reshape(*resid.shape[:-1], 1)

    def final_logits(self, resid: Tensor, scale: Tensor | None = None, *, differentiable: bool = False) -> Tensor:
        """Apply the final norm, the unembedding and its soft cap to (..., d_model): (..., V) float32 logits.

        With ``scale`` (..., 1) the final norm divides by it instead of by its own. ``differentiable`` allows gradients
        with respect to ``resid``.
        """
        bridge = self.bridge
        with torch.set_grad_enabled(differentiable):
            rows = self._rows(resid)
            normed = bridge.ln_final(rows)
            if scale is not None:
                # A norm is a bias, which it gives for 0, and a linear map divided by the scale.
                bias = bridge.ln_final(torch.zeros_like(rows[:, :1]))
                ratio = (self.norm_scale(resid) / scale).reshape(1, -1, 1).to(normed)
                normed = bias + (normed - bias) * ratio
            logits = self.unembedding.logits(normed[0])
        return logits.reshape(*resid.shape[:-1], -1)

    def _rows(self, resid: Tensor) -> Tensor:
        """Reshape residual vectors (..., d_model) to one document of the model's own precision."""
        return resid.reshape(1, -1, resid.shape[-1]).to(device=self.device, dtype=self._torch_dtype)

    @cached_property
    def _hooks(self) -> Mapping[str, Any]:
        hooks: Mapping[str, Any] = self.bridge.hook_dict
        return hooks

    def _hook(self, site: Site) -> Any:
        if not 0 <= site.layer < self.n_layers:
            raise LoadError(
                f"site {site} does not exist in model {self.name!r}, whose blocks are 0 to {self.n_layers - 1}; "
                f"check which model the SAE was trained on"
            )
        name = str(Site(site.layer, site.kind))
        if name not in self._hooks:
            raise LoadError(f"model {self.name!r} has no site {name!r}{near(name, self.sites())}")
        return self._hooks[name]


def _no_hook_fired(site: Site) -> MeasurementError:
    return MeasurementError(
        f"the model ran, but its hook {site} (or the input of its block) never fired, so nothing was measured there; "
        f"choose another site, for example blocks.{site.layer}.hook_resid_pre"
    )
