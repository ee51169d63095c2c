"""Machine code that one process compiles, and that later ones load without the compiler.

To import numba takes 0.5 s of CPU, and to read its own cache back 0.4 more, most of it further
imports; llvmlite, on which numba stands, loads the same code in 0.05.
"""

import ctypes
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llvmlite import binding as llvm

from .errors import SslpipeError
from .process import user_cache

log = logging.getLogger(__name__)

# Functions of numba's library and of Python, for errors and for references to numba's own memory:
# code that raises nothing and allocates nothing names them, and never comes there.
NEVER_CALLED = re.compile(r"^declare (.*@(?:numba_|NRT_|Py).*)$", re.MULTILINE)
TRAP = r"define internal \1 {\n  call void @llvm.trap()\n  unreachable\n}"
ENGINES: list[Any] = []  # what frees the code when it is collected


def function(
    name: str, sources: Sequence[Path], compiled: Callable[[], str], arguments: Sequence[type]
) -> Callable[..., None]:
    """A function of C's kind that returns nothing and releases the GIL, from the user's cache.

    name: of the function in the code. sources: the files that `compiled` depends on. compiled:
    the code in LLVM's language; called where the cache has none for these sources, versions and
    this processor. arguments: ctypes' types.
    """
    found = kept_function(name, sources, arguments)
    if found is None:
        log.warning("%s: compiles, which takes some seconds, once", name)
        code = emit(compiled())
        keep(file_of(name, sources), code)
        found = callable_of(name, code, arguments)
    return found


def lasting_function(
    name: str, sources: Sequence[Path], compiled: Callable[[], str], arguments: Sequence[type]
) -> Callable[..., None] | None:
    """The same; None: it would be compiled, and nothing can be kept, so every process would."""
    found = kept_function(name, sources, arguments)
    if found is None and can_keep():
        found = function(name, sources, compiled, arguments)
    return found


def kept_function(
    name: str, sources: Sequence[Path], arguments: Sequence[type]
) -> Callable[..., None] | None:
    """The same if it need not be compiled; None: it must."""
    code = read(file_of(name, sources))
    return None if code is None else callable_of(name, code, arguments)


def file_of(name: str, sources: Sequence[Path]) -> str:
    """What the file with the code of these sources is called."""
    return f"{name}-{key(sources)}.o"


def callable_of(name: str, code: bytes, arguments: Sequence[type]) -> Callable[..., None]:
    """A function of an object file."""
    return ctypes.CFUNCTYPE(None, *arguments)(address(name, code))


def key(sources: Iterable[Path]) -> str:
    """A name for what the code depends on."""
    parts = [version("numba"), version("llvmlite"), llvm.get_process_triple()]
    parts += [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    parts += [path.read_text("utf-8") for path in sorted(sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def read(file: str) -> bytes | None:
    """The object file that `keep` wrote; None: there is none, or it is damaged."""
    try:
        content = (user_cache("code") / file).read_bytes()
    except (OSError, SslpipeError):
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def can_keep() -> bool:
    """Whether code that is compiled now will be there for other processes."""
    try:
        folder = user_cache("code")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, SslpipeError):
        return False
    return os.access(folder, os.W_OK)


def keep(file: str, code: bytes) -> None:
    """Write the object file after its digest; where nothing can be written, say so and go on."""
    try:
        folder = user_cache("code")
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{file}.{os.getpid()}"  # another process may write the same now
        try:
            part.write_bytes(hashlib.sha256(code).digest() + code)
            part.replace(folder / file)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SslpipeError) as error:
        log.info("%s: not kept (%s), so the next process compiles again", file, error)


def machine() -> Any:
    """This processor, with all that it can do."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3,
        reloc="default", codemodel="jitdefault", jit=True,
    )  # fmt: skip


def emit(code: str) -> bytes:
    """LLVM's language -> an object file that asks for nothing but the C library."""
    closed = NEVER_CALLED.sub(TRAP, code) + "\ndeclare void @llvm.trap()\n"
    return bytes(machine().emit_object(llvm.parse_assembly(closed)))


def address(name: str, code: bytes) -> int:
    """Load an object file, and find a function of it."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    ENGINES.append(engine)
    return int(engine.get_function_address(name))
