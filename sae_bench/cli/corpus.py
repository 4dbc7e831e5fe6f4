"""``corpus build``: a pinned evaluation corpus from a text file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sae_bench.cli.parser import Commands
from sae_bench.errors import UsageError


def add(commands: Commands) -> None:
    """Declare the command."""
    corpus = commands.add_parser("corpus", help="make a pinned evaluation corpus")
    build = corpus.add_subparsers(title="commands", required=True, metavar="COMMAND").add_parser(
        "build", help="cut a text file into documents of token ids"
    )
    build.add_argument("--text", type=Path, required=True, help="UTF-8 text; texts are separated by --separator")
    build.add_argument("--model", required=True, help="Hugging Face folder or name, for its tokenizer")
    build.add_argument("--out", type=Path, required=True, help="the corpus file, such as corpus.safetensors")
    build.add_argument("--length", type=int, default=128, help="tokens a document, at most (default 128)")
    build.add_argument("--documents", type=int, default=None, help="stop after so many documents")
    build.add_argument("--no-bos", action="store_true", help="do not begin documents with the BOS token")
    build.add_argument("--separator", default=r"\n\n", help=r"what separates texts (default: an empty line, \n\n)")
    build.add_argument("--source", default=None, help="where the text is from, in words (default: the file's name)")
    build.set_defaults(command=_build)


def _build(options: argparse.Namespace) -> int:
    from sae_bench.corpus import build_corpus, save_corpus
    from sae_bench.model import load_tokenizer

    try:
        text = options.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {options.text} cannot be read as UTF-8 text: {error}") from None
    separator = options.separator.replace("\\n", "\n").replace("\\t", "\t")
    texts = [part for part in text.split(separator) if part.strip()] if separator else [text]
    tokenizer, sha256 = load_tokenizer(options.model)
    corpus = build_corpus(
        texts,
        tokenizer,
        length=options.length,
        bos=not options.no_bos,
        source=options.source or options.text.name,
        tokenizer_sha256=sha256,
        documents=options.documents,
    )
    save_corpus(options.out, corpus)
    sys.stdout.write(
        f"{options.out}: {len(corpus)} documents of at most {options.length} tokens from {len(set(corpus.cluster))} "
        f"texts, sha256 {corpus.sha256[:12]}\n"
    )
    return 0
