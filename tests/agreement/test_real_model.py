"""On a real model: the clean run and the ablations agree with an independent float64 computation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sae_bench.engine import noise_floors
from sae_bench.engine.batch import Batch
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import load_corpus
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site


def test_clean_and_ablated_runs_agree_with_the_reference(real_assets: Path) -> None:
    golden = json.loads((real_assets / "golden_reference.json").read_text())[0]
    corpus = load_corpus(real_assets / "eval_tokens.safetensors").take(golden["docs"])
    assert corpus.has_bos
    model = load_model(str(real_assets / "model"))
    chosen = Settings(tier=TIERS["full"])
    data = capture_site(model, parse_site(golden["site"]), corpus, chosen)
    bench = Bench(SimpleNamespace(d_in=64, d_sae=1), model, corpus, data, chosen)

    def conditions(batch: Batch) -> dict[str, torch.Tensor]:
        found = {"ce_clean": bench.intervene(batch, None).ce}
        for name in ("mean_ablation", "zero_ablation"):
            ablation = getattr(noise_floors, name)
            value = ablation(batch.x, torch.zeros_like(batch.x), bench.noise_pool(), bench.draw(batch, name, 0))
            outcome = bench.intervene(batch, value)
            found[f"kl_{name}"], found[f"ce_{name}"] = outcome.kl, outcome.ce
        return found

    for name, table in bench.collect(conditions).items():
        kept = bench.keep if name.startswith("kl") else bench.keep_ce
        expected = golden[name]["value"] if name.startswith("kl") else golden[name]
        assert (table.sum() / kept.sum()).item() == pytest.approx(expected, rel=1e-5), name
