"""A card that is not there: fake CUDA tensors on a machine without a GPU.

A fake tensor has a shape, a type and a device, but no memory, and nothing is computed with it. Still every operation
that mixes devices fails as it does on a card, and an `Audit` counts every wait of the host for the device, every copy
between the two, all operations with their bytes and floating-point operations, each with the line it comes from.

`pretend_card()` makes PyTorch believe in the card; the libraries that answer for its driver are `shim.c` and
`libcuda.c`, which `run.sh` builds and puts in place. What cannot be seen here: how long anything takes, memory that
runs out, and wrong numbers.
"""

import copy
import linecache
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
import torch.amp.autocast_mode
import torch.cuda.amp.common
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import adam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

CARD = torch.device("cuda:0")
# what an H100 reaches: products in half precision, attention in it, products in fp32 (operations/s), memory (bytes/s)
HALF, ATTENTION, SINGLE, MEMORY = 650e12, 300e12, 45e12, 2.7e12
LAUNCH = 2.5e-6  # seconds that the smallest kernel takes
PACKAGES = {"timet", "timm", "accelerate", "lightly"}  # whose lines are named

# operations that cost nothing on a card: they look at the same memory in another way, or only reserve some
VIEWS = set(
    "view _unsafe_view reshape expand permute transpose t unsqueeze squeeze select slice detach alias "
    "as_strided unbind split split_with_sizes unflatten diagonal lift_fresh _reshape_alias unfold chunk "
    "numpy_T mT narrow view_as is_same_size sym_size sym_stride sym_numel prim resize set _conj empty "
    "empty_like new_empty empty_strided new_empty_strided".split()
)
NUMBERS = {"_local_scalar_dense", "item", "is_nonzero", "equal"}  # a number is wanted on the host
OPEN_SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
MASKS = (torch.bool, torch.uint8)


def on_card(tensor: Any) -> bool:
    "Is it a tensor of the card?"
    return isinstance(tensor, Tensor) and tensor.device.type == "cuda"


def tensors_of(tree: Any) -> list[Tensor]:
    "All tensors in nested arguments."
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def size_of(tensors: list[Tensor]) -> int:
    "Bytes."
    return sum(t.numel() * t.element_size() for t in tensors)


def source_lines(depth: int = 2) -> tuple[str, ...]:
    "The innermost lines of the packages that are being run, such as `timet/loss.py:250 loss = ...`."
    found: dict[str, None] = {}  # A comprehension is a frame of its own, on the same line
    frame = sys._getframe(1)
    while frame and len(found) < depth:
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] in PACKAGES:
            words = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            found[f"{name.replace('.', '/')}.py:{frame.f_lineno}  {words[:90]}".rstrip()] = None
        frame = frame.f_back
    return tuple(found) or ("backward, or the counting script itself",)


def note(counter: Counter[tuple[str, ...]], what: str) -> None:
    "Once more, from these lines."
    counter[(what, *source_lines())] += 1


