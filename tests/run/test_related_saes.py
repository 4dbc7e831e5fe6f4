"""Naming companions: by path or id, the nearest layer first; what does not belong is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sae_bench.demo.paths import CORPUS, MODEL, SAES, SITE
from sae_bench.engine.batch import RelatedInputs, RelatedSAE
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus, load_corpus
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.errors import LoadError, UsageError
from sae_bench.measure.properties import load_property
from sae_bench.registry import register
from sae_bench.registry.registry import Registry
from sae_bench.registry.spec import SAESpec
from sae_bench.run.fingerprint import measurement_content
from sae_bench.run.load import Loader
from sae_bench.run.noise import varied_bench
from tests.support.streams import normal, tied

LATER = [str(SAES["topk-layer4"]), str(SAES["topk-layer3"])]
Load = Callable[..., Bench]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Registry[SAESpec]:
    """An empty registry in place of this process's own."""
    registry: Registry[SAESpec] = Registry("SAE")
    for module in ("registry.register", "run.related_saes"):
        monkeypatch.setattr(f"sae_bench.{module}.SAES", registry)
    return registry


class Short(Loader):
    """Looks at the corpus's first documents only."""

    def _corpus(self, path: str) -> Corpus:
        return load_corpus(path).take(8)


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Short(Settings(tier=TIERS["smoke"], documents=8))


@pytest.fixture
def load(loader: Loader) -> Load:
    """``load(**fields)``: the bench of the demo's TopK SAE, registered with more fields."""
    number = iter(range(100))

    def get(**fields: Any) -> Bench:
        place = {"model": str(MODEL), "site": SITE, "corpus": str(CORPUS), "path": str(SAES["topk"])}
        name = f"topk-{next(number)}-{abs(hash(json.dumps(fields, sort_keys=True, default=str)))}"
        return loader.bench(SAESpec(**{"id": name, **place, **fields}))

    return get


def changed(folder: Path, source: str = "topk-layer3", **metadata: Any) -> str:
    """A copy of a demo SAE whose config says something else; None takes a word out."""
    shutil.copytree(SAES[source], folder)
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= metadata
    config["metadata"] = {name: value for name, value in config["metadata"].items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(config))
    return str(folder)


def test_next_layers_come_nearest_first_with_sites_of_their_own(load: Load) -> None:
    bench = load(next_layers=LATER)
    assert [str(each.site) for each in bench.related.next_layers] == [
        "blocks.3.hook_resid_pre",
        "blocks.3.hook_resid_post",
    ]
    beside = bench.related_bench(bench.related.next_layers[0])
    assert str(beside.site) == "blocks.3.hook_resid_pre"
    assert beside.n_documents == bench.n_documents
    assert bench.related_bench(bench.related.next_layers[0]) is beside
    assert not beside.related.next_layers


def test_a_family_is_measured_at_the_same_site(load: Load) -> None:
    bench = load(family=[SAES["topk-w96"], SAES["topk-w1536"]])
    assert [each.sae.d_sae for each in bench.related.family] == [96, 1536]
    assert all(bench.related_bench(each).site_data is bench.site_data for each in bench.related.family)


def test_companions_by_id(load: Load, registered: Registry[SAESpec], tmp_path: Path) -> None:
    silent = changed(tmp_path / "silent", hook_name=None)
    spec = SAESpec(id="lab/next", path=silent, model=str(MODEL), site="blocks.3.hook_resid_pre")
    registered.add("lab/next", lambda: spec, origin="here")
    assert [each.name for each in load(next_layers=["lab/next"]).related.next_layers] == ["lab/next"]
    with pytest.raises(LoadError, match=r"'lab/next', which SAE 'topk.*' names in family, reads blocks\.3"):
        load(family=["lab/next"])


def test_an_sae_is_no_companion_of_itself(load: Load) -> None:
    assert load(id="demo/self", family=["demo/self"]).related.family == ()
    everyone = [SAES["topk-w96"], SAES["topk"], SAES["topk-seed1"]]
    assert [each.name for each in load(family=everyone).related.family] == ["topk-w96", "topk-seed1"]


