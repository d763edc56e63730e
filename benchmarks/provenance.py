"""Where a tensor comes from, as one number: equal for two tensors made by the same operations from the same parameters.

Stronger than equal shapes and as good without values as with them, so that 1,371 networks can be compared on the meta
device in minutes. A tensor's number is a hash of its operation, the operation's arguments and, at the leaves, names.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OperationKind = tuple[tuple[bool, ...], bool]  # which arguments an operation writes to; whether its outputs are all new


class Provenance(TorchDispatchMode):
    """While entered, follows every operation. Meta operations seen before are answered from memory.

    `following` False only answers, which makes weightless networks twice as fast.
    """

    def __init__(self) -> None:
        super().__init__()
        self.following = True
        self.numbers: dict[int, tuple[Tensor, int]] = {}  # id → (the tensor, kept so that its id stays its own; number)
        self.writes: dict[int, int] = {}  # storage → number of what was written into it, seen by all its views
        self.answers: dict[Any, Any] = {}  # (operation, arguments without values) → forms of the outputs
        self.kinds: dict[Any, OperationKind] = {}

    def forget(self) -> None:
        """Of the tensors, all; what operations answer stays true."""
        self.numbers.clear()
        self.writes.clear()

    def name(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Make these tensors leaves, as yet unwritten."""
        for name, tensor in tensors:
            self.numbers[id(tensor)] = (tensor, hash(name))
            self.writes.pop(_storage(tensor), None)

    def number(self, tensor: Tensor) -> int:
        known = self.numbers.get(id(tensor))
        if known is None:  # a constant made outside
            known = self.numbers[id(tensor)] = (tensor, hash((tensor.shape, tensor.dtype)))
        written = self.writes.get(_storage(tensor)) if self.writes else None
        return known[1] if written is None else hash((known[1], written))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written, all_new = self._kind(func)
        if not self.following:
            return self._answer(func, written, all_new, args, kwargs)
        number = hash((func, self._numbers(args), self._numbers(tuple(kwargs.items()))))
        outputs = self._answer(func, written, all_new, args, kwargs)
        places = [*args, *(kwargs.get(a.name) for a in func._schema.arguments[len(args) :])]
        for argument, is_written in zip(places, written, strict=False):
            for tensor in _flat(argument) if is_written else ():
                self.writes[_storage(tensor)] = hash((number, self.number(tensor)))
        given = {id(tensor) for argument in places for tensor in _flat(argument)} if any(written) else set()
        for i, tensor in enumerate(_flat(outputs)):
            if id(tensor) not in given:
                self.numbers[id(tensor)] = (tensor, hash((number, i)))
        return outputs

    def _kind(self, func: Any) -> OperationKind:
        if func not in self.kinds:
            schema = func._schema
            written = tuple(bool(a.alias_info and a.alias_info.is_write) for a in schema.arguments)
            aliases = any(a.alias_info for a in (*schema.arguments, *schema.returns))
            self.kinds[func] = written, not aliases and "unsafe" not in schema.name  # unsafe_split hides its views
        return self.kinds[func]

    def _numbers(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.number(value)
        return tuple(map(self._numbers, value)) if isinstance(value, list | tuple) else value

    def _answer(self, func: Any, written: tuple[bool, ...], all_new: bool, args: Any, kwargs: Any) -> Any:
        """What `func` gives. Meta tensors have no values, so writing changes nothing and new outputs repeat."""
        if not args or not isinstance(args[0], Tensor) or args[0].device.type != "meta":
            return func(*args, **kwargs)
        if written and written[0] and func._schema.name.endswith("_") and torch.Tag.inplace_view not in func.tags:
            return args[0]
        if not all_new:
            return func(*args, **kwargs)
        asked = (func, _forms(args), _forms(tuple(kwargs.items())))
        if asked not in self.answers:
            outputs = func(*args, **kwargs)
            flat = outputs if isinstance(outputs, list | tuple) else [outputs]
            if not all(isinstance(o, Tensor) and o.device.type == "meta" for o in flat):
                return outputs
            self.answers[asked] = type(outputs), [(o.shape, o.stride(), o.dtype) for o in flat]
            return outputs
        kind, forms = self.answers[asked]
        made = [torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in forms]
        return kind(made) if kind in (list, tuple) else made[0]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _flat(part)] if isinstance(value, list | tuple) else []


def _forms(value: Any) -> Any:
    """Arguments without values, to look up by; 1 and 1.0 apart, because they make other types."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device.type
    if isinstance(value, list | tuple):
        return tuple(map(_forms, value))
    return type(value), value


def reached(output: Tensor) -> set[int]:
    """The ids of the parameters that a gradient from `output` arrives at, found by walking its graph."""
    seen: set[Any] = set()
    leaves: set[int] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting.extend(following for following, _ in node.next_functions)
    return leaves
