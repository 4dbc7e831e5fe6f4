"""Files and weights of language models: find them, check that they are complete, and hash them."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from sae_bench.errors import LoadError
from sae_bench.registry.file_hash import file_sha256
from sae_bench.sae.protocol import tensor_bytes

_FILE_PATTERNS = ("*.json", "model*.safetensors", "tokenizer*", "*.txt", "*.model", "*.py")
_MISSING = re.compile(r"^(\S+)\s*\|\s*MISSING|newly initialized: \[(.{1,120})", re.MULTILINE)


def model_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model's files; a hub name is downloaded, or taken from earlier downloads."""
    local = Path(name).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise LoadError(f"model folder {name} has no config.json; save the model there with save_pretrained()")
        return local
    if local.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise LoadError(f"model folder {name} does not exist; give a Hugging Face folder or a hub name such as 'gpt2'")
    from huggingface_hub import snapshot_download

    with quiet():
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILE_PATTERNS)))
        except Exception as error:
            raise LoadError(
                f"model {name!r} is not a folder here, and Hugging Face does not provide it ({one_line(error, 160)}); "
                f"check the name and the network, or download it and give its folder"
            ) from error


def weight_files(name: str, folder: Path) -> list[Path]:
    """Return the model's safetensors files; a `LoadError` when its weights are stored otherwise."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise LoadError(
            f"model {name!r} has no model*.safetensors, and pickles are not read; load it once with transformers, "
            f"save it with save_pretrained(FOLDER), and give that folder"
        )
    return files


def tokenizer_sha256(folder: Path) -> str | None:
    """Hash of the folder's tokenizer.json; None when it has none."""
    file = folder / "tokenizer.json"
    return file_sha256(file) if file.is_file() else None


def tensors_sha256(files: Iterable[Path]) -> str:
    """Hash of all tensors in safetensors files, however they are spread over them."""
    file_of: dict[str, Any] = {}
    with ExitStack() as stack:
        for file in files:
            opened = stack.enter_context(safe_open(str(file), framework="pt"))
            file_of.update(dict.fromkeys(opened.keys(), opened))
        digest = hashlib.sha256()
        for key in sorted(file_of):
            tensor = file_of[key].get_tensor(key)
            digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def content_sha256(module: nn.Module) -> str:
    """Hash of a module's weights that depends neither on their names nor on zero tensors that wrappers add."""
    digests = set()
    for parameter in module.parameters():
        tensor = parameter.detach().cpu()
        if bool((tensor != 0).any()):
            shape = f"{list(tensor.shape)} {tensor.dtype}".encode()
            digests.add(hashlib.sha256(shape + tensor_bytes(tensor)).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def check_complete(name: str, loading_log: str) -> None:
    """Raise a `LoadError` when the loading log names missing weights, which transformers fills with random numbers."""
    missing = _MISSING.search(loading_log)
    if missing:
        raise LoadError(
            f"model {name!r} has no weights for {missing[1] or missing[2]}, which its config.json asks for; save it "
            f"again with save_pretrained()"
        )


def check_finite_weights(name: str, model: Any) -> None:
    """Raise a `LoadError` that names the first weight with a NaN or inf."""
    for key, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            plain = key.replace("_original_component.", "")
            raise LoadError(f"model {name!r} has NaN or infinite weights in {plain}; fetch or save it again")


def one_line(error: BaseException, limit: int = 240) -> str:
    """Return an exception's message on one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Silence prints, warnings, log lines and progress bars of libraries within the block; yield their log."""
    from transformers.utils import logging as library

    log = io.StringIO()
    loggers = [logging.getLogger(), logging.getLogger("transformers")]
    handlers = [list(logger.handlers) for logger in loggers]
    # Set on the logger itself, because TransformerLens raises its parent's level while it is being imported.
    reporter = logging.getLogger("transformers.modeling_utils")
    level, bars = reporter.level, library.is_progress_bar_enabled()
    try:
        reporter.setLevel(logging.WARNING)
        for logger in loggers:
            logger.handlers = [logging.StreamHandler(log)]
        library.disable_progress_bar()  # type: ignore[no-untyped-call]
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield log
    finally:
        for logger, own in zip(loggers, handlers, strict=True):
            logger.handlers = own
        reporter.setLevel(level)
        if bars:
            library.enable_progress_bar()  # type: ignore[no-untyped-call]
