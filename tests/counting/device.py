"""Tensors that say `cuda:0` and compute on the CPU: what a CUDA run would do, seen without a GPU.

An operation that mixes devices raises. Counted, each with the line of our code (or the library's) that asks for it:
synchronisations of the host, kernel launches (roughly: dispatched operations that are no views), casts between types
and their elements, copies to the device. CUDA autocast is the real one. Attention is computed by plain operations, and
what it was called with is kept. Times mean nothing.

The guard of `device_guard.cpp` must be loaded before torch is imported: `python -m tests.counting` does it.

    model = on_device(model)
    with counting() as counts, torch.autocast("cuda", torch.bfloat16):
        ...                               # inputs moved with .to(DEVICE)
    counts.syncs, counts.launches, counts.casts
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
ROOT = f"{Path(__file__).parents[2]}/"
SYNCHRONISING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"})
NO_LAUNCH = frozenset({"detach", "alias", "_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided"})
NO_LAUNCH |= {"new_empty_strided", "lift_fresh"}
COPIES = frozenset({"_to_copy", "copy_", "copy", "_copy_from", "to"})


_PRODUCTS = torch.library.Library("aten", "IMPL")  # only GPUs have them
_PRODUCTS.impl("mm.dtype", lambda left, right, dtype: torch.mm(left.to(dtype), right.to(dtype)), "CPU")


@dataclass
class Counts:
    """What the device was asked to do: by the operation and the place that asked."""

    syncs: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    casts: Counter[str] = field(default_factory=Counter)
    cast_elements: int = 0
    to_device: Counter[str] = field(default_factory=Counter)
    attention: list[dict[str, Any]] = field(default_factory=list)  # shapes, types and mask of every call

    def reset(self) -> None:
        """Begin anew."""
        fresh = Counts()
        self.__dict__.update(fresh.__dict__)


class MixedDevices(RuntimeError):
    """An operation met tensors of the device and of the host."""


class CountingTensor(Tensor):
    """A tensor that says `cuda:0`; `held` is on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> CountingTensor:
        made: CountingTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CountingTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Counts())  # outside `counting`

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Dispatch(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.counts)


class _Functions(TorchFunctionMode):
    """What dispatch does not see: `tolist`, tensors made from lists, and attention, which has no kernel here."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], CountingTensor):
            self.counts.syncs[f"tolist {_place()}"] += 1
            return args[0].held.tolist()
        if func is torch.tensor and _is_device(kwargs.get("device")):
            del kwargs["device"]
            return torch.tensor(*args, **kwargs).to(DEVICE)
        if func is nn.functional.scaled_dot_product_attention and isinstance(args[0], CountingTensor):
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = (part.to(dtype) for part in (query, key, value))
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(dtype)
        mask = None if attn_mask is None else (tuple(attn_mask.shape), attn_mask.dtype)
        call = {"query": tuple(query.shape), "key": tuple(key.shape), "dtype": query.dtype, "mask": mask}
        self.counts.attention.append({**call, "dropout": dropout_p, "causal": is_causal, "place": _place(), **options})
        self.counts.launches["attention"] += 1
        return _Attention.apply(query, key, value, attn_mask, is_causal, scale, self.counts)  # type: ignore[no-any-return, no-untyped-call]


class _Attention(torch.autograd.Function):
    """Attention as one launch, and one more in the backward pass, whatever it is computed by."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        counts: Counts,
    ) -> Tensor:
        parts = [None if part is None else part.detach() for part in (query, key, value, mask)]
        ctx.parts = [
            part if part is None else part.requires_grad_(needed)
            for part, needed in zip(parts, ctx.needs_input_grad, strict=False)
        ]
        ctx.counts = counts
        with _uncounted(counts), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            ctx.context = _plain_attention(*ctx.parts, is_causal, scale)
        return ctx.context.detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.counts.launches["attention backward"] += 1
        wanted = [part for part in ctx.parts if part is not None and part.requires_grad]
        with _uncounted(ctx.counts):
            found = iter(torch.autograd.grad(ctx.context, wanted, gradients[0]))
        return (*(next(found) if part is not None and part.requires_grad else None for part in ctx.parts), *(None,) * 3)


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    scores = torch.matmul(query.float(), key.float().transpose(-1, -2))
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask.float()
    return torch.matmul(scores.softmax(-1), value.float()).to(query.dtype)


@contextmanager
def _uncounted(counts: Counts) -> Iterator[None]:
    before = counts.launches.copy(), counts.casts.copy(), counts.cast_elements
    yield
    counts.launches, counts.casts, counts.cast_elements = before


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _place() -> str:
    """`file:line` of our code that asks, else of transformers."""
    of_library, frame = "", sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and "site-packages" not in name and name != __file__:
            return f"{name.removeprefix(ROOT)}:{frame.f_lineno}{of_library}"
        if "/transformers/" in name and not of_library:
            of_library = f" (transformers {Path(name).name}:{frame.f_lineno})"
        frame = frame.f_back  # type: ignore[assignment]
    return of_library.strip()


