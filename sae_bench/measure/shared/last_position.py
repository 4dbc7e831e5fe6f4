"""Many replacements of one activation at a prompt's last position, the prompt itself run once.

Nothing attends to the last position but itself, so replacing it there leaves everything before it as it was. One
sequence therefore holds the prompt and then every replacement as one position more: each attends to the prompt and to
itself, and all stand at the last position's place. With prompts of 64 tokens that is some forty times cheaper than a
batch of whole prompts. Whether a model's attention honours this is tried on every length of prompt against whole
prompts; where it does not (sliding windows shorter than the prompt, attention that takes no mask), those are run.

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
"Replacements per run, at most. Fixed, so that numbers do not depend on anybody's batch size."
_TOLERANCE = 1e-4
"Largest difference of two log-probabilities (nats) that float32 rounding explains."


class LastPositionRunner:
    """Runs prompts of one model with replacements at one site."""

    def __init__(self, model: Model, site: Site, memory_bytes: int) -> None:
        self.model = model
        self.site = site
        # Logits, log-probabilities and one product of them are alive at once.
        self._fitting = max(1, memory_bytes // 4 // (16 * model.d_vocab))
        self._packs: dict[int, bool] = {}

    @property
    def packed(self) -> bool:
        """Whether every length of prompt run so far could be packed."""
        return all(self._packs.values())

    def log_probs(self, prompt: Prompt, values: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """(rows, V) float32 log-probabilities with ``values`` (m, d) at the last position, some rows at a time.

        A `MeasurementError` names the prompt where the model answers with NaN or infinity.
        """
        length = len(prompt.tokens)
        start = 0
        while start < len(values):
            packed = self._packs.get(length, True)
            rows = slice(start, min(start + min(_PACKED if packed else _WHOLE, self._fitting), len(values)))
            if length not in self._packs:
                found = self._try(prompt, values[rows])
                if found is None:
                    continue
            else:
                found = self._packed([prompt], values[rows][None]) if packed else self._whole(prompt, values[rows])
            _check(found, prompt)
            yield found, rows
            start = rows.stop

    def shifted(self, prompts: Sequence[Prompt], shifts: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Of every prompt its index and (m, V) log-probabilities with each of ``shifts`` (m, d) added.

        Few shifts on many short prompts cost more in calls than in arithmetic, so prompts of one length are run
        together. A `MeasurementError` names the prompt where the model answers with NaN or infinity.
        """
        by_length: dict[int, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt.tokens), []).append(index)
        step = max(1, min(_PACKED, self._fitting) // max(1, len(shifts)))
        for length, indices in by_length.items():
            if length not in self._packs:
                # Tried apart, so that what is run together does not depend on what was run before.
                prompt = prompts[indices[0]]
                self._try(prompt, prompt.last + shifts[:2])
            size = step if self._packs[length] else 1
            for start in range(0, len(indices), size):
                yield from self._together(prompts, indices[start : start + size], shifts)

    def _together(
        self, prompts: Sequence[Prompt], indices: Sequence[int], shifts: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        if len(indices) == 1:
            prompt = prompts[indices[0]]
            yield indices[0], torch.cat([rows for rows, _ in self.log_probs(prompt, prompt.last + shifts)])
            return
        values = torch.stack([prompts[index].last + shifts for index in indices])
        found = self._packed([prompts[index] for index in indices], values)
        for index, rows in zip(indices, found.view(*values.shape[:2], -1), strict=True):
            _check(rows, prompts[index])
            yield index, rows

    def _try(self, prompt: Prompt, values: Tensor) -> Tensor | None:
        """Packed rows when the first and the last of them are what whole prompts give; else None, and remember it."""
        length = len(prompt.tokens)
        self._packs[length] = False
        if self.model.dtype not in ("float32", "float64"):
            return None
        try:
            found = self._packed([prompt], values[None])
        except Exception:  # an attention that takes no mask fails in its own way
            return None
        ends = [0, len(values) - 1]
        whole = self._whole(prompt, values[ends])
        self._packs[length] = bool(((found[ends] - whole).abs() <= _TOLERANCE).all())
        return found if self._packs[length] else None

    def _packed(self, prompts: Sequence[Prompt], values: Tensor) -> Tensor:
        """(b * m, V) of prompts of one length with ``values`` (b, m, d) at their last positions."""
        before, (rows, count) = len(prompts[0].tokens) - 1, values.shape[:2]
        size = before + count
        mine = torch.arange(size).clamp(max=before)
        allowed = torch.ones(size, size, dtype=torch.bool).tril()
        allowed[before:, before:] = torch.eye(count, dtype=torch.bool)
        dtype = getattr(torch, self.model.dtype)
        mask = torch.zeros(size, size, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
        options = {
            "attention_mask": mask.expand(rows, 1, -1, -1).to(self.model.device),
            "position_ids": mine.expand(rows, -1).to(self.model.device),
        }
        logits = self.model.resume(
            torch.stack([prompt.tokens[mine] for prompt in prompts]),
            torch.stack([prompt.block_input[mine] for prompt in prompts]),
            self.site,
            torch.cat([torch.stack([prompt.x[:before] for prompt in prompts]), values], dim=1),
            select=(torch.arange(size) >= before).expand(rows, -1),
            options=options,
        )
        return functional.log_softmax(logits, dim=-1)

    def _whole(self, prompt: Prompt, values: Tensor) -> Tensor:
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
