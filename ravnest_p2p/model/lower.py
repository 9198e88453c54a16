"""Turn an exported graph into our program.

Problem: `torch.export`'s training graph is not yet plain data: it writes in place, has nested graphs for
`no_grad`, constants, assertions and unused parts. Solution: walk it once and build the program node by node
on fake tensors. A write to a buffer stays a write; a write to any other value becomes a new value, and
views of the written tensor are made again from it when they are next used.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_flatten, tree_unflatten

from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model import ops
from ravnest_p2p.model.builder import Builder, Value
from ravnest_p2p.model.explain import place, unlisted
from ravnest_p2p.model.rewrite import RENAMED, bound_arguments, functional_of, rewriting

_SKIPPED = {
    "_assert_async",
    "_assert_scalar",
    "_assert_tensor_metadata",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}
_IN_PLACE = {
    "aten.bernoulli_.float": "aten.bernoulli.p",
    "aten.masked_fill_.Scalar": "aten.masked_fill.Scalar",
    "aten.masked_fill_.Tensor": "aten.masked_fill.Tensor",
    "aten.normal_.default": "aten.normal_functional.default",
}
_SAME = ("aten.alias", "aten.to", "aten.contiguous", "aten.view_as")
"""Views that show all of their tensor in its order."""
_DROPPED_KWARGS = {"device", "layout", "pin_memory", "non_blocking", "generator"}


class Lowering:
    """Walks one exported graph and writes into a `Builder`."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._env: dict[FxNode, Any] = {}
        self._version: dict[FxNode, int] = {}
        self._writes: dict[int, int] = {}
        self._no_grad = False

    def run(self, graph: GraphModule, arguments: list[int]) -> Any:
        """Lower a (nested) graph whose placeholders are these values; returns the lowered output."""
        placeholders = iter(arguments)
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                self._set(node, next(placeholders))
            elif node.op == "get_attr":
                self._env[node] = getattr(graph, node.target)
            elif node.op == "output":
                return self._value(node.args[0])
            else:
                self._builder.where = _where(node) or self._builder.where
                self._lower(node)
        raise CaptureError("the exported graph has no output")

    def _lower(self, node: FxNode) -> None:
        if node.target is operator.getitem:
            source, index = node.args
            self._set(node, self._value(source)[index])
            return
        name = str(node.target)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self._nested(node, name)
            return
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            raise self._refusal(f"{name} is not a tensor operation", "compute it outside of forward()")
        if target._schema.name.split("::")[1] in _SKIPPED:
            return
        name = RENAMED.get(name, name)
        if target._schema.is_mutable and name.split(".")[1].endswith("_"):
            self._write(node, name)
            return
        if isinstance(node.kwargs.get("out"), FxNode):
            self._write_out(node, target)
            return
        self._set(node, self._emit(name, node.args, node.kwargs))
        for position in ops.STATISTICS_ARGS.get(name, ()):
            statistics = node.args[position] if position < len(node.args) else None
            if isinstance(statistics, FxNode):
                self._bump(statistics)

    def _nested(self, node: FxNode, name: str) -> None:
        before = self._no_grad
        if name == "wrap_with_set_grad_enabled":
            enabled, graph, *arguments = node.args
            self._no_grad = before or not enabled
        elif name == "wrap_with_autocast" and not node.args[2]:
            graph, arguments = node.args[4], list(node.args[5:])
        elif name == "wrap_with_autocast":
            raise self._refusal(
                "autocast is on", "remove torch.autocast; mixed precision is an option of the job"
            )
        else:
            raise self._refusal(f"{name} cannot travel", "write this part without it")
        self._env[node] = self.run(self._value(graph), [self._value(a) for a in arguments])
        self._no_grad = before

    def _emit(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        name = RENAMED.get(name, name)
        op = None if name in ops.ALLOWED_OPS else _overload(name)
        values = [self._value(a) for a in args]
        if name in ops.DROPOUT_OPS and values[-1] is False:
            return values[0]
        named = {k: self._value(v) for k, v in kwargs.items()}
        for value in (*values, *named.values()):
            fixed = value.device if isinstance(value, torch.Generator) else value
            if isinstance(fixed, torch.device) and fixed.type != "cpu":
                raise self._refusal(f"{fixed} is fixed in the code", "take the device from an input tensor")
        instead = rewriting(name) if op else None
        if instead and op:
            return instead(self._builder, bound_arguments(op, values, named), self._no_grad)
        if op and _is_composite(op):
            return self._decompose(op, values, named)
        named = {k: v for k, v in named.items() if k not in _DROPPED_KWARGS}
        return self._builder.emit(name, values, named, no_grad=self._no_grad)

    def _decompose(self, op: torch._ops.OpOverload, values: list[Any], named: dict[str, Any]) -> Any:
        """Lower the operations that a composite one (such as einsum) consists of."""
        leaves, shape = tree_flatten((values, named))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Value)]

        def run(*fakes: torch.Tensor) -> Any:
            given = iter(fakes)
            args, kwargs = tree_unflatten([next(given) if isinstance(x, Value) else x for x in leaves], shape)
            return op(*args, **kwargs)

        try:
            graph = self._builder.traced(run, tensors)
        except Exception as error:
            raise self._refusal(*unlisted(str(op))) from error
        return self.run(graph, list(tensors))

    def _write(self, node: FxNode, name: str) -> None:
        """Lower an in-place operation."""
        target = node.args[0]
        assert isinstance(target, FxNode)
        value = self._value(target)
        if self._builder.is_buffer(value) and name in ops.MUTATING_OPS:
            self._emit(name, node.args, node.kwargs)
            self._bump(target)
            self._set(node, value)
            return
        written = self._written(name, value, node)
        self._store(target, written)
        self._env[node] = self._env[target]
        self._version[node] = self._version[target]

    def _write_out(self, node: FxNode, op: torch._ops.OpOverload) -> None:
        """Lower an operation that writes its result into the tensor `out`."""
        kwargs = dict(node.kwargs)
        target = kwargs.pop("out")
        assert isinstance(target, FxNode)
        functional = functional_of(op)
        if functional is None:
            raise self._refusal(f"{op} writes to out=", "assign the result instead")
        self._store(target, self._emit(functional, node.args, kwargs))
        self._env[node] = self._env[target]
        self._version[node] = self._version[target]

    def _written(self, name: str, value: int, node: FxNode) -> Value:
        """The new value of an in-place operation's target, with the target's shape and dtype."""
        spec = self._builder.spec(value)
        result: Value
        if name in ("aten.copy_.default", "aten.fill_.Tensor"):
            result = self._value(node.args[1])
        elif name in ("aten.zero_.default", "aten.fill_.Scalar"):
            fill = 0 if name == "aten.zero_.default" else node.args[1]
            result = self._builder.emit("aten.full_like.default", [value, fill], {}, self._no_grad)
        else:
            _, packet, overload = name.split(".")
            functional = _IN_PLACE.get(name, f"aten.{packet[:-1]}.{overload}")
            missing = node.target._schema.arguments[len(node.args) :]  # type: ignore[union-attr]
            defaults = [a.default_value for a in missing if a.default_value is not None and not a.kwarg_only]
            result = self._emit(functional, (*node.args, *defaults), node.kwargs)
        if self._builder.spec(result).dtype != spec.dtype:
            result = self._builder.emit("aten.to.dtype", [result, ops.DTYPES[spec.dtype]], {}, self._no_grad)
        if self._builder.spec(result).shape != spec.shape:
            result = self._builder.emit("aten.expand.default", [result, list(spec.shape)], {}, self._no_grad)
        return result

    def _store(self, target: FxNode, written: int) -> None:
        """Make `written` the value of `target`, and of the tensors that it is a view of."""
        parent = _view_source(target)
        if parent is None:
            if self._builder.is_buffer(self._env[target]):
                self._builder.emit("aten.copy_.default", [self._env[target], written], {}, no_grad=True)
                self._bump(target)
                self._version[target] = self._writes[_storage(target)]
                return
            held = self._builder.leaf_of(self._env[target])
            if held is not None and held.kind != "input":
                raise self._refusal(
                    f"it writes to the parameter {held.name!r} in forward()",
                    "keep such a tensor as a buffer, or change it between the steps",
                )
            self._bump(target)
            self._set(target, written)
            return
        base = self._value(parent)
        if target.target is operator.getitem:
            raise self._refusal(
                "it writes in place to a piece of a split tensor",
                "assign the result, and torch.cat the pieces",
            )
        name = str(target.target)
        if name.split(".")[1].endswith("_"):
            self._store(parent, written)
            self._set(target, written)
            return
        shape = list(self._builder.spec(base).shape)
        emit = self._builder.emit
        if name in ("aten.select.int", "aten.slice.Tensor"):
            scatter = "aten.select_scatter.default" if "select" in name else "aten.slice_scatter.default"
            merged = emit(scatter, [base, written, *target.args[1:]], dict(target.kwargs), self._no_grad)
        elif name in (
            "aten.view.default",
            "aten.reshape.default",
            "aten.flatten.using_ints",
            "aten.unsqueeze.default",
            "aten.squeeze.dim",
        ):
            merged = emit("aten.reshape.default", [written, shape], {}, self._no_grad)
        elif name in ops.DROPOUT_OPS or name.rsplit(".", 1)[0] in _SAME:
            merged = written
        elif name == "aten.transpose.int":
            merged = emit(name, [written, *target.args[1:]], {}, self._no_grad)
        else:
            raise self._refusal(
                f"it writes in place through {name}", "build the tensor with torch.where or torch.cat"
            )
        self._store(parent, merged)
        self._set(target, written)

    def _value(self, argument: Any) -> Any:
        """Current value of an argument; views of a tensor written since are made again."""
        if isinstance(argument, FxNode):
            storage = _storage(argument)
            if storage and self._version.get(argument, 0) != self._writes.get(storage, 0):
                self._remake(argument)
            return self._env[argument]
        if isinstance(argument, (list, tuple)):
            return [self._value(item) for item in argument]
        return argument

    def _remake(self, node: FxNode) -> None:
        source = _view_source(node)
        if source is None:
            if node.op != "placeholder":
                raise self._refusal(
                    "it reads a view of a tensor that was written in place", "clone() before the write"
                )
            self._version[node] = self._writes[_storage(node)]
        elif node.target is operator.getitem:
            split, index = node.args
            assert isinstance(split, FxNode)
            self._set(node, self._emit(str(split.target), split.args, split.kwargs)[index])
        elif str(node.target).split(".")[1].endswith("_"):
            self._set(node, self._value(source))
        else:
            self._set(node, self._emit(str(node.target), node.args, node.kwargs))

    def _set(self, node: FxNode, value: Any) -> None:
        self._env[node] = value
        storage = _storage(node)
        if storage:
            self._version[node] = self._writes.get(storage, 0)

    def _bump(self, node: FxNode) -> None:
        storage = _storage(node)
        self._writes[storage] = self._writes.get(storage, 0) + 1
        self._version[node] = self._writes[storage]

    def _refusal(self, cause: str, fix: str) -> CaptureError:
        return CaptureError(f"{self._builder.where}: {cause}; {fix}")


def _storage(node: FxNode) -> int:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else 0


def _view_source(node: FxNode) -> FxNode | None:
    """The argument that this node is a view of, if any."""
    if node.op != "call_function" or not node.args:
        return None
    source = node.args[0]
    if node.target is operator.getitem and isinstance(source, FxNode):
        source = source.args[0] if source.args else None
    if isinstance(source, FxNode) and _storage(source) and _storage(source) == _storage(node):
        return source
    return None


def _is_composite(op: torch._ops.OpOverload) -> bool:
    name = op.name()  # type: ignore[no-untyped-call]
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def _overload(name: str) -> torch._ops.OpOverload | None:
    namespace, packet, overload = name.split(".")
    found = getattr(getattr(torch.ops, namespace), packet, None)
    return getattr(found, overload, None)


def _where(node: FxNode) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return ""
    path, kind = stack[-1][0], str(stack[-1][1]).rsplit(".", 1)[-1]
    return place(path.removeprefix("model").removeprefix("."), kind)
