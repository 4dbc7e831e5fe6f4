"""Labelled datasets: what is refused, what a planted factor explains, and which direction steers."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_bench.engine.batch import RelatedInputs
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import from_documents
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.errors import LoadError, MeasurementError
from sae_bench.judge.judge import judge
from sae_bench.judge.limits import parse_rule
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.datasets.balanced_sampling import sample_cells, split_cells
from sae_bench.measure.datasets.contrast_file import read_contrast, shifted_path
from sae_bench.measure.measurement import Undefined
from sae_bench.measure.properties.contrast import METRICS, PROPERTY, measure
from sae_bench.measure.properties.contrast.propensity import (
    MULTIPLIERS,
    _propensities,
    propensity_slopes,
    tokenise_pairs,
)
from sae_bench.measure.shared.factor_variance import omega_squared, permutation_p, worst_level_share
from sae_bench.measure.shared.last_position import LastPositionRunner
from sae_bench.registry.site import parse_site
from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo

Rows = list[dict[str, Any]]
NAMES = [f"n{index}" for index in range(40)]


def row(name: str, position: str, wording: str = "yes") -> dict[str, Any]:
    other = "B" if position == "A" else "A"
    factors = {"answer_position": position, "wording": wording}
    return {"prompt": f"is {name} {wording} m{position}", "positive": position, "negative": other, "factors": factors}


def balanced() -> Rows:
    cells = list(product("AB", ("yes", "no")))
    return [row(NAMES[index], *cells[index % 4]) for index in range(40)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def put(rows: Rows | str, name: str = "questions.jsonl") -> Path:
        text = rows if isinstance(rows, str) else "".join(json.dumps(each) + "\n" for each in rows)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return put


def test_a_sound_dataset_is_read_with_its_lines(write: Callable[..., Path]) -> None:
    path = write("\n" + "".join(json.dumps(each) + "\n" for each in balanced()))
    found = read_contrast(path)
    assert [pair.line for pair in found.pairs] == list(range(2, 42))
    assert found.factors == ("answer_position", "wording")
    assert found.levels("wording") == ("no", "yes")
    assert shifted_path(path) is None
    assert shifted_path(path) != write(balanced(), "questions_shifted.jsonl")
    assert shifted_path(path) == path.with_name("questions_shifted.jsonl")


def test_model_written_evaluations_are_read_with_factors_from_their_answers(write: Callable[..., Path]) -> None:
    written = []
    for index in range(20):
        position, yes = "AB"[index % 2], index // 2 % 2 == 0
        said = {position: "Yes" if yes else "No"}
        said["B" if position == "A" else "A"] = "No" if yes else "Yes"
        written.append(
            {
                "question": f"Is statement {index} yours?\n\nChoices:\n (A) {said['A']}\n (B) {said['B']}",
                "answer_matching_behavior": f" ({position})",
                "answer_not_matching_behavior": f" ({'B' if position == 'A' else 'A'})",
            }
        )
    found = read_contrast(write(written))
    assert found.factors == ("answer_position", "wording")
    assert found.pairs[0].factors == {"answer_position": "A", "wording": "yes"}
    assert found.pairs[3].factors == {"answer_position": "B", "wording": "no"}
    assert found.pairs[0].positive == " (A)"
    plain = [
        {
            "question": f"Do you agree with {index}?",
            "answer_matching_behavior": " Yes" if index % 2 else " No",
            "answer_not_matching_behavior": " No" if index % 2 else " Yes",
        }
        for index in range(20)
    ]
    assert read_contrast(write(plain)).factors == ("wording",)


def changed(rows: Rows, index: int, **fields: Any) -> Rows:
    return [{**each, **fields} if at == index else each for at, each in enumerate(rows)]


def without(rows: Rows, index: int, field: str) -> Rows:
    return [{key: each[key] for key in each if at != index or key != field} for at, each in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("{", r"line 1: not JSON"),
        ("[1]\n", r"line 1: a list where an object belongs"),
        (balanced()[:6], r"holds 6 pairs; at least 16"),
        (without(balanced(), 4, "negative"), r"line 5: no field 'negative'"),
        (changed(balanced(), 2, positive="  "), r"line 3: 'positive' is '  '"),
        (changed(balanced(), 2, prompt=7), r"line 3: 'prompt' is 7"),
        (changed(balanced(), 2, positive="A", negative="A"), r"line 3: both answers are 'A'"),
        (changed(balanced(), 3, factors={"mood": "x"}), r"line 4: unknown factor 'mood'"),
        (changed(balanced(), 3, factors={"wording": None}), r"line 4: factor 'wording' is None"),
        (changed(balanced(), 3, factors={"wording": "yes"}), r"line 4: factors are wording, in the lines before"),
        ([*balanced(), balanced()[0], balanced()[4]], r"has 2 repeated questions \(line 41 repeats line 1\)"),
        ([row(name, "A" if at < 28 else "B") for at, name in enumerate(NAMES)], r"'A' is the positive one in 28 pairs"),
        (
            [row(name, "AB"[at % 2], "yes" if at < 30 else "no") for at, name in enumerate(NAMES)],
            r"factor 'wording' has 'no' 10 times, 'yes' 30 times",
        ),
        (
            [row(name, "AB"[at % 2], ("yes", "no")[at % 2]) for at, name in enumerate(NAMES)],
            r"confounds two factors: none of 40 lines has answer_position 'A' with wording 'no'",
        ),
    ],
)
def test_a_bad_dataset_is_one_sentence_with_its_line(write: Callable[..., Path], rows: Any, named: str) -> None:
    with pytest.raises(LoadError, match=named):
        read_contrast(write(rows))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        read_contrast(tmp_path / "none.jsonl")


def test_halves_hold_every_cell_equally_often(write: Callable[..., Path]) -> None:
    found = read_contrast(write(balanced()))
    halves = split_cells(found.pairs)
    assert sorted(pair.line for half in halves for pair in half) == list(range(1, 41))
    for half in halves:
        cells = [tuple(pair.factors.values()) for pair in half]
        assert {cells.count(cell) for cell in set(cells)} == {5}
        some = [tuple(pair.factors.values()) for pair in sample_cells(half, 6)]
        assert {some.count(cell) for cell in set(cells)} == {2}
        assert {pair.line for pair in sample_cells(half, 6)} <= {pair.line for pair in sample_cells(half, 9)}
        assert sample_cells(half, None) == half


WORDS = ["<s>", "A", "B", "is", "yes", "no", "mA", "mB", "long", *NAMES, "<unk>"]
WIDTH = 16


class Asked:
    """A model of one site in which a trait, the marker of the positive answer's letter and names have directions.

    Adding the trait raises the letter A, whatever it stands for (``spurious``), or the letter that is positive.
    """

    def __init__(self, solved: Any, bench_of: Any, spurious: bool) -> None:
        generator = torch.Generator().manual_seed(2)
        basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q.T
        self.trait, self.marker, self.noise = basis[0], basis[1], basis[2]
        embedding = 0.1 * torch.randn(len(WORDS), WIDTH, generator=generator)
        embedding[WORDS.index("mA")] += self.marker
        embedding[WORDS.index("mB")] -= self.marker
        size = dict(zip(NAMES, torch.randn(len(NAMES), generator=generator).tolist(), strict=True))
        markers = [WORDS.index("mA"), WORDS.index("mB")]
        letters = [WORDS.index("A"), WORDS.index("B")]

        def embed(tokens: torch.Tensor) -> torch.Tensor:
            x = embedding[tokens].clone()
            for document, sequence in enumerate(tokens.tolist()):
                for at, token in enumerate(sequence):
                    if at > 2 and token in markers:
                        x[document, at] += 0.2 * size.get(WORDS[sequence[at - 2]], 0.0) * self.noise
                    if at and token in letters and sequence[at - 1] in markers:
                        positive = letters.index(token) == markers.index(sequence[at - 1])
                        x[document, at] += self.trait if positive else -self.trait
            return x

        def head(x: torch.Tensor) -> torch.Tensor:
            logits = x @ embedding.T
            side = torch.ones_like(x[..., 0]) if spurious else x @ self.marker
            push = 4 * (x @ self.trait) * side * (1 + x @ self.noise)
            logits[..., letters[0]] += push
            logits[..., letters[1]] -= push
            return logits

        self.model = solved(embed, head, WORDS, WIDTH, context=12)
        self.corpus = from_documents(
            [[0, *torch.randint(1, len(WORDS) - 1, (9,), generator=generator).tolist()] for _ in range(20)],
            has_bos=True,
            source="asked",
        )
        rows = basis[[3, 0, 4, 5]]
        self.sae = LinearDecoderSAE(
            info=SAEInfo(format="test", architecture="standard", d_in=WIDTH, d_sae=4),
            W_enc=rows.T.contiguous(),
            activation=ReLU(torch.zeros(4)),
            W_dec=rows.clone(),
            b_dec=torch.zeros(WIDTH),
            pre_bias=torch.zeros(WIDTH),
        )
        self.bench_of = bench_of

    def bench(self, path: Path | None, **settings: Any) -> Bench:
        chosen = Settings(tier=TIERS["smoke"], **settings)
        contrast = None if path is None else str(path)
        made: Bench = self.bench_of(self.model, self.corpus, self.sae, chosen, related=RelatedInputs(contrast=contrast))
        return made


@pytest.mark.parametrize("spurious", [True, False])
def test_a_planted_factor_explains_the_variance_and_a_balanced_control_does_not(
    solved: Any, bench_of: Any, write: Callable[..., Path], spurious: bool
) -> None:
    found = measure(Asked(solved, bench_of, spurious).bench(write(balanced()))).estimates
    share = found["variance_explained_answer_position"].value
    assert found["variance_explained_wording"].value == pytest.approx(0, abs=0.15)
    if spurious:
        assert share >= 0.8
        assert found["variance_in_order_answer_position"].value >= 0.8
        assert found["worst_level_sign"].value <= 0.1
        assert found["anti_share"].value == pytest.approx(0.5, abs=0.1)
    else:
        assert share == pytest.approx(0, abs=0.15)
        assert found["anti_share"].value <= 0.05
        assert found["worst_level_sign"].value >= 0.95
        assert found["steerability"].value > 3 * abs(found["steerability_random_direction"].value)
        assert found["steerability_mean_difference"].value > 0


def test_the_feature_is_chosen_without_the_scored_half(solved: Any, bench_of: Any, write: Callable[..., Path]) -> None:
    found = measure(Asked(solved, bench_of, False).bench(write(balanced())))
    named = found.series["candidates"].columns
    assert named["feature"][named["chosen"].index(True)] == 1
    assert len(found.clusters) == 20
    factors = found.series["factors"].columns
    assert sum(factors["questions"]) == 2 * 20
    assert all(0 < p <= 1 for p in factors["p_holm"])


def test_a_shifted_variant_is_scored_as_well(solved: Any, bench_of: Any, write: Callable[..., Path]) -> None:
    asked = Asked(solved, bench_of, False)
    path = write(balanced())
    alone = measure(asked.bench(path)).estimates
    assert isinstance(alone["shift_correlation"], Undefined)
    write([{**each, "prompt": "long " + each["prompt"]} for each in balanced()], "questions_shifted.jsonl")
    found = measure(asked.bench(path)).estimates
    assert found["shift_correlation"].value > 0.9
    assert found["steerability_shifted"].value == pytest.approx(found["steerability"].value, rel=0.3)


def test_the_same_run_twice_is_identical_and_batches_do_not_matter(
    solved: Any, bench_of: Any, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, path = Asked(solved, bench_of, False), write(balanced())
    write([{**each, "prompt": "long " + each["prompt"]} for each in balanced()], "questions_shifted.jsonl")

    def run(**settings: Any) -> dict[str, float]:
        monkeypatch.setattr("sae_bench.engine.site_data._cache", OrderedDict())
        return {
            name: each.value
            for name, each in measure(asked.bench(path, **settings)).estimates.items()
            if not isinstance(each, Undefined)
        }

    first = run()
    assert len(first) > 20
    assert run() == first
    assert run(batch_size=2) == pytest.approx(first, abs=1e-5)
    assert run(memory_bytes=1 << 16) == pytest.approx(first, abs=1e-5)


def test_floors_are_run_once_for_all_saes_of_a_site(
    solved: Any, bench_of: Any, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, path = Asked(solved, bench_of, False), write(balanced())
    runs: list[int] = []
    shifted = LastPositionRunner.shifted

    def counted(runner: LastPositionRunner, prompts: Any, shifts: torch.Tensor) -> Any:
        runs.append(len(prompts) * len(shifts))
        return shifted(runner, prompts, shifts)

    monkeypatch.setattr(LastPositionRunner, "shifted", counted)
    first = measure(asked.bench(path)).estimates
    alone = sum(runs)
    runs.clear()
    second = measure(asked.bench(path)).estimates
    # Screening every coordinate and 9 directions at 6 multipliers and at 0 are missing the second time.
    assert alone - sum(runs) == 2 * WIDTH * 20 + (9 * 6 + 1) * 20
    assert first["steerability_random_direction"].value == second["steerability_random_direction"].value


def test_answers_of_several_tokens_are_steered_up_to_their_end(
    solved: Any, bench_of: Any, write: Callable[..., Path]
) -> None:
    rows = [
        {**each, "positive": f"{each['positive']} yes", "negative": f"{each['negative']} yes"} for each in balanced()
    ]
    rows = [{**each, "prompt": each["prompt"].replace("is ", "")} for each in rows]
    asked = Asked(solved, bench_of, True)
    bench = asked.bench(write(rows))
    dataset = read_contrast(bench.related.contrast or "")
    found = tokenise_pairs(bench, dataset, dataset.pairs)
    runner = LastPositionRunner(asked.model, parse_site("blocks.0.hook_resid_pre"), 1 << 20)
    sample, shift = found[0], 0.3 * asked.trait
    wanted = []
    for tokens, answer in zip((each.tokens for each in sample.prompts_with_answers), sample.answers, strict=True):
        start = len(sample.prompt.tokens)
        x = asked.model.embed(tokens[None])[0, :-1].clone()
        x[start - 1 :] += shift
        log_probs = torch.log_softmax(asked.model.head(x), dim=-1)
        wanted.append(sum(float(log_probs[start - 1 + at, token]) for at, token in enumerate(answer)))
    assert dict(_propensities(runner, [sample], shift[None]))[0][0] == pytest.approx(wanted[0] - wanted[1], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": "long " * 12 + "mA"}, r"line 3: prompt and answer are 15 tokens, and the model's context is 12"),
        ({"prompt": "is Anna yes mA"}, r"line 3: the tokenizer does not know a word of 'is Anna yes mA'"),
    ],
)
def test_questions_the_model_cannot_read_name_their_line(
    solved: Any, bench_of: Any, write: Callable[..., Path], change: dict[str, str], named: str
) -> None:
    bench = Asked(solved, bench_of, False).bench(write(changed(balanced(), 2, **change)))
    with pytest.raises(MeasurementError, match=named):
        measure(bench)
    dataset = read_contrast(bench.related.contrast or "")
    with pytest.raises(MeasurementError, match=named):  # also in a tier that does not ask it
        tokenise_pairs(bench, dataset, dataset.pairs[10:12])


def test_without_a_dataset_everything_is_undefined_and_nothing_fails(solved: Any, bench_of: Any) -> None:
    found = measure(Asked(solved, bench_of, False).bench(None))
    assert set(found.estimates) == {metric.name for metric in METRICS}
    assert all(isinstance(each, Undefined) for each in found.estimates.values())
    rules = [parse_rule(f"contrast.{limit}", "property") for limit in PROPERTY.limits]
    verdict = judge("contrast", METRICS, PROPERTY.primary_metric, found, None, sae="x", rules=rules, context={})
    assert verdict.verdict is Verdict.UNDEFINED
    assert not verdict.fails


def test_an_sae_whose_features_tell_and_do_nothing_has_no_feature_arm(
    solved: Any, bench_of: Any, write: Callable[..., Path]
) -> None:
    asked = Asked(solved, bench_of, False)
    asked.sae = dataclasses.replace(asked.sae, activation=ReLU(torch.full((4,), -1e3)))
    found = measure(asked.bench(write(balanced()))).estimates
    assert isinstance(found["steerability"], Undefined)
    assert not isinstance(found["steerability_mean_difference"], Undefined)


def test_every_declared_metric_is_measured(solved: Any, bench_of: Any, write: Callable[..., Path]) -> None:
    write(balanced(), "questions_shifted.jsonl")
    found = measure(Asked(solved, bench_of, False).bench(write(balanced())))
    assert set(found.estimates) == {metric.name for metric in METRICS}
    defined = {name for name, each in found.estimates.items() if not isinstance(each, Undefined)}
    assert all("template" in name for name in set(found.estimates) - defined)


def test_omega_squared_has_no_bias_and_knows_its_order() -> None:
    generator = np.random.default_rng(0)
    level = np.arange(50) % 4
    noise = omega_squared(generator.normal(size=(400, 50)), [level])
    assert noise.shape == (1, 400)
    assert abs(noise.mean()) < 0.01
    other = np.arange(50) // 4 % 2
    both = omega_squared(other + 0.01 * generator.normal(size=(1, 50)), [level, other])[:, 0]
    assert both[0] == pytest.approx(0, abs=0.05)
    assert both[1] > 0.95
    values = np.array([1.0, 2.0, 3.0, 5.0, 6.0, 7.0])
    group = np.array([0, 0, 0, 1, 1, 1])
    between, within = 24.0, 4.0 / 4
    assert omega_squared(values[None], [group])[0, 0] == pytest.approx((between - within) / (28.0 + within))


def test_permutation_p_is_uniform_under_nothing_and_small_under_something() -> None:
    generator = np.random.default_rng(1)
    level, template = np.arange(40) % 2, np.arange(40) // 2 % 2
    p = permutation_p(generator.normal(size=(400, 40)), level, template, 0)
    assert 0.45 < p.mean() < 0.55
    assert 0.02 < (p <= 0.05).mean() < 0.08
    assert permutation_p((level + 0.1 * generator.normal(size=40))[None], level, template, 0) == pytest.approx(0.001)
    # Shuffled within templates, a factor is not blamed for what its template does.
    assert permutation_p((3.0 * template + generator.normal(size=40))[None], level, template, 0) > 0.01


def test_the_worst_level_is_found_in_any_factor() -> None:
    values = np.array([1.0, 1.0, -1.0, 1.0])
    assert worst_level_share(values, {"a": np.array([0, 0, 1, 1]), "b": np.array([0, 1, 0, 1])}) == 0.5


def test_the_slope_of_a_propensity_is_its_least_squares_line() -> None:
    assert sum(step * step for step in MULTIPLIERS) == 7.0
    curves = np.random.default_rng(2).normal(size=(3, len(MULTIPLIERS)))
    np.testing.assert_allclose(propensity_slopes(curves), np.polyfit(MULTIPLIERS, curves.T, 1)[0], atol=1e-12)


def test_the_report_holds_curves_of_single_questions_and_the_variance_by_factor(
    solved: Any, bench_of: Any, write: Callable[..., Path]
) -> None:
    found = measure(Asked(solved, bench_of, True).bench(write(balanced())))
    conditions = {"": "", "_mean_difference": "mean_difference", "_random_direction": "random_direction"}
    for suffix in conditions:
        lines = found.series[f"propensity_lines{suffix}"]
        assert lines.kind == "curve"
        assert lines.columns["x"] == list(MULTIPLIERS)
        assert set(lines.columns) == {"x", *(f"line {line}" for line in found.clusters)}
    curves = np.array([found.series["propensity_lines"].columns[f"line {line}"] for line in found.clusters])
    assert np.mean(propensity_slopes(curves)) == pytest.approx(found.estimates["steerability"].value, abs=1e-9)
    # Nothing is added at 0, so every arm's curves meet there.
    others = [found.series["propensity_lines_random_direction"].columns[f"line {line}"] for line in found.clusters]
    np.testing.assert_allclose(curves[:, 3], np.array(others)[:, 3], atol=1e-6)
    variance = found.series["variance_by_factor"].columns
    assert variance["factor"] == ["answer_position", "wording", "unexplained"]
    explained = found.estimates["variance_explained_answer_position"].value
    assert variance["feature"][0] == pytest.approx(explained)
    assert variance["feature"][2] < 0.2
    assert set(variance) == {"factor", "feature", "mean_difference", "random_direction"}


def test_tiers_choose_the_same_feature_and_nest(solved: Any, bench_of: Any, write: Callable[..., Path]) -> None:
    asked, path = Asked(solved, bench_of, False), write(balanced())
    few = Settings(tier=dataclasses.replace(TIERS["smoke"], questions=8))
    small, large = (
        measure(bench_of(asked.model, asked.corpus, asked.sae, settings, related=RelatedInputs(contrast=str(path))))
        for settings in (few, Settings(tier=TIERS["standard"]))
    )
    assert len(small.clusters) == 8
    assert len(large.clusters) == 20
    assert set(small.clusters) < set(large.clusters)
    assert small.series["candidates"].columns == large.series["candidates"].columns
