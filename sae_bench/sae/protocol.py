"""The protocol that every measured SAE fulfils, and functions of its decoder for every architecture.

Letters: ``d_in`` width the SAE reads, ``d_out`` width it writes (the same for an autoencoder), ``d_sae`` features.
A row of ``W_dec`` is the direction one feature writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class SAEInfo:
    """Contents of an SAE's own config; None where it has no entry."""

    format: str
    "Format it was read as: ``sae_lens``, ``dictionary_learning``, ``object`` ..."
    architecture: str
    "Architecture by the format's own name: ``standard``, ``jumprelu``, ``topk`` ..."
    d_in: int
    "Width of the site it reads."
    d_sae: int
    "Number of features."
    dtype: str | None = None
    "Precision of the stored weights, ``float32`` or ``bfloat16``; not the one they were loaded in."
    model: str | None = None
    "Name or folder of the language model it was trained on."
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    "Weight processing of that model, by TransformerLens' names."
    site_in: str | None = None
    "Hook name of the site it reads."
    site_out: str | None = None
    "Hook name of the site it writes; equal to `site_in` for an autoencoder."
    prepend_bos: bool | None = None
    "True when its training data began with BOS."
    context_size: int | None = None
    "Tokens per training context."
    l0: float | None = None
    "Published L0, the mean number of active features."
    neuronpedia: str | None = None
    "Its name on Neuronpedia."
    extra: Mapping[str, Any] = field(default_factory=dict)
    "Other entries of the config, so that saving loses nothing."


class SAE(Protocol):
    """A sparse autoencoder or transcoder. `encode` and `decode` must not depend on which tokens share a batch."""

    @property
    def info(self) -> SAEInfo:
        """Contents of its config."""
        ...

    @property
    def d_in(self) -> int:
        """Width read."""
        ...

    @property
    def d_sae(self) -> int:
        """Number of features."""
        ...

    @property
    def d_out(self) -> int:
        """Width written."""
        ...

    @property
    def W_dec(self) -> Tensor:
        """Decoder rows as `decode` uses them, (d_sae, d_out); `MeasurementError` when the object has none."""
        ...

    @property
    def b_dec(self) -> Tensor:
        """Reconstruction of zero codes, (d_out,)."""
        ...

    @property
    def site_in(self) -> str | None:
        """Hook name of the site it reads."""
        ...

    @property
    def site_out(self) -> str | None:
        """Hook name of the site it writes."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Encode activations (..., d_in): codes (..., d_sae) in the precision of the weights."""
        ...

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """Decode codes (..., d_sae): reconstruction (..., d_out).

        ``like`` is the input of the codes. SAEs that normalise every token need it to undo that, and raise
        `MeasurementError` without; the others ignore it.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return its weights by name."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return the other parameters of its output as JSON values: the name of the activation function, k ..."""
        ...

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SAE:
        """Return the SAE on another device or in another precision."""
        ...


def decoder_norms(sae: SAE) -> Tensor:
    """Return the Euclidean norm of every decoder row, float32 (d_sae,)."""
    norms: Tensor = torch.linalg.vector_norm(sae.W_dec.float(), dim=1)
    return norms


def zero_rows(sae: SAE) -> Tensor:
    """Return the indices of features whose decoder row is zero, int64 (n,): their direction is undefined."""
    return (decoder_norms(sae) == 0).nonzero().flatten()


def unit_directions(sae: SAE) -> Tensor:
    """Scale the decoder rows to norm 1, float32 (d_sae, d_out); a zero row (see `zero_rows`) stays zero."""
    norms = decoder_norms(sae)
    return sae.W_dec.float() / nonzero_norms(norms).unsqueeze(1)


def folded_codes(sae: SAE, codes: Tensor) -> Tensor:
    """Multiply codes (..., d_sae) by the decoder norms: the codes of the SAE if its decoder rows had norm 1.

    ``folded_codes(codes) @ unit_directions`` equals ``codes @ W_dec`` for every architecture. The scale is applied
    after the encoder, never moved into it, because scaling the encoder of a TopK SAE changes which features fire.
    """
    return codes * decoder_norms(sae).to(codes.dtype)


def nonzero_norms(norms: Tensor) -> Tensor:
    """Return ``norms`` with 1 in place of 0."""
    return torch.where(norms == 0, torch.ones_like(norms), norms)


def weights_sha256(sae: SAE) -> str:
    """Hash names, shapes, types and bytes of all weights, and the settings that decide the output: SHA-256 (hex)."""
    digest = hashlib.sha256(json.dumps(sae.settings(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(sae.tensors().items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values, of any type; numpy has no bfloat16."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
