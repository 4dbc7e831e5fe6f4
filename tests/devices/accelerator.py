"""A pretended GPU: tensors say that they are on ``cuda`` while they are computed on the CPU.

What breaks first on a real one is not arithmetic but place: a tensor left on the CPU meets one on the GPU, numpy is
asked to look into the GPU, a CPU's generator shall draw there. Those raise here as they do there. Whatever makes the
CPU wait for the GPU is counted: a question (``.item()``, ``if tensor``, a mask that selects), and a copy that is not
one from page-locked memory with ``non_blocking``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
_PLACE, _PINNED = "_pretended_device", "_pretended_pinned"
_ACROSS = {Tensor.copy_, Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type, Tensor.data.__set__, Tensor.grad.__set__}
"These take tensors of two devices."
_INDEX = {Tensor.__getitem__, Tensor.__setitem__}
_READ = {Tensor.numpy, Tensor.__array__, Tensor.data_ptr}
_WAIT = {
    Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.nonzero,
    torch.nonzero, torch.equal, Tensor.equal, torch.allclose, Tensor.unique, torch.unique, torch.masked_select,
    Tensor.masked_select, torch.bincount, Tensor.bincount, Tensor.is_nonzero,
}  # fmt: skip
"The CPU has to know what they give before it goes on."
_ROOT = str(Path(__file__).parents[2] / "sae_bench")


def place(tensor: Tensor) -> torch.device | None:
    """Where a tensor pretends to be; None where nobody has said, as of gradients."""
    return vars(tensor).get(_PLACE)


class PretendedGPU(TorchFunctionMode):
    """While active, ``cuda`` is a device like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        "How often the CPU waited, by line of the package."
        self.copies: Counter[str] = Counter()
        "How often something was copied from one device to the other, by line of the package."

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return place(args[0]) or CPU
        if func == Tensor.is_cuda.__get__:
            return place(args[0]) == GPU
        if func == Tensor.is_cpu.__get__:
            return place(args[0]) != GPU
        tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
        here = self._common(func, tensors, args)
        if func in _READ and here == GPU:
            raise TypeError(f"{func.__name__} of a tensor on {GPU}: copy it to the CPU first")
        if here == GPU and (func in _WAIT or (func in _INDEX and _selects(args[1]))):
            self.waits[_line()] += 1
        asynchronous = bool(kwargs.get("non_blocking"))
        args, kwargs, wanted = _without_device(func, args, kwargs)
        there = wanted or here
        drawing = kwargs.get("generator")
        if drawing is not None and there == GPU:
            raise RuntimeError(f"a generator of the CPU cannot draw on {GPU}")
        if there is None and not tensors:
            there = CPU
        pinning = func == Tensor.pin_memory
        if pinning and here == GPU:
            raise RuntimeError(f"a tensor on {GPU} cannot be pinned")
        if func in (Tensor.cuda, Tensor.pin_memory):
            func, args = Tensor.to, (args[0], args[0].dtype)
        found = func(*args, **kwargs)
        if func == Tensor.data.__set__:
            setattr(args[0], _PLACE, place(args[1]))
            return found
        if func == Tensor.copy_ and place(args[0]) != place(args[1]):
            self.copies[_line()] += 1
        moved = wanted is not None and here is not None and wanted != here
        if moved:
            self.copies[_line()] += 1
            if not (wanted == GPU and asynchronous and vars(tensors[0]).get(_PINNED)):
                self.waits[_line()] += 1

        def put(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if moved and any(value is each for each in tensors):
                # What moves is a copy, and never shares memory.
                value = value.clone()
            if not any(value is each for each in tensors) or place(value) is None:
                setattr(value, _PLACE, there)
            if pinning:
                setattr(value, _PINNED, True)
            return value

        if func in (Tensor.numpy, Tensor.tolist, Tensor.__array__):
            return found
        return tree_map(put, found)

    def _common(self, func: Callable[..., Any], tensors: list[Tensor], args: tuple[Any, ...]) -> torch.device | None:
        """The device of what a function is given; two of them are an error, but for single numbers of the CPU."""
        if func in _INDEX:
            # An index may come from the CPU, for what is on the GPU; a slice takes in what is written to it.
            index = [each for each in tree_iter(args[1]) if isinstance(each, Tensor)]
            own = place(args[0])
            if own == CPU and any(place(each) == GPU for each in index):
                raise RuntimeError("indices should be on the CPU, as the indexed tensor is")
            value = args[2] if len(args) > 2 else None
            given = place(value) if isinstance(value, Tensor) and value.dim() else None
            if index and given is not None and own is not None and given != own:
                raise RuntimeError(f"values on {given} are put into a tensor on {own}")
            return own
        places = {place(each) for each in tensors if place(each) is not None}
        if places == {CPU, GPU} and func not in _ACROSS:
            if any(place(each) == CPU and each.dim() for each in tensors):
                raise RuntimeError(f"{getattr(func, '__name__', func)}: tensors on {CPU} and on {GPU}")
            return GPU
        if func in _ACROSS and tensors:
            return place(tensors[0])
        return GPU if GPU in places else next(iter(places), None)


def _selects(index: Any) -> bool:
    """Whether how much an index selects depends on values."""
    return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_iter(index))


def _without_device(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], torch.device | None]:
    """A call that stays on the CPU, and the device that it asked for."""
    if func == Tensor.to:
        copy = kwargs.pop("copy", False)
        given, *rest = args
        if rest and isinstance(rest[0], Tensor):
            return (given, rest[0].dtype), {"copy": copy}, place(rest[0])
        device, dtype, _, _ = torch._C._nn._parse_to(*rest, **kwargs)
        return (given, dtype or given.dtype), {"copy": copy}, None if device is None else _device(device)
    if func in (Tensor.cpu, Tensor.pin_memory):
        return args, {}, CPU
    if func == Tensor.cuda:
        return args[:1], {}, GPU
    wanted = kwargs.pop("device", None)
    return args, kwargs, None if wanted is None else _device(wanted)


def _device(name: Any) -> torch.device:
    kind = torch.device(name).type
    return GPU if kind == "cuda" else CPU


def _line() -> str:
    """The innermost line of the package that is at work."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(_ROOT):
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{frame.f_code.co_filename.removeprefix(_ROOT)}:{frame.f_lineno}"


def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGPU:
    """To be entered: the mode, and the functions that no mode sees."""
    from_numpy = torch.from_numpy

    def marked(array: Any) -> Tensor:
        tensor = from_numpy(array)
        setattr(tensor, _PLACE, CPU)
        return tensor

    new = nn.Parameter.__new__

    def parameter(cls: type, data: Tensor | None = None, requires_grad: bool = True) -> Any:
        found = new(cls, data, requires_grad)
        if data is not None and place(data) is not None:
            setattr(found, _PLACE, place(data))
        return found

    monkeypatch.setattr(torch, "from_numpy", marked)
    monkeypatch.setattr(nn.Parameter, "__new__", parameter)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return PretendedGPU()
