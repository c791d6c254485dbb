"""A recorded step compiled by Inductor, and its kernels called again and again without the code around them.

Inductor's own wrapper allocates every buffer anew and checks every shape: some twenty microseconds a call, where the kernels of a
small model take less than one. So one call is overheard, and what was heard, which kernels on which tensors, is a `Tape` that can
be played on any tensors of these shapes. A tape is first tried against the wrapper; where it does not do the same, or the step
calls for more than kernels, the wrapper runs every step. Tapes are kept in memory and, kernels included, in a folder for later
processes, which need neither the compiler nor the seconds that it takes to import it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from pyrovi.errors import first_line
from pyrovi.recording import NotTraceable

__all__ = ["Tape", "in_place", "is_compiled", "key"]

Step = Callable[[list[torch.Tensor]], Any]

EXTERN = {"mm": torch.mm, "addmm": torch.addmm, "bmm": torch.bmm, "baddbmm": torch.baddbmm}
"""What Inductor leaves to libraries and calls with `out=`."""


@dataclass(frozen=True)
class _View:
    """A tensor of a tape: where its storage comes from and how it lies in it."""

    source: int
    """From 0, an argument; below, a buffer of the tape's own: -1 the first."""
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Tape:
    """The kernels that one call of a compiled step runs, and on what."""

    calls: list[tuple[int | str, Any, Any, Any]]
    """The kernel, by its place in `kernels`, its name in `EXTERN` or that of an operator of torch's; its arguments, and those by
    name; where an operator's result belongs. Tensors are `_View`s."""
    kernels: list[Callable[..., Any]]
    files: list[str]
    buffers: list[int]
    """Bytes of each buffer."""

    def on(self, arguments: Sequence[torch.Tensor]) -> Callable[[], None]:
        """The step on these tensors as a function of nothing, which changes them in place, now as later."""
        buffers = [torch.empty(size, dtype=torch.uint8) for size in self.buffers]

        def tensor(value: Any) -> Any:
            if not isinstance(value, _View):
                return value
            dtype = getattr(torch, value.dtype)
            base = arguments[value.source] if value.source >= 0 else buffers[-1 - value.source].view(dtype)
            return base.as_strided(value.shape, value.stride, base.storage_offset() + value.offset)

        calls: list[tuple[Any, Any, Any]] = []
        for kernel, *rest in self.calls:
            args, kwargs, result = tree_map(tensor, tuple(rest))
            function = self.kernels[kernel] if isinstance(kernel, int) else EXTERN.get(kernel)
            calls.append((function or functools.partial(_into, result, _operator(str(kernel))), args, kwargs))

        def play() -> None:
            for kernel, args, kwargs in calls:
                kernel(*args, **kwargs)

        if len(calls) == 1 and not calls[0][2]:
            ((only, its, _),) = calls
            return lambda: only(*its)
        return play


def _operator(name: str) -> Any:
    """An operator of torch's by its full name, as in `aten.sort.default`."""
    return functools.reduce(getattr, name.split("."), torch.ops)


def _into(result: torch.Tensor, operator: Any, *args: Any, **kwargs: Any) -> None:
    result.copy_(operator(*args, **kwargs))


_TAPES: dict[str, Tape] = {}
_COMPILED: dict[str, Step] = {}
"""This process's, by what they do."""


def key(*parts: object) -> str:
    """One name for a step that has this code, these shapes and these settings, on this machine and in this pyrovi."""
    here = torch.__version__, platform.python_version(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return hashlib.sha256("\n".join(map(str, (*here, _source(), *parts))).encode()).hexdigest()


@functools.cache
def _source() -> str:
    """A step is made of what the model says and of what these modules make of it."""
    files = [
        Path(__file__).with_name(f"{name}.py")
        for name in ("compiling", "engine", "graphs", "noise", "program", "recording", "traced", "updates", "writes")
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def is_compiled(name: str) -> bool:
    """Whether a step has been compiled here before, in this process or another."""
    return name in _TAPES or name in _COMPILED or (_folder() / name).is_dir()


def in_place(name: str, step: Callable[..., Any], arguments: list[torch.Tensor], changing: int) -> Callable[[], Any]:
    """A step, compiled, on these tensors, as a function of nothing; it changes the first `changing` of them.

    Raises:
        NotTraceable: Inductor cannot compile it, or there is no C++ compiler.
    """
    if name not in _TAPES and (read := _read(name)) is not None:
        _TAPES[name] = read
    if name in _TAPES:
        return _TAPES[name].on(arguments)
    if name not in _COMPILED:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about torch
                _COMPILED[name] = _inductor(step, arguments)
        except Exception as error:
            raise NotTraceable(f"Inductor could not compile it ({type(error).__name__}: {first_line(error)})") from error
        tape = _proven_tape(_COMPILED[name], arguments, changing)
        if tape is not None:
            _TAPES[name] = tape
            _write(name, tape)
            return tape.on(arguments)
    return lambda: _COMPILED[name](list(arguments))


def _inductor(step: Callable[..., Any], examples: Sequence[torch.Tensor]) -> Step:
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with mode, torch.no_grad():
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in examples]
        graph = make_fx(step, decomposition_table=select_decomp_table())(*fakes)
    with torch.no_grad():
        code: Any = compile_fx_inner(graph, fakes)
    return code


def _proven_tape(code: Step, arguments: list[torch.Tensor], changing: int) -> Tape | None:
    """What a call runs, if playing that, on buffers of its own, does what the call does."""
    before, draws = [tensor.clone() for tensor in arguments[:changing]], torch.get_rng_state()

    def after(function: Callable[[], Any]) -> list[torch.Tensor]:
        torch.set_rng_state(draws)
        function()
        now = [tensor.clone() for tensor in arguments[:changing]]
        for tensor, value in zip(arguments, before, strict=False):
            tensor.copy_(value)
        return now

    wanted = after(lambda: code(list(arguments)))
    tapes: list[Tape] = []
    with suppress(Exception):  # Inductor's inner workings are its own; whatever is odd about them, there is the wrapper
        after(lambda: tapes.append(_overheard(code, arguments)))
        got = after(tapes[0].on(arguments))
        if all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(wanted, got, strict=True)):
            return tapes[0]
    after(lambda: None)
    return None


