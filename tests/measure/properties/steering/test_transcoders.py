"""A transcoder steers where it writes: what it reads elsewhere says which features fire, and nothing else.

Each planted SAE is read again as a transcoder that finds the same codes at another site, of another width and basis.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.engine.batch import RelatedInputs
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import from_documents
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.measure.measurement import Measurement, Undefined
from sae_bench.measure.properties import contrast, steering
from sae_bench.registry.site import Site, parse_site
from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo, controls

READ = parse_site("blocks.0.mlp.hook_in")


class Elsewhere:
    """A solved model that shows, at `READ`, its site's activations turned into a wider space."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.name = f"{model.name}, seen from elsewhere"
        self.identity = {"weights": self.name}
        generator = torch.Generator().manual_seed(11)
        self.turn = torch.linalg.qr(torch.randn(model.d_model + 7, model.d_model, generator=generator)).Q.T

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def width(self, site: Site) -> int:
        return self.turn.shape[1] if site == READ else self.turn.shape[0]

    def capture(self, tokens: Tensor, site: Site) -> Any:
        seen = self._model.capture(tokens, site)
        return dataclasses.replace(seen, value=seen.value @ self.turn) if site == READ else seen


def as_transcoder(bench: Bench) -> Bench:
    """The same SAE, which reads the same directions elsewhere."""
    model: Any = Elsewhere(bench.model)
    written, read = (capture_site(model, site, bench.corpus, bench.settings) for site in (bench.site, READ))
    sae = bench.sae
    moved = LinearDecoderSAE(
        dataclasses.replace(sae.info, d_in=model.turn.shape[1]),
        (sae.W_enc.T @ model.turn).T.contiguous(),
        sae.activation,
        sae.W_dec,
        sae.b_dec,
        pre_bias=sae.pre_bias @ model.turn,
    )
    return Bench(
        moved,
        model,
        bench.corpus,
        written,
        bench.settings,
        related=RelatedInputs(contrast=bench.related.contrast),
        source=read,
    )


def assert_same(one: Measurement, two: Measurement) -> None:
    assert one.estimates.keys() == two.estimates.keys()
    for name, estimate in one.estimates.items():
        other = two.estimates[name]
        assert isinstance(estimate, Undefined) == isinstance(other, Undefined), name
        if not isinstance(estimate, Undefined):
            assert other.value == pytest.approx(estimate.value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("damage", ["sound", "permuted"])
def test_feature_steering_is_that_of_the_same_codes_and_directions(planted: Any, damage: str) -> None:
    sae = planted.sae()
    if damage == "permuted":
        sae = controls.permuted(sae, torch.Generator().manual_seed(0))
    settings = Settings(tier=TIERS["smoke"])
    alone = steering.measure(planted.bench(sae, settings))
    found = steering.measure(as_transcoder(planted.bench(sae, settings)))
    assert_same(alone, found)
    assert found.series["features"].columns["feature"] == alone.series["features"].columns["feature"]
    share = found.estimates["steer_share"].value
    assert share > 0.9 if damage == "sound" else share < 0.1


WORDS = ["<s>", "A", "B", "is", "mA", "mB", *(f"n{index}" for index in range(40)), "<unk>"]


def test_a_trait_is_told_by_codes_from_where_the_transcoder_reads(
    solved: Any, bench_of: Callable[..., Bench], tmp_path: Path
) -> None:
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2))).Q.T
    letters, markers = (1, 2), (4, 5)

    def embed(tokens: Tensor) -> Tensor:
        x = 0.1 * torch.randn(len(WORDS), 16, generator=torch.Generator().manual_seed(3))[tokens]
        before = torch.nn.functional.pad(tokens[:, :-1], (1, 0))
        for letter, marker in zip(letters, markers, strict=True):
            x[before == marker] -= basis[0]
            x[(tokens == letter) & (before == marker)] += 2 * basis[0]
            x[tokens == marker] += basis[1] if marker == markers[0] else -basis[1]
        return x

    def head(x: Tensor) -> Tensor:
        logits = x.new_zeros(*x.shape[:-1], len(WORDS))
        # More of the trait makes the letter that the marker names more likely.
        push = 4 * (x @ basis[0]) * (x @ basis[1])
        logits[..., letters[0]] += push
        logits[..., letters[1]] -= push
        return logits

    model = solved(embed, head, WORDS, 16, context=12)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(1, len(WORDS) - 1, (20, 10), generator=generator)
    rows = basis[[3, 0, 4, 5]]
    zeros = torch.zeros(16)
    sae = LinearDecoderSAE(
        SAEInfo("test", "standard", 16, 4), rows.T.contiguous(), ReLU(torch.zeros(4)), rows, zeros, pre_bias=zeros
    )
    lines = [
        {"prompt": f"is n{index} m{letter}", "positive": letter, "negative": other, "factors": {}}
        for index in range(40)
        for letter, other in [("AB", "BA")[index % 2]]
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = from_documents([[0, *row] for row in tokens.tolist()], has_bos=True, source="asked")
    bench = bench_of(model, corpus, sae, Settings(tier=TIERS["smoke"]), related=RelatedInputs(contrast=str(path)))
    alone, found = contrast.measure(bench), contrast.measure(as_transcoder(bench))
    assert_same(alone, found)
    named = found.series["candidates"].columns
    assert named["feature"][named["chosen"].index(True)] == 1
    assert found.estimates["steerability"].value > 3 * abs(found.estimates["steerability_random_direction"].value)
