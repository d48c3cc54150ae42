"""The program's side: defines what the program defines, then does what the checker asks. Nothing it says is believed.

The program's code shares this process and may change anything here. That changes what values it sends, which it may do
anyway: the checker compares them, in its own process.
"""

import builtins
import operator
import os
import sys
import types
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from still_ray.verifiers.code.inside import codec

MODULE: Final = "solution"

_OPERATIONS: Final[dict[str, Callable[..., Any]]] = {
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value: type(value).__exit__(value, None, None, None),
    **{name: getattr(builtins, name) for name in ("abs", "bool", "divmod", "float", "int", "iter", "len", "next")},
    **{name: getattr(builtins, name) for name in ("repr", "reversed", "round", "str", "hash")},
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")},
    **{name: getattr(operator, name) for name in ("and_", "or_", "xor", "lshift", "rshift", "neg", "pos", "invert")},
    **{name: getattr(operator, name) for name in ("lt", "le", "gt", "ge")},
}


def main(source: str, requests: int, replies: int) -> None:
    """Runs the program's definitions and serves until the checker closes."""
    server = Server(os.fdopen(requests, "rb"), os.fdopen(replies, "wb"))
    server.say(_defined(source, server))
    server.serve()


def _defined(source: str, server: "Server") -> dict[str, Any]:
    """Executes the program and says what it defines, or how it failed."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    server.names = module.__dict__
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)  # noqa: S102 - this is what the sandbox is for
    except BaseException as error:
        return {"failed": _described(error)}
    return {"names": {name: _kind(value) for name, value in module.__dict__.items() if not name.startswith("__")}}


def _described(error: BaseException) -> str:
    return ": ".join(filter(None, (type(error).__name__, str(error)[:300])))


def _kind(value: Any) -> Any:
    """What a name stands for: a module, a function of a library, an exception class, or the program's own."""
    if type(value) is types.ModuleType:
        return ["module", value.__name__]
    if not isinstance(value, type | types.BuiltinFunctionType | types.FunctionType):
        return ["own"]
    library = codec.library_name(value)
    if library is not None:
        return ["library", *library]
    if isinstance(value, type) and issubclass(value, BaseException):
        return ["exception", *_ancestors(value)]
    return ["own"]


def _ancestors(kind: type[BaseException]) -> list[str]:
    """Names of an exception class and its bases, the program's own first, down to the first built-in one."""
    names: list[str] = []
    for base in kind.__mro__:
        names.append(base.__name__)
        if base.__module__ == "builtins":
            break
    return names


class Server:
    """Holds the program's objects, which the checker knows by number."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO) -> None:
        self.names: dict[str, Any] = {}
        self._requests = requests
        self._replies = replies
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def say(self, message: Any) -> None:
        """Sends one message."""
        self._replies.write(codec.dumped(message))
        self._replies.flush()

    def serve(self) -> None:
        """Does one request after another."""
        while line := self._requests.readline():
            self.say(self._done(codec.loaded(line)))

    def _done(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            arguments = [self._decoded(item) for item in request["args"]]
            keywords = {name: self._decoded(item) for name, item in request["kwargs"].items()}
            value = self._operation(request["op"])(*arguments, **keywords)
            return {"value": self._encoded(value), "changed": self._changed(request["args"], arguments)}
        except BaseException as error:
            return {"error": self._error(error)}

    def _operation(self, name: str) -> Callable[..., Any]:
        if name == "name":
            return lambda name: self.names[name]
        if name == "call":
            return lambda function, *arguments, **keywords: function(*arguments, **keywords)
        return _OPERATIONS[name]

    def _changed(self, before: list[Any], arguments: list[Any]) -> dict[str, Any]:
        """New values of the arguments that were changed in place."""
        now = {str(i): self._encoded(value) for i, value in enumerate(arguments) if type(value) in codec.MUTABLE}
        return {index: value for index, value in now.items() if value != before[int(index)]}

    def _error(self, error: BaseException) -> dict[str, Any]:
        try:
            arguments = [self._encoded(item) for item in error.args]
        except Exception:  # its arguments cannot be sent: the text can
            arguments = [str(error)]
        return {"names": _ancestors(type(error)), "args": arguments, "text": str(error)[:300]}

    def _encoded(self, value: Any) -> Any:
        return codec.encode(value, self._unknown)

    def _unknown(self, value: Any) -> dict[str, Any]:
        if isinstance(value, type) and value.__module__ == "builtins":
            return {"t": "type", "v": value.__name__}
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)  # which also keeps its id for it
        plain = next((kind for kind in codec.PLAIN if isinstance(value, kind)), None)
        content = None if plain is None else self._encoded(plain(value))
        return {"t": "object", "v": [number, plain is not None, content]}

    def _decoded(self, message: Any) -> Any:
        return codec.decode(message, self._known)

    def _known(self, tag: str, value: Any) -> Any:
        if tag == "object":
            return self._objects[value]
        if tag == "library":
            return getattr(sys.modules.get(value[0]) or __import__(value[0]), value[1])
        if tag == "callback":
            return lambda *arguments, **keywords: self._called_back(value, arguments, keywords)
        raise ValueError(tag)

    def _called_back(self, number: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Calls a function that the assertion code passed as an argument."""
        sent = {name: self._encoded(item) for name, item in keywords.items()}
        self.say({"callback": number, "args": [self._encoded(item) for item in arguments], "kwargs": sent})
        reply = codec.loaded(self._requests.readline())
        if "error" in reply:
            kind = getattr(builtins, reply["error"][0], RuntimeError)
            raise kind(reply["error"][1])
        return self._decoded(reply["value"])
