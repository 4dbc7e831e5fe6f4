"""Command ``corpus build``: a pinned evaluation corpus from a text file, JSON lines or a dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sae_bench.errors import UsageError
from sae_bench.frontends.cli.parser import Commands

if TYPE_CHECKING:
    from sae_bench.engine.corpus_build import Text

_DOCUMENTS = 256
"Documents of a dataset by default."


def add(commands: Commands) -> None:
    """Declare the command."""
    corpus = commands.add_parser("corpus", help="make a pinned evaluation corpus")
    build = corpus.add_subparsers(title="commands", required=True, metavar="COMMAND").add_parser(
        "build",
        help="cut texts into documents of token ids",
        description="Each text is cut into documents of at most --length tokens; nothing is packed: no two texts share "
        "a document. BOS begins every document. The documents of a text are one cluster.",
    )
    source = build.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path, help="UTF-8 file; --separator separates its texts")
    source.add_argument("--jsonl", type=Path, help="file with one JSON object per line; --field names the text")
    source.add_argument("--dataset", help="Hugging Face dataset, OWNER/NAME or OWNER/NAME:PART, streamed")
    build.add_argument("--model", "--tokenizer", required=True, help="Hugging Face folder or name, for its tokenizer")
    build.add_argument("-o", "--out", type=Path, required=True, help="corpus file to write, such as corpus.safetensors")
    build.add_argument("--length", type=int, default=128, help="longest document, in tokens (default 128)")
    build.add_argument(
        "--documents", "--docs", type=int, default=None, help="most documents to write (default: all; 256 of a dataset)"
    )
    build.add_argument("--no-bos", action="store_true", help="do not begin documents with the BOS token")
    build.add_argument("--separator", default=r"\n\n", help=r"separator of texts (default: an empty line, \n\n)")
    build.add_argument("--field", default="text", help="name of the text in an object or row (default: text)")
    build.add_argument("--split", default="train", help="split of the dataset (default: train)")
    build.add_argument("--revision", default=None, help="commit of the dataset, so that later builds are equal")
    build.add_argument(
        "--keep-text", action="store_true", help="store the documents' text in the file, for reports to show"
    )
    build.add_argument("--source", default=None, help="origin of the text, in words (default: the file's name)")
    build.set_defaults(command=_build)


def _build(options: argparse.Namespace) -> int:
    from sae_bench.engine.corpus import save_corpus
    from sae_bench.engine.corpus_build import build_corpus
    from sae_bench.model.load import load_tokenizer

    if options.documents is not None and options.documents < 1:
        raise UsageError(f"--documents {options.documents} must be 1 or more")
    documents = options.documents or (_DOCUMENTS if options.dataset else None)
    texts, source = _texts(options, documents)
    tokenizer, sha256 = load_tokenizer(options.model)
    corpus = build_corpus(
        texts,
        tokenizer,
        length=options.length,
        bos=not options.no_bos,
        source=options.source or source,
        tokenizer_sha256=sha256,
        documents=documents,
        keep_text=options.keep_text,
    )
    save_corpus(options.out, corpus)
    sys.stdout.write(
        f"{options.out}: {len(corpus)} documents of at most {options.length} tokens from {len(set(corpus.cluster))} "
        f"texts, sha256 {corpus.sha256[:12]}\n"
    )
    return 0


def _texts(options: argparse.Namespace, documents: int | None) -> tuple[Iterator[Text], str]:
    """Return the texts, and a description of their source."""
    from sae_bench.engine.corpus_build import from_dataset, from_jsonl, from_text

    if options.text is not None:
        separator = options.separator.replace("\\n", "\n").replace("\\t", "\t")
        return from_text(options.text, separator), options.text.name
    if options.jsonl is not None:
        return from_jsonl(options.jsonl, options.field), options.jsonl.name
    # A text gives one document at least, unless it is nearly empty.
    limit = 4 * (documents or _DOCUMENTS) + 100
    pinned = f"@{options.revision}" if options.revision else ""
    rows = from_dataset(options.dataset, options.field, options.split, options.revision, limit)
    return rows, f"{options.dataset}{pinned}, {options.split}"
