"""Saves beside the training: copies of its state in the memory of the host, and the thread that writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from utils.console import tell
from utils.devices import free_host_memory, is_out_of_memory

Storage = tuple[str, int, int]  # device, address, bytes: tied weights have one


class HostCopies:
    """Copies of a state in buffers that the next one uses again: they take no more memory with every save.

    Those of a GPU's tensors are pinned, so that they are copied at the speed of the bus.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}  # by bytes, and whether pinned

    def of(self, state: Any) -> Any:
        """`state` (dicts, lists, tuples, tensors) with its tensors copied; copies made before may be overwritten.

        Tensors that share memory do so in the copy.

        Raises:
            MemoryError: the buffers would take more than half of the free memory; names the bytes.
        """
        found: dict[Storage, torch.UntypedStorage] = {}
        _find_storages(state, found)
        self._make_buffers(found)
        free = {kind: list(buffers) for kind, buffers in self._buffers.items()}
        copies: dict[Storage, torch.UntypedStorage] = {}
        for key, storage in found.items():
            copies[key] = free[_kind(storage)].pop()
            copies[key].copy_(storage, non_blocking=True)
        if any(storage.device.type == "cuda" for storage in found.values()):
            torch.cuda.synchronize()
        return _rebuilt(state, copies)

    def _make_buffers(self, found: Mapping[Storage, torch.UntypedStorage]) -> None:
        wanted = [_kind(storage) for storage in found.values()]
        counts = {kind: wanted.count(kind) - len(self._buffers.get(kind, [])) for kind in set(wanted)}
        missing = {kind: count for kind, count in counts.items() if count > 0}
        # The allocator of pinned memory rounds up to a power of two.
        needed = sum(
            count * (1 << (size - 1).bit_length() if pinned else size) for (size, pinned), count in missing.items()
        )
        if needed > free_host_memory() // 2:
            raise MemoryError(f"{needed:,} bytes for a copy of the state are more than half of the free memory")
        try:
            for (size, pinned), count in missing.items():
                made = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(count)]
                self._buffers.setdefault((size, pinned), []).extend(one.untyped_storage() for one in made)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._buffers.clear()
            raise MemoryError(f"there is no memory for a copy of the state, {needed:,} bytes") from error


def _kind(storage: torch.UntypedStorage) -> tuple[int, bool]:
    return storage.nbytes(), storage.device.type == "cuda"


def _key(tensor: Tensor) -> Storage:
    storage = tensor.untyped_storage()
    return str(storage.device), storage.data_ptr(), storage.nbytes()


def _find_storages(value: Any, found: dict[Storage, torch.UntypedStorage]) -> None:
    if isinstance(value, Tensor):
        found.setdefault(_key(value), value.untyped_storage())
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            _find_storages(part, found)


def _rebuilt(value: Any, copies: Mapping[Storage, torch.UntypedStorage]) -> Any:
    """`value` over the memory of `copies`; what is no tensor and no container is taken over as it is."""
    if isinstance(value, Tensor):
        empty = torch.empty(0, dtype=value.dtype)
        return empty.set_(copies[_key(value)], value.storage_offset(), value.size(), value.stride())
    if isinstance(value, dict):
        rebuilt = copy.copy(value)  # of its own kind: a state_dict has attributes
        rebuilt.update((name, _rebuilt(part, copies)) for name, part in value.items())
        return rebuilt
    if isinstance(value, list | tuple):
        return type(value)([_rebuilt(part, copies) for part in value])
    return value


class BackgroundSaves:
    """Writes one save at a time in a thread while training goes on; the process ends only when it is written.

    Where there is no memory for a copy of the state, training waits while it is written.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "save")
        self._running: Future[None] | None = None
        self._copies: HostCopies | None = HostCopies()  # None: there is no memory for them

    def copied(self, state: Any) -> Any:
        """A copy of `state` that training leaves alone; call it when the save before is written."""
        if self._copies is not None:
            try:
                return self._copies.of(state)
            except MemoryError as error:
                self._copies = None
                tell(f"{error}: training waits while a checkpoint is written")
        return state

    def start(self, write: Callable[[], None]) -> None:
        """Run `write`, which writes what `copied` gave, in the thread."""
        self._running = self._thread.submit(write)
        if self._copies is None:
            wait([self._running])

    @property
    def failed(self) -> bool:
        """Whether the latest save has ended with an error."""
        return self._running is not None and self._running.done() and self._running.exception() is not None

    def settle(self) -> BaseException | None:
        """Wait for the save that is being written; its error, which is handed over once."""
        running, self._running = self._running, None
        return running.exception() if running is not None else None
