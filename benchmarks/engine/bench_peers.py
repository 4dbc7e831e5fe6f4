"""This suite beside SAELens' ``run_evals`` and SAEBench's core: the same model, SAEs, tokens and metrics.

``make bench-engine`` runs it. A model of GPT-2 small's shape with random weights, JumpReLU SAEs of 24,576 latents,
4,096 tokens; KL, loss, L0, explained variance, cosine and gamma of the clean, the SAE's and the zero-ablated run.
Rounds of everybody take turns. ``extra_info`` holds medians on the clock and of the processor, and their ratios.
The floor is the time that the operations of a suffix (everything after the site) would take at the rate of a bare
matrix product measured in the same rounds.

PEER_ROUNDS says how many (3): a layer takes about five minutes on two idle cores, ``-k 10`` is one layer.
SAEBench cannot share an environment with this suite: SAEBENCH_PYTHON names the Python of one that holds ``sae-bench``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.engine.batch import Batch
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus, from_documents
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import SiteData
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model
from sae_bench.registry.site import Site
from sae_bench.sae.formats import as_sae

PEER = Path(__file__).with_name("peer_saebench.py")
PYTHON = "SAEBENCH_PYTHON"
LAYERS, WIDTH, VOCABULARY = 12, 768, 50_257
FEATURES, ACTIVE = 24_576, 64
DOCUMENTS, POSITIONS = 32, 128
ROUNDS = int(os.environ.get("PEER_ROUNDS", "3"))
SETTINGS = Settings(memory_bytes=16 << 30)
"Room to keep the clean log-probabilities (0.8 GB) for the next SAE; SAELens takes 3 GB for a batch."
AT_LEAST = {6: (2.0, 5.0), 10: (2.5, 7.0)}
"SAELens' time over ours, for the first and for a further SAE of a site."
THEIRS = {
    "kl": "kl_div_with_sae", "kl_ablated": "kl_div_with_ablation", "ce": "ce_loss_with_sae",
    "ce_clean": "ce_loss_without_sae", "ce_ablated": "ce_loss_with_ablation", "l0": "l0", "cosine": "cossim",
    "gamma": "relative_reconstruction_bias", "explained_variance": "explained_variance",
}  # fmt: skip
Times = dict[str, list[tuple[float, float]]]


def _peer() -> ModuleType:
    spec = util.spec_from_file_location("peer_saebench", PEER)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(save: Callable[[Any, Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with random weights, large enough that its outputs differ, and the tokens."""
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("peers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(GPT2LMHeadModel(GPT2Config(initializer_range=0.05)), folder / "model")
    tokens = torch.randint(VOCABULARY, (DOCUMENTS, POSITIONS), generator=torch.Generator().manual_seed(0))
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(str(folder / "model"))


@pytest.fixture(scope="module")
def lens(folder: Path) -> Any:
    return _peer().hooked(str(folder / "model"))


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return from_documents(_peer().tensors_of(folder).tolist(), has_bos=False)


def tensors(x: Tensor, seed: int) -> dict[str, Tensor]:
    """Weights of an SAE of random directions that fires ACTIVE features a token on ``x`` (tokens, width)."""
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH, generator=generator), dim=1)
    mean = x.mean(0)
    pre = (x[::8] - mean) @ decoder.T
    threshold = float(pre.flatten().topk(ACTIVE * len(pre)).values[-1])
    codes = pre * (pre > threshold)
    written = codes @ decoder
    scale = float((written * (x[::8] - mean)).sum() / written.square().sum())
    return {
        "W_enc": decoder.T.contiguous(),
        "b_enc": -(mean @ decoder.T),
        "threshold": torch.full((FEATURES,), threshold),
        "W_dec": scale * decoder,
        "b_dec": mean,
    }


def sae_lens_sae(weights: dict[str, Tensor], layer: int) -> Any:
    sae_lens = pytest.importorskip("sae_lens")
    metadata = sae_lens.saes.sae.SAEMetadata(
        model_name="gpt2", hook_name=f"blocks.{layer}.hook_resid_pre", hook_head_index=None, prepend_bos=False
    )
    config = sae_lens.JumpReLUSAEConfig(
        d_in=WIDTH, d_sae=FEATURES, apply_b_dec_to_input=False, normalize_activations="none", metadata=metadata
    )
    sae = sae_lens.JumpReLUSAE(config)
    sae.load_state_dict(weights)
    return sae


