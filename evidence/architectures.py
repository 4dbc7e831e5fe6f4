"""Running on from a site equals a full pass, to the last bit: every architecture, block, site and head, in two forms.

So do logits that the unembedding makes by itself, some rows at a time, within what other products round. Models
are as stored, and processed; under the transformer-lens of this environment, and of the other one where ``.ci/run`` has
built it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sae_bench.errors import MeasurementError
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model
from sae_bench.registry.site import Site, parse_site
from tests.support.tiny_models import CONFIGS, save_model

ROOT = Path(__file__).parents[1]
OTHER = os.environ.get("SAE_BENCH_OTHER_PYTHON", str(ROOT / ".venv-tl4" / "bin" / "python"))
PROCESSED = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True}
NEEDED = 6
"Kinds of site that fire at least, in every architecture."


def measure() -> dict[str, Any]:
    """Cells by version of transformer-lens and architecture; whatever is not equal is listed."""
    found = {version("transformer-lens"): here()}
    if Path(OTHER).is_file():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        said = subprocess.run(
            [OTHER, "-m", __name__], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        found |= json.loads(said.stdout.splitlines()[-1])
    return found


def here() -> dict[str, Any]:
    """Cells of this environment."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        for architecture in CONFIGS:
            folder = Path(root) / architecture
            save_model(architecture, folder)
            for name, kwargs in (("raw", {}), ("processed", PROCESSED)):
                result[f"{architecture}, {name}"] = _cells(load_model(str(folder), kwargs=kwargs))
    return result


def _cells(model: Model) -> dict[str, Any]:
    tokens = torch.randint(2, 61, (3, 12), generator=torch.Generator().manual_seed(1))
    full = model.logits(tokens)
    sites = [parse_site(name) for name in model.sites()]
    heads = range(int(model.bridge.cfg.n_heads))
    sites += [Site(layer, "attn.hook_z", head) for layer in range(model.n_layers) for head in heads]
    equal, silent, wrong, apart = [], [], [], 0.0
    select = torch.ones_like(tokens, dtype=torch.bool)
    for site in sites:
        try:
            seen = model.capture(tokens, site)
        except MeasurementError:
            silent.append(str(site))
            continue
        back = model.resume(tokens, seen.block_input, site, seen.value)
        moved = model.resume(tokens, seen.block_input, site, seen.value.flip(-1) + 1)
        good = torch.equal(back, full) and not torch.equal(moved, full)
        (equal if good else wrong).append(str(site))
        where = (tokens, seen.block_input, site, seen.value)
        blocks = [each.clone() for each in model.logit_blocks(*where, select=select, entries=7 * model.d_vocab)]
        apart = max(apart, float((torch.cat(blocks) - full.flatten(0, 1)).abs().max() / full.abs().max()))
    kinds = {parse_site(name).kind for name in equal}
    return {
        "equal": len(equal),
        "kinds": sorted(kinds),
        "never fired": silent,
        "wrong": wrong,
        "unembeds alone": model.unembeds_alone,
        "rows apart": apart,
        "enough": len(kinds) >= NEEDED,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps({version("transformer-lens"): here()}) + "\n")
