"""Many replacements of one activation at a prompt's last position, with one run of the prompt itself.

Only the last position attends to the last position, so replacing it changes nothing before it. One sequence therefore
holds the prompt and then every replacement as one more position: each attends to the prompt and to itself, and all have
the last position's place. With prompts of 64 tokens that is some forty times cheaper than a batch of whole prompts. For
every length of prompt, the packed run is first compared with whole prompts; where a model's attention does not agree
(sliding windows shorter than the prompt, attention that takes no mask), whole prompts are run.

Shapes: p positions of a prompt, m replacements, b prompts, d site width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sae_bench.errors import MeasurementError
from sae_bench.measure.shared.prompts import Prompt
from sae_bench.model.language_model import Model
from sae_bench.registry.site import Site

_PACKED = 512
_WHOLE = 64
"Most replacements per run. Fixed, so that numbers do not depend on the batch size."
_TOLERANCE = 1e-4
"Largest difference of two log-probabilities (nats) that float32 rounding explains."


class LastPositionRunner:
    """Runner of one model's prompts with replacements at one site."""

    def __init__(self, model: Model, site: Site, memory_bytes: int) -> None:
        self.model = model
        self.site = site
        # Logits, log-probabilities and one product of them are alive at once.
        self._fitting = max(1, memory_bytes // 4 // (16 * model.d_vocab))
        self._packs: dict[int, bool] = {}

    @property
    def packed(self) -> bool:
        """Return whether every length of prompt run so far could be packed."""
        return all(self._packs.values())

    def log_probs(self, prompt: Prompt, values: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Yield (rows, V) float32 log-probabilities with ``values`` (m, d) at the last position, rows by rows.

        A `MeasurementError` names the prompt for which the model returns NaN or infinity.
        """
        length = len(prompt.tokens)
        start = 0
        while start < len(values):
            packed = self._packs.get(length, True)
            rows = slice(start, min(start + min(_PACKED if packed else _WHOLE, self._fitting), len(values)))
            if length not in self._packs:
                log_probs = self._try_packing(prompt, values[rows])
                if log_probs is None:
                    continue
            else:
                log_probs = (
                    self._run_packed([prompt], values[rows][None]) if packed else self._run_whole(prompt, values[rows])
                )
            _check(log_probs, prompt)
            yield log_probs, rows
            start = rows.stop

    def shifted(self, prompts: Sequence[Prompt], shifts: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each prompt's index and (m, V) log-probabilities with each of ``shifts`` (m, d) added.

        Few shifts on many short prompts cost more in calls than in arithmetic, so prompts of one length are run
        together. A `MeasurementError` names the prompt for which the model returns NaN or infinity.
        """
        by_length: dict[int, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt.tokens), []).append(index)
        step = max(1, min(_PACKED, self._fitting) // max(1, len(shifts)))
        for length, indices in by_length.items():
            if length not in self._packs:
                # Tried on its own, so that later runs do not depend on what was run before.
                prompt = prompts[indices[0]]
                self._try_packing(prompt, prompt.last + shifts[:2])
            size = step if self._packs[length] else 1
            for start in range(0, len(indices), size):
                yield from self._run_together(prompts, indices[start : start + size], shifts)

    def _run_together(
        self, prompts: Sequence[Prompt], indices: Sequence[int], shifts: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        if len(indices) == 1:
            prompt = prompts[indices[0]]
            yield indices[0], torch.cat([rows for rows, _ in self.log_probs(prompt, prompt.last + shifts)])
            return
        values = torch.stack([prompts[index].last + shifts for index in indices])
        log_probs = self._run_packed([prompts[index] for index in indices], values)
        for index, rows in zip(indices, log_probs.view(*values.shape[:2], -1), strict=True):
            _check(rows, prompts[index])
            yield index, rows

    def _try_packing(self, prompt: Prompt, values: Tensor) -> Tensor | None:
        """Return packed rows if the first and last agree with whole prompts; else None. Remember which."""
        length = len(prompt.tokens)
        self._packs[length] = False
        if self.model.dtype not in ("float32", "float64"):
            return None
        try:
            packed = self._run_packed([prompt], values[None])
        except Exception:  # an attention that takes no mask fails in its own way
            return None
        ends = [0, len(values) - 1]
        whole = self._run_whole(prompt, values[ends])
        self._packs[length] = bool(((packed[ends] - whole).abs() <= _TOLERANCE).all())
        return packed if self._packs[length] else None

    def _run_packed(self, prompts: Sequence[Prompt], values: Tensor) -> Tensor:
        """Return (b * m, V) of prompts of one length with ``values`` (b, m, d) at their last positions."""
        before, (rows, count) = len(prompts[0].tokens) - 1, values.shape[:2]
        size = before + count
        place = torch.arange(size).clamp(max=before)
        allowed = torch.ones(size, size, dtype=torch.bool).tril()
        allowed[before:, before:] = torch.eye(count, dtype=torch.bool)
        dtype = getattr(torch, self.model.dtype)
        mask = torch.zeros(size, size, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
        options = {
            "attention_mask": mask.expand(rows, 1, -1, -1).to(self.model.device),
            "position_ids": place.expand(rows, -1).to(self.model.device),
        }
        logits = self.model.resume(
            torch.stack([prompt.tokens[place] for prompt in prompts]),
            torch.stack([prompt.block_input[place] for prompt in prompts]),
            self.site,
            torch.cat([torch.stack([prompt.x[:before] for prompt in prompts]), values], dim=1),
            select=(torch.arange(size) >= before).expand(rows, -1),
            options=options,
        )
        return functional.log_softmax(logits, dim=-1)

    def _run_whole(self, prompt: Prompt, values: Tensor) -> Tensor:
        rows, length = len(values), len(prompt.tokens)
        x = prompt.x.expand(rows, -1, -1).clone()
        x[:, -1] = values
        select = torch.zeros(rows, length, dtype=torch.bool)
        select[:, -1] = True
        logits = self.model.resume(
            prompt.tokens.expand(rows, -1), prompt.block_input.expand(rows, -1, -1), self.site, x, select=select
        )
        return functional.log_softmax(logits, dim=-1)


def _check(log_probs: Tensor, prompt: Prompt) -> None:
    if not bool(torch.isfinite(log_probs).all()):
        raise MeasurementError(f"the model's output is NaN or infinite when it is steered on {prompt.name}")
