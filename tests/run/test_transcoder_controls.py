"""``--sae-controls`` beside a transcoder, from the registration on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus, save_corpus
from sae_bench.engine.settings import Settings
from sae_bench.measure.properties import load_property
from sae_bench.registry.spec import SAESpec
from sae_bench.run.load import Loader
from sae_bench.sae import LinearDecoderSAE, SAEInfo, TopK

READ, WRITTEN, K = "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out", 5


@pytest.fixture(scope="module")
def control(
    model_folder: Callable[[str], Path], corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bench]:
    """The bench of a control of a transcoder that reads 64 numbers and writes 16."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.safetensors"
    save_corpus(path, corpus)
    generator = torch.Generator().manual_seed(0)
    sae = LinearDecoderSAE(
        info=SAEInfo("test", "transcoder", 64, 80),
        W_enc=torch.randn(64, 80, generator=generator),
        activation=TopK(torch.ones(80), K),
        W_dec=torch.randn(80, 16, generator=generator),
        b_dec=torch.zeros(16),
        pre_bias=torch.zeros(64),
    )
    spec = SAESpec(
        id="lab/transcoder",
        load=lambda: sae,
        model=str(model_folder("GPT2")),
        site=READ,
        output_site=WRITTEN,
        corpus=str(path),
    )
    loader = Loader(Settings())
    return lambda name: loader.bench(spec.as_control(name))


def explained(bench: Bench) -> float:
    return float(load_property("reconstruction").measure(bench).estimates["explained_variance"].value)


def test_the_identity_is_perfect_where_it_writes(control: Callable[[str], Bench]) -> None:
    bench = control("identity")
    assert (str(bench.source.site), str(bench.site)) == (WRITTEN, WRITTEN)
    assert explained(bench) == 1
    assert load_property("kl_gap").measure(bench).estimates["kl_sae"].value == 0


def test_the_principal_components_are_those_of_the_map_from_what_is_read(control: Callable[[str], Bench]) -> None:
    bench = control("pca")
    assert (str(bench.source.site), str(bench.site)) == (READ, WRITTEN)
    assert load_property("sparsity").measure(bench).estimates["l0"].value == K
    x, y = (data.rows[data.kept_positions].double() for data in (bench.source, bench.site_data))
    fitted = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0), driver="gelsd").solution
    spectrum = torch.linalg.svdvals((x - x.mean(0)) @ fitted).square()
    # This MLP's output is a linear map of what is read, so that nothing but the rank is lost.
    assert explained(bench) == pytest.approx(float(spectrum[:K].sum() / spectrum.sum()), rel=1e-4)


@pytest.mark.parametrize("name", ["random", "permuted"])
def test_dictionaries_without_meaning(control: Callable[[str], Bench], name: str) -> None:
    bench = control(name)
    assert (str(bench.source.site), str(bench.site)) == (READ, WRITTEN)
    assert explained(bench) < explained(control("pca"))
