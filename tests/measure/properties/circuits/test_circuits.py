"""A circuit's prompts: what is refused, what a planted feature does in one order only, and what numbers are worth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_bench.demo import paths
from sae_bench.engine.batch import RelatedInputs
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import from_documents, load_corpus
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import SiteData, capture_site
from sae_bench.errors import LoadError, MeasurementError
from sae_bench.judge.judge import judge
from sae_bench.judge.limits import parse_rule
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.datasets.circuit_file import CircuitSet, read_circuit
from sae_bench.measure.measurement import Influence, Measurement, Ratio, Undefined
from sae_bench.measure.properties import TRANSCODER
from sae_bench.measure.properties.circuits import METRICS, PROPERTY, logit_differences, measure
from sae_bench.measure.properties.circuits.prompt_effects import PromptDesign, compare_features
from sae_bench.measure.uncertainty import interval
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site
from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo
from sae_bench.sae.formats import as_sae, read_sae

Rows = list[dict[str, Any]]
PEOPLE = [f"n{index}" for index in range(12)]
TEMPLATES = ("t0", "t1", "t2")
WORDS = ["<s>", "and", "to", *TEMPLATES, *PEOPLE, "<unk>"]
WIDTH = 24


def row(one: str, other: str, order: str, template: str) -> dict[str, Any]:
    """``one`` receives; ABBA names it first."""
    first, second = (one, other) if order == "ABBA" else (other, one)
    prompt = f"{template} {first} and {second} {other} to"
    return {"prompt": prompt, "answer": one, "distractor": other, "factors": {"order": order, "template": template}}


def crossed() -> Rows:
    pairs = [(PEOPLE[index], PEOPLE[(index + step) % 12]) for step in (1, 2) for index in range(12)]
    return [
        row(*names, order, template)
        for template in TEMPLATES
        for pair in pairs
        for names in (pair, pair[::-1])
        for order in ("ABBA", "BABA")
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def put(rows: Rows | str) -> Path:
        text = rows if isinstance(rows, str) else "".join(json.dumps(each) + "\n" for each in rows)
        (tmp_path / "circuit.jsonl").write_text(text)
        return tmp_path / "circuit.jsonl"

    return put


def test_a_sound_dataset_is_read_in_clusters_of_template_and_names(write: Callable[..., Path]) -> None:
    found = read_circuit(write(crossed()))
    assert len(found.prompts) == 288
    assert len(found.clusters) == 72
    assert found.levels("order") == ("ABBA", "BABA")
    for cluster in found.clusters:
        assert len(cluster.prompts) == 4
        assert len({frozenset((prompt.answer, prompt.distractor)) for prompt in cluster.prompts}) == 1
        assert {prompt.factors["template"] for prompt in cluster.prompts} == {cluster.factors["template"]}


def changed(index: int, **fields: Any) -> Rows:
    return [{**each, **fields} if at == index else each for at, each in enumerate(crossed())]


def without(drop: Callable[[dict[str, Any]], bool]) -> Rows:
    return [each for each in crossed() if not drop(each)]


def reordered(each: dict[str, Any]) -> dict[str, Any]:
    return {**each, "factors": {**each["factors"], "order": "ABBA"}}


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("{", r"line 1: not JSON"),
        (crossed()[:8], r"holds 8 prompts; at least 16"),
        (changed(4, distractor=""), r"line 5: 'distractor' is ''"),
        (changed(2, answer="n1", distractor="n1"), r"line 3: answer and distractor are both 'n1'"),
        (changed(0, factors={"mood": "x"}), r"line 1: unknown factor 'mood'; known: order, template"),
        ([{**each, "factors": {"order": "ABBA"}} for each in crossed()], r"line 1: factors are order; .* need both"),
        (changed(3, prompt=crossed()[0]["prompt"]), r"has 1 repeated prompts \(line 4 repeats line 1\)"),
        (
            without(lambda each: each["answer"] < each["distractor"]),
            r"'n0' is the answer of 0 prompts and the distractor of 24",
        ),
        ([reordered(each) for each in crossed()], r"has one order only, 'ABBA'"),
        (
            without(lambda each: each["prompt"] in ("t0 n0 and n1 n1 to", "t0 n1 and n0 n0 to")),
            r"template 't0' with the names 'n0' and 'n1' \(line 1\) has order 'ABBA' 0 times, 'BABA' 2 times",
        ),
        (
            without(lambda each: each["factors"]["template"] == "t0" and int(each["answer"][1:]) % 2 == 0),
            r"factor 'template' has 't0' 48 times",
        ),
    ],
)
def test_a_bad_dataset_is_one_sentence_with_its_line(write: Callable[..., Path], rows: Any, named: str) -> None:
    with pytest.raises(LoadError, match=named):
        read_circuit(write(rows))


class Planted:
    """A model that answers by three features: one that acts in ABBA, one in BABA, one in all; of given strengths.

    The last position holds who receives and the features; the answer's logit is their sum.
    """

    def __init__(self, solved: Any, bench_of: Any, abba: float, baba: float, every: float) -> None:
        generator = torch.Generator().manual_seed(5)
        basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q.T
        self.names, self.gates = basis[:12], basis[12:15]
        people = [WORDS.index(name) for name in PEOPLE]
        size = torch.rand(len(WORDS), generator=generator) + 0.5
        strengths = torch.tensor([abba, baba, every])

        def embed(tokens: torch.Tensor) -> torch.Tensor:
            x = torch.zeros(*tokens.shape, WIDTH)
            for document, sequence in enumerate(tokens.tolist()):
                if len(sequence) == 7 and WORDS[sequence[6]] == "to":
                    named = [sequence[2], sequence[4]]
                    (receiver,) = {token for token in named if token != sequence[5]} or {named[0]}
                    on = torch.tensor([float(named[0] == receiver), float(named[0] != receiver), 1.0])
                    x[document, 6] = self.names[people.index(receiver)] * size[receiver] + on * strengths @ self.gates
            return x

        def head(x: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*x.shape[:-1], len(WORDS))
            logits[..., people] = (x @ self.names.T) * (x @ self.gates.T).sum(-1, keepdim=True)
            return logits

        self.model = solved(embed, head, WORDS, WIDTH, context=12)
        documents = torch.randint(1, len(WORDS) - 1, (20, 9), generator=generator)
        self.corpus = from_documents([[0, *each] for each in documents.tolist()], has_bos=True, source="planted")
        rows = basis[[14, 13, 12, *range(12)]]  # features 0, 1, 2 are every, BABA, ABBA
        self.sae = LinearDecoderSAE(
            info=SAEInfo(format="test", architecture="standard", d_in=WIDTH, d_sae=len(rows)),
            W_enc=rows.T.contiguous(),
            activation=ReLU(torch.zeros(len(rows))),
            W_dec=rows.clone(),
            b_dec=torch.zeros(WIDTH),
            pre_bias=torch.zeros(WIDTH),
        )
        self.bench_of = bench_of

    def measure(self, path: Path | None, sae: Any = None, tier: str = "standard") -> Measurement:
        settings = Settings(tier=TIERS[tier])
        circuit = None if path is None else str(path)
        return measure(
            self.bench_of(self.model, self.corpus, sae or self.sae, settings, related=RelatedInputs(circuit=circuit))
        )

    def deaf_to(self, feature: int) -> LinearDecoderSAE:
        """The SAE without one feature's direction."""
        W_dec = self.sae.W_dec.clone()
        W_dec[feature] = 0
        return dataclasses.replace(self.sae, W_dec=W_dec)


