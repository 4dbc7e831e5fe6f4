"""The console script: what is done between runs. Reports are compared, accepted and shown without torch or a GPU.

Exit codes are those of a run: 0 acceptable, 1 worse or broken, 4 usage, 11 could not be judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sae_bench.errors import SAEBenchError

USAGE_EXIT = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one sentence on stderr and exit code 4."""
    from sae_bench._identity import PackageClash, verify_identity

    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        verify_identity()
        return command(options)
    except (SAEBenchError, PackageClash) as error:
        sys.stderr.write(f"pytest-sae-bench: {error}\n")
        return USAGE_EXIT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(USAGE_EXIT, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pytest-sae-bench", description="Reports and corpora of pytest-sae-bench.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _corpus(commands)
    return parser


def _corpus(commands: argparse._SubParsersAction[_Parser]) -> None:
    corpus = commands.add_parser("corpus", help="make a pinned evaluation corpus").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    build = corpus.add_parser("build", help="cut a text file into documents of token ids")
    build.add_argument("--text", type=Path, required=True, help="UTF-8 text; texts are separated by --separator")
    build.add_argument("--model", required=True, help="Hugging Face folder or name, for its tokenizer")
    build.add_argument("--out", type=Path, required=True, help="the corpus file, such as corpus.safetensors")
    build.add_argument("--length", type=int, default=128, help="tokens a document, at most (default 128)")
    build.add_argument("--documents", type=int, default=None, help="stop after so many documents")
    build.add_argument("--no-bos", action="store_true", help="do not begin documents with the BOS token")
    build.add_argument("--separator", default="\\n\\n", help=r"what separates texts (default: an empty line, \n\n)")
    build.add_argument("--source", default=None, help="where the text is from, in words (default: the file's name)")
    build.set_defaults(command=_build_corpus)


def _build_corpus(options: argparse.Namespace) -> int:
    from sae_bench.corpus import build_corpus, save_corpus
    from sae_bench.errors import UsageError
    from sae_bench.model import load_tokenizer

    try:
        text = options.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {options.text} cannot be read as UTF-8 text: {error}") from None
    separator = options.separator.encode().decode("unicode_escape")
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