@dataclass
class Work:
    "What a part of the program asks of the card."

    operations: int = 0
    bytes: float = 0.0  # Read and written
    flops: float = 0.0
    seconds: float = 0.0  # By the roofline; no measurement

    def add(self, other: "Work") -> None:
        "Sum up."
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Audit(TorchDispatchMode):
    "Counts, while it is on, what a card would have to do and where the host would wait for it."

    running: ClassVar[list["Audit"]] = []

    def __init__(
        self,
        answer: Callable[[Tensor], float] = lambda tensor: 1,  # What `.item()` says, as there is no number
        chosen: int = 1,  # How many rows a mask on the card chooses, as there is no mask
    ) -> None:
        super().__init__()
        self.answer, self.chosen, self.part = answer, chosen, "the rest"
        self.waits: Counter[tuple[str, ...]] = Counter()  # (kind, line, line) -> times the host waits for the device
        self.blocking: Counter[tuple[str, ...]] = Counter()  # Copies to the card that the host waits for
        self.copies: Counter[tuple[str, ...]] = Counter()  # Copies, either way, that nobody waits for
        self.mixed: Counter[tuple[str, ...]] = Counter()  # Devices mixed up where a fake tensor lets it pass
        self.parts: dict[str, Work] = defaultdict(Work)
        self.lines: dict[str, Work] = defaultdict(Work)

    def __enter__(self) -> "Audit":
        Audit.running.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Audit.running.remove(self)
        super().__exit__(*error)

    @property
    def total(self) -> Work:
        "Of all parts."
        total = Work()
        for work in self.parts.values():
            total.add(work)
        return total

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        "What runs in this context belongs to this part."
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def follow(self, owner: Any, name: str, part: str) -> None:
        "From now on, a function of a module or object is a part of its own."
        function = getattr(owner, name)

        def followed(*args: Any, **kwargs: Any) -> Any:
            with self.within(part):
                return function(*args, **kwargs)

        setattr(owner, name, followed)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        with self:  # in inference mode, operations that are made of others come as they are
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        name, given = func._schema.name.split("::")[-1], tensors_of((args, kwargs))
        if name in NUMBERS and given:
            return self._number(name, given)
        if name in OPEN_SHAPES and any(map(on_card, given)):
            note(self.waits, name)
        if name == "nonzero":
            return torch.empty(self.chosen, given[0].dim(), dtype=torch.long, device=given[0].device)
        if name in INDEXING:
            args = self._indexed(name, args)
        forget_constants(name, given)
        made = func(*args, **kwargs) if "grid_sampler" not in name else sampled(*args[:2])
        if name in ("_to_copy", "copy_") and self._copied(name, args, kwargs, made):
            return made
        self._worked(func, name, args, kwargs, made)
        return made

    def _number(self, name: str, given: list[Tensor]) -> bool | int | float:
        "A number on the host: everything before it has to be finished."
        if any(map(on_card, given)):
            note(self.waits, name.replace("_local_scalar_dense", "item"))
        value, dtype = self.answer(given[0]), given[0].dtype
        if name == "equal":
            return False
        kind = bool if dtype == torch.bool or name == "is_nonzero" else float if dtype.is_floating_point else int
        return kind(value)

    def _indexed(self, name: str, args: tuple) -> tuple:
        """A mask as an index is a wait, an index on the other side a copy.

        A mask is replaced by so many rows, for nobody knows how many it would choose.
        """
        table, index = args[0], [i for i in args[1] or [] if isinstance(i, Tensor)]
        masks = [i for i in index if i.dtype in MASKS]
        if any(map(on_card, masks)):
            note(self.waits, f"{name} by a mask")
        elif on_card(table) and any(not on_card(i) and i.dim() for i in index):
            note(self.blocking, f"to the card: {name} by an index of the CPU")
        elif not on_card(table) and any(map(on_card, index)):
            note(self.mixed, f"{name} of a CPU tensor by an index of the card")
        if not masks:
            return args
        rows, places = self.chosen, []
        for i in args[1]:
            if isinstance(i, Tensor) and i.dtype in MASKS:
                rows = max(1, i.shape[0] // 2) if i.dim() == 1 else self.chosen
                places += [torch.zeros(rows, dtype=torch.long, device=table.device)] * i.dim()
            else:
                places.append(i)
        values = args[2:]
        if name != "index" and isinstance(values[0], Tensor) and values[0].dim() and len(values[0]) not in (rows, 1):
            values = (values[0][:rows], *values[1:])
        return (table, places, *values)

    def _copied(self, name: str, args: tuple, kwargs: dict, made: Any) -> bool:
        "Note a copy between host and card."
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], made)
        if not isinstance(source, Tensor) or source.device.type == target.device.type:
            return False
        free = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
        kind = "to the card" if on_card(target) else "to the host"
        counter = self.copies if free else self.blocking if on_card(target) else self.waits
        note(counter, kind)
        return True

    def _worked(self, func: Any, name: str, args: tuple, kwargs: dict, made: Any) -> None:
        "Note what the card does."
        given, given_back = ([t for t in tensors_of(tree) if on_card(t)] for tree in ((args, kwargs), made))
        if not (given or given_back) or name.rstrip("_") in VIEWS:
            return
        work = Work(1, size_of(given) + size_of(given_back))
        if func._overloadpacket in flop_registry:
            work.flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=made)
        half = any(t.dtype in (torch.bfloat16, torch.float16) for t in given)
        rate = SINGLE if not half else ATTENTION if "attention" in name else HALF
        work.seconds = max(work.flops / rate, work.bytes / MEMORY, LAUNCH)
        self.parts[self.part].add(work)
        self.lines[f"{name}  {source_lines(1)[0]}"].add(work)