def test_a_feature_that_matters_for_one_order_only_is_seen_as_such(
    solved: Any, bench_of: Any, write: Callable[..., Path]
) -> None:
    found = Planted(solved, bench_of, abba=0.0, baba=3.0, every=1.0).measure(write(crossed()))
    table = found.series["features"].columns
    assert table["feature"][0] == 1
    assert table["only"][0] == "BABA"
    assert table["effect_ABBA"][0] == pytest.approx(0, abs=1e-6)
    assert table["effect_BABA"][0] > 2
    assert (table["sign_ABBA"][0], table["sign_BABA"][0]) == (0, 1)
    assert "feature 1 matters for BABA prompts only" in found.notes
    of = found.estimates
    assert of["latent_effect"].value > 1
    assert of["latent_worst_level_sign"].value == 0
    assert of["latent_sign_consistency"].value == 0.5
    assert of["latent_worst_level_share"].value == pytest.approx(0, abs=1e-6)
    assert of["latent_variance_explained_order"].value > 0.8
    assert abs(of["latent_variance_explained_template"].value) < 0.02
    assert table["only"][table["feature"].index(0)] == ""


def test_a_feature_that_matters_for_all_prompts_is_not(solved: Any, bench_of: Any, write: Callable[..., Path]) -> None:
    found = Planted(solved, bench_of, abba=0.0, baba=0.0, every=2.0).measure(write(crossed()))
    table = found.series["features"].columns
    assert table["feature"][0] == 0
    assert set(table["only"]) == {""}
    of = found.estimates
    assert of["latent_worst_level_sign"].value == 1
    assert of["latent_worst_level_share"].value > 0.85
    assert abs(of["latent_variance_explained_order"].value) < 0.02
    assert table["p_holm_order"][0] > 0.05
    # A random direction of that length does a small share of it.
    assert abs(of["latent_effect_random"].value) < 0.5 * of["latent_effect"].value


