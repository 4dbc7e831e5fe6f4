"""What a corpus of a million tokens takes at d = 2,304: 9.7 GB of activations in a process that may hold 8 GB.

Run by ``make bench-engine``; it needs 20 GB of disk in ``TMPDIR``. A GPT-2-shaped model of one block with random
weights and a TopK SAE of 512 features; `reconstruction`, `sparsity` and `kl_gap` of 64 documents, for which the SAE is
run over the whole corpus: it says what is dead, and the noise floors draw from its errors. ``RLIMIT_DATA`` bounds what
the process may allocate; pages of mapped files are the kernel's to take back and do not count. ``extra_info`` holds the
largest anonymous memory that was seen, beside that of smaller corpora.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

LIMIT = 8 * 10**9
WIDTH, LENGTH, VOCABULARY = 2304, 128, 1000
TOKENS = (131_072, 262_144, 524_288, 1_048_576)
CHILD = """
import json, re, resource, sys, threading, time
from pathlib import Path

folder = sys.argv[1]
tokens, limit, width, length, vocabulary = map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

import torch

from sae_bench.engine.bench import Bench
from sae_bench.engine.site_data import capture_site
from sae_bench.engine.settings import Settings
from sae_bench.engine.corpus import from_documents
from sae_bench.model.load import load_model
from sae_bench.measure.properties import load_property
from sae_bench.registry.site import parse_site
from sae_bench.engine.settings import TIERS

FEATURES = 512
most = {"RssAnon": 0, "VmData": 0}


def watch():
    while True:
        text = Path("/proc/self/status").read_text()
        for name in most:
            most[name] = max(most[name], int(re.search(name + r":\\s+(\\d+) kB", text)[1]) * 1024)
        time.sleep(0.02)


class TopK:
    d_in, d_sae = width, FEATURES

    def __init__(self):
        self.W_dec = torch.nn.functional.normalize(torch.randn(FEATURES, width), dim=1)

    def encode(self, x):
        pre = x @ self.W_dec.T
        found = pre.topk(32, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, found.indices, found.values.relu())

    def decode(self, codes, like=None):
        return codes @ self.W_dec


torch.manual_seed(0)
threading.Thread(target=watch, daemon=True).start()
model = load_model(folder)
documents = torch.randint(1, vocabulary, (tokens // length, length)).tolist()
corpus = from_documents(documents, has_bos=False)
del documents
settings = Settings(tier=TIERS["smoke"], memory_bytes=limit * 3 // 4)
started = time.perf_counter()
data = capture_site(model, parse_site("blocks.0.hook_resid_pre"), corpus, settings)
bench = Bench(TopK(), model, corpus, data, settings)
found = {name: load_property(name).measure(bench) for name in ("reconstruction", "sparsity", "kl_gap")}
print(json.dumps({
    "activation_bytes": data.x.nbytes,
    "mapped_bytes": data.tensors.mapped_bytes,
    "anonymous_bytes": most["RssAnon"],
    "data_bytes": most["VmData"],
    "seconds": time.perf_counter() - started,
    "l0": found["sparsity"].estimates["l0"].value,
    "kl_sae": found["kl_gap"].estimates["kl_sae"].value,
}))
"""


@pytest.fixture(scope="module")
def folder(save: Callable[[Any, Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=1, n_head=8, n_positions=LENGTH)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save(GPT2LMHeadModel(config), tmp_path_factory.mktemp("wide"))


@pytest.mark.parametrize("tokens", TOKENS)
def test_memory(benchmark: Any, folder: Path, tokens: int) -> None:
    told: list[dict[str, float]] = []
    numbers = map(str, (tokens, LIMIT, WIDTH, LENGTH, VOCABULARY))
    command = [sys.executable, "-c", CHILD, str(folder), *numbers]

    def run() -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(json.loads(done.stdout.splitlines()[-1]))

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {"limit_bytes": LIMIT, **told[-1]}
    assert told[-1]["anonymous_bytes"] < LIMIT
