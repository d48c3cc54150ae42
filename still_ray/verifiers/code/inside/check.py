"""The checker's side: runs the reference's assertions here, where no line of the program ever runs.

Names that the assertion code does not define are the program's. A call goes to the program's process; what comes back
is plain data, made anew here, or an object that stays there and is only a number here (`Remote`). The assertion is
evaluated here, on that data. What a program could forge by an operator is decided here, or not at all:

- `==` between an object of the program's and data is False, whatever its `__eq__` says, unless its class derives from a
  built-in one: then its content as that is compared. Between two of its objects it cannot be judged (verdict `error`);
- nor can `<` between an object and data, arithmetic of the two that gives data, and `in` for what is no iterable;
- the built-in functions and the modules of the standard library are the real ones, even if the program defines the
  name. The exception: when it is the only name that the assertions use of the program, it is the function under test.

A program can do what it likes with objects that only it holds: assertions that never compare with data prove little.
"""

import ast
import builtins
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, NoReturn, TypeVar

from still_ray.verifiers.code.inside import codec
from still_ray.verifiers.code.inside.codec import BadMessage

_MAX_LINE_BYTES: Final = 16 << 20
_MAX_BASES: Final = 50
_MAX_DETAIL: Final = 300
_PlainT = TypeVar("_PlainT", int, bool, str)
SOLUTION: Final = "solution"
_COUNT: Final = "__still_ray_count__"


class ProgramFailed(BaseException):
    """The program ended, or sent what is no answer; nothing that follows can be right."""


class Undecidable(BaseException):
    """Only the program could say, so nobody can."""


def main(source: str, requests: int, replies: int) -> None:
    """Checks, and writes one line with the verdict to the descriptor that was stderr."""
    report = os.dup(2)
    os.dup2(0, 2)
    program = Program(os.fdopen(requests, "rb"), os.fdopen(replies, "wb"))
    verdict, detail = checked(source, program)
    with os.fdopen(report, "wb") as file:
        file.write(codec.dumped([verdict, detail[:_MAX_DETAIL]]))


