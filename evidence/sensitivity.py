"""Every planted defect against every property: the sound SAE's report is accepted, then each defect is judged by it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evidence.corpora import cut_corpus
from sae_bench.demo.paths import BUNDLED, SITE
from sae_bench.engine.settings import TIERS
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.properties import load_property, property_names
from sae_bench.registry.spec import SAESpec
from sae_bench.report.accept import accept
from sae_bench.report.provenance import Provenance
from sae_bench.report.report import Report
from sae_bench.run.load import Loader
from sae_bench.run.options import RunOptions
from sae_bench.run.run import Run
from sae_bench.sae import SAE, controls
from sae_bench.sae.formats import read_sae

SOUND, BIASED = "topk", "gated"
"The sound SAE, and one whose features fire by the bias of its encoder."
DOCUMENTS, MEASURED = 40, 32
"Documents of the corpus and those measured."
TIER = replace(TIERS["smoke"], prompts=8)
"What half a minute an SAE allows; no defect is for steering to find."
GAIN = 0.4
"Of the end-to-end-like defect: with more the SAE explains less than nothing and is refused when it is loaded."
CAUGHT = ("FAIL", "ERROR", "INCOMPARABLE", "MISSING", "INCONCLUSIVE beyond")


@dataclass(frozen=True)
class Planted:
    """A defect, and the SAE, model or corpus that has it."""

    name: str
    spec: SAESpec


MEANT_FOR: dict[str, tuple[str, ...]] = {
    "none": (),
    "decoder_scaled": ("shrinkage", "reconstruction", "kl_gap"),
    "features_scaled": ("reconstruction", "kl_gap"),
    "decoder_rotated": ("reconstruction", "kl_gap"),
    "features_zeroed_5": ("reconstruction", "kl_gap"),
    "features_zeroed_50": ("reconstruction", "kl_gap", "orthogonality"),
    "features_duplicated": ("orthogonality",),
    "decoder_permuted": ("reconstruction", "kl_gap"),
    "encoder_bias_dropped": ("reconstruction", "kl_gap", "sparsity"),
    "encoder_bias_dropped (gated)": ("reconstruction", "kl_gap", "sparsity"),
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
    "none": "the sound SAE itself",
    "bfloat16": "does no harm: weights rounded to half precision leave reconstruction and KL within their limits",
    "encoder_bias_dropped": "does little harm to a TopK SAE, which keeps its k largest codes whatever the biases; "
    "an SAE whose features fire by their bias is caught, in the row below",
}
"Why a defect need not be caught on this SAE."


def measure() -> dict[str, Any]:
    """The matrix: verdict of each property on each defect, with what moved."""
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        options = RunOptions(tier="smoke", documents=MEASURED, baselines=folder / "baselines")
        run = Run(options, make_loader=lambda settings, _: Loader(replace(settings, tier=TIER)))
        corpus = str(cut_corpus(folder / "sound.safetensors", DOCUMENTS))
        sound, biased = (
            SAESpec(id=name, path=str(BUNDLED.sae(name)), model=str(BUNDLED.model), site=SITE, corpus=corpus)
            for name in (SOUND, BIASED)
        )
        # Without a limit there is no verdict to be wrong, and without labelled questions nothing to measure.
        limited = [name for name in property_names() if load_property(name).limits]
        names = [name for name in limited if run.check(sound, name).verdict.verdict is not Verdict.UNDEFINED]
        _accept(run, sound, names)
        matrix = dict(_row(run, planted, names) for planted in _planted(sound, run._load(), folder))
        _accept(run, biased, names)
        unbiased = _with(biased, "encoder_bias_dropped", lambda: controls.drop_encoder_bias(read_sae(str(biased.path))))
        matrix |= [_row(run, replace(unbiased, name=f"encoder_bias_dropped ({BIASED})"), names)]
    order = [name for name in MEANT_FOR if name in matrix]
    missed = [name for name in order if not set(matrix[name]["caught_by"]) & {*MEANT_FOR[name]}]
    return {
        "sae": f"demo/{SOUND}",
        "tier": "smoke",
        "properties": names,
        "missed": missed,
        "reasons": REASONS,
        "matrix": {name: matrix[name] for name in order},
    }


def _accept(run: Run, sound: SAESpec, names: list[str]) -> None:
    """Measure a sound SAE and make its report the accepted one."""
    results = {name: run.check(sound, name).result for name in names}
    _say(f"{sound.id}: {', '.join(f'{name} {result.seconds or 0:.0f} s' for name, result in results.items())}")
    report = Report.of({sound.id: results}, Provenance.collect(Path.cwd()))
    accept(report, run.options.baselines, reason="sound", who="evidence", when="now", in_ci=True)


def _row(run: Run, planted: Planted, names: list[str]) -> tuple[str, dict[str, Any]]:
    started = time.perf_counter()
    verdicts = {name: _cell(run.check(planted.spec, name)) for name in names}
    caught = sorted(name for name, cell in verdicts.items() if cell["verdict"] in CAUGHT)
    _say(f"{planted.name}, {time.perf_counter() - started:.0f} s: {', '.join(caught) or 'not caught'}")
    run._load().forget(planted.spec)
    return planted.name, {"meant_for": MEANT_FOR[planted.name], "caught_by": caught, "verdicts": verdicts}


def _cell(checked: Any) -> dict[str, Any]:
    verdict = str(checked.verdict.verdict)
    exceeds_limit = verdict == "INCONCLUSIVE" and checked.verdict.exceeds_limit
    return {
        "verdict": f"{verdict} beyond" if exceeds_limit else verdict,
        "says": checked.result.message.replace(f"{Path.cwd()}/", ""),
    }


def _planted(sound: SAESpec, loader: Loader, folder: Path) -> Iterator[Planted]:
    yield Planted("none", sound)
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
        yield Planted(name, replace(sound, id=f"{SOUND}/{name}", baseline_id=SOUND, **change))


def _with(sound: SAESpec, name: str, load: Callable[[], SAE]) -> Planted:
    return Planted(name, replace(sound, id=f"{sound.id}/{name}", path=None, load=load, baseline_id=sound.id))


def _undertrained(sae: Any) -> SAE:
    """Between where training starts and where it ended: three parts trained, one part random directions."""
    start = controls.random_like(sae, _generator())
    return replace(sae, W_enc=0.75 * sae.W_enc + 0.25 * start.W_enc, W_dec=0.75 * sae.W_dec + 0.25 * start.W_dec)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(20261120)
