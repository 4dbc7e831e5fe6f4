"""Train the demo's SAEs with SAELens' own trainers, on activations of the demo's model."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer

from sae_bench.demo.batches import pack
from sae_bench.demo.capture import capture
from sae_bench.demo.language.documents import document
from sae_bench.demo.paths import SAE_NAMES, SITE, WIDTHS, DemoPaths, site_of
from sae_bench.demo.tokenizer import CONTEXT
from sae_bench.model.load import load_model

log = logging.getLogger(__name__)

TEXT_SEED = 50_000_017
"""Seed of the texts the SAEs learn from; neither the training of the model nor any evaluation uses them."""


@dataclass(frozen=True)
class SAERecipe:
    """Parameters that all SAEs share, except for the changes of `recipe_of`."""

    documents: int = 6000
    """Texts whose activations are cached."""
    steps: int = 2500
    batch: int = 1024
    """Activations a step."""
    width: int = 768
    rate: float = 1e-3
    seed: int = 11
    site: str = SITE


def recipe_of(name: str, shared: SAERecipe) -> SAERecipe:
    """Return the recipe of one SAE: the shared one with its own width, seed and site."""
    return replace(
        shared,
        width=WIDTHS.get(name, shared.width),
        seed=shared.seed + (1 if name == "topk-seed1" else 0),
        site=site_of(name),
    )


def _common(recipe: SAERecipe) -> dict[str, Any]:
    """Return the part of a SAELens config that does not depend on the architecture."""
    return {
        "d_sae": recipe.width,
        "dtype": "float32",
        "device": "cpu",
        # Scales the input to norm sqrt(d_in) during training and is folded into the weights at the end, so that
        # penalties mean the same at every site.
        "normalize_activations": "expected_average_only_in",
        "metadata": SAEMetadata(
            model_name="sae_bench.demo",
            hook_name=recipe.site,
            prepend_bos=True,
            context_size=CONTEXT,
            dataset_path="sae_bench.demo.language",
        ),
    }


def _standard(d_in: int, recipe: SAERecipe) -> Any:
    # Strong enough a penalty that activations come out visibly too small, as they do in published L1 SAEs.
    warm = recipe.steps // 10
    return StandardTrainingSAE(
        StandardTrainingSAEConfig(d_in=d_in, l1_coefficient=0.8, l1_warm_up_steps=warm, **_common(recipe))
    )


def _gated(d_in: int, recipe: SAERecipe) -> Any:
    warm = recipe.steps // 10
    return GatedTrainingSAE(
        GatedTrainingSAEConfig(d_in=d_in, l1_coefficient=1.0, l1_warm_up_steps=warm, **_common(recipe))
    )


def _jumprelu(d_in: int, recipe: SAERecipe) -> Any:
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=d_in,
            jumprelu_sparsity_loss_mode="tanh",
            jumprelu_ste_to_input=True,
            jumprelu_init_threshold=0.1,
            jumprelu_bandwidth=1.0,
            l0_coefficient=0.1,
            l0_warm_up_steps=recipe.steps // 2,
            pre_act_loss_coefficient=3e-6,
            **_common(recipe),
        )
    )


def _topk(d_in: int, recipe: SAERecipe) -> Any:
    return TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, k=16, aux_loss_coefficient=0.25, **_common(recipe)))


def _batchtopk(d_in: int, recipe: SAERecipe) -> Any:
    return BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(d_in=d_in, k=16, aux_loss_coefficient=0.25, **_common(recipe))
    )


def _matryoshka(d_in: int, recipe: SAERecipe) -> Any:
    widths = [recipe.width // 8, recipe.width // 4, recipe.width // 2, recipe.width]
    return MatryoshkaBatchTopKTrainingSAE(
        MatryoshkaBatchTopKTrainingSAEConfig(
            d_in=d_in,
            k=20,
            matryoshka_widths=widths,
            aux_loss_coefficient=0.5,
            use_matryoshka_aux_loss=True,
            **_common(recipe),
        )
    )


BUILDERS: dict[str, Callable[[int, SAERecipe], Any]] = {
    "standard": _standard,
    "gated": _gated,
    "jumprelu": _jumprelu,
    "topk": _topk,
    "batchtopk": _batchtopk,
    "matryoshka": _matryoshka,
}
"""By architecture, the first word of an SAE's name."""


def cached_activations(folder: DemoPaths, recipe: SAERecipe) -> torch.Tensor:
    """Capture activations of the saved model on fresh texts, at the recipe's site (tokens, d_in)."""
    rng = random.Random(TEXT_SEED)
    model = load_model(str(folder.model))
    parts = []
    for start in range(0, recipe.documents, 256):
        documents = [document(rng) for _ in range(min(256, recipe.documents - start))]
        lengths = torch.tensor([len(item.words) for item in documents])
        parts.append(capture(model, pack(documents).tokens, lengths, recipe.site))
    return torch.cat(parts)


def _shuffled(activations: torch.Tensor, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield endless batches (size, d_in); every pass over the activations is in a new order."""
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]]


def train_sae(name: str, activations: torch.Tensor, recipe: SAERecipe) -> Any:
    """Train one SAE; its decoder rows are folded to norm 1."""
    # SAELens draws initial weights from the global generator; the fork leaves the caller's state as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        sae = BUILDERS[name.partition("-")[0]](activations.shape[1], recipe)
    config = SAETrainerConfig(
        total_training_samples=recipe.steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.rate,
        lr_end=recipe.rate / 20,
        lr_warm_up_steps=recipe.steps // 20,
        lr_decay_steps=recipe.steps // 3,
        dead_feature_window=50,
        n_batches_for_norm_estimate=min(100, max(1, len(activations) // recipe.batch)),
        logger=LoggingConfig(log_to_wandb=False),
    )
    provider = _shuffled(activations, recipe.batch, torch.Generator().manual_seed(recipe.seed))
    SAETrainer(config, sae, provider).fit()
    sae.fold_W_dec_norm()
    return sae.eval()


def train_saes(folder: DemoPaths, recipe: SAERecipe, names: tuple[str, ...] = SAE_NAMES) -> None:
    """Train and save the SAEs in SAELens' inference format."""
    for site in dict.fromkeys(map(site_of, names)):
        activations = cached_activations(folder, replace(recipe, site=site))
        mean_norm = float(activations.norm(dim=-1).mean())
        log.info(
            "%d activations of %s, mean norm %.2f (sqrt of width %.2f)",
            len(activations),
            site,
            mean_norm,
            math.sqrt(activations.shape[1]),
        )
        for name in names:
            if site_of(name) == site:
                sae = train_sae(name, activations, recipe_of(name, recipe))
                sae.save_inference_model(folder.sae(name))
                log.info("SAE %s saved", name)
