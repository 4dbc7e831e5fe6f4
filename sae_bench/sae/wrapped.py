"""Wrap any object with ``encode`` and ``decode`` as an SAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sae_bench.errors import LoadError, MeasurementError, first_line
from sae_bench.sae.protocol import SAE, SAEInfo

_WIDTH_NAMES = ("d_in", "activation_dim", "d_model", "input_dim")
_PROBES = 8
_TOLERANCE = 1e-4
_CHUNK = 256


class WrappedSAE:
    """An `SAE` around an object with ``encode(x)`` and ``decode(codes)``; made by `wrap`.

    The decoder matrix is used only as far as ``decode`` agrees with it: a row is the reconstruction of a one-hot code.
    """

    def __init__(self, obj: Any, d_in: int | None = None) -> None:
        name = type(obj).__qualname__
        for method in ("encode", "decode"):
            if not callable(getattr(obj, method, None)):
                raise LoadError(f"the {name} object has no {method}(); an SAE needs encode(x) and decode(codes)")
        if isinstance(obj, nn.Module):
            obj.eval()
        self._obj = obj
        self._name = name
        self._device, self._dtype = _device_and_dtype(obj)
        width = d_in or _width(obj) or self._width_from_decoder()
        codes = self.encode(torch.zeros(1, width, device=self._device))
        out = self.decode(codes)
        self.d_in: int = width
        self.d_sae: int = codes.shape[-1]
        self.d_out: int = out.shape[-1]
        self.info = SAEInfo(
            format="object",
            architecture=name,
            d_in=self.d_in,
            d_sae=self.d_sae,
            dtype=str(self._dtype).removeprefix("torch."),
        )
        self.site_in: str | None = None
        self.site_out: str | None = None

    def encode(self, x: Tensor) -> Tensor:
        """Call the object's encode without gradients: codes (..., d_sae); a `LoadError` for any other result."""
        with torch.no_grad():
            return self._tensor("encode", self._call("encode", x.to(self._dtype)), x)

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """Call the object's decode without gradients: reconstruction (..., d_out); ``like`` is not passed on."""
        with torch.no_grad():
            return self._tensor("decode", self._call("decode", codes.to(self._dtype)), codes)

    @cached_property
    def b_dec(self) -> Tensor:
        """Reconstruction of zero codes, (d_out,)."""
        return self.decode(torch.zeros(1, self.d_sae, device=self._device))[0]

    @cached_property
    def W_dec(self) -> Tensor:
        """Decoder rows (d_sae, d_out), in the orientation in which ``decode`` uses them."""
        stored = _stored_decoder(self._obj)
        if stored is None:
            raise MeasurementError(
                f"the {self._name} object has no W_dec, so properties of its weights cannot be measured; "
                f"add an attribute W_dec (d_sae, d_out), the direction that each feature writes"
            )
        picks = torch.arange(0, self.d_sae, -(-self.d_sae // _PROBES), device=self._device)
        written = self._rows(picks)
        if not _close(self._rows(picks, 2.0), 2 * written):
            raise MeasurementError(
                f"decode of the {self._name} object is not linear in the codes, so its features have no fixed "
                f"direction and properties of its weights cannot be measured"
            )
        for rows in (stored, stored.T):
            if rows.shape == (self.d_sae, self.d_out) and _close(rows[picks], written):
                return rows
        # decode applies something on top of the stored matrix (a norm, a scale): its output counts.
        everything = torch.arange(self.d_sae, device=self._device)
        return torch.cat([self._rows(everything[start : start + _CHUNK]) for start in range(0, self.d_sae, _CHUNK)])

    def tensors(self) -> dict[str, Tensor]:
        """Return the object's tensors by name: its state dict, or its tensor attributes."""
        state = _state(self._obj)
        return state or {"behaviour": self._behaviour()}

    def settings(self) -> dict[str, Any]:
        """Return the object's class and its plain attributes."""
        attributes = _attributes(self._obj).items()
        plain = {name: value for name, value in attributes if isinstance(value, int | float | str | bool)}
        return {"class": f"{type(self._obj).__module__}.{self._name}", **plain}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> WrappedSAE:
        """Call the object's own ``to``; a `LoadError` when it has none and would have to move or change precision."""
        same = (device is None or torch.device(device) == self._device) and dtype in (None, self._dtype)
        if same:
            return self
        if not callable(getattr(self._obj, "to", None)):
            raise LoadError(
                f"the {self._name} object has no to(), so it cannot be moved to {device or self._device} as "
                f"{dtype or self._dtype}; let its load function return it on that device and in that precision"
            )
        converted = self._obj.to(device=device or self._device, dtype=dtype or self._dtype)
        return WrappedSAE(self._obj if converted is None else converted, self.d_in)

    def _rows(self, features: Tensor, strength: float = 1.0) -> Tensor:
        codes = torch.zeros(len(features), self.d_sae, device=self._device)
        codes[torch.arange(len(features)), features] = strength
        return self.decode(codes) - self.b_dec

    def _call(self, method: str, argument: Tensor) -> Any:
        try:
            return getattr(self._obj, method)(argument)
        except Exception as error:
            raise LoadError(
                f"{method}() of the {self._name} object failed on a tensor of shape {tuple(argument.shape)}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error

    def _tensor(self, method: str, result: Any, argument: Tensor) -> Tensor:
        if isinstance(result, Tensor) and result.shape[:-1] == argument.shape[:-1]:
            return (result.to_dense() if result.is_sparse else result).detach()
        got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise LoadError(
            f"{method}() of the {self._name} object must return one tensor with the batch shape of its argument: "
            f"for shape {tuple(argument.shape)} it returned {got}"
        )

    def _width_from_decoder(self) -> int:
        stored = _stored_decoder(self._obj)
        shape = () if stored is None else tuple(stored.shape)
        for width in reversed(shape):
            try:
                codes = self.encode(torch.zeros(1, width, device=self._device))
            except LoadError:
                continue
            if {codes.shape[-1], width} == set(shape):
                return width
        raise LoadError(
            f"the width of the {self._name} object's input is unknown; add an attribute d_in, "
            f"or wrap it yourself: sae_bench.sae.wrap(obj, d_in=768)"
        )

    def _behaviour(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return self.encode(torch.randn(64, self.d_in, generator=generator).to(self._device))


def wrap(obj: Any, *, d_in: int | None = None) -> SAE:
    """Wrap anything with ``encode(x)`` and ``decode(codes)`` as an `SAE`; an `SAE` is returned as it is.

    ``d_in`` is only needed when no attribute shows the width (``d_in``, ``activation_dim``, ``W_dec`` ...). An
    ``nn.Module`` is put into evaluation mode. A `LoadError` in one sentence when the object cannot be used.
    """
    if isinstance(getattr(obj, "info", None), SAEInfo):
        sae: SAE = obj
        return sae
    return WrappedSAE(obj, d_in)


def _attributes(obj: Any) -> Mapping[str, Any]:
    attributes = getattr(obj, "__dict__", {})
    return {name: value for name, value in attributes.items() if not name.startswith("_")}


def _state(obj: Any) -> dict[str, Tensor]:
    state_dict: Callable[[], Mapping[str, Any]] | None = getattr(obj, "state_dict", None)
    values = state_dict() if callable(state_dict) else _attributes(obj)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _device_and_dtype(obj: Any) -> tuple[torch.device, torch.dtype]:
    for tensor in _state(obj).values():
        if tensor.is_floating_point() and tensor.ndim > 0:
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def _width(obj: Any) -> int | None:
    for holder in (obj, getattr(obj, "cfg", None), getattr(obj, "config", None)):
        for name in _WIDTH_NAMES:
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _stored_decoder(obj: Any) -> Tensor | None:
    decoder = getattr(obj, "decoder", None)
    for candidate in (getattr(obj, "W_dec", None), decoder, getattr(decoder, "weight", None)):
        if isinstance(candidate, Tensor) and candidate.ndim == 2:
            return candidate.detach()
    return None


def _close(left: Tensor, right: Tensor) -> bool:
    scale = float(right.abs().max())
    return torch.allclose(left.float(), right.float(), rtol=1e-3, atol=_TOLERANCE * scale)