def forget_constants(name: str, given: list[Tensor]) -> None:
    "A fake tensor made from a number keeps it, and would be computed for real."
    for tensor in given:
        if isinstance(tensor, FakeTensor) and tensor.constant is not None and name not in ("detach", "lift_fresh"):
            tensor.constant = None


def sampled(images: Tensor, grid: Tensor) -> Tensor:
    "The shape of `grid_sample`, which has no rule of its own for fake tensors."
    if images.device != grid.device:
        raise RuntimeError(f"Expected all tensors to be on the same device, found {images.device} and {grid.device}")
    return torch.empty(*images.shape[:2], *grid.shape[1:3], dtype=images.dtype, device=images.device)


def waited(what: str) -> None:
    "Somebody waits for the device by name."
    for audit in Audit.running:
        note(audit.waits, what)


class Event:
    "An event on the card, which has always happened already; to wait for it is a wait all the same."

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        "Nothing to be marked."

    def wait(self, stream: Any = None) -> None:
        "A stream waits, not the host."

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        waited("event.synchronize")

    def elapsed_time(self, other: "Event") -> float:
        return 0.0


class Stream(Event):
    "A queue of the card."

    device = CARD

    def wait_stream(self, other: "Stream") -> None:
        "A stream waits, not the host."

    def wait_event(self, event: Event) -> None:
        "The same."

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        waited("stream.synchronize")


