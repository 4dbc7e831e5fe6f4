"""Mistakes that give plausible numbers: each is made on purpose, and it is refused or named in the report.

The SAEs are exact on a tiny random model, so that whatever is off is the mistake's doing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.engine.corpus import Corpus, save_corpus
from sae_bench.engine.settings import Settings
from sae_bench.errors import LoadError
from sae_bench.measure.properties import load_property
from sae_bench.registry.site import parse_site
from sae_bench.registry.spec import SAESpec
from sae_bench.run.load import Loader
from sae_bench.run.load_checks import check_loaded
from sae_bench.sae import JumpReLU, LinearDecoderSAE, ReLU, SAEInfo, TopK

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
    """Load an SAE and return its load checks by name, each with ``ok:`` or ``LOOK:`` in front."""
    count = iter(range(1000))

    def load(sae: Any, **fields: Any) -> dict[str, str]:
        place = {"model": str(model_folder("GPT2")), "site": SITE, "corpus": corpus_file}
        spec = SAESpec(id=f"sae{next(count)}", load=lambda: sae, **{**place, **fields})
        description = loader.description(spec)
        return {check.name: f"{'ok' if check.ok else 'LOOK'}: {check.text}" for check in description.load_checks}

    return load


@pytest.fixture(scope="module")
def activations(loader: Loader, model_folder: Callable[[str], Path], corpus_file: str) -> Callable[[str], Tensor]:
    def get(site: str) -> Tensor:
        place = {"model": str(model_folder("GPT2")), "site": site, "corpus": corpus_file}
        name = re.sub(r"[^a-z0-9]", "-", f"look-{site}")
        data = loader.bench(SAESpec(id=name, load=lambda: exact(), **place)).site_data
        return data.rows[data.kept_positions]

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
        "site", "orientation", "decoder_norms", "l0", "explained_variance", "clean_ce", "bos", "context",
        "weight_processing", "batch_dependence",
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


def test_1_a_square_matrix_the_wrong_way_round(checks: Check) -> None:
    turn = torch.eye(D).roll(1, 0)
    # As many features as dimensions: a large bias lets them carry either sign, and the decoder's bias takes it out.
    square = dataclasses.replace(
        exact(),
        W_enc=turn,
        W_dec=turn.T.contiguous(),
        activation=ReLU(torch.full((D,), 100.0)),
        b_dec=-100 * turn.sum(1),
        pre_bias=torch.zeros(D),
    )
    assert not flagged(checks(square)) & {"orientation", "explained_variance"}
    wrong = dataclasses.replace(square, W_dec=turn)
    with pytest.raises(LoadError, match=r"explains -\d+\.\d+ of the variance"):
        checks(wrong)
    assert "orientation" in flagged(checks(wrong, tags=("control",)))


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
    lost = dataclasses.replace(right, activation=ReLU(torch.zeros(2 * D)))
    assert "l0" in flagged(checks(lost))


def test_3_a_threshold_that_stays_when_decoder_norms_are_folded_in(
    checks: Check, activations: Callable[[str], Tensor]
) -> None:
    threshold = float(activations(SITE).abs().median())
    norm = 0.25
    stored = exact(scale=1 / norm, l0=D / 2)  # encoder columns of norm 4, decoder rows of norm 1/4
    right = dataclasses.replace(stored, activation=JumpReLU(torch.zeros(2 * D), torch.full((2 * D,), threshold / norm)))
    assert "l0" not in flagged(checks(right))
    folded = dataclasses.replace(right, W_enc=right.W_enc * norm, W_dec=right.W_dec / norm)
    assert caught(lambda: checks(folded)) & {"refused", "l0"}
    scaled = JumpReLU(torch.zeros(2 * D), right.activation.tensors()["threshold"] * norm)
    assert "l0" not in flagged(checks(dataclasses.replace(folded, activation=scaled)))


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


def few_axes(x: Tensor) -> LinearDecoderSAE:
    """Exact on the six directions in which ``x`` (tokens, d) varies most, and on no others."""
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:6]  # (6, d)
    both = torch.cat([axes, -axes])
    return dataclasses.replace(
        exact(),
        W_enc=both.T.contiguous(),
        W_dec=both,
        activation=ReLU(torch.zeros(12)),
        b_dec=x.mean(0),
        pre_bias=x.mean(0),
    )


def test_7_what_the_mlp_adds_for_the_residual_stream(checks: Check, activations: Callable[[str], Tensor]) -> None:
    fitted = few_axes(activations("blocks.1.hook_mlp_out"))
    assert "explained_variance" not in flagged(checks(fitted, site="blocks.1.hook_mlp_out"))
    assert caught(lambda: checks(fitted, site=SITE)) & {"refused", "explained_variance"}


@pytest.mark.parametrize(
    ("trained", "same", "read"),
    [
        # A block's input for its output, and the entry of hidden_states that was meant for the one before.
        ("blocks.1.hook_resid_pre", "layers.0", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_resid_pre", "layers.1.input", "layers.1"),
        ("hidden_states[1]", "blocks.1.hook_resid_pre", "hidden_states[2]"),
    ],
)
def test_7_one_block_off(checks: Check, trained: str, same: str, read: str) -> None:
    """The residual stream changes little from block to block, so that no number would show it."""
    sae = exact(site_in=trained, site_out=trained)
    for right in (None, same):
        assert checks(sae, site=right)["site"].startswith("ok: blocks.")
    found = checks(sae, site=read)
    assert "explained_variance" not in flagged(found)
    assert found["site"] == f"LOOK: {parse_site(read)}; the SAE was trained at {trained}"


def test_7_the_last_of_hidden_states_has_the_final_norm_in_it(checks: Check) -> None:
    with pytest.raises(LoadError, match=r"blocks\.3\.hook_resid_pre"):
        checks(exact(), site="hidden_states[3]")


def test_8_trained_without_bos(checks: Check) -> None:
    found = checks(exact(prepend_bos=False))
    assert found["bos"] == "LOOK: documents begin with BOS; the SAE was trained without it"
    assert "context" in flagged(checks(exact(context_size=8)))


def test_8_trained_with_bos_where_documents_have_none(checks: Check, corpus: Corpus, tmp_path: Path) -> None:
    save_corpus(tmp_path / "bare.safetensors", dataclasses.replace(corpus, has_bos=False))
    found = checks(exact(prepend_bos=True), corpus=str(tmp_path / "bare.safetensors"))
    assert found["bos"] == "LOOK: documents begin without BOS; the SAE was trained with it"


def test_9_another_models_width_or_tokens(checks: Check, model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(LoadError, match=r"reads 16 dimensions but the model is 64 wide at blocks\.1\.mlp\.hook_p"):
        checks(exact(), site="blocks.1.mlp.hook_post")
    # A model whose weights are random models no tokens, and says so.
    assert "clean_ce" in flagged(checks(exact()))


def test_9_another_model_of_the_same_width(
    checks: Check, activations: Callable[[str], Tensor], model_folder: Callable[[str], Path]
) -> None:
    fitted = few_axes(activations(SITE))
    assert "explained_variance" not in flagged(checks(fitted))
    other = str(model_folder("Llama"))
    assert caught(lambda: checks(fitted, model=other)) & {"refused", "explained_variance"}


@pytest.mark.parametrize(
    ("trained", "measured", "named"),
    [
        ("google/gemma-2-2b", "google/gemma-2-2b-it", True),
        ("gpt2", "distilgpt2", True),
        ("gpt2-small", "openai-community/gpt2", False),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", False),
    ],
)
def test_9_a_tuned_or_distilled_model_in_place_of_its_base(
    loader: Loader,
    model_folder: Callable[[str], Path],
    corpus_file: str,
    monkeypatch: pytest.MonkeyPatch,
    trained: str,
    measured: str,
    named: bool,
) -> None:
    sae = exact()
    sae = dataclasses.replace(sae, info=dataclasses.replace(sae.info, model=trained))
    name = re.sub(r"[^a-z0-9]", "-", f"{trained}-{measured}".lower())
    spec = SAESpec(id=name, load=lambda: sae, model=str(model_folder("GPT2")), site=SITE, corpus=corpus_file)
    bench = loader.bench(spec)
    # Names of the hub, which cannot be reached here; the folder that stands for it has no say.
    assert "model" not in [check.name for check in check_loaded(bench, spec)]
    monkeypatch.setattr(bench.model, "name", measured)
    assert [check.ok for check in check_loaded(bench, spec) if check.name == "model"] == [not named]


def test_9_tokens_of_another_tokenizer(checks: Check, corpus: Corpus, tmp_path: Path) -> None:
    save_corpus(tmp_path / "other.safetensors", dataclasses.replace(corpus, tokenizer_sha256="0" * 64))
    with pytest.raises(LoadError, match="tokenizer"):
        checks(exact(), corpus=str(tmp_path / "other.safetensors"))


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
        bench.noise_pool().errors(), bench.error(bench.batch(tuple(range(len(bench.corpus)))))[bench.keep]
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


def test_14_dead_features_of_a_sample_that_is_too_small(
    loader: Loader, model_folder: Callable[[str], Path], corpus_file: str, activations: Callable[[str], Tensor]
) -> None:
    x = activations(SITE)  # (tokens, d)
    # Each feature is one token's own direction, so that it fires there and hardly elsewhere; half of them are of tokens
    # that the corpus does not have.
    generator = torch.Generator().manual_seed(5)
    seen = torch.nn.functional.normalize(x - x.mean(0), dim=1)[torch.randperm(len(x), generator=generator)[:40]]
    unseen = torch.nn.functional.normalize(torch.randn(40, D, generator=generator), dim=1)
    rows, just = torch.cat([seen, unseen]), torch.tensor([0.999, 1.001]).repeat_interleave(40)
    rare = dataclasses.replace(
        exact(),
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        activation=JumpReLU(torch.zeros(80), ((x - x.mean(0)) @ rows.T).max(0).values * just),
        b_dec=x.mean(0),
        pre_bias=x.mean(0),
    )
    stuck = dataclasses.replace(exact(), activation=ReLU(torch.cat([torch.zeros(D), torch.full((D,), -1e6)])))

    def notes(sae: Any) -> tuple[str, ...]:
        name, place = f"dead-{id(sae)}", {"model": str(model_folder("GPT2")), "site": SITE, "corpus": corpus_file}
        bench = loader.bench(SAESpec(id=name, load=lambda: sae, tags=("control",), **place))
        found = load_property("sparsity").measure(bench)
        assert found.estimates["alive_tokens"].value == len(x)
        return found.notes

    (note,) = notes(rare)
    assert note.startswith(f"dead and alive rest on {len(x)} tokens: ")
    # Half of the features are dead for good, and no larger sample would change that.
    assert notes(stuck) == ()


def test_16_a_claim_from_another_corpus(checks: Check) -> None:
    assert "l0" in flagged(checks(exact(l0=60.0)))
    assert "l0" in flagged(checks(exact(l0=None), l0=7.0))
    assert checks(exact(l0=None))["l0"] == "ok: 16, none is claimed"