def test_an_sae_without_a_decoder_is_measured_as_a_whole(
    solved: Any, bench_of: Any, write: Callable[..., Path]
) -> None:
    planted = Planted(solved, bench_of, abba=1.0, baba=1.0, every=1.0)

    class Closed:
        encode, decode = staticmethod(planted.sae.encode), staticmethod(planted.sae.decode)
        d_in, d_sae = WIDTH, 15

    found = planted.measure(write(crossed()), as_sae(Closed()))
    assert found.estimates["kept"].value == pytest.approx(1, abs=1e-5)
    assert isinstance(found.estimates["latent_effect"], Undefined)
    assert "features" not in found.series


def test_a_perfect_reconstruction_keeps_everything_and_one_without_a_feature_loses_its_order(
    solved: Any, bench_of: Any, write: Callable[..., Path]
) -> None:
    planted, path = Planted(solved, bench_of, abba=2.0, baba=2.0, every=0.0), write(crossed())
    whole, broken = planted.measure(path), planted.measure(path, planted.deaf_to(1))
    for name in ("kept", "kept_over_ablation", "kept_isotropic", "sign_consistency", "worst_level_sign"):
        assert whole.estimates[name].value == pytest.approx(1, abs=1e-5), name
    assert whole.estimates["lost"].value == pytest.approx(0, abs=1e-5)
    of = broken.estimates
    assert of["kept"].value == pytest.approx(0.5, abs=0.01)
    assert of["worst_level_sign"].value == 0
    assert of["worst_level_share"].value == pytest.approx(0, abs=1e-5)
    assert of["sign_consistency"].value == 0.5
    assert of["variance_explained_order"].value > 0.7
    assert abs(of["variance_explained_template"].value) < 0.02
    levels = broken.series["levels"].columns
    assert dict(zip(levels["level"], levels["preferred"], strict=True))["BABA"] == 0


def test_losing_an_order_fails_against_what_was_accepted(
    solved: Any, bench_of: Any, write: Callable[..., Path]
) -> None:
    from sae_bench.judge.verdicts import AcceptedProperty
    from sae_bench.measure.measurement import Accepted

    planted, path = Planted(solved, bench_of, abba=2.0, baba=2.0, every=0.0), write(crossed())
    sound = planted.measure(path)
    rules = [parse_rule(f"circuits.{limit}", "property") for limit in PROPERTY.limits]

    def verdict(found: Measurement) -> Any:
        held = {
            name: Accepted(each.value, each, sound.clusters, 1)
            for name, each in sound.estimates.items()
            if not isinstance(each, Undefined)
        }
        accepted = AcceptedProperty(held, {})
        return judge("circuits", METRICS, "kept", found, accepted, sae="x", rules=rules, context={})

    assert not verdict(sound).fails
    broken = verdict(planted.measure(path, planted.deaf_to(1)))
    assert broken.judgements["worst_level_sign"].verdict is Verdict.FAIL


def test_tiers_choose_the_same_features_and_nest(solved: Any, bench_of: Any, write: Callable[..., Path]) -> None:
    planted, path = Planted(solved, bench_of, abba=1.0, baba=2.0, every=1.0), write(crossed())
    small, large = (planted.measure(path, tier=tier) for tier in ("smoke", "standard"))
    assert small.series["features"].columns["feature"] == large.series["features"].columns["feature"]
    assert len(small.clusters) < len(large.clusters) == 36
    assert set(small.clusters) < set(large.clusters)


def test_without_prompts_everything_is_undefined_and_nothing_fails(solved: Any, bench_of: Any) -> None:
    found = Planted(solved, bench_of, 1.0, 1.0, 1.0).measure(None)
    assert set(found.estimates) == {metric.name for metric in METRICS}
    assert all("circuit='prompts.jsonl'" in each.reason for each in found.estimates.values())


def test_a_transcoder_has_no_value(solved: Any, bench_of: Any, write: Callable[..., Path]) -> None:
    planted = Planted(solved, bench_of, 1.0, 1.0, 1.0)
    elsewhere = SiteData(
        planted.model, parse_site("blocks.0.hook_resid_pre"), planted.corpus, include_bos=False, memory_bytes=1 << 20
    )
    bench = bench_of(
        planted.model,
        planted.corpus,
        planted.sae,
        related=RelatedInputs(circuit=str(write(crossed()))),
        source=elsewhere,
    )
    assert {each.reason for each in measure(bench).estimates.values()} == {TRANSCODER}