class Ours:
    """This suite at one site."""

    def __init__(self, model: Model, corpus: Corpus, layer: int) -> None:
        self.model, self.corpus, self.site = model, corpus, Site(layer, "hook_resid_pre")
        self.data = self.capture()

    def capture(self) -> SiteData:
        """As `captured`, but never one that is there already."""
        data = SiteData(self.model, self.site, self.corpus, include_bos=True, memory_bytes=SETTINGS.memory_bytes // 2)
        data.fill()
        return data

    def first(self, sae: Any) -> dict[str, Tensor]:
        self.data = self.capture()
        return self.further(sae)

    def further(self, sae: Any) -> dict[str, Tensor]:
        """Tables (documents, positions) of everything that is compared."""
        bench = Bench(sae, self.model, self.corpus, self.data, SETTINGS, include_bos=True)

        def ablated(batch: Batch) -> dict[str, Tensor]:
            found = bench.intervene(batch, torch.zeros_like(batch.x))
            return {"kl_ablated": found.kl, "ce_ablated": found.ce}

        def conditions(batch: Batch) -> dict[str, Tensor]:
            xhat, x = bench.reconstruct(batch), batch.x
            found = bench.intervene(batch, xhat)
            along, size = (x.double() * xhat.double()).sum(-1), xhat.double().square().sum(-1)
            return {
                "kl": found.kl, "ce": found.ce, "ce_clean": bench.intervene(batch, None).ce,
                "l0": bench.l0_per_token(batch),
                "error": (xhat - x).double().square().sum(-1), "along": along, "size": size,
                "spread": (x.double() - self.data.mean).square().sum(-1),
                "cosine": along / (size.sqrt() * x.double().norm(dim=-1)),
            }  # fmt: skip

        shared = self.data.shared("zero ablation", lambda: bench.collect(ablated))
        return {**shared, **bench.collect(conditions)}

    def suffix(self) -> None:
        """The bare run of everything after the site, a batch at a time, as an arm needs it."""
        for rows in torch.arange(DOCUMENTS).split(SETTINGS.batch_size):
            tokens = self.corpus.tokens[rows]
            self.model.resume(tokens, self.data.block_input[rows], self.site, self.data.x[rows])


def values(tables: dict[str, Tensor], prompts: int) -> dict[str, float]:
    """Means over tokens; gamma as SAELens has it, the mean over its batches."""
    found = {name: float(tables[name].mean()) for name in ("kl", "kl_ablated", "l0", "cosine")}
    found |= {name: float(tables[name][:, :-1].mean()) for name in ("ce", "ce_clean", "ce_ablated")}
    batches = zip(tables["size"].split(prompts), tables["along"].split(prompts), strict=True)
    found["gamma"] = statistics.fmean(float(size.sum() / along.sum()) for size, along in batches)
    found["explained_variance"] = 1 - float(tables["error"].sum() / tables["spread"].sum())
    return found


def suffix_operations(layer: int) -> float:
    """Floating-point operations of the blocks from ``layer`` on, attention, and the unembedding, over all tokens."""
    block = 2 * 12 * WIDTH**2 + 4 * POSITIONS * WIDTH
    return float(DOCUMENTS * POSITIONS * ((LAYERS - layer) * block + 2 * WIDTH * VOCABULARY))


class SAEBench:
    """SAEBench in its own process; None of it without SAEBENCH_PYTHON."""

    def __init__(self, folder: Path, weights: dict[str, Tensor], layer: int) -> None:
        from safetensors.torch import save_file

        self.process: subprocess.Popen[str] | None = None
        if not (python := os.environ.get(PYTHON)):
            return
        save_file(weights, folder / "sae.safetensors")
        (folder / "about.json").write_text(json.dumps({"layer": layer, "threads": torch.get_num_threads()}))
        self.process = subprocess.Popen(
            [python, "-I", str(PEER), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._answer("ready")

    def measure(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self._answer("{"))
        return found

    def _answer(self, start: str) -> str:
        """The next line that begins with ``start``; what else it prints is skipped."""
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise RuntimeError(f"SAEBench ended: {' '.join(map(str, self.process.args))}")

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()


def timed(times: Times, name: str, work: Callable[[], Any]) -> Any:
    clock, processor = time.perf_counter(), time.process_time()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = work()
    times.setdefault(name, []).append((time.perf_counter() - clock, time.process_time() - processor))
    return found


PRODUCTS = 8


def matrix_product() -> Callable[[], Any]:
    """Products of a batch and a block's weights: PRODUCTS times 9.7e9 operations."""
    left, right = torch.randn(2048, WIDTH), torch.randn(WIDTH, 4 * WIDTH)
    return lambda: [left @ right for _ in range(PRODUCTS)]


@pytest.fixture
def saebench() -> Iterator[list[SAEBench]]:
    started: list[SAEBench] = []
    yield started
    for each in started:
        each.close()


@pytest.mark.parametrize("layer", [2, 6, 10])
def test_peers(
    benchmark: Any, folder: Path, model: Model, lens: Any, corpus: Corpus, saebench: list[SAEBench], layer: int
) -> None:
    evals = pytest.importorskip("sae_lens.evals")
    from sae_lens.training.activation_scaler import ActivationScaler

    peer, ours, times = _peer(), Ours(model, corpus, layer), dict[str, list[tuple[float, float]]]()
    weights = [tensors(ours.data.rows, seed) for seed in (0, 1)]
    theirs = sae_lens_sae(weights[0], layer)
    saes = [as_sae(theirs), as_sae(sae_lens_sae(weights[1], layer))]
    saebench.append(SAEBench(folder, weights[0], layer))
    store, product, found = peer.Tokens(corpus.tokens), matrix_product(), dict[str, Any]()
    config = peer.evaluation(evals.EvalConfig, store.batches)

    def before() -> None:
        found["lens"] = timed(
            times, "sae_lens",
            lambda: evals.run_evals(theirs, store, lens, ActivationScaler(), config, exclude_special_tokens=False)[0],
        )  # fmt: skip
        if saebench[0].process is not None and "saebench" not in times:
            answer = saebench[0].measure()
            times["saebench"] = [(answer["seconds"], answer["processor_seconds"])]
            found["saebench"] = answer["values"]

    def after() -> None:
        timed(times, "further", lambda: ours.further(saes[1]))
        timed(times, "suffix", ours.suffix)
        timed(times, "product", product)

    def first() -> None:
        found["ours"] = timed(times, "first", lambda: ours.first(saes[0]))

    benchmark.pedantic(first, setup=before, teardown=after, rounds=ROUNDS)
    mine, lenses = values(found["ours"], peer.PROMPTS), peer.flat(found["lens"])
    apart = {name: abs(mine[name] / lenses[key] - 1) for name, key in THEIRS.items()}
    if benchmark.enabled:
        benchmark.extra_info |= figures(times, layer)
        benchmark.extra_info |= {"active": mine["l0"], "kl": mine["kl"], "largest_difference": max(apart.values())}
        if saebench[0].process is None:
            benchmark.extra_info["saebench"] = f"not measured: {PYTHON} names no environment with sae-bench"
    assert max(apart.values()) <= 1e-5, apart
    if "saebench" in found:
        # Its explained variance squares activations before it takes their mean, so it is another number.
        other = {name: found["saebench"][key] for name, key in THEIRS.items() if name != "explained_variance"}
        assert {name: mine[name] for name in other} == pytest.approx(other, rel=1e-5)
    if benchmark.enabled and layer in AT_LEAST:
        first_ratio, further_ratio = AT_LEAST[layer]
        assert benchmark.extra_info["sae_lens_over_first"] >= first_ratio
        assert benchmark.extra_info["sae_lens_over_further"] >= further_ratio


def figures(times: Times, layer: int) -> dict[str, Any]:
    """Medians of everybody's rounds, and what they say together."""
    clock, processor = (
        {name: statistics.median(each[index] for each in taken) for name, taken in times.items()} for index in (0, 1)
    )
    rate = PRODUCTS * 2 * 2048 * WIDTH * 4 * WIDTH / clock["product"]
    said: dict[str, Any] = {f"{name}_seconds": clock[name] for name in times if name != "product"}
    said |= {f"{name}_processor_seconds": processor[name] for name in times if name != "product"}
    for name in ("sae_lens", "saebench"):
        if name in times:
            for which in ("first", "further"):
                said[f"{name}_over_{which}"] = clock[name] / clock[which]
                said[f"{name}_over_{which}_processor"] = processor[name] / processor[which]
    floor = suffix_operations(layer) / rate
    return said | {
        "product_gflops": rate / 1e9,
        "suffix_floor_seconds": floor,
        "suffix_share_of_floor_rate": floor / clock["suffix"],
        "threads": torch.get_num_threads(),
        "tokens": DOCUMENTS * POSITIONS,
        "features": FEATURES,
    }