@pytest.mark.parametrize(
    ("field", "source", "metadata", "message"),
    [
        ("next_layers", "topk-seed1", {}, r"is of blocks\.2\.hook_resid_pre, which is not hook_resid_pre of a layer"),
        ("next_layers", "topk-layer3", {"hook_name": None}, "does not say its site; register it with site="),
        ("next_layers", "topk-layer3", {"hook_name": "blocks.3.hook_mlp_out"}, "which is not hook_resid_pre of"),
        ("next_layers", "topk-layer3", {"hook_name": "blocks.9.hook_resid_pre"}, "blocks are 0 to 3"),
        ("next_layers", "topk-layer3", {"model_name": "gpt2"}, "is of model 'gpt2', not of 'sae_bench.demo'"),
        ("family", "topk-layer3", {}, r"reads blocks\.3\.hook_resid_pre, not blocks\.2\.hook_resid_pre"),
        ("family", "topk-w96", {"model_name": "gpt2"}, "is of model 'gpt2', not of 'sae_bench.demo'"),
        (
            "family",
            "topk-w96",
            {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
            "was trained with the weight processing",
        ),
    ],
)
def test_what_does_not_belong_is_one_sentence(
    load: Load, tmp_path: Path, field: str, source: str, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoadError, match=message) as caught:
        load(**{field: [changed(tmp_path / "other", source, **metadata)]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["next_layers", "family"])
def test_another_width_is_one_sentence(load: Load, tmp_path: Path, field: str) -> None:
    source = {"next_layers": "topk-layer3", "family": "topk-w96"}[field]
    folder = Path(changed(tmp_path / "narrow", source))
    weights = load_file(folder / "sae_weights.safetensors")
    narrow = {"W_dec": weights["W_dec"][:, :64], "b_dec": weights["b_dec"][:64], "W_enc": weights["W_enc"][:64]}
    save_file(
        {name: tensor.contiguous() for name, tensor in (weights | narrow).items()}, folder / "sae_weights.safetensors"
    )
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"d_in": 64}))
    with pytest.raises(LoadError, match="reads vectors of width 64 and writes 64"):
        load(**{field: [str(folder)]})


def test_a_path_that_is_nothing_names_who_asked_for_it(load: Load, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"missing', which SAE 'topk-.*' names in family, cannot be used: "):
        load(family=[str(tmp_path / "missing")])


def test_a_damaged_one_names_its_weight(load: Load, tmp_path: Path) -> None:
    folder = Path(changed(tmp_path / "damaged", "topk-w96"))
    weights = load_file(folder / "sae_weights.safetensors")
    weights["b_dec"][5] = float("nan")
    save_file(weights, folder / "sae_weights.safetensors")
    with pytest.raises(LoadError, match=r"names in family, cannot be used: .*b_dec has 1 NaN"):
        load(family=[str(folder)])


@pytest.mark.parametrize("field", ["next_layers", "family"])
def test_a_single_path_is_told_to_be_a_list(field: str, registered: Registry[SAESpec]) -> None:
    with pytest.raises(UsageError, match=rf"{field}='saes/x' must be a list of ids or paths, such as \['saes/x'\]"):
        SAESpec(id="x", path="x", **{field: "saes/x"})
    with pytest.raises(UsageError, match="must be a list"):
        register.register_sae("x", path="x", **{field: "saes/x"})


def test_paths_are_anchored_at_the_registering_file(registered: Registry[SAESpec]) -> None:
    spec = register.register_sae("x", path="x", next_layers=["../measure", "lab/other"], family=("../demo",))
    assert spec.next_layers == (str(Path(__file__).parent / "../measure"), "lab/other")
    assert spec.family == (str(Path(__file__).parent / "../demo"),)


def test_a_control_has_no_companions() -> None:
    spec = SAESpec(id="x", path="x", next_layers=["a"], family=["b"]).as_control("permuted")
    assert spec.next_layers == spec.family == ()


def test_another_look_at_a_bench_keeps_its_companions(load: Load) -> None:
    bench = load(next_layers=LATER, family=[SAES["topk-w96"]])
    again = varied_bench(bench, 1)
    assert (again.related.next_layers, again.related.family) == (bench.related.next_layers, bench.related.family)


def test_finished_work_is_not_taken_up_when_a_companion_changes(loader: Loader, tmp_path: Path) -> None:
    place = {"model": str(MODEL), "site": SITE, "corpus": str(CORPUS), "path": str(SAES["topk"])}
    layers = load_property("layers")
    beside = [
        measurement_content(loader, SAESpec(id=f"content-{index}", next_layers=names, **place), layers)["related"]
        for index, names in enumerate((LATER, LATER[::-1], LATER[:1], ()))
    ]
    assert beside[0] == beside[1]
    assert beside[0] != beside[2] != beside[3] == []


def test_the_demo_registers_its_companions(registered: Registry[SAESpec]) -> None:
    from sae_bench.demo import register_demo

    register_demo()
    assert len(registered) == 6
    for name, spec in registered.items():
        assert [Path(path).name for path in spec.next_layers] == ["topk-layer3", "topk-layer4"]
        widths = ["topk-w96", "topk-w192", "topk-w384", "topk-w1536"] if name == "demo/topk" else []
        assert [Path(path).name for path in spec.family] == widths


def test_features_of_the_demo_persist_and_random_directions_do_not(load: Load) -> None:
    bench = load(next_layers=LATER)
    found = load_property("layers").measure(bench).estimates
    assert found["persistence"].value > found["persistence_floor"].value + 0.1
    assert found["persistence"].value > found["persistence_second"].value
    assert found["persistence_correlation"].value > found["persistence_correlation_floor"].value + 0.2
    first = bench.related.next_layers[0]
    mean = bench.related_bench(first).site_data.mean.float()
    random = replace(tied(normal(768, 128)), b_dec=mean, pre_bias=mean)
    bench.related = RelatedInputs(next_layers=(RelatedSAE("random", random, first.site, "none"),))
    found = load_property("layers").measure(bench).estimates
    assert found["persistence"].value == pytest.approx(found["persistence_floor"].value, abs=0.02)
    assert found["persistent_share"].value == 0
