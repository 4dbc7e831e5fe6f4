"""A repository of a user's, small enough to be measured in a second: a model, a corpus, SAEs of known quality."""

from __future__ import annotations

import importlib
import json
import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import sae_bench
from sae_bench.engine.corpus import from_documents, save_corpus
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model
from sae_bench.registry.register import SAES, load_entry_points

WIDTH, VOCABULARY, SITE = 16, 61, "blocks.1.hook_resid_pre"
QUICK = (
    "--sae-tier",
    "smoke",
    "-p",
    "no:cacheprovider",
    "--sae-property",
    "kl_gap",
    "--sae-property",
    "reconstruction",
    "--sae-property",
    "sparsity",
)

REGISTER = """
from sae_bench import register_sae
register_sae("lab/good", path="good", model="model", corpus="corpus.safetensors")
register_sae("lab/worse", path="worse", model="model", corpus="corpus.safetensors")
"""
SUITE = """
from sae_bench.frontends.testing import property_test
test_kl_gap = property_test("kl_gap")
test_reconstruction = property_test("reconstruction")
test_sparsity = property_test("sparsity")
"""


def write_sae(folder: Path, scale: float, **changes: object) -> None:
    """An identity in 2 * width ReLU features whose decoder is scaled; EV is 1 - (1 - scale)**2 for centred data."""
    eye = torch.eye(WIDTH)
    both = torch.cat([eye, -eye])
    folder.mkdir()
    tensors = {
        "W_enc": both.T.contiguous(),
        "W_dec": scale * both,
        "b_enc": torch.zeros(2 * WIDTH),
        "b_dec": torch.zeros(WIDTH),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder / "sae_weights.safetensors"))
    config = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": 2 * WIDTH,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": SITE, "model_name": "tiny", "prepend_bos": True},
    }
    (folder / "cfg.json").write_text(json.dumps(config | changes))


def own_words(model: Model, documents: int = 80, length: int = 16) -> list[list[int]]:
    """Documents that the model wrote, so that its clean loss is the best there is and every damage raises it."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.zeros(documents, 1, dtype=torch.int64)
    for _ in range(length - 1):
        following = torch.multinomial(model.logits(tokens)[:, -1].softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, following], dim=1)
    return tokens.tolist()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository, made once; tests get copies."""
    root = tmp_path_factory.mktemp("repository")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        n_positions=32,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        transformers.GPT2LMHeadModel(config).save_pretrained(root / "model")
    words = {"<s>": 0, "</s>": 1} | {f"w{index}": index for index in range(2, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        root / "model"
    )
    corpus = from_documents(own_words(load_model(str(root / "model"))), has_bos=True, source="the model itself")
    save_corpus(root / "corpus.safetensors", corpus)
    write_sae(root / "good", 0.9)
    write_sae(root / "worse", 0.7)
    (root / "conftest.py").write_text(REGISTER)
    (root / "test_sae.py").write_text(SUITE)
    return root


@pytest.fixture(autouse=True)
def _forget_registrations() -> Iterator[None]:
    """Runs in this process share its registry; every test starts with an empty one."""

    def forget() -> None:
        SAES.__init__("SAE")  # type: ignore[misc]

    forget()
    yield
    forget()


@pytest.fixture(scope="session", autouse=True)
def _imported(template: Path) -> None:
    """Import everything before pytester takes its snapshot of modules: torch cannot be imported twice."""
    for module in pkgutil.walk_packages(sae_bench.__path__, "sae_bench."):
        if "demo" not in module.name and "__main__" not in module.name:
            importlib.import_module(module.name)
    importlib.import_module("hypothesis")
    load_model(str(template / "model"))
    load_entry_points()


@pytest.fixture
def repository(pytester: pytest.Pytester, template: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's checkout; ``CI`` is not set in it."""
    monkeypatch.delenv("CI", raising=False)
    for entry in template.iterdir():
        target = pytester.path / entry.name
        shutil.copytree(entry, target) if entry.is_dir() else shutil.copy(entry, target)
    return pytester


class Suite:
    """Runs the user's suite quickly."""

    def __init__(self, repository: pytest.Pytester) -> None:
        self.repository = repository
        self.path = repository.path

    def __call__(self, *arguments: str, **options: object) -> pytest.RunResult:
        SAES.__init__("SAE")  # type: ignore[misc]
        return self.repository.runpytest_inprocess(*QUICK, *arguments, **options)

    def everything(self, *arguments: str) -> pytest.RunResult:
        """A run that no option narrows."""
        SAES.__init__("SAE")  # type: ignore[misc]
        return self.repository.runpytest_inprocess("--sae-tier", "smoke", "-p", "no:cacheprovider", *arguments)

    def plain(self, *arguments: str) -> pytest.RunResult:
        """With no option but those given."""
        SAES.__init__("SAE")  # type: ignore[misc]
        return self.repository.runpytest_inprocess(*arguments)

    def accept(self, *arguments: str) -> pytest.RunResult:
        return self("--sae-accept", "--sae-accept-reason", "measured", *arguments)

    def report(self) -> dict:  # type: ignore[type-arg]
        return json.loads((self.path / "reports" / "latest.json").read_text())


@pytest.fixture
def suite(repository: pytest.Pytester) -> Suite:
    return Suite(repository)
