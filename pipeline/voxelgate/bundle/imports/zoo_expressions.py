"""Work out the few `$` expressions that configs of zoo bundles need, without running Python.

What is known is listed here: numbers, texts, lists, comparisons, `x if y else z`, some functions of Python, PyTorch's
devices, types and arrays, and `monai.NAME(...)`, which becomes the config of a component. All else is refused.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 10_000
"""Items of a list, or characters of a text, that an expression may make."""

LARGEST_NUMBER = 2**53
"""Beyond it lies no size, label or intensity, and floats lose whole numbers."""


class UnknownExpressionError(ValueError):
    """An expression says something that is not known here; the message tells what, as the end of a sentence."""


_CALCULATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_SIGNS: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}


def _span(*ends: int) -> list[int]:
    if len(numbers := range(*ends)) > LONGEST:
        raise UnknownExpressionError(f"it gives {len(numbers)} items")
    return list(numbers)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "len": len,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list,
    "tuple": list,
    "sorted": sorted,
    "min": min,
    "max": max,
    "sum": sum,
    "abs": abs,
    "round": round,
    "range": _span,
    "torch.cuda.is_available": lambda: False,  # bundles are read, and their networks built, on the CPU
    "torch.device": lambda *_, **__: "cpu",
    "torch.from_numpy": lambda array: array,
    "copy.deepcopy": lambda value: value,
}
_KEEPS = frozenset({"to", "cpu", "float", "eval", "copy"})
"""Methods whose result is what they are called on, as far as a config goes."""

_TYPES = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64")


@dataclass(frozen=True)
class NumberType:
    """A type of numbers that a config names, such as `torch.float32`."""

    name: str


@dataclass(frozen=True)
class FunctionText:
    """A function that a config states, never called, only compared with what is known.

    Args:
        text: as `ast.unparse` writes it.
    """

    text: str


_CONSTANTS: Mapping[str, Any] = {
    **{f"{module}.{name}": NumberType(name) for module in ("torch", "np", "numpy") for name in _TYPES},
    "torch.float": NumberType("float32"),
    "torch.long": NumberType("int64"),
}


@dataclass(frozen=True)
class Scope:
    """What an expression may look up.

    Args:
        references: values by the names that stand for them in the tree.
        load: returns the plain arrays of a file of the bundle, by the path that the expression gives.
    """

    references: Mapping[str, Any]
    load: Callable[[str], Any]


def worked_out(node: ast.expr, scope: Scope) -> Any:
    """Return what an expression gives: numbers, texts, lists, objects, arrays, `NumberType`, configs of components.

    Raises:
        UnknownExpressionError: it says what is not known here, or gives what no config needs.
    """
    reader = _READERS.get(type(node))
    if reader is None:
        raise UnknownExpressionError(f"{_shown(node)} is not known here")
    try:
        return _bounded(reader(node, scope))
    except UnknownExpressionError:
        raise
    except (TypeError, ArithmeticError, LookupError, ValueError, AttributeError) as error:
        raise UnknownExpressionError(f"{_shown(node)} cannot be worked out ({error})") from error


def _bounded(value: Any) -> Any:
    if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
        raise UnknownExpressionError(f"it gives the number {value:.3g}")
    if isinstance(value, str | list) and len(value) > LONGEST:
        raise UnknownExpressionError(f"it gives {len(value)} items")
    return value


def _shown(node: ast.expr) -> str:
    text = ast.unparse(node)
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


def _looked_up(node: ast.Name, scope: Scope) -> Any:
    if node.id not in scope.references:
        raise UnknownExpressionError(f"the name {node.id!r} is not known here")
    return scope.references[node.id]


def _attribute(node: ast.Attribute, _: Scope) -> Any:
    dotted = ast.unparse(node)
    if dotted not in _CONSTANTS:
        raise UnknownExpressionError(f"{_shown(node)} is not known here")
    return _CONSTANTS[dotted]


def _list(node: ast.List | ast.Tuple | ast.Set, scope: Scope) -> list[Any]:
    return [worked_out(one, scope) for one in node.elts]


def _dict(node: ast.Dict, scope: Scope) -> dict[Any, Any]:
    if None in node.keys:
        raise UnknownExpressionError(f"{_shown(node)} is not known here")
    keys = [worked_out(key, scope) for key in node.keys if key is not None]
    return dict(zip(keys, (worked_out(value, scope) for value in node.values), strict=True))


def _calculation(node: ast.BinOp, scope: Scope) -> Any:
    left, right = worked_out(node.left, scope), worked_out(node.right, scope)
    are_numbers = all(isinstance(one, int | float) for one in (left, right))
    is_joined = isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, str | list)
    if type(node.op) not in _CALCULATIONS or not (are_numbers or is_joined):
        raise UnknownExpressionError(f"{_shown(node)} is not known here")
    return _CALCULATIONS[type(node.op)](left, right)


def _sign(node: ast.UnaryOp, scope: Scope) -> Any:
    if type(node.op) not in _SIGNS:
        raise UnknownExpressionError(f"{_shown(node)} is not known here")
    return _SIGNS[type(node.op)](worked_out(node.operand, scope))


def _comparison(node: ast.Compare, scope: Scope) -> bool:
    values = [worked_out(one, scope) for one in (node.left, *node.comparators)]
    return all(
        _COMPARISONS[type(sign)](left, right) for sign, left, right in zip(node.ops, values, values[1:], strict=False)
    )


def _both_or_either(node: ast.BoolOp, scope: Scope) -> Any:
    ends_at = isinstance(node.op, ast.Or)
    value: Any = None
    for one in node.values:
        value = worked_out(one, scope)
        if bool(value) is ends_at:
            break
    return value


def _chosen(node: ast.IfExp, scope: Scope) -> Any:
    return worked_out(node.body if worked_out(node.test, scope) else node.orelse, scope)


def _item(node: ast.Subscript, scope: Scope) -> Any:
    return worked_out(node.value, scope)[worked_out(node.slice, scope)]


def _call(node: ast.Call, scope: Scope) -> Any:
    if any(isinstance(one, ast.Starred) for one in node.args) or any(word.arg is None for word in node.keywords):
        raise UnknownExpressionError(f"{_shown(node)} is not known here")
    called = ast.unparse(node.func)
    if called == "torch.load" and node.args:
        return scope.load(worked_out(node.args[0], scope))
    if called.startswith("monai.") and not node.args:
        return {"_target_": called, **{str(word.arg): worked_out(word.value, scope) for word in node.keywords}}
    if called in _FUNCTIONS:
        words = {str(word.arg): worked_out(word.value, scope) for word in node.keywords}
        return _FUNCTIONS[called](*(worked_out(one, scope) for one in node.args), **words)
    if isinstance(node.func, ast.Attribute) and node.func.attr in _KEEPS:
        return worked_out(node.func.value, scope)
    raise UnknownExpressionError(f"{called!r} is not called here")


_READERS: Mapping[type[ast.expr], Callable[[Any, Scope], Any]] = {
    ast.Constant: lambda node, _: node.value,
    ast.Name: _looked_up,
    ast.Attribute: _attribute,
    ast.List: _list,
    ast.Tuple: _list,
    ast.Set: _list,
    ast.Dict: _dict,
    ast.BinOp: _calculation,
    ast.UnaryOp: _sign,
    ast.Compare: _comparison,
    ast.BoolOp: _both_or_either,
    ast.IfExp: _chosen,
    ast.Subscript: _item,
    ast.Call: _call,
    ast.Lambda: lambda node, _: FunctionText(ast.unparse(node)),
}
