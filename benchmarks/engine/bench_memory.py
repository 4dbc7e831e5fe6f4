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
from typing import Any

import pytest

LIMIT = 8 * 10**9
TOKENS = (131_072, 262_144, 524_288, 1_048_576)
CHILD = """
import json, re, resource, sys, tempfile, threading, time
from pathlib import Path

tokens, limit = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from sae_bench.bench import Bench, Settings, site_data
from sae_bench.corpus import from_documents
from sae_bench.model import load_model
from sae_bench.properties import load_property
from sae_bench.site import parse_site
from sae_bench.tiers import TIERS

WIDTH, FEATURES, LENGTH = 2304, 512, 128
most = {"RssAnon": 0, "VmData": 0}


def watch():
    while True:
        text = Path("/proc/self/status").read_text()
        for name in most:
            most[name] = max(most[name], int(re.search(name + r":\\s+(\\d+) kB", text)[1]) * 1024)
        time.sleep(0.02)


class TopK:
    d_in, d_sae = WIDTH, FEATURES

    def __init__(self):
        self.W_dec = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH), dim=1)

    def encode(self, x):
        pre = x @ self.W_dec.T
        found = pre.topk(32, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, found.indices, found.values.relu())

    def decode(self, codes, like=None):
        return codes @ self.W_dec


torch.manual_seed(0)
threading.Thread(target=watch, daemon=True).start()
with tempfile.TemporaryDirectory() as folder:
    config = GPT2Config(vocab_size=1000, n_embd=WIDTH, n_layer=1, n_head=8, n_positions=LENGTH)
    GPT2LMHeadModel(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>").save_pretrained(folder)
    model = load_model(folder)
    model.identity
documents = torch.randint(1, 1000, (tokens // LENGTH, LENGTH)).tolist()
corpus = from_documents(documents, has_bos=False)
del documents
settings = Settings(tier=TIERS["smoke"], memory_bytes=limit * 3 // 4)
started = time.perf_counter()
data = site_data(model, parse_site("blocks.0.hook_resid_pre"), corpus, settings)
bench = Bench(TopK(), model, corpus, data, settings)
found = {name: load_property(name).measure(bench) for name in ("reconstruction", "sparsity", "kl_gap")}
print(json.dumps({
    "activation_bytes": data.x.nbytes,
    "mapped_bytes": data.store.mapped,
    "anonymous_bytes": most["RssAnon"],
    "data_bytes": most["VmData"],
    "seconds": time.perf_counter() - started,
    "l0": found["sparsity"].estimates["l0"].value,
    "kl_sae": found["kl_gap"].estimates["kl_sae"].value,
}))
"""


@pytest.mark.parametrize("tokens", TOKENS)
def test_memory(benchmark: Any, tokens: int) -> None:
    told: list[dict[str, float]] = []

    def run() -> None:
        done = subprocess.run([sys.executable, "-c", CHILD, str(tokens), str(LIMIT)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(json.loads(done.stdout.splitlines()[-1]))

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {"limit_bytes": LIMIT, **told[-1]}
    assert told[-1]["anonymous_bytes"] < LIMIT