def test_a_model_that_does_not_solve_the_task_has_nothing_to_keep(
    solved: Any, bench_of: Any, write: Callable[..., Path]
) -> None:
    found = Planted(solved, bench_of, abba=0.0, baba=0.0, every=0.0).measure(write(crossed())).estimates
    assert "does not prefer the right answer" in found["kept"].reason
    assert found["lost"].value == pytest.approx(0, abs=1e-6)
    assert "changes no logit difference" in found["latent_effect"].reason


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"answer": "n0 n1"}, r"line 3: 'n0 n1' is 2 tokens; use answers of one token each"),
        ({"prompt": "t0 Anna and n1 n1 to"}, r"line 3: the tokenizer does not know a word of"),
        ({"prompt": "t0 " + "and " * 12 + "to"}, r"line 3: the prompt is 15 tokens, and the model's context is 12"),
    ],
)
def test_prompts_the_model_cannot_read_name_their_line(
    solved: Any, bench_of: Any, write: Callable[..., Path], change: dict[str, str], named: str
) -> None:
    rows = changed(2, **change)
    if "answer" in change:  # its cluster follows, so that the file itself is sound
        rows = [
            {**each, **{key: "n0 n1" for key in ("answer", "distractor") if each[key] == "n1"}} for each in crossed()
        ]
        named = named.replace("line 3", r"line \d+")
    with pytest.raises(MeasurementError, match=named):
        Planted(solved, bench_of, 1.0, 1.0, 1.0).measure(write(rows))


# Statistics, on simulated prompts


def design(clusters: int = 60, templates: int = 5) -> PromptDesign:
    """Four prompts a cluster, two of each order."""
    cluster_of = np.repeat(np.arange(clusters), 4)
    return PromptDesign(cluster_of, {"order": np.tile([0, 1, 0, 1], clusters), "template": cluster_of % templates})


def simulated(rng: np.random.Generator, plan: PromptDesign, order: float, template: float) -> np.ndarray:
    own = rng.normal(size=plan.clusters)[plan.cluster_of]
    kinds = np.linspace(-1, 1, 5)[plan.factors["template"]]
    return 3 + order * (plan.factors["order"] * 2 - 1) + template * kinds + 0.7 * own + rng.normal(size=len(own))


def test_intervals_cover_at_their_nominal_rate() -> None:
    plan, rng = design(), np.random.default_rng(0)
    order, template = 0.8, 0.9
    noise, between = 0.49 + 1.0, template**2 * np.var(np.linspace(-1, 1, 5))
    whole = order**2 + between + noise
    truth = {
        "mean": 3.0,
        "kept": 0.5,
        "sd": np.sqrt(whole),
        "order": order**2 / whole,
        "template": between / whole,
        "worst": (3 - 0.9) / 3,
    }
    hits: dict[str, list[bool]] = {name: [] for name in truth}
    for _ in range(250):
        values = simulated(rng, plan, order, template)
        found = {
            "mean": plan.mean(values),
            "kept": plan.share(0.5 * values + 0.2 * rng.normal(size=len(values)), values),
            "sd": plan.spread(values),
            "order": plan.explained(values, "order"),
            "template": plan.explained(values, "template"),
            "worst": plan.worst_share(values),
        }
        for name, estimate in found.items():
            span = interval(estimate, 0.05)
            assert span is not None
            hits[name].append(span[0] <= truth[name] <= span[1])
    rates = {name: np.mean(each) for name, each in hits.items()}
    # Four standard errors of 250 draws are 5.5%; the least of several means is a little below the least true one.
    assert all(0.895 <= rate <= 0.99 for rate in rates.values()), rates


def test_p_values_are_uniform_where_there_is_nothing_and_small_where_there_is() -> None:
    plan, rng = design(), np.random.default_rng(1)
    nothing = np.stack([simulated(rng, plan, 0.0, 0.0) for _ in range(600)])
    for factor in ("order", "template"):
        p = plan.permutation_p(nothing, factor, 0)
        assert 0.46 < p.mean() < 0.54, factor
        assert 0.02 < (p <= 0.05).mean() < 0.08, factor
        something = simulated(rng, plan, *((1.0, 0.0) if factor == "order" else (0.0, 2.0)))[None]
        assert plan.permutation_p(something, factor, 0)[0] <= 0.002