class Program:
    """The program's process, seen from here.

    Attributes:
        final: Why nothing more can be right, or can be judged; None while all is well.
        used: Whether the assertion code asked the program anything.
    """

    def __init__(self, replies: BinaryIO, requests: BinaryIO) -> None:
        self.final: ProgramFailed | Undecidable | None = None
        self.used = False
        self._replies = replies
        self._requests = requests
        self._callbacks: list[Callable[..., Any]] = []
        self._objects: dict[int, Remote] = {}
        self._exceptions: dict[tuple[str, ...], type[BaseException]] = {}

    def defined(self) -> dict[str, Any]:
        """What the program defines, as it says; waits until its top level has run.

        Raises:
            ProgramFailed: Its top level failed.
        """
        hello = self._received()
        names = hello.get("names")
        if not isinstance(names, dict):
            self.fail(f"the program failed: {hello.get('failed')}")
        return names

    def ask(self, operation: str, *arguments: Any, **keywords: Any) -> Any:
        """Has the program do something and returns what came of it.

        Raises:
            BaseException: What the program raised, as its nearest built-in kind.
            ProgramFailed: It ended, or its answer is none.
            Undecidable: An argument cannot be sent.
        """
        if self.final is not None:
            raise self.final
        self.used = self.used or operation != "name"
        sent = [self._encoded(item) for item in arguments]
        self._send({"op": operation, "args": sent, "kwargs": {k: self._encoded(item) for k, item in keywords.items()}})
        reply = self._received()
        while "callback" in reply:
            self._send(self._called_back(reply))
            reply = self._received()
        if "error" in reply:
            raise self._decoded_error(reply["error"])
        for index, value in self._changed(reply, arguments):
            _update(arguments[index], self._decoded(value))
        return self._decoded(reply.get("value"))

    def fail(self, why: str) -> NoReturn:
        """Nothing more can be right."""
        self.final = ProgramFailed(why)
        raise self.final

    def give_up(self, why: str) -> NoReturn:
        """Nothing more can be judged."""
        self.final = Undecidable(why)
        raise self.final

    def exception_class(self, names: tuple[str, ...]) -> type[BaseException]:
        """A class here for one of the program's exception classes: its name, over the nearest built-in kind.

        Raises:
            BadMessage: The names are those of no class.
        """
        if not 0 < len(names) < _MAX_BASES:
            raise BadMessage("no exception class")
        if len(names) == 1:
            return self._plain_exception(names[0])
        if names not in self._exceptions:
            self._exceptions[names] = type(names[0], (self.exception_class(names[1:]),), {})
        return self._exceptions[names]

    def _plain_exception(self, name: str) -> type[BaseException]:
        found = codec.harmless_type(name)
        return found if issubclass(found, BaseException) else Exception

    def _decoded_error(self, error: Any) -> BaseException:
        try:
            names = tuple(str(name) for name in error["names"])
            made = self.exception_class(names)(*[self._decoded(item) for item in error["args"]])
        except (BadMessage, KeyError, TypeError, ValueError) as bad:
            self.fail(f"the program raised what cannot be sent: {bad}")
        made.from_program = True  # type: ignore[attr-defined]
        return made

    def _called_back(self, message: dict[str, Any]) -> dict[str, Any]:
        """The program calls a function that it was given."""
        try:
            function = self._callbacks[message["callback"]]
            arguments = [self._decoded(item) for item in message["args"]]
            keywords = {str(name): self._decoded(item) for name, item in message["kwargs"].items()}
        except (LookupError, TypeError, AttributeError):
            self.fail("the program calls back what it was not given")
        try:
            return {"value": self._encoded(function(*arguments, **keywords))}
        except Exception as error:  # the program's to handle, as any exception of a function it calls
            return {"error": [type(error).__name__, str(error)]}

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._requests.write(codec.dumped(message))
            self._requests.flush()
        except OSError:
            self.fail("the program ended before the assertions did")

    def _received(self) -> dict[str, Any]:
        line = self._replies.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            self.fail("the program ended before the assertions did" if len(line) < _MAX_LINE_BYTES else "too much data")
        try:
            message = codec.loaded(line)
        except BadMessage as error:
            self.fail(str(error))
        if not isinstance(message, dict):
            self.fail("the program sent no answer")
        return message

    def _changed(self, reply: dict[str, Any], arguments: tuple[Any, ...]) -> list[tuple[int, Any]]:
        """Index and message of each argument that the program changed in place."""
        changed = reply.get("changed")
        if not isinstance(changed, dict) or not changed.keys() <= {str(index) for index in range(len(arguments))}:
            self.fail("the program sent no answer")
        return [(int(index), value) for index, value in changed.items()]

    def _encoded(self, value: Any) -> Any:
        try:
            return codec.encode(value, self._unknown)
        except RecursionError:
            self.give_up("the assertion code passes a value that is nested too deeply")

    def _unknown(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"t": "object", "v": number_of(value)}
        library = codec.library_name(value)
        if library is not None:
            return {"t": "library", "v": list(library)}
        if isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
            self._callbacks.append(value)
            return {"t": "callback", "v": len(self._callbacks) - 1}
        return self.give_up(f"the assertion code passes an object of its own to the program: {type(value).__name__}")

    def _decoded(self, message: Any) -> Any:
        try:
            return codec.decode(message, self._known)
        except BadMessage as error:
            self.fail(f"the program's answer is no value: {error}")

    def _known(self, tag: str, value: Any) -> Any:
        if tag == "object":
            return self._object(*value)
        if tag == "type":
            return codec.harmless_type(str(value))
        raise BadMessage(f"unknown kind {tag!r}")

    def _object(self, number: Any, is_plain: Any, content: Any) -> "Remote":
        if type(number) is not int:
            raise BadMessage("no number")
        data = codec.decode(content, self._known) if is_plain is True else NO_DATA
        remote = self._objects.setdefault(number, Remote(self, number))
        object.__setattr__(remote, "_data_", data)
        return remote


NO_DATA: Final = object()
"""Content of an object whose class derives from no built-in one; equal to nothing else."""


def _update(old: Any, new: Any) -> None:
    """Brings a container to a new content in place, and what it contains likewise where it can."""
    if isinstance(old, list) and isinstance(new, list):
        old[:] = [_merged(old[i], item) if i < len(old) else item for i, item in enumerate(new)]
    elif isinstance(old, dict) and isinstance(new, dict):
        merged = {key: _merged(old[key], item) if key in old else item for key, item in new.items()}
        old.clear()
        old.update(merged)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new


def _merged(old: Any, new: Any) -> Any:
    if type(old) is type(new) and type(old) in codec.MUTABLE:
        _update(old, new)
        return old
    return new


