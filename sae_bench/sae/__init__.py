"""What is an SAE, and how is one read from disk? The protocol, SAEs of tensors, wrapped objects, formats, controls."""

from sae_bench.sae.decoder import decode_codes, encode_sparse
from sae_bench.sae.encoder_activations import AbsTopK, Activation, Gated, GroupMax, JumpReLU, ReLU, TopK
from sae_bench.sae.folded import FoldedSAE, fold_decoder_norms
from sae_bench.sae.linear import LinearDecoderSAE
from sae_bench.sae.norms import TokenNorm
from sae_bench.sae.protocol import SAE, SAEInfo, decoder_norms, folded_codes, unit_directions, weights_sha256, zero_rows
from sae_bench.sae.pursuit import PursuitSAE
from sae_bench.sae.shape_checks import check_outputs, check_width
from sae_bench.sae.wrapped import WrappedSAE, wrap

__all__ = [
    "SAE",
    "AbsTopK",
    "Activation",
    "FoldedSAE",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "LinearDecoderSAE",
    "PursuitSAE",
    "ReLU",
    "SAEInfo",
    "TokenNorm",
    "TopK",
    "WrappedSAE",
    "check_outputs",
    "check_width",
    "decode_codes",
    "decoder_norms",
    "encode_sparse",
    "fold_decoder_norms",
    "folded_codes",
    "unit_directions",
    "weights_sha256",
    "wrap",
    "zero_rows",
]