def test_of_features_without_an_order_hardly_any_is_said_to_have_one() -> None:
    plan, rng = design(), np.random.default_rng(2)
    order = plan.factors["order"]
    named = []
    for _ in range(40):
        effects = np.stack([simulated(rng, plan, 0.0, 0.0) - 3 for _ in range(8)])
        named += compare_features(plan, effects, 0).only
    assert np.mean(np.array(named) >= 0) <= 0.01
    planted = np.stack([order * (2 + rng.normal(size=len(order))), 1 + rng.normal(size=len(order))])
    assert compare_features(plan, planted, 0).only == (1, -1)


# The engine, on the demo


@pytest.fixture(scope="module")
def demo() -> Callable[..., Bench]:
    model, corpus, site = load_model(str(paths.MODEL)), load_corpus(paths.CORPUS), parse_site(paths.SITE)

    def get(name: str = "gated", tier: str = "smoke") -> Bench:
        settings = Settings(tier=TIERS[tier])
        data = capture_site(model, site, corpus, settings)
        return Bench(
            read_sae(str(paths.SAES[name])),
            model,
            corpus,
            data,
            settings,
            related=RelatedInputs(circuit=str(paths.CIRCUIT)),
        )

    return get


def given(bench: Bench, count: int = 6) -> tuple[CircuitSet, logit_differences.TokenisedPrompts]:
    asked = read_circuit(bench.related.circuit or "")
    return asked, logit_differences.tokenise_prompts(bench, asked, asked.prompts[:count])


def test_the_clean_arm_is_the_models_own_logits(demo: Callable[..., Bench]) -> None:
    bench = demo()
    _, task = given(bench, 24)
    wanted = []
    for prompt, (right, wrong) in zip(task.prompts, task.answers.tolist(), strict=True):
        logits = bench.model.logits(prompt.tokens[None])[0, -1]
        wanted.append(float(logits[right] - logits[wrong]))
    np.testing.assert_allclose(logit_differences.clean_differences(bench, task), wanted, atol=1e-4)


def test_gradients_are_slopes(demo: Callable[..., Bench]) -> None:
    bench = demo()
    _, task = given(bench)
    direction = torch.randn(task.prompts[0].x.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-2 * direction
    up, down = (
        logit_differences.patched_differences(bench, task, [0], [task.prompts[0].x + sign * step]).item()
        for sign in (1, -1)
    )
    slope = float((logit_differences.difference_gradients(bench, task)[0] * direction).sum())
    assert slope == pytest.approx((up - down) / 2e-2, rel=0.01)


def test_what_all_features_write_is_the_reconstruction(demo: Callable[..., Bench]) -> None:
    bench = demo()
    _, task = given(bench, 1)
    seen = logit_differences.encode_prompts(bench, task)
    firing = (seen.codes[0] != 0).any(0).nonzero().flatten().tolist()
    parts = [logit_differences.feature_contribution(bench, task, seen, 0, feature) for feature in firing]
    whole = torch.stack([part for part in parts if part is not None]).sum(0)
    whole[1:] += bench.sae.b_dec
    torch.testing.assert_close(whole[1:], seen.xhat[0][1:], atol=1e-4, rtol=1e-4)
    assert not whole[0].any()
    assert (
        logit_differences.feature_contribution(bench, task, seen, 0, next(j for j in range(768) if j not in firing))
        is None
    )


def test_the_demo_solves_the_task_and_its_saes_keep_it(demo: Callable[..., Bench]) -> None:
    found = measure(demo("gated", "standard"))
    of = found.estimates
    assert set(of) == {metric.name for metric in METRICS}
    assert of["logit_difference_clean"].value > 10
    assert abs(of["logit_difference_mean_ablation"].value) < 0.01
    assert of["worst_level_sign"].value == 1
    assert 0.9 < of["kept"].value < 1.3
    assert all(isinstance(each, Ratio | Influence) for each in of.values())
    assert len(found.clusters) == 60
    # One feature carries most of the circuit, in both orders.
    assert of["latent_effect"].value > 0.6 * of["logit_difference_clean"].value
    assert of["latent_worst_level_sign"].value > 0.9
    assert of["latent_effect_random"].value < 0.2 * of["latent_effect"].value


def test_the_same_run_twice_is_identical(demo: Callable[..., Bench]) -> None:
    first, second = (measure(demo("topk")) for _ in range(2))
    assert {name: each.value for name, each in first.estimates.items()} == {
        name: each.value for name, each in second.estimates.items()
    }
    assert first.series == second.series
