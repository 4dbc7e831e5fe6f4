"""``--sae-ray`` on a local cluster of two nodes: the report of one process, also when a worker dies in the middle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_bench.engine import noise_floors
from sae_bench.errors import LoadError, UsageError
from sae_bench.measure.properties import EXTENSIONS
from sae_bench.registry.spec import SAESpec
from sae_bench.run.ray import client, pinned_files
from sae_bench.run.ray.client import RayMeasurer, divide_saes

pytestmark = pytest.mark.heavy
REGISTER = """
import os, signal
from pathlib import Path
from sae_bench import Exact, Measurement, Metric, Property, register_noise_floor, register_property, register_sae

HERE = Path(__file__).parent

def note(name, bench):
    with (HERE / "measured.log").open("a") as log:
        log.write(f"{name} {bench.site} {os.getpid()}\\n")
    return Measurement({"ones": Exact(1.0)}, bench.clusters)

def first(bench):
    return note("first", bench)

def last(bench):
    if (HERE / "kill").exists():
        (HERE / "kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return note("last", bench)

def declare(measure):
    ones = (Metric("ones", "", "reported", "1"),)
    return Property("lab_" + measure.__name__, "Is it one?", "ones", ones, (), measure, "geometry")

@register_noise_floor(draws=True, meaning="noise of the error's norm in the positive orthant")
def positive(x, error, pool, draw):
    from sae_bench.engine.noise_floors import move
    return move(x, error, draw.normal(x.shape[-1]).abs())

register_property(declare(first))
register_property(declare(last))

def make():
    from sae_bench.sae.formats import read_sae
    return read_sae(str(HERE / "worse"))

more = {"model": "model", "corpus": "corpus.safetensors"}
register_sae("lab/a", path="good", site="blocks.1.hook_resid_pre", family=("lab/wide", "worse"), **more)
register_sae("lab/wide", load=make, site="blocks.1.hook_resid_pre", **more)
register_sae("lab/b", load=make, site="blocks.0.hook_resid_post", **more)
register_sae("lab/broken", path=HERE / "nowhere", site="blocks.1.hook_resid_pre", **more)
"""
SUITE = """
from sae_bench.frontends.testing import property_test
test_first = property_test("lab_first")
test_kl_gap = property_test("kl_gap")
test_sparsity = property_test("sparsity")
test_last = property_test("lab_last")
test_width = property_test("width")
"""
RUN = ("--sae-tier", "smoke", "-p", "no:cacheprovider", "-p", "no:xdist")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes with one core each, and a connection that runs share."""
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        import ray.cloudpickle
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        made.add_node(**node)
        ray.init(address=made.address, log_to_driver=False)
        yield made.address
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def lab(suite: Any) -> Any:
    (suite.path / "conftest.py").write_text(REGISTER)
    (suite.path / "test_sae.py").write_text(SUITE)
    return suite


def forget() -> None:
    EXTENSIONS.registered.__init__("property")  # type: ignore[misc]
    noise_floors.EXTENSIONS.registered.clear()
    sys.modules.pop("conftest", None)


def found(lab: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report, without what may differ from run to run."""
    forget()
    code = int(lab.plain(*RUN, *arguments).ret)
    forget()
    saes = lab.report()["saes"]
    for sae in saes.values():
        for result in sae["properties"].values():
            result.pop("seconds", None)
    return code, saes


def measured(lab: Any) -> list[list[str]]:
    log = lab.path / "measured.log"
    lines = [line.split() for line in log.read_text().splitlines()]
    log.unlink()
    return lines


def test_two_nodes_give_the_report_of_one_process_also_when_a_worker_dies(lab: Any, cluster: str) -> None:
    one = found(lab)
    assert one[0] == 1, "an SAE is broken"
    assert one[1]["lab/broken"]["properties"]["kl_gap"]["verdict"] == "ERROR"
    assert one[1]["lab/a"]["properties"]["width"]["metrics"]["sizes"]["value"] == 1, "others are read beside it"
    assert one[1]["lab/b"]["properties"]["kl_gap"]["metrics"]["kl_sae"]["value"] > 0
    assert one[1]["lab/b"]["properties"]["kl_gap"]["metrics"]["kl_positive"]["value"] > 0, "a floor of the conftest.py"
    measured(lab)

    assert found(lab, "--sae-ray", cluster) == one
    there = measured(lab)
    assert len(there) == 6
    assert len({process for *_, process in there}) == 2, "a model and site, a process"

    (lab.path / "kill").touch()
    assert found(lab, "--sae-ray", cluster) == one
    assert not (lab.path / "kill").exists()
    again = measured(lab)
    killed = {process for *_, process in again} - {process for name, _, process in again if name == "last"}
    assert len(killed) == 1
    # What the dead worker had finished was taken up, unless Ray ran its task again on another machine.
    assert sorted(name for name, *_ in again) == ["first"] * 3 + ["last"] * 3


def test_a_task_without_a_place_says_so(lab: Any, cluster: str) -> None:
    arguments = ("--sae-ray", cluster, "--sae-device", "cuda", "--sae-ray-wait", "1", "--sae", "lab/a")
    code, saes = found(lab, *arguments, "-k", "kl_gap or sparsity")
    assert code == 1
    result = saes["lab/a"]["properties"]["kl_gap"]
    assert result["verdict"] == "ERROR"
    assert f"no place on the Ray cluster at {cluster} within 1 s: a task needs 1 GPU, 1 CPU and 3." in str(
        result["lines"]
    )
    assert "nodes have 0 GPU, 1 CPU" in str(result["lines"])


def test_a_task_whose_worker_always_dies_is_an_error(lab: Any, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRIES", 1)
    text = REGISTER.replace('        (HERE / "kill").unlink()\n', "")
    (lab.path / "conftest.py").write_text(text)
    (lab.path / "kill").touch()
    code, saes = found(lab, "--sae-ray", cluster, "--sae", "lab/a", "-k", "first or last")
    assert code == 1
    assert "WorkerCrashedError" in str(saes["lab/a"]["properties"]["lab_last"]["lines"])
    assert saes["lab/a"]["properties"]["lab_first"]["verdict"] == "PASS", "what came before stands"


def test_mistakes_are_one_sentence(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    workers = lab.repository.runpytest_subprocess(*RUN[:-2], "-n", "1", "--sae-ray", "auto")
    assert workers.ret == 4
    assert "--sae-ray and -n both spread SAEs" in workers.stdout.str() + workers.stderr.str()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.is_initialized", lambda: False)
        nobody = lab.plain(*RUN, "--sae-ray", "127.0.0.1:1")
        forget()
    assert nobody.ret == 4
    said = nobody.stdout.str() + nobody.stderr.str()
    assert "--sae-ray 127.0.0.1:1: no Ray cluster answers there (" in said
    assert "Connection refused" in said
    assert "Traceback" not in said
    assert "INTERNALERROR" not in said
    assert not list((lab.path / "reports").glob("*"))

    def refuse(**options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        UsageError, match=r"--sae-ray auto: no Ray cluster answers there \(Could not find any .*ray start"
    ):
        RayMeasurer("auto", 1, lab.path, lambda *said: None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'pytest-sae-bench\[ray\]'"):
        RayMeasurer("auto", 1, lab.path, lambda *said: None)


def specs(count: int, site: str) -> list[SAESpec]:
    return [SAESpec(f"{site}/{index}", path=f"/x/{index}", model="m", site=site) for index in range(count)]


def test_saes_of_a_site_stay_together_unless_places_stand_empty() -> None:
    both = [*specs(5, "a"), *specs(2, "b")]
    ids = [[spec.id for spec in part] for part in divide_saes(both, 1)]
    assert ids == [[f"a/{index}" for index in range(5)], ["b/0", "b/1"]]
    assert [len(part) for part in divide_saes(both, 6)] == [1, 2, 2, 1, 1]
    assert sorted(spec.id for part in divide_saes(both, 100) for spec in part) == sorted(spec.id for spec in both)
    # What only a config says is not known; SAEs of one folder are taken for those of one model.
    unknown = [SAESpec(f"{folder}{index}", path=f"/{folder}/{index}") for folder in "xy" for index in range(2)]
    assert [len(part) for part in divide_saes(unknown, 1)] == [2, 2]


def test_files_are_known_by_content_and_copied_where_they_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned_files, "copies_folder", lambda: tmp_path / "cache")
    folder, corpus = tmp_path / "front" / "sae", tmp_path / "front" / "corpus.jsonl"
    (folder / "deep").mkdir(parents=True)
    (folder / "cfg.json").write_text("{}")
    (folder / "deep" / "weights").write_bytes(b"\x00\x01")
    corpus.write_text("a")
    corpus.with_name("corpus_shifted.jsonl").write_text("b")
    corpus.with_name("other.jsonl").write_text("c")
    fetched: list[bytes] = []

    def fetch(reference: Any) -> bytes:
        fetched.append(reference)
        return bytes(reference)

    held = {
        name: pinned_files.pin_path(str(path), name, lambda data: data)
        for name, path in (("path", folder), ("contrast", corpus))
    }
    assert all(each is not None for each in held.values())
    assert pinned_files.local_path(held["path"], "path", fetch) == str(folder)
    assert not fetched, "it lies here already"
    assert pinned_files.pin_path("hf:org/name", "path", lambda data: data) is None

    (tmp_path / "front").rename(tmp_path / "elsewhere")
    for _ in range(2):
        copy = Path(pinned_files.local_path(held["path"], "path", fetch))
        assert (copy / "deep" / "weights").read_bytes() == b"\x00\x01"
        assert copy.name == "sae"
    assert len(fetched) == 2, "a copy is kept"
    data = Path(pinned_files.local_path(held["contrast"], "contrast", fetch))
    assert sorted(each.name for each in data.parent.iterdir()) == ["corpus.jsonl", "corpus_shifted.jsonl"]
    monkeypatch.chdir(tmp_path / "elsewhere")
    relative = pinned_files.pin_path("./sae", "path", None)
    assert relative is not None
    assert relative.path == str(tmp_path / "elsewhere" / "sae"), "a worker stands elsewhere"
    spec = pinned_files.with_local_paths(
        SAESpec("a", path=str(folder), contrast=str(corpus)),
        {("path", str(folder)): "p", ("contrast", str(corpus)): "c"},
    )
    assert (spec.path, spec.contrast, spec.corpus) == ("p", "c", None)

    # Another content under the same path is not taken for it.
    (tmp_path / "front" / "sae").mkdir(parents=True)
    (tmp_path / "front" / "sae" / "cfg.json").write_text("{ }")
    assert pinned_files.local_path(held["path"], "path", fetch) == str(copy)
    everywhere = pinned_files.pin_path(str(tmp_path / "elsewhere" / "sae"), "path", None)
    assert everywhere is not None
    (tmp_path / "elsewhere" / "sae" / "cfg.json").write_text("[]")
    with pytest.raises(LoadError, match="changed while it was measured"):
        pinned_files.local_path(everywhere, "path", fetch)