def _run(func: Any, args: Any, kwargs: dict[str, Any], counts: Counts) -> Any:
    """One operation, on the CPU; its results say `cuda:0` where a GPU's would."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [leaf for leaf in leaves if isinstance(leaf, CountingTensor)]
    name = func._schema.name.removeprefix("aten::")
    wanted = kwargs.get("device")
    to_device, to_host = _is_device(wanted), bool(ours) and wanted is not None and not _is_device(wanted)
    if ours and name not in COPIES:
        _refuse_mixed(
            name, args, [leaf for leaf in leaves if leaf.dim() and not isinstance(leaf, CountingTensor)], ours
        )
    if ours or to_device:
        _count(name, func, args, kwargs, counts, to_host)
    options = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if wanted is not None:
        options["device"] = torch.device("cpu")
    found = func(*tree_map(_held, args), **tree_map(_held, options))
    if to_host or not (ours or to_device) or (name == "copy_" and not isinstance(args[0], CountingTensor)):
        return found
    known = {id(leaf.held): leaf for leaf in ours}  # an operation in place gives its own argument back

    def said(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, CountingTensor):
            return value
        return known[id(value)] if id(value) in known else CountingTensor(value)

    return tree_map(said, found)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, CountingTensor) else value


def _refuse_mixed(name: str, args: Any, of_host: list[Tensor], ours: list[CountingTensor]) -> None:
    if name.startswith(("index", "_index_put")) and isinstance(args[0], CountingTensor):
        of_host = [leaf for leaf in of_host if leaf.dtype not in (torch.int64, torch.bool)]  # CUDA takes such indices
    if of_host:
        shapes = [tuple(leaf.shape) for leaf in ours], [tuple(leaf.shape) for leaf in of_host]
        raise MixedDevices(f"{name} at {_place()}: shapes on the device {shapes[0]}, on the host {shapes[1]}")


def _count(name: str, func: Any, args: Any, kwargs: dict[str, Any], counts: Counts, to_host: bool) -> None:
    if not func.is_view and name not in NO_LAUNCH:
        counts.launches[name] += 1
    from_device = isinstance(args[0], CountingTensor) if args else False
    if name in SYNCHRONISING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        counts.syncs[f"{name} {_place()}"] += 1
    indices = args[1] if name.startswith(("index", "_index_put")) and len(args) > 1 else ()
    if any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(indices)):
        counts.syncs[f"{name} by a mask {_place()}"] += 1
    if to_host or (name == "copy_" and not from_device):
        counts.syncs[f"to the host {_place()}"] += 1
    elif (name in COPIES and not from_device) or (name == "copy_" and not isinstance(args[1], CountingTensor)):
        counts.to_device[_place()] += 1
    for source, dtype in _casts(name, args, kwargs):
        counts.casts[f"{source.dtype}->{dtype} {_place()}".replace("torch.", "")] += 1
        counts.cast_elements += source.numel()
    if name == "_foreach_copy_":  # one launch, whatever the number of tensors
        source, target = args[1][0], args[0][0]
        counts.casts[f"{source.dtype}->{target.dtype} {_place()}".replace("torch.", "")] += source.dtype != target.dtype
        counts.cast_elements += sum(one.numel() for one in args[1] if source.dtype != target.dtype)


def _casts(name: str, args: Any, kwargs: dict[str, Any]) -> list[tuple[Tensor, torch.dtype]]:
    """What an operation on the device turns into another type."""
    if not args or not isinstance(args[0], CountingTensor):
        return []
    if name == "_to_copy" and kwargs.get("dtype") not in (None, args[0].dtype):
        return [(args[0], kwargs["dtype"])]
    if name == "copy_" and isinstance(args[1], CountingTensor) and args[1].dtype != args[0].dtype:
        return [(args[1], args[0].dtype)]
    return []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens within; `torch.cuda` says that it is there."""
    counts = Counts()
    with ExitStack() as stack:
        for place, name, value in (
            ("torch.cuda", "_lazy_init", lambda: None),
            ("torch.cuda", "is_bf16_supported", lambda *_, **__: True),
            ("torch.cuda.amp.common", "amp_definitely_not_available", lambda: False),
            ("torch._C", "_InferenceMode", lambda _: torch.no_grad()),  # refuses such tensors
        ):
            stack.enter_context(patch.object(sys.modules[place], name, value))
        stack.enter_context(_Dispatch(counts))
        stack.enter_context(_Functions(counts))
        yield counts


def on_device(module: nn.Module) -> nn.Module:
    """Move the parameters and buffers of a module to the device; those that are shared stay so."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter, CountingTensor):
                held = CountingTensor(parameter.detach().clone())
                own = moved.setdefault(id(parameter), nn.Parameter(held, requires_grad=parameter.requires_grad))
                part._parameters[name] = own
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, CountingTensor):
                part._buffers[name] = CountingTensor(buffer.clone())
    return module