class Remote:
    """An object of the program's: a number. Attributes, calls and items are asked for; nothing is believed blindly."""

    __slots__ = ("_data_", "_number_", "_program_")

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program_", program)
        object.__setattr__(self, "_number_", number)

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        _ask(self, "delattr", self, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Has the program call it."""
        return _ask(self, "call", self, *arguments, **keywords)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same object, or has the content of a built-in kind that equals the data."""
        if not isinstance(other, Remote):
            return bool(object.__getattribute__(self, "_data_") == other)
        if number_of(self) == number_of(other):
            return True
        return _undecidable(self, "the equality of two of its objects")

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(("Remote", number_of(self)))

    def __contains__(self, item: object) -> bool:
        """Goes through the items here, so that the comparison is ours."""
        try:
            items = iter(self)
        except TypeError:
            _undecidable(self, "membership in one of its objects")
        return any(item is other or item == other for other in items)

    def __iter__(self) -> Iterator[Any]:
        iterator = _ask(self, "iter", self)
        if not isinstance(iterator, Remote):
            raise TypeError("not an iterator")
        return _Items(iterator)

    def __next__(self) -> Any:
        return _ask(self, "next", self)

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        _ask(self, "delitem", self, key)

    def __len__(self) -> int:
        return _exact(int, _ask(self, "len", self))

    def __bool__(self) -> bool:
        return _exact(bool, _ask(self, "bool", self))

    def __str__(self) -> str:
        return _exact(str, _ask(self, "str", self))

    def __repr__(self) -> str:
        return _exact(str, _ask(self, "repr", self))

    def __enter__(self) -> Any:
        return _ask(self, "enter", self)

    def __exit__(self, *exception: object) -> None:
        _ask(self, "exit", self)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Remote) and _exact(bool, _ask(self, "isinstance", instance, self))

    def __subclasscheck__(self, kind: object) -> bool:
        return isinstance(kind, Remote) and _exact(bool, _ask(self, "issubclass", kind, self))


class _Items(Iterator[Any]):
    """The items of a remote iterator."""

    def __init__(self, iterator: Remote) -> None:
        self._iterator = iterator

    def __next__(self) -> Any:
        return next(self._iterator)


def number_of(remote: Remote) -> int:
    """The number by which the program knows its object."""
    return int(object.__getattribute__(remote, "_number_"))


def _ask(remote: Remote, operation: str, *arguments: Any, **keywords: Any) -> Any:
    program: Program = object.__getattribute__(remote, "_program_")
    return program.ask(operation, *arguments, **keywords)


def _undecidable(remote: Remote, what: str) -> NoReturn:
    program: Program = object.__getattribute__(remote, "_program_")
    program.give_up(f"only the program could say: {what}")


def _exact(kind: type[_PlainT], value: Any) -> _PlainT:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    plain: _PlainT = value
    return plain


def _add_operators() -> None:
    """Arithmetic and order. With data on one side, the result may be an object of the program's and never data."""
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
        plain = name.rstrip("_")
        setattr(Remote, f"__{plain}__", _arithmetic(name, swapped=False))
        setattr(Remote, f"__r{plain}__", _arithmetic(name, swapped=True))
    for name in ("lt", "le", "gt", "ge"):
        setattr(Remote, f"__{name}__", _order(name))
    for name in ("neg", "pos", "invert", "abs"):
        setattr(Remote, f"__{name}__", _arithmetic_of_one(name))


def _arithmetic(name: str, *, swapped: bool) -> Callable[[Remote, Any], Any]:
    def operator(self: Remote, other: Any) -> Any:
        value = _ask(self, name, other, self) if swapped else _ask(self, name, self, other)
        if isinstance(value, Remote) or isinstance(other, Remote):
            return value
        _undecidable(self, f"the result of {name} with data")

    return operator


def _arithmetic_of_one(name: str) -> Callable[[Remote], Any]:
    return lambda self: _ask(self, name, self)


def _order(name: str) -> Callable[[Remote, Any], Any]:
    def order(self: Remote, other: Any) -> Any:
        value = _ask(self, name, self, other)
        return value if isinstance(other, Remote) else _undecidable(self, "the order of one of its objects and data")

    return order


_add_operators()


