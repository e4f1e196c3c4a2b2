"""The code of a TorchScript program, read as Python reads it, so that no spelling of a call is overlooked."""

import ast

_REACHING_OUT = frozenset({"save", "from_file", "load_tensor"})
"""By which a program writes or reads files (`aten::save`, `aten::from_file`, `debugprims::load_tensor`: all that
PyTorch 2.13 lists with the name of a file)."""

_OPERATORS = "ops"
_OWN_LIBRARIES = frozenset({"aten", "prim"})
"""Of operators that compute; those of others may do anything."""


def reaching_out(code: str) -> str | None:
    """Return the name by which a program may do more than compute; None if there is none.

    A function may get another name before it is called (`f = torch.save`), so the bare name counts.

    >>> reaching_out("f = torch.save"), reaching_out("x = ops.evil.run(y)"), reaching_out("x = ops.prim.min(y)")
    ('save', 'ops', None)

    Raises:
        ValueError: it is no code that can be read, or looks up a name that stands nowhere.
    """
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"its code cannot be read ({type(error).__name__})") from error
    of_torch = {id(one.value) for one in nodes if isinstance(one, ast.Attribute) and one.attr in _OWN_LIBRARIES}
    called = {id(one.func) for one in nodes if isinstance(one, ast.Call) and _is_plain_lookup(one)}
    for one in nodes:
        name = _name_of_node(one)
        if name == "getattr" and id(one) not in called:
            raise ValueError("its code looks up a name that it does not spell out")
        if name in _REACHING_OUT or (_is_of_operators(one) and id(one) not in of_torch):
            return name
    return None


def _name_of_node(node: ast.AST) -> str | None:
    """Return the name that a piece of code looks up."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call) and _is_plain_lookup(node):
        return str(node.args[1].value)  # type: ignore[attr-defined]  # a constant, as was looked at
    return None


def _is_of_operators(node: ast.AST) -> bool:
    """Return whether a name stands for all libraries of operators; a layer of a network may be called so too."""
    return isinstance(node, ast.Name) and node.id == _OPERATORS and isinstance(node.ctx, ast.Load)


def _is_plain_lookup(call: ast.Call) -> bool:
    """Return whether a call is `getattr(something, "name")`, as PyTorch writes names such as `0`."""
    if not (isinstance(call.func, ast.Name) and call.func.id == "getattr" and len(call.args) == 2):
        return False
    return isinstance(call.args[1], ast.Constant) and isinstance(call.args[1].value, str)