def moved(module: nn.Module, device: Any, *args: Any, **kwargs: Any) -> nn.Module:
    "`Module.to`: fakes cannot be swapped in place, so parameters are made anew, and shared ones stay shared."
    if not isinstance(device, (str, torch.device)):
        return module
    device = CARD if torch.device(device).type == "cuda" else torch.device(device)
    done: dict[int, Tensor] = {}

    def there(old: Tensor | None) -> Tensor | None:
        if old is None or old.device == device:
            return old
        if id(old) not in done:
            new = old.detach().to(device)
            done[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        return done[id(old)]

    with torch.no_grad():
        for part in module.modules():
            for kept in (part._parameters, part._buffers):
                kept.update({name: there(old) for name, old in kept.items()})
    return module


def attention_like(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    "`scaled_dot_product_attention` with the kernel that an H100 would take: a fake tensor has nobody to ask."

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if not on_card(q) or attn_mask is not None:
            return real(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if q.dtype in (torch.bfloat16, torch.float16):
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return flash(q, k, v, dropout_p, is_causal, scale=scale)[0]
        efficient, learns = torch.ops.aten._scaled_dot_product_efficient_attention, torch.is_grad_enabled()
        return efficient(q, k, v, None, learns, dropout_p, is_causal, scale=scale)[0]

    return attention


def as_array(tensor: Tensor, *args: Any, **kwargs: Any) -> np.ndarray:
    "`Tensor.numpy` of a fake: refused as on a card, else any numbers."
    if on_card(tensor):
        raise TypeError(f"can't convert {tensor.device} tensor to numpy. Use Tensor.cpu() first.")
    if tensor.requires_grad:
        raise RuntimeError("can't call numpy() on a tensor that requires grad")
    dtype = torch.empty(0, dtype=tensor.dtype, device="meta").dtype
    kind = np.dtype(str(dtype).removeprefix("torch."))
    if kind.kind == "f":
        return np.random.default_rng(0).standard_normal(tuple(tensor.shape)).astype(kind)
    return np.zeros(tuple(tensor.shape), kind)


def stand_ins(mode: FakeTensorMode) -> Iterator[tuple[Any, str, Any]]:
    "What PyTorch says and does as if there were a card: (owner, name, stand-in)."
    cuda, new_tensor, to, deepcopy = torch.cuda, torch.tensor, Tensor.to, copy.deepcopy
    to_list = FakeTensor.tolist
    answers = {
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
    }
    answers |= {"get_device_capability": (9, 0), "get_rng_state_all": [], "set_rng_state_all": None}
    answers |= {"manual_seed_all": None, "manual_seed": None}
    for name, value in answers.items():
        yield cuda, name, lambda *args, value=value, **kwargs: value
    yield cuda, "synchronize", lambda device=None: waited("synchronize")
    yield cuda, "Event", Event
    yield cuda, "Stream", Stream
    yield cuda, "stream", lambda stream: nullcontext(stream)
    yield cuda, "current_stream", lambda device=None: Stream()
    yield Tensor, "record_stream", lambda self, stream: None
    yield Tensor, "pin_memory", lambda self, *args: self
    # what AdamW takes by itself for tensors of a card that are no fakes
    yield (
        adam,
        "_default_to_fused_or_foreach",
        lambda params, differentiable, use_fused=False: (False, True),
    )
    yield torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
    yield torch.amp.autocast_mode, "is_autocast_available", lambda device: True
    for name in ("init_gpu_context", "init_cuda_context"):
        if hasattr(fake_tensor, name):
            yield fake_tensor, name, lambda *args: None

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        "`torch.tensor`: numbers are put together on the host and copied."
        tensor = new_tensor(data, *args, **kwargs)
        return tensor if device is None else tensor.to(device)

    def made_alike(self: Tensor, data: Any, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
        return new_tensor(data, dtype=dtype or self.dtype).to(device or self.device)

    def sent(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        "`Tensor.to`: what other threads made is no fake yet."
        target = args[0] if args and isinstance(args[0], (str, torch.device)) else kwargs.get("device")
        real = not isinstance(self, (FakeTensor, nn.Parameter))
        if real and target is not None and torch.device(target).type == "cuda":
            self = mode.from_tensor(self)
        return to(self, *args, **kwargs)

    def listed(self: Tensor) -> list:
        "`tolist`: all numbers come in one copy."
        return to_list(self.cpu() if on_card(self) else self)

    def copied(value: Any, memo: dict | None = None) -> Any:
        "`deepcopy`: all fakes keep their mode."
        memo = {} if memo is None else memo
        memo.setdefault(id(mode), mode)
        return deepcopy(value, memo)

    yield torch, "tensor", made
    yield Tensor, "new_tensor", made_alike
    yield Tensor, "to", sent
    yield FakeTensor, "numpy", as_array
    yield FakeTensor, "__array__", lambda self, *args, **kwargs: as_array(self)
    yield FakeTensor, "tolist", listed
    yield copy, "deepcopy", copied
    yield nn.Module, "to", moved
    yield F, "scaled_dot_product_attention", attention_like(F.scaled_dot_product_attention)


@contextmanager
def pretend_card() -> Iterator[FakeTensorMode]:
    "A card, as far as PyTorch can see; tensors made meanwhile are fakes."
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        for owner, name, value in list(stand_ins(mode)):
            stack.enter_context(mock.patch.object(owner, name, value, create=not hasattr(owner, name)))
        with mode:
            yield mode


def built(make: Callable[[], Any]) -> Any:
    "Make a network; what it looks up in itself meanwhile is 0 and not counted."
    with Audit(answer=lambda tensor: 0):
        return make()
