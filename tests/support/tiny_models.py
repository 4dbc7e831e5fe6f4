"""Tiny random language models of eight architectures, saved as Hugging Face folders; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sae_bench.engine.corpus import Corpus, from_documents
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model

VOCABULARY = 61
SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GROUPED = SHARED | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 6}
CONFIGS: dict[str, dict[str, object]] = {
    "GPT2": {
        "vocab_size": VOCABULARY,
        "n_embd": 16,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "Llama": GROUPED,
    "GPTNeoX": SHARED,
    "Gemma2": HEADS | {"query_pre_attn_scalar": 6, "sliding_window": 8, "final_logit_softcapping": 2.0},
    "Gemma3": HEADS | {"query_pre_attn_scalar": 6, "sliding_window": 8},
    "Qwen2": GROUPED,
    "Qwen3": HEADS,
    "Mistral": HEADS,
}


def save_model(architecture: str, folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    config_name = "Gemma3TextConfig" if architecture == "Gemma3" else f"{architecture}Config"
    class_name = "GPT2LMHeadModel" if architecture == "GPT2" else f"{architecture}ForCausalLM"
    config = getattr(transformers, config_name)(**CONFIGS[architecture])
    with torch.random.fork_rng():
        torch.manual_seed(7)
        getattr(transformers, class_name)(config).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1} | {f"w{index}": index for index in range(2, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model, made when first asked for."""
    root = tmp_path_factory.mktemp("models")

    def get(architecture: str) -> Path:
        folder = root / architecture
        if not folder.exists():
            save_model(architecture, folder)
        return folder

    return get


@pytest.fixture(scope="session")
def tiny_model(model_folder: Callable[[str], Path]) -> Callable[..., Model]:
    """A loaded tiny model; ``processed`` folds norms and centres weights."""
    models: dict[tuple[str, bool], Model] = {}

    def get(architecture: str, processed: bool = False) -> Model:
        if (architecture, processed) not in models:
            kwargs = {"fold_ln": True, "center_writing_weights": True} if processed else {}
            models[architecture, processed] = load_model(str(model_folder(architecture)), kwargs=kwargs)
        return models[architecture, processed]

    return get


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Fourteen documents of 2 to 20 tokens; some texts have two or three of them."""
    generator = torch.Generator().manual_seed(3)
    lengths = [20, 7, 20, 2, 13, 20, 20, 5, 20, 11, 20, 3, 20, 16]
    documents = [[0, *torch.randint(2, VOCABULARY, (length - 1,), generator=generator).tolist()] for length in lengths]
    return from_documents(documents, cluster=[0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 7, 8, 9], has_bos=True, source="random")
