"""Public functions for test files: `property_test` makes a test of one property, `check_sae` measures one SAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sae_bench.errors import SAEBenchError
from sae_bench.registry.spec import SAESpec

if TYPE_CHECKING:
    from sae_bench.report.report import Report
    from sae_bench.run.run import Run

PROPERTY_ATTRIBUTE = "sae_bench_property"
"Set on test functions, so that collection knows which property an item measures."
SPEED_ATTRIBUTE = "sae_bench_speed"
"Set on test functions that time SAEs."
SPEED = "speed"
"Name of the timings: marker, test, and word of ``--sae-property``. No verdict and no report has them."
OPERATIONS = ("encode", "decode", "encode_decode")
"Operations that are timed."


def property_test(name: str) -> Callable[..., None]:
    """Return a test function that measures one property of each chosen SAE; pytest runs it once per SAE.

    Use it as ``test_kl_gap = property_test("kl_gap")``.
    """

    def test(sae_spec: SAESpec, sae_run: Run, request: pytest.FixtureRequest) -> None:
        checked = sae_run.check(sae_spec, name)
        request.node.user_properties.extend(checked.user_properties)
        if checked.failure is not None:
            pytest.fail(checked.failure, pytrace=False)

    test.__name__ = test.__qualname__ = f"test_{name}"
    test.__doc__ = f"Measure {name} and judge it."
    setattr(test, PROPERTY_ATTRIBUTE, name)
    return test


def speed_test() -> Callable[..., None]:
    """Return a test function that times encoding and decoding of each chosen SAE with pytest-benchmark's fixture.

    Use it as ``test_speed = speed_test()``.
    """

    def test(
        sae_spec: SAESpec, sae_operation: str, sae_run: Run, benchmark: Any, request: pytest.FixtureRequest
    ) -> None:
        from sae_bench.run.speed import time_operation

        try:
            timing = time_operation(sae_run.bench(sae_spec), sae_operation, sae_spec.id, benchmark)
        except SAEBenchError as error:
            pytest.fail(str(error), pytrace=False)
        if timing is not None:
            sae_run.timings.append(timing)
            for name, value in timing.info().items():
                request.node.user_properties.append((f"{SPEED}.{sae_operation}.{name}", f"{value:.6g}"))

    test.__name__ = test.__qualname__ = f"test_{SPEED}"
    test.__doc__ = "Time encoding and decoding."
    setattr(test, SPEED_ATTRIBUTE, True)
    return test


def check_sae(
    sae: Any,
    *,
    id: str = "sae",
    model: Any = None,
    site: str | None = None,
    corpus: Any = None,
    tokens: Any = None,
    activations: Any = None,
    properties: Sequence[str] | None = None,
    baselines: str | Path | None = None,
    **options: Any,
) -> Report:
    """Measure one SAE outside pytest and judge it as pytest would; nothing is written.

    Args:
        sae: a path or target, an object with ``encode`` and ``decode``, or a `SAESpec`.
        id: what the report calls it, and the name of its accepted report.
        model: Hugging Face folder or name, or a TransformerBridge or HookedTransformer that is in memory.
        site: where the SAE reads and writes; what its config says is used otherwise.
        corpus: a pinned corpus file.
        tokens: token ids (documents, positions) instead of a corpus file.
        activations: (documents, positions, width) of those tokens, or (tokens, width) of any: what needs no model is
            measured on them without one. The rest is measured where `model` and token ids are given, and is UNDEFINED
            otherwise. Position 0 of documents is left out, as always; rows of a matrix are all used.
        properties: only these; all of them otherwise.
        baselines: the folder of accepted reports to compare with; hard limits only without.
        options: ``tier``, ``documents``, ``seed``, ``device`` (where a model or activations given are, otherwise the
            CPU), ``dtype``, ``batch_size``, ``memory_bytes``, ``strict``, ``selfcheck``; of `SAESpec`
            ``model_kwargs``, ``output_site``, ``include_bos``, ``l0``, ``tags``, ``partner``, ``next_layers``,
            ``family``, ``contrast``, ``circuit``, ``concepts``, ``known_failures``, ``limits``.

    Returns:
        The report; ``report.exit_code()`` is the exit code that pytest would end with.

    Raises:
        UsageError: an option, property or shape is wrong. What is wrong with the SAE is the verdict ERROR.
    """
    from sae_bench.frontends.notebook import measure_and_judge
    from sae_bench.registry.package_clash import verify_identity

    verify_identity()
    return measure_and_judge(
        sae,
        id=id,
        model=model,
        site=site,
        corpus=corpus,
        tokens=tokens,
        activations=activations,
        properties=properties,
        baselines=baselines,
        options=options,
    )
