"""A pinned corpus: one safetensors file of token ids, cut into documents, named by what it contains.

Shapes: docs, pos (the longest document; shorter ones are padded on the right).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae_bench.errors import LoadError

SCHEMA = 1
"The newest file layout this version reads and the one it writes."

_BUILD = "make one with 'pytest-sae-bench corpus build --text FILE --model MODEL --out {path}'"


@dataclass(frozen=True)
class CorpusMetadata:
    """Optional texts of a corpus file, none of which decides a number."""

    rules: str = ""
    "Rules by which texts were cut into documents, in words."
    ids: tuple[str, ...] | None = None
    "Per document, the name of its text and the number of the piece."
    texts: tuple[str, ...] | None = None
    "Per document, its text, for reports."


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents of token ids."""

    path: str
    "File of the corpus; '' for one that was never written."
    tokens: Tensor
    "int64 (docs, pos), padded with 0 behind each document's end."
    lengths: Tensor
    "int64 (docs,), at least 2."
    cluster: tuple[int, ...]
    "Per document, the text it is a chunk of: documents of one cluster are not independent."
    tokenizer_sha256: str | None
    "Hash of the tokenizer.json that made the ids; None when the file does not name it."
    source: str
    "Origin of the text, in words."
    has_bos: bool
    "True when position 0 of every document is the beginning-of-sequence token."
    sha256: str
    "Hash of tokens, lengths and clusters; equal content in two files has one hash."
    notes: CorpusMetadata = field(default_factory=lambda: CorpusMetadata())
    "Texts that do not decide any number."

    def __len__(self) -> int:
        return len(self.cluster)

    def take(self, count: int) -> Corpus:
        """Return the first ``count`` documents, as a corpus with its own sha256."""
        ids, texts = (None if column is None else column[:count] for column in (self.notes.ids, self.notes.texts))
        taken = _corpus(
            self.tokens[:count],
            self.lengths[:count],
            self.cluster[:count],
            path=self.path,
            tokenizer_sha256=self.tokenizer_sha256,
            source=self.source,
            has_bos=self.has_bos,
        )
        return replace(taken, notes=CorpusMetadata(self.notes.rules, ids, texts))


def load_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Read a corpus file.

    ``tokens`` (docs, pos) is required; without ``lengths`` all documents fill every position, without ``cluster`` each
    is its own. Anything else wrong with the file is a one-sentence `LoadError`.
    """
    file = Path(path).expanduser()
    tensors, metadata = _read(file)
    schema = metadata.get("schema", str(SCHEMA))
    if not schema.isdigit() or int(schema) > SCHEMA:
        raise LoadError(f"corpus {file} has schema {schema!r}, newer than {SCHEMA}; update pytest-sae-bench to read it")
    if "tokens" not in tensors:
        names = ", ".join(sorted(tensors)) or "nothing"
        raise LoadError(f"corpus {file} holds no tensor 'tokens' (it holds {names}); {_BUILD.format(path=file)}")
    tokens = _integers(tensors["tokens"], "tokens", 2, file)
    docs, pos = tokens.shape
    lengths = _integers(tensors.get("lengths", torch.full((docs,), pos)), "lengths", 1, file)
    cluster = _integers(tensors.get("cluster", torch.arange(docs)), "cluster", 1, file)
    for name, tensor in (("lengths", lengths), ("cluster", cluster)):
        if tensor.shape[0] != docs:
            raise LoadError(f"corpus {file} has {tensor.shape[0]} {name} for {docs} documents; build it again")
    corpus = _corpus(
        tokens,
        lengths,
        tuple(cluster.tolist()),
        path=str(file),
        tokenizer_sha256=metadata.get("tokenizer_sha256") or None,
        source=metadata.get("source", ""),
        has_bos=_has_bos(metadata, tokens),
    )
    columns = {name: _column(tensors.get(name), name, docs, file) for name in ("ids", "texts")}
    return replace(corpus, notes=CorpusMetadata(metadata.get("rules", ""), **columns))


def save_corpus(path: str | os.PathLike[str], corpus: Corpus) -> None:
    """Write ``corpus`` so that `load_corpus` gives it back; the file appears whole or not at all."""
    file = Path(path).expanduser()
    metadata = {"schema": str(SCHEMA), "source": corpus.source, "bos": "true" if corpus.has_bos else "false"}
    if corpus.tokenizer_sha256 is not None:
        metadata["tokenizer_sha256"] = corpus.tokenizer_sha256
    tensors = {
        "tokens": corpus.tokens.to(torch.int32).contiguous(),
        "lengths": corpus.lengths.to(torch.int32).contiguous(),
        "cluster": torch.tensor(corpus.cluster, dtype=torch.int32),
    }
    if corpus.notes.rules:
        metadata["rules"] = corpus.notes.rules
    for name, column in (("ids", corpus.notes.ids), ("texts", corpus.notes.texts)):
        if column is not None:
            packed = json.dumps(column, ensure_ascii=False, separators=(",", ":")).encode()
            tensors[name] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        # Not save_file, which lets only the owner read the file: a corpus is for everybody the umask allows.
        partial.write_bytes(save(tensors, metadata))
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def from_documents(
    documents: Sequence[Sequence[int]],
    *,
    has_bos: bool,
    cluster: Sequence[int] | None = None,
    source: str = "",
    tokenizer_sha256: str | None = None,
) -> Corpus:
    """Return a corpus of token id lists; without ``cluster`` each document is its own."""
    lengths = torch.tensor([len(ids) for ids in documents], dtype=torch.int64)
    tokens = torch.zeros(len(documents), int(lengths.max()) if len(documents) else 0, dtype=torch.int64)
    for row, ids in enumerate(documents):
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return _corpus(
        tokens,
        lengths,
        tuple(range(len(documents)) if cluster is None else cluster),
        path="",
        tokenizer_sha256=tokenizer_sha256,
        source=source,
        has_bos=has_bos,
    )


def check_vocabulary(corpus: Corpus, vocabulary: int) -> None:
    """Raise a `LoadError` when a token id of the corpus is beyond a model's ``vocabulary`` entries."""
    highest = int(corpus.tokens.max())
    if highest >= vocabulary:
        document, position = (corpus.tokens == highest).nonzero()[0].tolist()
        raise LoadError(
            f"corpus {_name(corpus.path)} has token id {highest} (document {document}, position {position}), but the "
            f"model's vocabulary ends at {vocabulary - 1}; build the corpus with this model's tokenizer"
        )