def checked(source: str, program: Program) -> tuple[str, str]:
    """The verdict of the assertion code on a program, with its reason."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return "error", f"the reference's code is no Python: {error}"
    asserted: list[None] = []
    verdict, detail = _outcome(lambda: _executed(tree, program, asserted), program)
    if verdict == "correct" and not asserted and not program.used:
        return "error", "the reference's code asserts nothing when it is run"
    return verdict, detail


def _outcome(run: Callable[[], None], program: Program) -> tuple[str, str]:
    """Runs the assertions; whatever they raise is a verdict."""
    raised: BaseException | None = None
    try:
        run()
    except BaseException as error:  # named policy: each kind of exception is one of the verdicts below
        raised = error
    raised = program.final or raised  # the assertion code may have swallowed it
    if raised is None:
        return "correct", "all assertions hold"
    if isinstance(raised, ProgramFailed):
        return "incorrect", str(raised)
    return _verdict_of(raised)


def _verdict_of(raised: BaseException) -> tuple[str, str]:
    what = ": ".join(filter(None, (type(raised).__name__, _text(raised))))
    if isinstance(raised, Undecidable):
        return "error", str(raised)
    if getattr(raised, "from_program", False):
        return "incorrect", f"the program raised {what}{_line(raised)}"
    if isinstance(raised, ImportError) and raised.name == SOLUTION:
        return "incorrect", what
    if isinstance(raised, ImportError | MemoryError | SystemExit | KeyboardInterrupt):
        return "error", f"the reference's code failed: {what}{_line(raised)}"
    return "incorrect", f"{what}{_line(raised)}"


def _text(raised: BaseException) -> str:
    """Its message: of other arguments than texts and numbers only the type, since `repr` may ask the program."""
    shown = (item if type(item) is str else _short(item) for item in raised.args)
    return ", ".join(shown)


def _short(item: Any) -> str:
    return repr(item) if type(item) in (int, float, bool) else type(item).__name__


def _line(raised: BaseException) -> str:
    """Where in the assertion code it was raised."""
    trace, found = raised.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "assertions":
            found = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {found} of the assertions)" if found else ""


def _executed(tree: ast.Module, program: Program, asserted: list[None]) -> None:
    """Runs the assertion code; where that asserts nothing, the `test_` functions that it defines."""
    names = _names_of(program, tree)
    code = compile(ast.fix_missing_locations(_Counting().visit(tree)), "assertions", "exec")
    solution = types.ModuleType(SOLUTION)
    solution.__dict__.update(names)
    sys.modules[SOLUTION] = solution
    namespace = {**names, "__name__": "__main__", _COUNT: lambda: asserted.append(None)}
    exec(code, namespace)  # noqa: S102 - the reference's, in a sandbox of its own
    if not asserted and not program.used:
        for name, value in list(namespace.items()):
            if name.startswith("test_") and isinstance(value, types.FunctionType):
                value()


class _Counting(ast.NodeTransformer):
    """Counts the assertions that are made: code that makes none says nothing of a program."""

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        call = ast.Call(func=ast.Name(id=_COUNT, ctx=ast.Load()), args=[], keywords=[])
        return [ast.copy_location(ast.Expr(value=call), node), node]


def _names_of(program: Program, tree: ast.Module) -> dict[str, Any]:
    """The values of the names that the assertion code has from the program, and of the library modules it forgot."""
    defined = program.defined()
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | _imported(tree, defined)
    found = {name: _stands_for(program, name, kind) for name, kind in defined.items() if name in used}
    own = {name for name, value in found.items() if isinstance(value, Remote)}
    tested = own if len(own) == 1 else {name for name in own if not _is_reserved(name)}
    found = {name: value for name, value in found.items() if name in tested or not _is_reserved(name)}
    modules = {name: importlib.import_module(name) for name in used if codec.is_library(name)}
    return {**modules, **{name: value for name, value in found.items() if value is not None}}


def _is_reserved(name: str) -> bool:
    return hasattr(builtins, name) or codec.is_library(name)


def _imported(tree: ast.Module, defined: dict[str, Any]) -> set[str]:
    """Names that the assertion code imports from the module `solution`, as some data sets call the program."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == SOLUTION]
    listed = {alias.name for node in imports for alias in node.names}
    return set(defined) if SOLUTION in names or "*" in listed else listed


def _stands_for(program: Program, name: str, kind: Any) -> Any:
    """A value here for a name of the program's; None if there is none."""
    try:
        if kind[0] == "module":
            return importlib.import_module(kind[1]) if codec.is_library(kind[1]) else None
        if kind[0] == "library" and codec.is_library(kind[1]) and kind[2] == name:
            return codec.from_library(kind[1], name)
        if kind[0] == "exception":
            return program.exception_class(tuple(str(base) for base in kind[1:]))
    except (BadMessage, ImportError, LookupError, TypeError, ValueError) as error:
        program.fail(f"the program describes {name} wrongly: {error}")
    return program.ask("name", name)
