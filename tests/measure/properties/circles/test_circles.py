"""`circles`: planted circles and non-circles decide the test, intervals cover, and what a cluster needs is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_bench.demo import paths
from sae_bench.engine.batch import RelatedInputs
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import load_corpus
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import SiteData
from sae_bench.errors import MeasurementError
from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Influence, Measurement, Undefined
from sae_bench.measure.properties.circles import METRICS, PROPERTY, circular_power, measure
from sae_bench.measure.uncertainty import interval
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site
from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo
from sae_bench.sae.formats import as_sae

CLUSTERS = 40


def circle(classes: int, width: int = 6) -> Floats:
    """(C, d) class means on a circle."""
    angle = 2 * np.pi * np.arange(classes) / classes
    return np.pad(np.stack([np.cos(angle), np.sin(angle)], 1), ((0, 0), (0, width - 2)))


def line(classes: int, width: int = 6) -> Floats:
    """(C, d) class means in order on a straight line."""
    return np.outer(np.linspace(-1, 1, classes), np.eye(width)[0])


def tokens(
    rng: np.random.Generator, means: Floats, noise: float = 1.0, shared: float = 0.5, each: int = 2
) -> tuple[Floats, circular_power.LabelledTokens]:
    """Vectors around class means, ``each`` a class and document; tokens of a document and class share a part."""
    classes, width = means.shape
    own = shared * rng.normal(size=(CLUSTERS, classes, 1, width)) + noise * rng.normal(
        size=(CLUSTERS, classes, each, width)
    )
    rows = (means[None, :, None] + own).reshape(-1, width)
    of_class = np.tile(np.repeat(np.arange(classes), each), CLUSTERS)
    cluster_of = np.repeat(np.arange(CLUSTERS), classes * each)
    return rows, circular_power.LabelledTokens(of_class, cluster_of, classes, CLUSTERS)


def exact(means: Floats) -> Floats:
    """(C, C) products of class means that are known."""
    return means @ means.T


@pytest.mark.parametrize("classes", [7, 12])
def test_a_circle_a_line_and_random_centroids(classes: int) -> None:
    ring, straight = exact(circle(classes)), exact(line(classes))
    assert circular_power.circular_share(ring) == pytest.approx(1)
    assert circular_power.roundness(ring) == pytest.approx(1)
    assert circular_power.circular_share(straight) == pytest.approx(0.66, abs=0.07)
    assert circular_power.roundness(straight) == pytest.approx(0, abs=1e-9)
    assert circular_power.permutation_p(ring) == pytest.approx(1 / (360 if classes == 7 else circular_power.DRAWN + 1))
    rng = np.random.default_rng(0)
    shares = [circular_power.circular_share(exact(rng.normal(size=(classes, 20)))) for _ in range(300)]
    assert np.mean(shares) == pytest.approx(1 / 3, abs=0.02)


def test_all_orders_of_seven_are_looked_at_once_and_their_mean_share_is_a_third() -> None:
    each = circular_power.orders(7, 0)
    assert each.shape == (360, 7)

    def necklace(order: np.ndarray) -> frozenset[frozenset[int]]:
        return frozenset(frozenset((int(a), int(b))) for a, b in zip(order, np.roll(order, 1), strict=True))

    assert len({necklace(order) for order in each}) == 360
    products = exact(np.random.default_rng(1).normal(size=(7, 5)))
    shares = [circular_power.circular_share(products[np.ix_(order, order)]) for order in each]
    assert np.mean(shares) == pytest.approx(1 / 3)
    assert circular_power.permutation_p(products) == pytest.approx(np.mean(np.array(shares) >= shares[0] - 1e-12))


@pytest.mark.parametrize("classes", [7, 12])
def test_p_is_uniform_on_planted_non_circles(classes: int) -> None:
    """Class means in no order, seen through the noise of tokens in documents."""
    rng = np.random.default_rng(classes)
    p = []
    for _ in range(250):
        rows, given = tokens(rng, 0.4 * rng.normal(size=(classes, 6)), each=1)
        p.append(circular_power.permutation_p(circular_power.Products.from_rows(rows, given).whole))
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=3.3 * np.sqrt(level * (1 - level) / 250))


@pytest.mark.parametrize("classes", [7, 12])
def test_planted_circles_are_found_through_noise(classes: int) -> None:
    rng = np.random.default_rng(2)
    p = []
    for _ in range(30):
        rows, given = tokens(rng, 1.5 * circle(classes))
        p.append(circular_power.permutation_p(circular_power.Products.from_rows(rows, given).whole))
    assert np.mean(np.array(p) <= 0.01) >= 0.95


def test_noise_that_the_halves_do_not_share_adds_no_power() -> None:
    """Without cross-products, six dimensions of noise would bring the share of a circle down to .8."""
    rng = np.random.default_rng(3)
    shares, naive = [], []
    for _ in range(200):
        rows, given = tokens(rng, circle(7), noise=2.0)
        shares.append(circular_power.circular_share(circular_power.Products.from_rows(rows, given).whole))
        means = np.stack([rows[given.of_class == each].mean(0) for each in range(7)])
        naive.append(circular_power.circular_share(exact(means)))
    assert np.mean(shares) == pytest.approx(1, abs=0.02)
    assert np.mean(naive) < 0.95


def test_products_without_a_cluster_are_those_of_the_others() -> None:
    rows, given = tokens(np.random.default_rng(4), circle(7))
    some = np.random.default_rng(5).random(len(rows)) < 0.8  # classes of unequal sizes
    given = circular_power.LabelledTokens(given.of_class[some], given.cluster_of[some], 7, CLUSTERS)
    found = circular_power.Products.from_rows(rows[some], given)
    for cluster in (0, 1, 6, 39):
        kept = given.cluster_of != cluster
        others = circular_power.LabelledTokens(given.of_class[kept], given.cluster_of[kept], 7, CLUSTERS)
        np.testing.assert_allclose(
            found.without(cluster), circular_power.Products.from_rows(rows[some][kept], others).whole, atol=1e-12
        )


def test_intervals_cover_at_their_nominal_rate() -> None:
    rng = np.random.default_rng(6)
    means = circle(7) + 0.45 * rng.normal(size=(7, 6))
    other = 0.7 * means + 0.2 * rng.normal(size=(7, 6))
    truth = {
        "circular_share": circular_power.circular_share(exact(means)),
        "roundness": circular_power.roundness(exact(means)),
        "kept": circular_power.share_of_site_power(other @ means.T, exact(means)),
        "class_kept": circular_power.class_power(other @ means.T) / circular_power.class_power(exact(means)),
    }
    hits: dict[str, list[bool]] = {name: [] for name in truth}
    for _ in range(250):
        rows, given = tokens(rng, means, noise=0.7)
        whole = circular_power.Products.from_rows(rows, given)
        part = rows + (other - means)[given.of_class]
        ours, rest = (circular_power.Products.from_rows(each, given) for each in (part, rows - part))
        found = {
            "circular_share": circular_power.jackknife_products([whole], circular_power.circular_share, ""),
            "roundness": circular_power.jackknife_products([whole], circular_power.roundness, ""),
            "kept": circular_power.jackknife_products([ours, rest, whole], circular_power.retained_circle, ""),
            "class_kept": circular_power.jackknife_products(
                [ours, rest, whole], circular_power.retained_class_spread, ""
            ),
        }
        for name, estimate in found.items():
            span = interval(estimate, 0.05)
            assert span is not None
            hits[name].append(span[0] <= truth[name] <= span[1])
    rates = {name: float(np.mean(each)) for name, each in hits.items()}
    # Four standard errors of 250 draws are 5.5%.
    assert all(0.895 <= rate <= 0.99 for rate in rates.values()), rates


def test_backward_elimination_drops_what_writes_nothing_of_the_circle_first() -> None:
    rng = np.random.default_rng(7)
    codes = np.concatenate([np.eye(7), rng.random((7, 3))], axis=1)  # (C, m): one a class, three of something else
    directions = np.concatenate([circle(7, 12), 0.2 * np.eye(12)[9:]])
    site = np.stack([circle(7, 12)] * 2)
    steps = circular_power.eliminate_features(np.stack([codes, codes]), directions, site)
    assert sorted(step.removed for step in steps) == list(range(10))
    assert {step.removed for step in steps[:3]} == {7, 8, 9}
    assert steps[2].retained == pytest.approx(1)
    assert circular_power.circular_share(steps[2].products) == pytest.approx(1)
    assert [step.retained for step in steps[3:]] == pytest.approx([left / 7 for left in range(6, -1, -1)])


def test_a_circle_of_the_same_size_that_points_elsewhere_is_not_kept() -> None:
    rng = np.random.default_rng(9)
    rows, given = tokens(rng, circle(7), noise=0.2, shared=0.1)
    elsewhere = np.roll(rows, 2, axis=1)
    found = {name: circular_power.Products.from_rows(each, given).whole for name, each in
             {"site": rows, "ours": elsewhere, "rest": rows - elsewhere}.items()}  # fmt: skip
    assert circular_power.share_of_site_power(found["ours"], found["site"]) == pytest.approx(1, abs=0.05)
    assert circular_power.retained_circle(found["ours"], found["rest"], found["site"]) == pytest.approx(0, abs=0.05)
    assert circular_power.retained_class_spread(found["ours"], found["rest"], found["site"]) == pytest.approx(
        0, abs=0.05
    )


# Planted at the demo's site: the words of its corpus, other activations

WIDTH, RADIUS = 128, 4.0


@cache
def demo() -> tuple[Any, Any]:
    return load_model(str(paths.MODEL)), load_corpus(paths.CORPUS)


def basis() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))).Q


class Planted:
    """Days at given places of a plane, in noise; and an SAE with a feature a day and two more that are alike."""

    def __init__(self, places: Floats) -> None:
        model, corpus = demo()
        axes = basis()
        self.days = [model.tokenizer.encode(day, add_special_tokens=False)[0] for day in DAYS]
        self.where = RADIUS * torch.from_numpy(places).float() @ axes[: places.shape[1]]  # (7, d)
        data = SiteData(model, parse_site(paths.SITE), corpus, include_bos=False, memory_bytes=1 << 30)
        noise = 0.1 * torch.randn(data.x.shape, generator=torch.Generator().manual_seed(1))
        data.x.copy_(noise * data.inside[..., None])
        for day, place in zip(self.days, self.where, strict=True):
            data.x[(corpus.tokens == day) & data.keep] += place
        self.data = data
        extra = torch.stack([axes[20], 0.8 * axes[20] + 0.6 * axes[21]])
        self.directions = torch.cat([torch.nn.functional.normalize(self.where, dim=1), extra])

    def sae(self, lost: tuple[int, ...] = ()) -> LinearDecoderSAE:
        """A feature fires where x lies further along its direction than any other day does."""
        size = (self.where @ self.directions[:7].T).sort(dim=1, descending=True).values
        own, next_best = self.where.norm(dim=1), size[:, 1]
        threshold = torch.minimum((own + next_best) / 2, 0.9 * own)
        # What passes the threshold is stretched to the day's own length.
        stretch = own / (own - threshold)
        bias = torch.cat([-threshold * stretch, torch.full((2,), -0.05)])
        encoder = torch.cat([self.directions[:7] * stretch[:, None], self.directions[7:]])
        W_dec = self.directions.clone()
        W_dec[list(lost)] = 0
        return LinearDecoderSAE(
            info=SAEInfo(format="test", architecture="standard", d_in=WIDTH, d_sae=9),
            W_enc=encoder.T.contiguous(),
            activation=ReLU(bias),
            W_dec=W_dec,
            b_dec=torch.zeros(WIDTH),
            pre_bias=torch.zeros(WIDTH),
        )

    def measure(self, file: Path, lost: tuple[int, ...] = (), tier: str = "standard") -> Measurement:
        model, corpus = demo()
        settings = Settings(tier=TIERS[tier])
        return measure(
            Bench(
                self.sae(lost),
                model,
                corpus,
                self.data,
                settings,
                related=RelatedInputs(concepts=str(file)),
                id="planted/one",
            )
        )


DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@pytest.fixture
def days(tmp_path: Path) -> Callable[..., Path]:
    def put(latents: str = "") -> Path:
        listed = ", ".join(f'"{day}"' for day in DAYS)
        (tmp_path / "c.toml").write_text(f'[[cycle]]\nname = "days"\nclasses = [{listed}]\n{latents}\n')
        return tmp_path / "c.toml"

    return put


def columns(found: Measurement, name: str) -> dict[str, Any]:
    return dict(found.series[name].columns)


def test_a_planted_circle_is_one_at_the_site_in_the_sae_and_in_its_cluster(days: Callable[..., Path]) -> None:
    found = Planted(circle(7, 2)).measure(days())
    of = {name: each.value for name, each in found.estimates.items()}
    assert of["circular_share"] == pytest.approx(1, abs=0.01)
    assert of["circular_share_cluster"] == pytest.approx(1, abs=0.01)
    assert of["roundness"] == pytest.approx(1, abs=0.02)
    assert of["kept"] == pytest.approx(1, abs=0.03)
    assert of["cluster_kept"] == pytest.approx(1, abs=0.03)
    assert of["residual_power"] == pytest.approx(0, abs=0.01)
    assert of["cluster_kept_random"] < 0.01
    assert of["span_energy"] > 0.8
    assert of["span_energy_random"] == pytest.approx(2 / WIDTH)
    assert of["span_residual"] < 0.05
    table = columns(found, "cycles")
    assert table["p"][table["condition"].index("site")] == pytest.approx(1 / 360, rel=1e-3)
    spectrum, outline = columns(found, "spectrum_days"), columns(found, "outline_days")
    assert spectrum["x"] == [1, 2, 3]
    assert spectrum["site"] == pytest.approx([1, 0, 0], abs=0.01)
    radii = np.hypot(outline["x"], outline["component 2"])
    np.testing.assert_allclose(radii, RADIUS, rtol=0.05)
    assert outline["x"][0] == outline["x"][-1]
    assert len(outline["x"]) == 8
    features = columns(found, "features")
    assert set(features["feature"]) == set(range(7))
    assert set(features["selection"]) == {"decoder similarity"}
    assert all(features["needed"])
    planes = columns(found, "planes")
    assert planes["circular_share"][0] == pytest.approx(1, abs=0.01)
    assert "days: at the site circular" in found.notes[0]


def test_a_transcoder_is_read_where_it_reads_and_held_against_where_it_writes(days: Callable[..., Path]) -> None:
    planted = Planted(circle(7, 2))
    source = copy(planted.data)
    source.x = 2 * planted.data.x  # type: ignore[misc]
    model, corpus = demo()
    sae = planted.sae()
    half = dataclasses.replace(sae, W_enc=sae.W_enc / 2)
    settings = Settings(tier=TIERS["smoke"])
    found = measure(
        Bench(half, model, corpus, planted.data, settings, related=RelatedInputs(concepts=str(days())), source=source)
    ).estimates
    plain = measure(
        Bench(sae, model, corpus, planted.data, settings, related=RelatedInputs(concepts=str(days())))
    ).estimates
    assert found["kept"].value == pytest.approx(plain["kept"].value, abs=1e-5)
    assert found["circular_share"].value == plain["circular_share"].value


def test_days_in_another_order_are_no_circle(days: Callable[..., Path]) -> None:
    found = Planted(circle(7, 2)[[0, 2, 4, 6, 1, 3, 5]]).measure(days())
    of = {name: each.value for name, each in found.estimates.items()}
    assert of["circular_share"] == pytest.approx(0, abs=0.01)
    assert of["class_kept"] == pytest.approx(1, abs=0.03)
    table = columns(found, "cycles")
    assert table["p"][table["condition"].index("site")] > 0.9
    assert "not more circular than in a random order" in found.notes[0]
    assert "most power at frequency 2" in found.notes[0]
    assert "nan" not in " ".join(found.notes)


def test_days_on_a_line_are_no_circle(days: Callable[..., Path]) -> None:
    """In order on a straight line, whose ends are far apart; and a circle that is flattened to one."""
    straight = Planted(np.column_stack([np.linspace(-1, 1, 7), np.ones(7)])).measure(days())
    assert straight.estimates["circular_share"].value == pytest.approx(0.66, abs=0.01)
    assert "not more circular than in a random order" in straight.notes[0]
    flat = Planted(np.column_stack([circle(7)[:, 0], np.ones(7)])).measure(days())
    assert flat.estimates["circular_share"].value == pytest.approx(1, abs=0.01)
    for found in (straight, flat):
        assert found.estimates["roundness"].value < 0.01
    assert "ordered, but along a line and not a circle" in flat.notes[0]


def test_an_sae_without_some_days_leaves_them_in_the_residual(days: Callable[..., Path]) -> None:
    planted = Planted(circle(7, 2))
    whole, broken = planted.measure(days()), planted.measure(days(), lost=(0, 1, 2))
    assert broken.estimates["kept"].value < 0.65 < 0.9 < whole.estimates["kept"].value
    assert broken.estimates["residual_power"].value > 0.1
    assert broken.estimates["span_residual"].value > 0.2
    assert isinstance(broken.estimates["kept"], Influence)


def test_features_that_the_file_names_are_taken_and_those_without_a_part_can_go(days: Callable[..., Path]) -> None:
    found = Planted(circle(7, 2)).measure(days('latents = { "planted/one" = [0, 1, 2, 3, 4, 5, 6, 7] }'))
    table = columns(found, "features")
    assert set(table["selection"]) == {"file"}
    assert dict(zip(table["feature"], table["needed"], strict=True)) == {7: False, **dict.fromkeys(range(7), True)}
    assert "8 features, chosen by file" in found.notes[1]
    assert "7 of them are needed" in found.notes[1]
    with pytest.raises(MeasurementError, match="names feature 9 of 'planted/one', which has 9; count from 0"):
        Planted(circle(7, 2)).measure(days('latents = { "planted/one" = [0, 9] }'))


def test_without_cycles_and_with_too_few_documents_there_is_no_value(
    tmp_path: Path, days: Callable[..., Path], demo_bench: Callable[..., Bench]
) -> None:
    bench = demo_bench()
    found = measure(bench)
    assert set(found.estimates) == {metric.name for metric in METRICS}
    assert all("[[cycle]]" in each.reason for each in found.estimates.values())
    (tmp_path / "plain.toml").write_text('[[concept]]\nname = "a"\npositive = ["monday"]\n')
    bench.related = RelatedInputs(concepts=str(tmp_path / "plain.toml"))
    assert isinstance(measure(bench).estimates["kept"], Undefined)
    few = demo_bench(documents=4)
    few.related = RelatedInputs(concepts=str(days()))
    assert "fewer than two odd or two even documents" in measure(few).estimates["kept"].reason


def test_an_sae_without_a_decoder_is_measured_without_a_cluster(days: Callable[..., Path]) -> None:
    planted = Planted(circle(7, 2))
    open_sae = planted.sae()

    class Closed:
        encode, decode = staticmethod(open_sae.encode), staticmethod(open_sae.decode)
        d_in, d_sae = WIDTH, 9

    model, corpus = demo()
    bench = Bench(
        as_sae(Closed()),
        model,
        corpus,
        planted.data,
        Settings(tier=TIERS["smoke"]),
        related=RelatedInputs(concepts=str(days())),
    )
    found = measure(bench)
    assert found.estimates["kept"].value == pytest.approx(1, abs=0.1)
    assert "shows no decoder" in found.estimates["cluster_kept"].reason
    assert set(found.series["cycles"].columns["condition"]) == {"site", "reconstruction", "residual"}


def test_the_demos_days_and_months_are_reported_whatever_they_are(demo_bench: Callable[..., Bench]) -> None:
    kept = {}
    for name in ("standard", "topk"):
        bench = demo_bench(name=name, tier=TIERS["standard"], documents=None)
        bench.related = RelatedInputs(concepts=str(paths.CONCEPTS))
        found = measure(bench)
        assert set(found.estimates) == {metric.name for metric in METRICS}
        table = columns(found, "cycles")
        assert list(dict.fromkeys(table["cycle"])) == ["days", "months"]
        assert all(0 < p <= 1 for p in table["p"])
        kept[name] = found.estimates["kept"].value
        assert found.estimates["cluster_kept_random"].value < 0.05 < found.estimates["cluster_kept"].value
        assert len(found.notes) == 4
    # The L1 SAE shrinks what its features write, and months lie in several of them.
    assert kept["standard"] < 0.8 < kept["topk"]


def test_tiers_choose_the_same_features(days: Callable[..., Path]) -> None:
    planted = Planted(circle(7, 2) + 0.3 * np.random.default_rng(8).normal(size=(7, 2)))
    small, large = (columns(planted.measure(days(), tier=tier), "features") for tier in ("smoke", "full"))
    assert set(small["feature"]) == set(large["feature"])
    assert small["selection"] == large["selection"]
    assert PROPERTY.limits == ()
