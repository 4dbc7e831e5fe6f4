"""Models small enough to be solved by hand: what a site holds and what follows from it are given as functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus, from_documents
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.registry.site import Site, parse_site
from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo


class Words:
    """A tokenizer that knows one word per id; the first is special, the last unknown."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.all_special_ids = [0]
        self.unk_token_id = len(words) - 1

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self.words.index(word) if word in self.words else self.unk_token_id for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[token] for token in ids)


class SolvedModel:
    """``x = embed(tokens)`` at its only site and ``logits = head(x)`` behind it, with nothing in between."""

    device = "cpu"
    dtype = "float32"
    tokenizer_sha256 = None
    n_layers = 1

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor],
        head: Callable[[Tensor], Tensor],
        words: list[str],
        width: int,
        context: int = 64,
    ) -> None:
        self.embed, self.head = embed, head
        self.name = f"solved {id(self)}"
        self.identity = {"weights": self.name}
        self.d_model, self.d_vocab, self.context = width, len(words), context
        self.tokenizer = Words(words)

    def width(self, site: Site) -> int:
        return self.d_model

    def capture(self, tokens: Tensor, site: Site) -> Any:
        from sae_bench.model.language_model import SiteCapture

        x = self.embed(tokens)
        return SiteCapture(value=x, block_input=x)

    def resume(
        self,
        tokens: Tensor,
        block_input: Tensor,
        site: Site,
        value: Tensor,
        *,
        select: Tensor | None = None,
        options: Any = None,
    ) -> Tensor:
        return self.head(value if select is None else value[select])

    def logit_blocks(self, *where: Any, select: Tensor, entries: int) -> Iterator[Tensor]:
        yield self.resume(*where, select=select)

    def gradient(
        self,
        tokens: Tensor,
        block_input: Tensor,
        site: Site,
        value: Tensor,
        objective: Callable[[Tensor], Tensor],
        *,
        select: Tensor | None = None,
    ) -> Tensor:
        with torch.enable_grad():
            value = value.clone().requires_grad_()
            logits = self.head(value if select is None else value[select])
            return torch.autograd.grad(objective(logits).sum(), value)[0]

    def final_logits(self, resid: Tensor) -> Tensor:
        return self.head(resid)


CLASSES, PER_CLASS, WIDTH, EXTRA = 24, 10, 48, 759
VOCABULARY = 1 + CLASSES * PER_CLASS + EXTRA


class Planted:
    """A linear model in which feature i fires on the words of class i and its direction raises exactly those words."""

    def __init__(self, seed: int = 0, noise: float = 0.12) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.directions = torch.linalg.qr(normal(WIDTH, CLASSES)).Q.T.contiguous()  # (classes, d)
        self.word_class = torch.full((VOCABULARY,), -1)
        self.word_class[1 : 1 + CLASSES * PER_CLASS] = torch.arange(CLASSES).repeat(PER_CLASS)
        self.embedding = 0.2 * normal(VOCABULARY, WIDTH)
        known = self.word_class >= 0
        self.embedding[known] += 3 * self.directions[self.word_class[known]]
        raised = torch.nn.functional.one_hot(self.word_class.clamp(min=0), CLASSES).float() * known[:, None]
        self.unembedding = (raised @ self.directions).T + noise * normal(WIDTH, VOCABULARY)  # (d, V)
        # Other words fall as these rise, or every direction would lower what it does not raise, against the mean.
        self.unembedding[:, -EXTRA:] -= PER_CLASS / EXTRA * self.directions.sum(0)[:, None]
        self.model = SolvedModel(
            lambda tokens: self.embedding[tokens],
            lambda x: x @ self.unembedding,
            ["<s>", *(f"w{index}" for index in range(1, VOCABULARY - 1)), "<unk>"],
            WIDTH,
        )
        documents = [
            [0, *torch.randint(1, 1 + CLASSES * PER_CLASS, (19,), generator=generator).tolist()] for _ in range(128)
        ]
        self.corpus = from_documents(documents, has_bos=True, source="planted")

    def sae(self) -> LinearDecoderSAE:
        info = SAEInfo(format="test", architecture="standard", d_in=WIDTH, d_sae=CLASSES)
        return LinearDecoderSAE(
            info=info,
            W_enc=self.directions.T.contiguous(),
            activation=ReLU(torch.full((CLASSES,), -1.5)),
            W_dec=self.directions.clone(),
            b_dec=torch.zeros(WIDTH),
            pre_bias=torch.zeros(WIDTH),
        )

    def bench(self, sae: Any = None, settings: Settings | None = None, **options: Any) -> Bench:
        return make_bench(self.model, self.corpus, self.sae() if sae is None else sae, settings, **options)


def make_bench(model: Any, corpus: Corpus, sae: Any, settings: Settings | None = None, **options: Any) -> Bench:
    settings = settings or Settings()
    data = capture_site(model, parse_site("blocks.0.hook_resid_pre"), corpus, settings)
    return Bench(sae, model, corpus, data, settings, **options)


@pytest.fixture(scope="session")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="session")
def solved() -> type[SolvedModel]:
    return SolvedModel


@pytest.fixture(scope="session")
def bench_of() -> Callable[..., Bench]:
    return make_bench
