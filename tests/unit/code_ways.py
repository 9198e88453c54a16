"""Find, in the syntax tree of a module, whatever could turn data into running code or start a program."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = "ravnest_p2p"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODULES = _words("""
pickle cPickle _pickle pickletools dill cloudpickle joblib marshal shelve dbm copyreg yaml code codeop runpy
pty imp zipimport subprocess multiprocessing torch.hub torch.jit torch.package torch.fx.experimental
torch.utils.cpp_extension torch.utils.model_zoo torch.multiprocessing onnx numpy.lib.format
""")
"""Modules that unpickle, compile, load code by name, or start programs; what lies in them as well."""

NAMES = _words("""
builtins.eval builtins.exec builtins.compile builtins.__import__ builtins.breakpoint torch.load torch.save
torch.export.load torch.ops.load_library torch.classes.load_library torch.utils.data.DataLoader numpy.load
numpy.loadtxt numpy.genfromtxt numpy.fromfile os.system os.popen os.fork os.forkpty os.posix_spawn
os.posix_spawnp os.startfile os.execl os.execle os.execlp os.execlpe os.execv os.execve os.execvp os.execvpe
os.spawnl os.spawnle os.spawnlp os.spawnlpe os.spawnv os.spawnve os.spawnvp os.spawnvpe
asyncio.create_subprocess_exec asyncio.create_subprocess_shell importlib.import_module importlib.__import__
importlib.util.spec_from_file_location importlib.machinery.SourceFileLoader ctypes.CDLL ctypes.PyDLL
ctypes.cdll.LoadLibrary types.FunctionType types.CodeType
""")

TRACING = _words("""
torch.fx.experimental.proxy_tensor torch.fx.experimental.proxy_tensor.make_fx
torch.fx.experimental.symbolic_shapes torch.fx.experimental.symbolic_shapes.ShapeEnv
""")
"""Of those modules, what capturing needs, which only ever sees the requester's own model."""

LOADERS = _words("json.load json.loads safetensors.safe_open msgpack.unpackb msgpack.Unpacker")
"""All that may turn bytes into values, by full name."""

LOADING = _words("""
load loads load_file load_module load_weights safe_load unsafe_load full_load unpackb Unpacker safe_open
read_pickle find_class Unpickler load_state_dict_from_url load_library exec_module
""")
"""Last names of calls that load; whatever ends so and is neither ours nor in `LOADERS` is found."""


@cache
def closure(entry: str) -> dict[str, Path]:
    """Every module of ours that importing `entry` runs, with its packages; type-only imports are left out."""
    found: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name] = path
        parts = name.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
        for imported in _imports(ast.parse(path.read_text())):
            if imported.split(".")[0] == OURS:
                waiting.append(imported)
    return found


def _file(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`."""
    yield node
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        for rest in node.orelse:
            yield from _running(rest)
        return
    for child in ast.iter_child_nodes(node):
        yield from _running(child)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not followed"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ways_to_code(source: str) -> set[str]:
    """Full names of what a module uses and should not."""
    tree = ast.parse(source)
    known = dict(_aliases(tree))
    found = {name for name in _imports(tree) if _forbidden(name)}
    called = {id(node.func) for node in _running(tree) if isinstance(node, ast.Call)}
    for node in _running(tree):
        name = _dotted(node, known)
        if name is None:
            continue
        if _forbidden(name) or (id(node) in called and _loads(name)):
            found.add(name)
    return found


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in _running(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.AST, known: dict[str, str]) -> str | None:
    """ "torch.load" for `t.load` after `import torch as t`; plain built-in names get their module."""
    if isinstance(node, ast.Name):
        return known.get(node.id, f"builtins.{node.id}")
    if isinstance(node, ast.Attribute):
        holder = _dotted(node.value, known) or "?"
        return f"{holder}.{node.attr}"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
        # getattr(builtins, "eval") and the like.
        return f"builtins.{node.value}" if node.value in {"eval", "exec", "__import__"} else None
    return None


def _forbidden(name: str) -> bool:
    parts = name.split(".")
    if name in TRACING:
        return False
    return name in NAMES or any(".".join(parts[:end]) in MODULES for end in range(1, len(parts) + 1))


def _loads(name: str) -> bool:
    return name.split(".")[-1] in LOADING and name not in LOADERS and not name.startswith(OURS)
