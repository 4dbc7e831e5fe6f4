"""Language models: load, read a site, run on from it with its value replaced. The only importer of TransformerLens.

An intervention changes nothing before its block, so `Model.resume` runs nothing before it: the blocks there hand their
input on untouched, the site's block receives its recorded input, the rest runs as always.

Shapes: b documents, p positions, d site width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sae_bench.errors import LoadError, MeasurementError, UsageError, near
from sae_bench.model_files import (
    check_complete,
    check_finite,
    content_sha256,
    files_sha256,
    model_folder,
    one_line,
    quiet,
    tokenizer_sha256,
    weight_files,
)
from sae_bench.site import KINDS, Site

_LEVEL = 7411
"Marks our hooks, so that removing them leaves a user's own in place."


PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
"Weight processing by TransformerLens' names; all off unless asked for."

OPTIONS = ("hf_config_overrides", "n_ctx", "revision", "trust_remote_code")
"Further options of a model, by TransformerBridge's names."


class _Stop(Exception):
    """Ends a forward pass that has shown all that is wanted."""


@dataclass(frozen=True, eq=False)
class Capture:
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
        bridge.eval()

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer; None when the model came without one."""
        return self.bridge.tokenizer

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides whether two results speak of the same model: weights and processing, never paths."""
        return {"weights": self._weights(), "processing": dict(sorted(self._processing.items()))}

    def sites(self) -> list[str]:
        """Names of the sites this model has, by block."""
        hooks = self._hooks
        names = [str(Site(layer, kind)) for layer in range(self.n_layers) for kind in KINDS]
        return [name for name in names if name in hooks]

    def width(self, site: Site) -> int:
        """Width of the site's activation; all heads together for ``attn.hook_z``."""
        self._hook(site)
        if site.kind == "attn.hook_z":
            return int(self.bridge.cfg.n_heads) * int(self.bridge.cfg.d_head)
        return self.d_model

    def logits(self, tokens: Tensor) -> Tensor:
        """(b, p, V) float32 logits of a full pass."""
        with torch.no_grad():
            return self._forward(tokens)

    def capture(self, tokens: Tensor, site: Site) -> Capture:
        """The site's activation and its block's input; nothing behind the site is run."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], None]:
            def read(tensor: Tensor) -> None:
                # A copy, because some models go on to change the residual stream in place.
                seen[name] = tensor.detach().flatten(2).to(torch.float32, copy=True)
                if "value" in seen:
                    raise _Stop

            return read

        with torch.no_grad(), self._hooked(self._hook(Site(site.layer, KINDS[0])), keep("block_input")):
            try:
                with self._hooked(self._hook(site), keep("value")):
                    self._forward(tokens)
            except _Stop:
                pass
        if "value" not in seen or "block_input" not in seen:
            raise _silent(site)
        return Capture(value=seen["value"], block_input=seen["block_input"])

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
        fired: set[str] = set()

        def put(name: str, replacement: Tensor) -> Callable[[Tensor], Tensor]:
            def replace(tensor: Tensor) -> Tensor:
                fired.add(name)
                return replacement.to(device=tensor.device, dtype=tensor.dtype).reshape(tensor.shape)

            return replace

        entry = Site(site.layer, KINDS[0])
        values = {str(entry): block_input}
        if value is not None:
            values[str(site)] = value
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(self._skipping(site.layer))
            for name, replacement in values.items():
                hook = self._hook(site if name == str(site) else entry)
                stack.enter_context(self._hooked(hook, put(name, replacement)))
            logits = self._forward(tokens, select, options)
        if fired != set(values):
            raise _silent(site)
        return logits

    def final_logits(self, resid: Tensor) -> Tensor:
        """(..., V) float32 logits of residual vectors (..., d_model): the final norm, the unembedding, its soft cap."""
        bridge = self.bridge
        with torch.no_grad():
            rows = resid.reshape(1, -1, resid.shape[-1]).to(device=self.device, dtype=self._torch_dtype)
            logits = bridge.unembed(bridge.ln_final(rows))
            transform = getattr(getattr(bridge, "adapter", None), "apply_output_logits_transform", None)
            cap = float(getattr(bridge.cfg, "output_logits_soft_cap", None) or 0.0)
            if transform is not None:
                logits = transform(logits)
            elif cap > 0:
                logits = cap * torch.tanh(logits / cap)
        found: Tensor = logits.float().reshape(*resid.shape[:-1], -1)
        return found

    def _forward(
        self, tokens: Tensor, select: Tensor | None = None, given: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        options: dict[str, Any] = {"return_type": "logits", **(given or {})}
        if hasattr(getattr(self.bridge, "original_model", None), "config"):
            options["use_cache"] = False
        if select is None:
            logits: Tensor = self.bridge(tokens.to(self.device), **options)
            return logits.float()
        with _only(self.bridge.unembed, select.to(self.device)) as picked:
            logits = self.bridge(tokens.to(self.device), **options)
        return (logits[0] if picked else logits[select.to(self.device)]).float()

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
        name = str(site)
        if name not in self._hooks:
            raise LoadError(f"model {self.name!r} has no site {name!r}{near(name, self.sites())}")
        return self._hooks[name]

    @contextmanager
    def _hooked(self, hook: Any, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        def called(tensor: Tensor, hook: Any) -> Tensor | None:
            return act(tensor)

        hook.add_hook(called, level=_LEVEL)
        try:
            yield
        finally:
            hook.remove_hooks("fwd", level=_LEVEL)

    @contextmanager
    def _skipping(self, layer: int) -> Iterator[None]:
        """For the duration, blocks before ``layer`` return their input, in the form their own output would have."""
        blocks = list(self.bridge.blocks)[:layer]
        extra = self._extra_outputs if blocks else None

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return hidden if extra is None else (hidden, *([None] * extra))

        try:
            for block in blocks:
                # A bridged block passes plain attribute access on to the module it wraps.
                object.__setattr__(block, "forward", hand_on)
            yield
        finally:
            for block in blocks:
                if "forward" in vars(block):
                    object.__delattr__(block, "forward")

    @cached_property
    def _extra_outputs(self) -> int | None:
        """How many things a block returns beside the residual stream; None when it returns a bare tensor."""
        found: list[int | None] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            found.append(len(output) - 1 if isinstance(output, tuple) else None)
            raise _Stop

        handle = self.bridge.blocks[0].register_forward_hook(look)
        try:
            with torch.no_grad():
                self._forward(torch.zeros(1, 2, dtype=torch.int64))
        except _Stop:
            pass
        finally:
            handle.remove()
        return found[0]


def _silent(site: Site) -> MeasurementError:
    return MeasurementError(
        f"the model ran, but its hook {site} (or the input of its block) never fired, so nothing was measured there; "
        f"choose another site, for example blocks.{site.layer}.hook_resid_pre"
    )


@contextmanager
def _only(unembed: nn.Module, select: Tensor) -> Iterator[list[bool]]:
    """Let the unembedding see the rows where ``select`` (b, p) is true, as one document; the list says if it did."""
    picked: list[bool] = []

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].shape[:2] != select.shape:
            return None
        picked.append(True)
        return (args[0][select][None], *args[1:])

    handle = unembed.register_forward_pre_hook(pick)
    try:
        yield picked
    finally:
        handle.remove()


def load_model(name: str, *, kwargs: Mapping[str, Any] = {}, device: str = "cpu", dtype: str = "float32") -> Model:
    """Load a Hugging Face folder or hub name (TransformerLens' short names work as well).

    ``kwargs`` holds flags of `PROCESSING` and `OPTIONS`. Weights are read from safetensors only. Whatever is missing or
    does not fit is a one-sentence `LoadError`; an unknown option is a `UsageError`.
    """
    known = PROCESSING + OPTIONS
    for key in kwargs:
        if key not in known:
            raise UsageError(f"unknown model option {key!r}{near(key, known)}")
    torch_dtype = _dtype(dtype)
    processing = {key: True for key in PROCESSING if kwargs.get(key)}
    options = {key: kwargs[key] for key in OPTIONS if kwargs.get(key) is not None}
    folder = model_folder(_official(name), options.pop("revision", None))
    files = weight_files(name, folder)
    with quiet() as said:
        try:
            bridge = _boot(str(folder), torch_dtype, device, options, processing)
        except Exception as error:
            raise LoadError(f"model {name!r} cannot be loaded: {one_line(error)}") from error
    check_complete(name, said.getvalue())
    check_finite(name, bridge)
    return Model(
        bridge,
        name=name,
        processing=processing | {key: value for key, value in options.items() if key != "trust_remote_code"},
        tokenizer_sha256=tokenizer_sha256(folder),
        weights=lambda: files_sha256(files),
    )


def load_tokenizer(name: str) -> tuple[Any, str | None]:
    """The tokenizer of a model's folder or hub name, and the sha256 of its ``tokenizer.json``."""
    from transformers import AutoTokenizer

    folder = model_folder(_official(name))
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except Exception as error:
            raise LoadError(f"model {name!r} has no readable tokenizer: {one_line(error)}") from error
    return tokenizer, tokenizer_sha256(folder)


def wrap_model(model: object, *, name: str = "") -> Model:
    """A `Model` around a TransformerBridge or, on TransformerLens 3, a HookedTransformer object."""
    missing = [attribute for attribute in ("cfg", "blocks", "hook_dict", "unembed") if not hasattr(model, attribute)]
    if missing:
        raise UsageError(
            f"a {type(model).__name__} is no language model for this suite (it has no {', '.join(missing)}); give a "
            f"TransformerBridge, a HookedTransformer, or the name or folder of a Hugging Face model"
        )
    config: Any = vars(model).get("cfg") or model.cfg  # type: ignore[attr-defined]
    name = name or str(getattr(config, "model_name", "") or type(model).__name__)
    check_finite(name, model)
    return Model(model, name=name)


def _boot(
    folder: str, dtype: torch.dtype, device: str, options: Mapping[str, Any], processing: Mapping[str, bool]
) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(folder, device=device, dtype=dtype, **options)
    if processing:
        bridge.enable_compatibility_mode(disable_warnings=True, **{key: key in processing for key in PROCESSING})
    return bridge


def _official(name: str) -> str:
    """The hub name behind one of TransformerLens' short names (``gpt2-small``), which SAE configs like to give."""
    from transformer_lens.supported_models import MODEL_ALIASES

    return next((official for official, aliases in MODEL_ALIASES.items() if name in aliases), name)


def _dtype(name: str) -> torch.dtype:
    known = ("float32", "float64", "bfloat16", "float16")
    if name not in known:
        raise UsageError(f"unknown dtype {name!r}; known: {', '.join(known)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