def check_tokenizer(corpus: Corpus, tokenizer_sha256: str | None) -> None:
    """Raise a `LoadError` when corpus and model both name their tokenizer and it is not the same."""
    if corpus.tokenizer_sha256 and tokenizer_sha256 and corpus.tokenizer_sha256 != tokenizer_sha256:
        raise LoadError(
            f"corpus {_name(corpus.path)} was made by another tokenizer (sha256 {corpus.tokenizer_sha256[:12]}) than "
            f"the model's ({tokenizer_sha256[:12]}); build the corpus with this model's tokenizer"
        )


def check_context(corpus: Corpus, context: int) -> None:
    """Raise a `LoadError` when a document is longer than a model's context of ``context`` tokens."""
    longest = int(corpus.lengths.max())
    if longest > context:
        document = int(corpus.lengths.argmax())
        raise LoadError(
            f"document {document} of corpus {_name(corpus.path)} has {longest} tokens, but the model's context is "
            f"{context}; build the corpus with --length {context} or less"
        )


def _corpus(
    tokens: Tensor,
    lengths: Tensor,
    cluster: tuple[int, ...],
    *,
    path: str,
    tokenizer_sha256: str | None,
    source: str,
    has_bos: bool,
) -> Corpus:
    """Check the documents and bring their padding to one form, so that equal content has one sha256."""
    name = _name(path)
    if len(cluster) == 0:
        raise LoadError(f"corpus {name} has no documents; {_BUILD.format(path=path or 'FILE')}")
    too_short = (lengths < 2).nonzero().flatten().tolist()
    if too_short:
        listed = ", ".join(map(str, too_short[:5])) + (" ..." if len(too_short) > 5 else "")
        raise LoadError(
            f"corpus {name} has documents shorter than 2 tokens, where nothing can be predicted "
            f"(documents {listed}); leave them out"
        )
    if int(lengths.max()) > tokens.shape[1]:
        document = int(lengths.argmax())
        raise LoadError(
            f"document {document} of corpus {name} has length {int(lengths.max())}, but the file holds "
            f"{tokens.shape[1]} tokens of it; build the corpus again"
        )
    tokens = tokens[:, : int(lengths.max())].to(torch.int64)
    inside = torch.arange(tokens.shape[1]) < lengths[:, None]
    tokens = torch.where(inside, tokens, 0)
    if int(tokens.min()) < 0:
        document, position = (tokens < 0).nonzero()[0].tolist()
        raise LoadError(
            f"corpus {name} has the negative token id {int(tokens[document, position])} (document {document}, "
            f"position {position}); build the corpus again"
        )
    return Corpus(
        path=path,
        tokens=tokens,
        lengths=lengths.to(torch.int64),
        cluster=cluster,
        tokenizer_sha256=tokenizer_sha256,
        source=source,
        has_bos=has_bos,
        sha256=_digest(tokens, lengths, cluster),
    )


def _digest(tokens: Tensor, lengths: Tensor, cluster: tuple[int, ...]) -> str:
    digest = hashlib.sha256(json.dumps([list(tokens.shape), list(cluster)]).encode())
    for tensor in (tokens, lengths):
        digest.update(tensor.to(torch.int64).contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        what = "is a folder, not a corpus file" if file.is_dir() else "does not exist"
        raise LoadError(f"corpus {file} {what}; {_BUILD.format(path=file)}")
    try:
        with safe_open(str(file), framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise LoadError(f"corpus {file} is not a readable safetensors file ({error}); build it again") from error


def _column(packed: Tensor | None, name: str, docs: int, file: Path) -> tuple[str, ...] | None:
    """Read one string per document from UTF-8 JSON in a tensor of bytes."""
    if packed is None:
        return None
    try:
        column = json.loads(bytes(packed.to(torch.uint8).flatten().tolist()))
    except (ValueError, RecursionError):
        column = None
    if not isinstance(column, list) or len(column) != docs or not all(isinstance(text, str) for text in column):
        raise LoadError(f"'{name}' of corpus {file} is not a list of {docs} strings; build it again")
    return tuple(column)


def _integers(tensor: Tensor, name: str, dimensions: int, file: Path) -> Tensor:
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise LoadError(f"'{name}' of corpus {file} is {str(tensor.dtype)[6:]}, but ids are integers (int32)")
    if tensor.dim() != dimensions:
        wanted = "(documents, positions)" if dimensions == 2 else "(documents,)"
        raise LoadError(f"'{name}' of corpus {file} has shape {tuple(tensor.shape)}, not {wanted}")
    return tensor.to(torch.int64)


def _has_bos(metadata: dict[str, str], tokens: Tensor) -> bool:
    """Read from the metadata whether position 0 is BOS; without an entry, a token that opens every document is BOS."""
    for key in ("bos", "position_0_is_bos"):
        if key in metadata:
            return metadata[key].strip().lower() == "true"
    return tokens.numel() > 0 and bool((tokens[:, 0] == tokens[0, 0]).all())


def _name(path: str) -> str:
    return path or "(in memory)"
