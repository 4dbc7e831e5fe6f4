"""Time encoding and decoding: tokens per second and peak memory, compared with the bare matrix product.

These are numbers of a machine and a day, so no verdict, report or accepted file has them. pytest-benchmark takes the
time, stores it (``--benchmark-save``) and compares it (``--benchmark-compare``).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sae_bench.report.timing import Timing

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

Work = Callable[[], object]

MOST_TOKENS = 4096
OPERATIONS_PER_PRODUCT = {"cpu": 2**33, "cuda": 2**39}
"Floating-point operations of one bare product, at most, by device: a wide SAE is timed on fewer tokens."
SECONDS = 0.3
"Time of all rounds of one timing together, about, of the SAE and of the product each."
FEWEST_ROUNDS, MOST_ROUNDS = 3, 20


def time_operation(bench: Bench, operation: str, id: str, benchmark: Any) -> Timing | None:
    """Time one operation with pytest-benchmark's fixture; None where its timings are off (``--benchmark-disable``).

    Rounds of the SAE and of the product take turns, so that a machine that slows down slows both down.
    """
    work, product, tokens = _prepared(bench, operation)
    device = torch.device(bench.settings.device).type
    _seconds(work, device), _seconds(product, device)
    once = max(_seconds(work, device), _seconds(product, device))
    rounds = min(max(int(SECONDS / max(once, 1e-9)), FEWEST_ROUNDS), MOST_ROUNDS)
    product_seconds: list[float] = []
    benchmark.group = f"SAE {operation}"
    benchmark.params = {"sae": id, "operation": operation}
    benchmark.pedantic(
        lambda: _finish(work, device), setup=lambda: product_seconds.append(_seconds(product, device)), rounds=rounds
    )
    if not benchmark.enabled:
        return None
    timing = Timing(
        sae=id,
        operation=operation,
        device=device,
        threads=torch.get_num_threads(),
        tokens=tokens,
        seconds=benchmark.stats.stats.median,
        product_seconds=statistics.median(product_seconds),
        peak_mebibytes=peak_mebibytes(work, device),
    )
    benchmark.extra_info.update(timing.info(), device=device, threads=timing.threads)
    return timing


def tokens_in_a_call(d_in: int, d_sae: int, device: str, available: int) -> int:
    """Return the number of tokens timed at once: a power of two that depends on shapes alone."""
    fitting = OPERATIONS_PER_PRODUCT.get(device, OPERATIONS_PER_PRODUCT["cpu"]) // (2 * d_in * d_sae)
    return min(1 << (max(fitting, 1).bit_length() - 1), MOST_TOKENS, available)


def peak_mebibytes(work: Work, device: str) -> float | None:
    """Return the peak memory that ``work`` allocates."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _finish(work, device)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if device != "cpu":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory(prefix="sae-bench-") as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events: list[Mapping[str, Any]] = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((each["ts"], each["args"]["Bytes"]) for each in events if each.get("name") == "[memory]")
    allocated = most = 0
    for _, change in changes:
        allocated += change
        most = max(most, allocated)
    return most / 2**20


def _prepared(bench: Bench, operation: str) -> tuple[Work, Work, int]:
    """Return the SAE's work, the bare product of the same shape, and the number of tokens of each."""
    sae, source, device = bench.sae, bench.source, torch.device(bench.settings.device)
    tokens = tokens_in_a_call(int(sae.d_in), int(sae.d_sae), device.type, len(source.kept_positions))
    x = source.rows[source.kept_positions[:tokens]].to(device)  # (tokens, d_in)
    with torch.no_grad():
        codes = sae.encode(x)  # (tokens, d_sae)
        written = sae.decode(codes, like=x)  # (tokens, d_out)
    dense = {"device": device, "dtype": codes.dtype}
    reads, writes = (
        torch.ones(x.shape[1], codes.shape[1], **dense),
        torch.ones(codes.shape[1], written.shape[1], **dense),
    )
    activations, full = x.to(codes.dtype), torch.ones(codes.shape, **dense)
    works: dict[str, tuple[Work, Work]] = {
        "encode": (lambda: sae.encode(x), lambda: activations @ reads),
        "decode": (lambda: sae.decode(codes, like=x), lambda: full @ writes),
        "encode_decode": (lambda: sae.decode(sae.encode(x), like=x), lambda: (activations @ reads) @ writes),
    }
    return *works[operation], tokens


def _seconds(work: Work, device: str) -> float:
    start = time.perf_counter()
    _finish(work, device)
    return time.perf_counter() - start


def _finish(work: Work, device: str) -> None:
    """Run ``work`` to its end: a GPU runs on after the call that started it."""
    with torch.no_grad():
        work()
    if device == "cuda":
        torch.cuda.synchronize()
