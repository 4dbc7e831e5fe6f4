"""Mistakes that give plausible numbers: each is made on purpose, and it is refused or named in the report.

The SAEs are exact on a tiny random model, so that whatever is off is the mistake's doing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.corpus import Corpus, save_corpus
from sae_bench.errors import LoadError
from sae_bench.loading import Loader
from sae_bench.sae import JumpReLU, LinearDecoderSAE, ReLU, SAEInfo, TopK
from sae_bench.spec import SAESpec
from sae_bench.tiers import Settings

D = 16
SITE = "blocks.1.hook_resid_pre"
Check = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def corpus_file(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "corpus.safetensors"
    save_corpus(path, corpus)
    return str(path)


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader(Settings())


@pytest.fixture(scope="module")
def checks(loader: Loader, model_folder: Callable[[str], Path], corpus_file: str) -> Check:
    """Loads an SAE and gives what was looked at, by name."""
    count = iter(range(1000))

    def load(sae: Any, **fields: Any) -> dict[str, str]:
        place = {"model": str(model_folder("GPT2")), "site": SITE, "corpus": corpus_file}
        spec = SAESpec(id=f"sae{next(count)}", load=lambda: sae, **{**place, **fields})
        said = loader.provenance(spec)
        return {name.removeprefix("load_check."): text for name, text in said.items() if name.startswith("load_check.")}

    return load


@pytest.fixture(scope="module")
def activations(loader: Loader, model_folder: Callable[[str], Path], corpus_file: str) -> Callable[[str], Tensor]:
    def get(site: str) -> Tensor:
        place = {"model": str(model_folder("GPT2")), "site": site, "corpus": corpus_file}
        data = loader.bench(SAESpec(id=f"look-{site}".replace("_", "-"), load=lambda: exact(), **place)).site_data
        return data.rows[data.kept]

    return get


def exact(bias: float = 0.0, scale: float = 1.0, **info: Any) -> LinearDecoderSAE:
    """Each direction and its opposite, so that every activation comes back; half of the features fire."""
    both = torch.cat([torch.eye(D), -torch.eye(D)])  # (2 d, d)
    b_dec = torch.full((D,), bias)
    return LinearDecoderSAE(
        info=SAEInfo("sae_lens", "standard", D, 2 * D, **{"l0": float(D), **info}),
        W_enc=both.T.contiguous() * scale,
        activation=ReLU(torch.zeros(2 * D)),
        W_dec=both / scale,
        b_dec=b_dec,
        pre_bias=b_dec,
    )


def flagged(found: dict[str, str]) -> set[str]:
    return {name for name, text in found.items() if text.startswith("LOOK")}


def caught(load: Callable[[], dict[str, str]]) -> set[str]:
    """What is flagged; {"refused"} when the explained variance is below 0."""
    try:
        return flagged(load())
    except LoadError as error:
        return {"refused"} if "of the variance at" in str(error) else set()


def test_a_sound_sae_is_not_flagged(checks: Check) -> None:
    found = checks(exact(prepend_bos=True, context_size=64, model_kwargs={"fold_ln": False}))
    # A random model guesses worse than evenly.
    assert flagged(found) <= {"clean_ce"}
    assert set(found) == {
        "orientation", "decoder_norms", "l0", "explained_variance", "clean_ce", "bos", "context", "weight_processing",
        "batch_dependence",
    }  # fmt: skip
    assert found["l0"] == "ok: 16, claimed 16"
    assert found["explained_variance"] == "ok: 1.000"


def test_1_a_decoder_of_other_features(checks: Check) -> None:
    sae = exact()
    # Rows in another order, as a wrong reshape leaves them: each row is its feature's opposite or orthogonal to it.
    with pytest.raises(LoadError, match=r"explains -\d+\.\d+ of the variance"):
        checks(dataclasses.replace(sae, W_dec=sae.W_dec.roll(D, 0)))
    turned = dataclasses.replace(sae, W_dec=sae.W_dec.roll(D, 0), activation=ReLU(torch.full((2 * D,), -1e9)))
    assert "orientation" in flagged(checks(turned, tags=("control",)))


def test_2_a_bias_that_is_not_subtracted(checks: Check) -> None:
    sae = exact(bias=3.0)
    assert "explained_variance" not in flagged(checks(sae))
    for wrong in (
        dataclasses.replace(sae, pre_bias=torch.zeros(D)),
        dataclasses.replace(sae, b_dec=torch.zeros(D)),
    ):
        with pytest.raises(LoadError, match=r"explains -\d+\.\d+ of the variance at blocks\.1\.hook_resid_pre"):
            checks(wrong)


def test_3_a_threshold_that_was_never_set(checks: Check, activations: Callable[[str], Tensor]) -> None:
    threshold = float(activations(SITE).abs().median())
    right = dataclasses.replace(
        exact(l0=D / 2), activation=JumpReLU(torch.zeros(2 * D), torch.full((2 * D,), threshold))
    )
    assert not flagged(checks(right)) & {"threshold", "l0"}
    unset = dataclasses.replace(right, activation=JumpReLU(torch.zeros(2 * D), torch.full((2 * D,), -1.0)))
    assert flagged(checks(unset)) >= {"threshold", "l0"}


def test_4_topk_read_as_relu(checks: Check) -> None:
    right = dataclasses.replace(exact(l0=4.0), activation=TopK(torch.zeros(2 * D), 4))
    assert "l0" not in flagged(checks(right))
    found = checks(exact(l0=4.0))
    assert found["l0"] == "LOOK: 16, claimed 4; is a threshold, k or the scale of the input lost?"


def test_5_a_scale_of_the_input_that_is_not_applied(checks: Check) -> None:
    right = exact(scale=0.25)
    assert "explained_variance" not in flagged(checks(right))
    with pytest.raises(LoadError, match=r"explains -\d+"):
        checks(dataclasses.replace(right, W_enc=right.W_enc * 4))
    halved = checks(dataclasses.replace(right, W_enc=right.W_enc / 4))
    assert "explained_variance" in flagged(halved)


def test_6_another_processing_of_the_model(checks: Check) -> None:
    wanted = exact(model_kwargs={"center_writing_weights": True})
    assert "weight_processing" not in flagged(checks(wanted))
    found = checks(wanted, model_kwargs={"fold_ln": True})
    assert found["weight_processing"] == (
        "LOOK: weights are processed by fold_ln; the SAE wants center_writing_weights"
    )


def test_7_another_hook(checks: Check, activations: Callable[[str], Tensor]) -> None:
    x = activations("blocks.1.hook_mlp_out")
    sae = exact()
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:6]  # (6, d)
    both = torch.cat([axes, -axes])
    fitted = dataclasses.replace(
        sae,
        W_enc=both.T.contiguous(),
        W_dec=both,
        activation=ReLU(torch.zeros(12)),
        b_dec=x.mean(0),
        pre_bias=x.mean(0),
    )
    right = checks(fitted, site="blocks.1.hook_mlp_out")
    assert "explained_variance" not in flagged(right)
    assert caught(lambda: checks(fitted, site=SITE)) & {"refused", "explained_variance"}


def test_8_trained_without_bos(checks: Check) -> None:
    found = checks(exact(prepend_bos=False))
    assert found["bos"] == "LOOK: documents begin with BOS; the SAE was trained without it"
    assert "context" in flagged(checks(exact(context_size=8)))


def test_9_another_models_width_or_tokens(checks: Check, model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(LoadError, match=r"reads 16 dimensions but the model is 64 wide at blocks\.1\.mlp\.hook_p"):
        checks(exact(), site="blocks.1.mlp.hook_post")
    # A model whose weights are random models no tokens, and says so.
    assert "clean_ce" in flagged(checks(exact()))


def test_10_decoder_rows_that_are_not_of_norm_one(checks: Check) -> None:
    found = checks(exact(scale=0.5))
    assert found["decoder_norms"] == "LOOK: 2 to 2; codes are multiplied by them where size matters"


def test_11_a_transcoder_is_held_against_its_own_output(
    checks: Check,
    activations: Callable[[str], Tensor],
    loader: Loader,
    model_folder: Callable[[str], Path],
    corpus_file: str,
) -> None:
    model = str(model_folder("GPT2"))
    read, written = activations("blocks.1.mlp.hook_in"), activations("blocks.1.hook_mlp_out")
    ones = torch.cat([read, torch.ones(len(read), 1)], dim=1)
    solved = torch.linalg.lstsq(ones, written).solution  # (d + 1, d)
    sae = exact()
    sites = {"site_in": "blocks.1.mlp.hook_in", "site_out": "blocks.1.hook_mlp_out"}
    transcoder = dataclasses.replace(
        sae,
        info=dataclasses.replace(sae.info, **sites),
        W_dec=sae.W_dec @ solved[:D],
        b_dec=solved[D],
    )
    right = checks(transcoder, site=None)
    assert "explained_variance" not in flagged(right)
    assert "orientation" not in right
    assert "explained_variance" not in flagged(
        checks(dataclasses.replace(transcoder, info=sae.info), site=sites["site_in"], output_site=sites["site_out"])
    )
    bench = loader.bench(SAESpec(id="transcoder", load=lambda: transcoder, model=model, corpus=corpus_file))
    batch = next(bench.batches())
    assert (str(bench.site), str(bench.source.site)) == (sites["site_out"], sites["site_in"])
    due = transcoder.decode(transcoder.encode(batch.source[batch.keep]))
    torch.testing.assert_close(bench.reconstruct(batch)[batch.keep], due)
    torch.testing.assert_close(
        bench.pool().errors(), bench.error(bench.batch(tuple(range(len(bench.corpus)))))[bench.keep]
    )
    assert loader.context(SAESpec(id="transcoder", load=lambda: transcoder))["source"] == sites["site_in"]
    wrong = dataclasses.replace(transcoder, info=sae.info)
    assert caught(lambda: checks(wrong, site=sites["site_in"])) & {"refused", "explained_variance"}


class ChoosesAmongAllTokens:
    """Keeps the largest codes of the whole batch, as BatchTopK does in training."""

    d_in = D

    def encode(self, x: Tensor) -> Tensor:
        codes = exact().encode(x)
        kept = max(1, codes.numel() // 8)
        least = codes.flatten().topk(kept).values[-1]
        return codes * (codes >= least)

    def decode(self, codes: Tensor) -> Tensor:
        return exact().decode(codes)


def test_12_codes_that_depend_on_the_batch(checks: Check) -> None:
    found = checks(ChoosesAmongAllTokens())
    assert found["batch_dependence"].startswith("LOOK: ")
    assert "tokens have other codes alone than among others" in found["batch_dependence"]


def test_13_thresholds_rounded_to_half_precision(checks: Check) -> None:
    full = torch.linspace(0.1, 0.3, 2 * D)
    sae = dataclasses.replace(exact(), activation=JumpReLU(torch.zeros(2 * D), full))
    assert "threshold" not in flagged(checks(sae))
    rounded = sae.activation.map(lambda tensor: tensor.to(torch.bfloat16).float())
    found = checks(dataclasses.replace(sae, activation=rounded))
    assert "all of them bfloat16 numbers" in found["threshold"]
    assert "threshold" in flagged(found)


def test_16_a_claim_from_another_corpus(checks: Check) -> None:
    assert "l0" in flagged(checks(exact(l0=60.0)))
    assert "l0" in flagged(checks(exact(l0=None), l0=7.0))
    assert checks(exact(l0=None))["l0"] == "ok: 16, none is claimed"
