"""Command ``rescale``: save an SAE with its measured suppression undone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sae_bench.frontends.cli.parser import Commands
from sae_bench.registry.spec import SAESpec, id_from_target


def add(commands: Commands) -> None:
    """Declare the command."""
    rescale = commands.add_parser("rescale", help="save an SAE with its measured suppression undone")
    rescale.add_argument("sae", metavar="SAE", help="a target: ./path, hf:repo, sae_lens:release/id, module:attribute")
    rescale.add_argument("-o", "--out", type=Path, required=True, help="folder to write, in SAELens' format")
    rescale.add_argument("--model", help="Hugging Face folder or name (default: what the SAE's config says)")
    rescale.add_argument("--site", help="hook name (default: what the SAE's config says)")
    rescale.add_argument("--corpus", required=True, help="pinned corpus; the scales are fitted on its even documents")
    rescale.set_defaults(command=_rescale)


def _rescale(options: argparse.Namespace) -> int:
    from sae_bench.run.rescale import rescale_target

    spec = SAESpec(
        id=id_from_target(options.sae),
        path=options.sae,
        model=options.model,
        site=options.site,
        corpus=options.corpus,
        origin="rescale",
    )
    sys.stdout.write("\n".join(rescale_target(spec, options.out).lines) + "\n")
    return 0