def _overheard(code: Any, arguments: list[torch.Tensor]) -> Tape:
    module = code.current_callable.__globals__
    heard: list[tuple[Any, Any, Any, Any]] = []

    def listening(name: int | str, function: Any, returns: bool = False) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            out = function(*args, **kwargs)
            heard.append((name, args, kwargs, out if returns else None))
            return out

        return called

    class Extern:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            return listening(name, EXTERN[name])

    class Operators:
        """`torch.ops` as far as a name goes: `torch.ops.aten`, `torch.ops.aten.sort`, …"""

        def __init__(self, name: str = "") -> None:
            self._name = name

        def __getattr__(self, part: str) -> Any:
            name = f"{self._name}.{part}".lstrip(".")
            found = _operator(name)
            return listening(name, found, returns=True) if isinstance(found, torch._ops.OpOverload) else Operators(name)

    class Torch:
        ops = Operators()

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    kernels = {name: function for name, function in module.items() if name.startswith("cpp_fused")}
    places = {name: i for i, name in enumerate(kernels)}
    kept = {**kernels, "extern_kernels": module.get("extern_kernels"), "torch": torch}
    try:
        module.update({name: listening(places[name], function) for name, function in kernels.items()})
        module.update(extern_kernels=Extern(), torch=Torch())
        code(list(arguments))
    finally:
        module.update(kept)
    if any(isinstance(out, (tuple, list)) for *_, out in heard):
        raise NotTraceable("an operator returns several tensors")

    sources = {tensor.untyped_storage().data_ptr(): (i, tensor) for i, tensor in enumerate(arguments) if tensor.numel()}
    if len(sources) < sum(tensor.numel() > 0 for tensor in arguments):
        raise NotTraceable("two of its arguments share their memory, and other arguments may not")
    buffers: dict[int, tuple[int, int]] = {}

    def view(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        storage, offset = value.untyped_storage(), value.storage_offset()
        place = storage.data_ptr()
        if place in sources:
            source, argument = sources[place]
            if argument.dtype is not value.dtype:
                raise NotTraceable("it sees an argument as another type")
            offset -= argument.storage_offset()
        else:
            source, _ = buffers.setdefault(place, (-1 - len(buffers), storage.nbytes()))
        return _View(source, int(offset), tuple(value.shape), tuple(value.stride()), str(value.dtype).removeprefix("torch."))

    return Tape(
        [(name, *tree_map(view, rest)) for name, *rest in heard],
        list(kernels.values()),
        [function.__self__.__file__ for function in kernels.values()],
        [size for _, size in buffers.values()],
    )


FORMAT = 2


def _folder() -> Path:
    """Where compiled steps are kept; `PYROVI_CACHE` names another place."""
    chosen = os.environ.get("PYROVI_CACHE")
    if chosen:
        return Path(chosen) / "compiled"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("pyrovi")) / "compiled"


def _write(name: str, tape: Tape) -> None:
    """Keep a tape for later processes; one that cannot be kept is made again there."""

    def plain(value: Any) -> Any:
        return {"view": vars(value)} if isinstance(value, _View) else value

    with suppress(OSError, TypeError):
        _folder().mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=_folder()))
        try:
            for i, file in enumerate(tape.files):
                shutil.copy(file, draft / f"{i}.so")
            calls = tree_map(plain, tape.calls)
            (draft / "tape.json").write_text(json.dumps({"format": FORMAT, "calls": calls, "buffers": tape.buffers}))
            draft.rename(_folder() / name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _read(name: str) -> Tape | None:
    path = _folder() / name
    if not path.is_dir():
        return None

    def view(value: dict[str, Any]) -> Any:
        if "view" not in value:
            return value
        fields = value["view"]
        return _View(**{**fields, "shape": tuple(fields["shape"]), "stride": tuple(fields["stride"])})

    with suppress(Exception):  # a damaged one is made again
        stored = json.loads((path / "tape.json").read_text(), object_hook=view)
        if stored["format"] == FORMAT:
            files = [str(path / f"{i}.so") for i in range(len(list(path.glob("*.so"))))]
            return Tape([tuple(call) for call in stored["calls"]], [_kernel(file) for file in files], files, stored["buffers"])
    shutil.rmtree(path, ignore_errors=True)
    return None


def _kernel(file: str) -> Callable[..., Any]:
    asked, before = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", dict(os.environ)
    # What Inductor's bindings ask for as they are loaded: where the function is that finds a tensor's memory.
    os.environ[asked] = str(torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr)  # type: ignore[attr-defined]
    try:
        loader = importlib.machinery.ExtensionFileLoader("kernel", file)
        spec = importlib.util.spec_from_file_location("kernel", file, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        kernel: Callable[..., Any] = module.kernel
        return kernel
    finally:
        if asked not in before:
            del os.environ[asked]
