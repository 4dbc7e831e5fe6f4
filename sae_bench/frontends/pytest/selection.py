"""Turn options into a selection: which SAEs and properties are measured, with which settings and limits."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from sae_bench.errors import SAEBenchError, StoreError, UsageError, near
from sae_bench.frontends.pytest.options import Resolved, limits_with_sources
from sae_bench.frontends.testing import SPEED
from sae_bench.judge.limits import Rule, parse_rule
from sae_bench.measure.properties import property_names
from sae_bench.registry.register import SAES, load_entry_points
from sae_bench.registry.sae_option import TARGET_FIELDS, select_saes
from sae_bench.registry.spec import SAESpec
from sae_bench.report.report import load_report
from sae_bench.run.options import RunOptions

DEMO = "demo/"
"Beginning of the ids of bundled SAEs."
NARROWING = {
    "-k": "keyword",
    "-m": "markexpr",
    "-x": "maxfail",
    "--lf": "lf",
    "--sw": "stepwise",
    "--deselect": "deselect",
    "--ignore": "ignore",
    "--ignore-glob": "ignore_glob",
    "--benchmark-only": "benchmark_only",
}
"Options of pytest that leave out items, by their `dest`."


def narrowed_by(config: pytest.Config) -> list[str]:
    """Return the options and node ids that make a run leave out what it would otherwise measure."""
    used = [flag for flag, dest in NARROWING.items() if config.getoption(dest, None)]
    return used + [argument for argument in config.args if "::" in argument]


def run_options(config: pytest.Config, resolved: Resolved) -> RunOptions:
    """Return the settings and limits of the run."""
    root = Path(config.rootpath)
    reference = Path(config.invocation_params.dir) / resolved["sae_compare"] if resolved["sae_compare"] else None
    if reference is not None:
        try:
            load_report(reference)
        except StoreError as error:
            raise UsageError(f"--sae-compare: {error}") from None
    if resolved["sae_device"] != "cpu" and not resolved["sae_ray"]:
        # Torch is imported to be asked for a device, and never for an option that needs none. A cluster has its own.
        from sae_bench.engine.devices import check_device

        check_device(resolved["sae_device"])
    return RunOptions(
        tier=resolved["sae_tier"],
        documents=resolved["sae_docs"],
        seed=resolved["sae_seed"],
        device=resolved["sae_device"],
        dtype=resolved["sae_dtype"],
        batch_size=max(1, resolved["sae_batch_size"]),
        memory_bytes=resolved["sae_memory"],
        baselines=root / resolved["sae_baselines"],
        reference=reference,
        compare=not resolved["sae_no_compare"],
        rules=_rules(config),
        strict=resolved["sae_strict"],
        selfcheck=resolved["sae_selfcheck"],
    )


def _rules(config: pytest.Config) -> tuple[Rule, ...]:
    return tuple(parse_rule(text, source) for text, source in limits_with_sources(config.getoption, config.getini))


def chosen_saes(resolved: Resolved) -> list[SAESpec]:
    """Return the SAEs that ``--sae`` selects; nothing can be registered after this call."""
    try:
        load_entry_points()
    except SAEBenchError:
        raise
    except Exception as error:
        raise UsageError(
            f"a package that registers SAEs (entry point 'sae_bench.saes') failed: {type(error).__name__}: {error}"
        ) from error
    if not any(name.startswith(DEMO) for name in SAES) and any(text.startswith(DEMO) for text in resolved["sae"]):
        # A bundled SAE is there for everybody who names it, and nobody measures one by accident.
        from sae_bench.demo import register_demo

        register_demo()
    SAES.freeze("SAEs were chosen")
    target_fields = {name: resolved[f"sae_{name}"] for name in TARGET_FIELDS}
    chosen = select_saes(resolved["sae"], target_fields, SAES)
    if not resolved["sae_controls"]:
        return chosen
    from sae_bench.sae.controls import control_names

    return [measured for spec in chosen for measured in (spec, *(spec.as_control(name) for name in control_names()))]


def chosen_properties(patterns: list[str]) -> list[str]:
    """Return the properties that ``--sae-property`` selects, sorted; a pattern without a match is a `UsageError`."""
    names = property_names()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*names, SPEED)):
            raise UsageError(f"--sae-property {pattern!r} matches no property{near(pattern, (*names, SPEED))}")
    return [name for name in names if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]


def speed_chosen(patterns: list[str]) -> bool:
    """Return True when ``--sae-property`` selects timings as well; without the option, they are taken."""
    return not patterns or any(fnmatchcase(SPEED, pattern) for pattern in patterns)
