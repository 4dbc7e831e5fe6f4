"""Every planted defect against every property: the sound SAE's report is accepted, then each defect is judged by it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sae_bench import controls
from sae_bench.accepting import accept
from sae_bench.corpus import Corpus, from_documents, load_corpus, save_corpus
from sae_bench.demo.paths import BUNDLED, SITE
from sae_bench.formats import read_sae
from sae_bench.loading import Loader
from sae_bench.properties import load_property, property_names
from sae_bench.provenance import Provenance
from sae_bench.report import Report
from sae_bench.run import Run, RunOptions
from sae_bench.sae import SAE
from sae_bench.spec import SAESpec

SOUND = "topk"
DOCUMENTS, MEASURED, LENGTH = 40, 32, 48
"Documents of the corpus, those measured, and their tokens: what a quarter of a minute an SAE allows."
GAIN = 0.4
"Of the end-to-end-like defect: with more the SAE explains less than nothing and is refused when it is loaded."
CAUGHT = ("FAIL", "ERROR", "INCOMPARABLE", "MISSING", "INCONCLUSIVE beyond")


@dataclass(frozen=True)
class Planted:
    """A defect, and the properties meant for it: one of them must catch it."""

    name: str
    spec: SAESpec
    meant_for: tuple[str, ...]


MEANT_FOR: dict[str, tuple[str, ...]] = {
    "decoder_scaled": ("shrinkage", "reconstruction", "kl_gap"),
    "features_scaled": ("reconstruction", "kl_gap"),
    "decoder_rotated": ("reconstruction", "kl_gap"),
    "features_zeroed_5": ("reconstruction", "kl_gap"),
    "features_zeroed_50": ("reconstruction", "kl_gap", "orthogonality"),
    "features_duplicated": ("orthogonality",),
    "decoder_permuted": ("reconstruction", "kl_gap"),
    "encoder_bias_dropped": ("reconstruction", "kl_gap", "sparsity"),
    "decoder_bias_dropped": ("reconstruction", "kl_gap"),
    "threshold_lost": ("sparsity",),
    "nan_weight": ("kl_gap",),
    "bfloat16": (),
    "l0_doubled": ("sparsity",),
    "end_to_end_like": ("reconstruction",),
    "undertrained": ("reconstruction", "kl_gap"),
    "site_off_by_one": ("kl_gap",),
    "wrong_processing": ("kl_gap",),
    "tokens_shuffled": ("kl_gap",),
    "half_the_corpus": ("kl_gap",),
}
"The properties that exist to catch a defect."
REASONS = {
    "bfloat16": "rounding the weights to half precision does no harm: KL moves by 0.5%, which is not decided from 0",
    "encoder_bias_dropped": "a TopK SAE keeps its k largest codes whatever the biases: FVU rises by 2.8%, within 5%",
}
"Why a defect need not be caught on this SAE."


def measure() -> dict[str, Any]:
    """The matrix: verdict of each property on each defect, with what moved."""
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        sound = SAESpec(
            id=SOUND,
            path=str(BUNDLED.sae(SOUND)),
            model=str(BUNDLED.model),
            site=SITE,
            corpus=str(cut_corpus(Path(folder) / "sound.safetensors", DOCUMENTS)),
        )
        options = RunOptions(tier="smoke", documents=MEASURED, baselines=Path(folder) / "baselines")
        run = Run(options)
        # Without a limit there is no verdict to be wrong.
        names = [name for name in property_names() if load_property(name).limits]
        results = {name: run.check(sound, name).result for name in names}
        _say(f"sound: {', '.join(f'{name} {result.seconds:.0f} s' for name, result in results.items())}")
        report = Report.of({SOUND: results}, Provenance.collect(Path.cwd()))
        accept(report, options.baselines, reason="sound", who="evidence", when="now", in_ci=True)
        matrix = {}
        loader = run._load()
        for planted in _planted(sound, loader, Path(folder)):
            row = {name: _cell(run.check(planted.spec, name)) for name in names}
            caught = sorted(name for name, cell in row.items() if cell["verdict"] in CAUGHT)
            matrix[planted.name] = {"meant_for": planted.meant_for, "caught_by": caught, "verdicts": row}
            _say(f"{planted.name}: {', '.join(caught) or 'not caught'}")
            loader.forget(planted.spec)
    missed = [
        name for name, row in matrix.items() if row["meant_for"] and not set(row["caught_by"]) & {*row["meant_for"]}
    ]
    return {
        "sae": f"demo/{SOUND}",
        "tier": "smoke",
        "properties": names,
        "missed": missed,
        "reasons": REASONS,
        "matrix": matrix,
    }


def _cell(checked: Any) -> dict[str, Any]:
    verdict = str(checked.verdict.verdict)
    beyond = verdict == "INCONCLUSIVE" and checked.verdict.beyond
    return {
        "verdict": f"{verdict} beyond" if beyond else verdict,
        "says": checked.verdict.lines[0].replace(f"{Path.cwd()}/", ""),
    }


def _planted(sound: SAESpec, loader: Loader, folder: Path) -> Iterator[Planted]:
    sae = read_sae(str(sound.path))
    x = loader.bench(sound).site_data.x[:32, 1:].reshape(-1, sae.d_in)
    for name, defect in controls.DEFECTS.items():
        yield _with(sound, name, lambda defect=defect: defect(sae, _generator()))
    for name, on_data in controls.DEFECTS_ON_DATA.items():
        yield _with(sound, name, lambda on_data=on_data: on_data(sae, x, _generator()))
    # LayerNorm takes the mean over the width away: an error along the vector of ones does the least harm.
    ones = torch.ones(1, sae.d_out)
    yield _with(sound, "end_to_end_like", lambda: controls.end_to_end_like(sae, ones, _generator(), gain=GAIN))
    yield _with(sound, "undertrained", lambda: _undertrained(sae))
    moved = {
        "site_off_by_one": {"site": SITE.replace("blocks.2", "blocks.1")},
        "wrong_processing": {"model_kwargs": {"fold_ln": True, "center_writing_weights": True}},
        "tokens_shuffled": {"corpus": str(cut_corpus(folder / "shuffled.safetensors", DOCUMENTS, shuffle=True))},
        "half_the_corpus": {"corpus": str(cut_corpus(folder / "half.safetensors", DOCUMENTS // 2))},
    }
    for name, change in moved.items():
        yield _planted_as(name, replace(sound, id=f"{SOUND}/{name}", baseline_id=SOUND, **change))


def _with(sound: SAESpec, name: str, load: Callable[[], SAE]) -> Planted:
    return _planted_as(name, replace(sound, id=f"{SOUND}/{name}", path=None, load=load, baseline_id=SOUND))


def _planted_as(name: str, spec: SAESpec) -> Planted:
    return Planted(name, spec, MEANT_FOR[name])


def _undertrained(sae: Any) -> SAE:
    """Between where training starts and where it ended: three parts trained, one part random directions."""
    start = controls.random_like(sae, _generator())
    return replace(sae, W_enc=0.75 * sae.W_enc + 0.25 * start.W_enc, W_dec=0.75 * sae.W_dec + 0.25 * start.W_dec)


def cut_corpus(path: Path, size: int, shuffle: bool = False) -> Path:
    """The first documents of the demo's corpus, their tokens shuffled within each if asked for."""
    corpus: Corpus = load_corpus(str(BUNDLED.corpus))
    documents = [
        row[: min(int(length), LENGTH)].tolist()
        for row, length in zip(corpus.tokens[:size], corpus.lengths, strict=False)
    ]
    if shuffle:
        generator = _generator()
        documents = [
            [tokens[0], *(tokens[1 + at] for at in torch.randperm(len(tokens) - 1, generator=generator).tolist())]
            for tokens in documents
        ]
    save_corpus(path, from_documents(documents, has_bos=True, source="the demo's"))
    return path


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(20261120)
