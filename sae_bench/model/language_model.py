"""A language model at work: read a site, run on from it with its value replaced.

An intervention changes nothing before its block, so `Model.resume` runs nothing before it: the blocks there hand their
input on untouched, the site's block receives its recorded input, the rest runs as always.

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
from sae_bench.model.forward import ForwardPasses, StopForward, hooked
from sae_bench.model.unembed import Unembedding
from sae_bench.registry.site import INPUTS, KINDS, Site


@dataclass(frozen=True, eq=False)
class SiteCapture:
    """What one pass shows of a site."""

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
        """What decides whether two results speak of the same model: weights and processing, never paths."""
        return {"weights": self._weights(), "processing": dict(sorted(self._processing.items()))}

    @property
    def embedding(self) -> Tensor | None:
        """(V, d_model) rows of the token embedding, in the model's precision; None where it shows no such matrix."""
        found = getattr(self.bridge, "W_E", None)
        if not isinstance(found, Tensor) or found.shape != (self.d_vocab, self.d_model):
            return None
        return found.detach()

    def sites(self) -> list[str]:
        """Names of the sites this model has, by block."""
        hooks = self._hooks
        names = [str(Site(layer, kind)) for layer in range(self.n_layers) for kind in KINDS]
        return [name for name in names if name in hooks]

    def canonical(self, site: Site) -> Site:
        """``site`` by the name that TransformerLens gives it in this model.

        Where no norm stands behind a module, its output is what is added to the residual, and two names mean one place.
        """
        plain = {"mlp.hook_out": ("hook_mlp_out", "ln2_post"), "attn.hook_out": ("hook_attn_out", "ln1_post")}
        if site.kind not in plain:
            return site
        kind, norm = plain[site.kind]
        normed = any(name.startswith(f"blocks.{site.layer}.{norm}.") for name in self._hooks)
        return site if normed else Site(site.layer, kind)

    def width(self, site: Site) -> int:
        """Width of the site's activation; all heads together for ``attn.hook_z`` unless it names one."""
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
        """(b, p, V) float32 logits of a full pass."""
        with torch.no_grad():
            return self.passes.whole(tokens)

    def capture(self, tokens: Tensor, site: Site) -> SiteCapture:
        """The site's activation and its block's input; nothing behind the site is run."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], None]:
            def read(tensor: Tensor) -> None:
                if name == "value" and site.head is not None:
                    tensor = tensor[:, :, site.head]
                # A copy, because some models go on to change the residual stream in place.
                seen[name] = tensor.detach().flatten(2).to(torch.float32, copy=True)
                if "value" in seen:
                    raise StopForward

            return read

        with (
            torch.no_grad(),
            suppress(StopForward),
            hooked(self._hook(Site(site.layer, KINDS[0])), keep("block_input")),
            hooked(self._hook(site), keep("value")),
        ):
            self.passes.whole(tokens)
        if "value" not in seen or "block_input" not in seen:
            raise _silent(site)
        return SiteCapture(value=seen["value"], block_input=seen["block_input"])

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
        """Logits when ``value`` (b, p, d) stands at the site; None leaves what the block computes.

        (b, p, V) float32; with ``select``, bool (b, p), only the rows where it is true are computed, (n, V).
        ``options`` go to the model's forward as they are (an attention mask, position ids).
        """
        with torch.no_grad(), self._placed(block_input, site, value):
            return self.passes.whole(tokens, select, options)

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
        """(b, p, d) float32 derivative, by ``value`` at the site, of the sum of ``objective(logits)``; see `resume`."""
        value = value.detach().clone().requires_grad_()
        with torch.enable_grad(), self._placed(block_input, site, value):
            (found,) = torch.autograd.grad(objective(self.passes.whole(tokens, select)).sum(), value)
        return found

    def logit_blocks(
        self, tokens: Tensor, block_input: Tensor, site: Site, value: Tensor | None, *, select: Tensor, entries: int
    ) -> Iterator[Tensor]:
        """`resume` where ``select`` (b, p) is true, in its order, but some rows at a time: (k, V) float32 logits.

        About ``entries`` logits are alive at once: a block is overwritten by the next one.
        """
        if not self.unembeds_alone:
            step = max(1, entries // (tokens.shape[1] * self.d_vocab))
            for first in range(0, len(tokens), step):
                rows = slice(first, first + step)
                placed = None if value is None else value[rows]
                if bool(select[rows].any()):
                    yield self.resume(tokens[rows], block_input[rows], site, placed, select=select[rows])
            return
        read = self._read_by(self.bridge.unembed, tokens, block_input, site, value)[select.to(self.device)]
        with torch.no_grad():
            yield from self.unembedding.blocks(read, entries)

    def final_residual(self, tokens: Tensor, block_input: Tensor, site: Site, value: Tensor | None) -> Tensor:
        """(b, p, d_model) float32 residual stream that the final norm reads when ``value`` stands at the site."""
        # A copy, because some models go on to change the residual stream in place.
        return self._read_by(self.bridge.ln_final, tokens, block_input, site, value).to(torch.float32, copy=True)

    def _read_by(
        self, module: nn.Module, tokens: Tensor, block_input: Tensor, site: Site, value: Tensor | None
    ) -> Tensor:
        """(b, p, d_model), what ``module`` reads when ``value`` stands at the site; nothing behind it is run."""
        with self._placed(block_input, site, value):
            read = self.passes.read_by(module, tokens)
        if read is None:
            raise MeasurementError(
                f"model {self.name!r} ran past its {type(module).__name__}, so what that reads cannot be seen"
            )
        return read

    @cached_property
    def unembeds_alone(self) -> bool:
        """Whether the unembedding by itself gives the logits of a whole pass: a model may go on to change them."""
        tokens = torch.tensor([[0, 1]]).clamp(max=self.d_vocab - 1)
        read = self.passes.read_by(self.bridge.unembed, tokens)
        if read is None or read.shape != (1, 2, self.d_model):
            return False
        with torch.no_grad():
            whole, alone = self.logits(tokens)[0], self.unembedding.logits(read[0])
        size = float(whole.abs().max())
        return torch.allclose(alone, whole, rtol=0, atol=8 * torch.finfo(self._torch_dtype).eps * size)

    @contextmanager
    def _placed(self, block_input: Tensor, site: Site, value: Tensor | None) -> Iterator[None]:
        """For the duration, the blocks before the site are skipped and ``value`` stands at it."""
        if site.kind in INPUTS:
            raise MeasurementError(f"nothing can be written to {site}: it shows what a transcoder reads, and no more")
        fired: set[str] = set()

        def put(name: str, replacement: Tensor) -> Callable[[Tensor], Tensor]:
            def replace(tensor: Tensor) -> Tensor:
                fired.add(name)
                moved = replacement.to(device=tensor.device, dtype=tensor.dtype)
                if name == str(site) and site.head is not None:
                    heads = tensor.clone()
                    heads[:, :, site.head] = moved
                    return heads
                return moved.reshape(tensor.shape)

            return replace

        entry = Site(site.layer, KINDS[0])
        values = {str(entry): block_input}
        if value is not None:
            values[str(site)] = value
        with ExitStack() as stack:
            stack.enter_context(self.passes.skipping(site.layer))
            for name, replacement in values.items():
                hook = self._hook(site if name == str(site) else entry)
                stack.enter_context(hooked(hook, put(name, replacement)))
            yield
        if fired != set(values):
            raise _silent(site)

    def norm_scale(self, resid: Tensor) -> Tensor:
        """(..., 1) float32, what the final norm divides residual vectors (..., d_model) by."""
        seen: list[Tensor] = []
        with torch.no_grad(), hooked(self.bridge.ln_final.hook_scale, lambda scale: seen.append(scale)):
            self.bridge.ln_final(self._rows(resid))
        if not seen:
            raise MeasurementError(f"the final norm of model {self.name!r} does not show its scale")
        return seen[0].float().reshape(*resid.shape[:-1], 1)

    def final_logits(self, resid: Tensor, scale: Tensor | None = None, *, differentiable: bool = False) -> Tensor:
        """(..., V) float32 logits of residual vectors (..., d_model): the final norm, the unembedding, its soft cap.

        With ``scale`` (..., 1) the final norm divides by it instead of by its own. ``differentiable`` keeps what
        gradients with respect to ``resid`` need.
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
        """Residual vectors (..., d_model) as one document of the model's own precision."""
        return resid.reshape(1, -1, resid.shape[-1]).to(device=self.device, dtype=self._torch_dtype)

    @cached_property
    def _hooks(self) -> Mapping[str, Any]:
        hooks: Mapping[str, Any] = self.bridge.hook_dict
        return hooks

    def _hook(self, site: Site) -> Any:
        if not 0 <= site.layer < self.n_layers:
            raise LoadError(
                f"site {site} is beyond model {self.name!r}, whose blocks are 0 to {self.n_layers - 1}; "
                f"check which model the SAE was trained on"
            )
        name = str(Site(site.layer, site.kind))
        if name not in self._hooks:
            raise LoadError(f"model {self.name!r} has no site {name!r}{near(name, self.sites())}")
        return self._hooks[name]


def _silent(site: Site) -> MeasurementError:
    return MeasurementError(
        f"the model ran, but its hook {site} (or the input of its block) never fired, so nothing was measured there; "
        f"choose another site, for example blocks.{site.layer}.hook_resid_pre"
    )
