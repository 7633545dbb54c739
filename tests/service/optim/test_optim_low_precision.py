"""State in fewer bytes: what the formats keep, and that optimizers train with it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, get_args

import pytest
import torch
from torch import Tensor

from optimd_service.errors import InvalidField, ShapeMismatch
from optimd_service.optim import low_precision
from optimd_service.optim.bfloat16_buffer import BFloat16Buffer
from optimd_service.optim.catalogue import OPTIMIZERS, find
from optimd_service.optim.counter_random import Purpose
from optimd_service.optim.dynamic_code import SIGNED, UNSIGNED, DynamicCode
from optimd_service.optim.eight_bit_buffer import EightBitBuffer, scales_of
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.low_precision import compressed_step_, narrowed_, new_scratch, update_compressed_, widened
from optimd_service.optim.state_buffer import CompressedBuffer
from optimd_service.optim.state_dtype import (
    IN_TWO_BYTES_AT_LEAST,
    MEANS,
    StateDtype,
    buffers_of,
    bytes_per_parameter,
    compressible,
    format_of,
    require_state_dtype,
    tensors_of,
)
from optimd_service.optim.update import Here, Norms, update_

T = TypeVar("T")
PURPOSE = Purpose(seed=7, step=1, buffer=2)
COMPRESSIBLE = [name for name, row in OPTIMIZERS.items() if compressible(row)]


def bfloat16(length: int) -> BFloat16Buffer:
    return BFloat16Buffer(torch.zeros(length, dtype=torch.bfloat16))


def eight_bit(length: int, *, signed: bool = True) -> EightBitBuffer:
    return EightBitBuffer(torch.zeros(length, dtype=torch.uint8), torch.zeros(scales_of(length)), signed)


def kept(buffer: CompressedBuffer, values: Tensor, purpose: Purpose = PURPOSE) -> Tensor:
    """What is left of ``values``."""
    buffer.narrow_(values, 0, purpose)
    return widened(buffer, values.numel())


def every_format(length: int) -> list[CompressedBuffer]:
    return [bfloat16(length), eight_bit(length), eight_bit(length, signed=False)]


def wide_range(length: int, *, signed: bool = True) -> Tensor:
    """Numbers of all sizes that float32 has, and zeros."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.empty(length).uniform_(-45, 38, generator=generator)
    values = torch.randn(length, generator=generator).clamp(-3, 3) * 10**exponents
    values[::97] = 0
    return values if signed else values.abs()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch's own parallel loops wait for each other longer than these tests compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# bfloat16


@pytest.mark.parametrize("value", [1.001, -0.3333, 3e-39, 1e30, 0.5 + 2**-10])
def test_bfloat16_is_rounded_to_either_neighbour_and_right_on_average(value: float) -> None:
    number = torch.tensor(value).item()
    got = kept(bfloat16(2**20), torch.full((2**20,), number)).double()
    low, high = sorted(got.unique().tolist())
    bits = [torch.tensor(v).bfloat16().view(torch.int16).item() for v in (low, high)]
    assert abs(bits[1] - bits[0]) == 1
    assert low < number < high
    # Five standard deviations of the mean of 2²⁰ throws.
    chance = (number - low) / (high - low)
    tolerance = 5 * (chance * (1 - chance) / 2**20) ** 0.5
    assert (got.mean().item() - low) / (high - low) == pytest.approx(chance, abs=tolerance)


def test_a_mean_that_moves_by_less_than_bfloat16_can_tell_still_arrives() -> None:
    buffer, n = bfloat16(4096), 4096
    values = torch.zeros(n)
    for step in range(1, 2001):
        values = kept(buffer, values + 0.001 * (1 - values), Purpose(3, step, 0))
    assert values.mean().item() == pytest.approx(1 - 0.999**2000, abs=2e-3)
    nearest = torch.zeros(1)
    for _ in range(2000):
        nearest = (nearest + 0.001 * (1 - nearest)).bfloat16().float()
    assert nearest.item() < 0.7


def test_random_bits_of_elements_steps_and_buffers_are_unrelated() -> None:
    half = torch.full((2**18,), 1 + 2**-8)  # half-way between two bfloat16 numbers

    def ups(purpose: Purpose) -> Tensor:
        return (kept(bfloat16(2**18), half, purpose) > 1).double() * 2 - 1

    first = ups(Purpose(1, 1, 1))
    others = [ups(Purpose(*words)) for words in ((2, 1, 1), (1, 2, 1), (1, 1, 2))]
    others += [first.roll(shift) for shift in (1, 2, 16, 128, 256, 257, 65536)]
    # Five standard deviations of a mean of 2¹⁸ products of two signs.
    assert max(abs((first * other).mean().item()) for other in others) < 5 / 2**9


def test_bfloat16_keeps_infinity_and_nan_and_makes_neither() -> None:
    largest = torch.finfo(torch.float32).max
    values = torch.tensor([largest, -largest, torch.inf, -torch.inf, torch.nan]).repeat(1000)
    got = kept(bfloat16(5000), values).view(1000, 5)
    assert torch.isfinite(got[:, :2]).all()
    assert (got[:, 2] == torch.inf).all()
    assert (got[:, 3] == -torch.inf).all()
    assert got[:, 4].isnan().all()


def test_what_bfloat16_can_hold_is_kept_exactly() -> None:
    values = wide_range(10_000).bfloat16().float()
    assert torch.equal(kept(bfloat16(10_000), values), values)


# eight bits


def positive(code: DynamicCode) -> Tensor:
    return torch.from_numpy(code.levels[:129] if code is SIGNED else code.levels)


@pytest.mark.parametrize(("code", "parts"), [(SIGNED, 64), (UNSIGNED, 128)])
def test_a_decade_is_divided_evenly_and_each_smaller_one_in_half_as_many_parts(code: DynamicCode, parts: int) -> None:
    levels = positive(code)
    assert levels[0] == 0
    assert levels[-1] == 1
    assert bool((levels.diff() > 0).all())
    for decade in range(7):
        inside = levels[(levels > 10.0 ** -(decade + 1)) & (levels < 10.0**-decade)]
        count = parts >> decade
        assert len(inside) == count
        gap = 0.9 / count * 10.0**-decade
        assert inside.diff().tolist() == pytest.approx([gap] * (count - 1), rel=1e-3)
        assert inside[0].item() == pytest.approx(10.0 ** -(decade + 1) + gap / 2, rel=1e-5)


def test_signed_levels_have_a_negative_each_but_for_one() -> None:
    levels = torch.from_numpy(SIGNED.levels)
    assert torch.equal(levels[129:], -levels[1:128].flip(0))


def in_units(ratios: Tensor) -> Tensor:
    """Elements of which every unit has the scale 1, and these numbers below 1."""
    units = ratios[: ratios.numel() // 255 * 255].view(-1, 255)
    return torch.cat([torch.ones(len(units), 1), units], dim=1).flatten()


def around_every_level(code: DynamicCode) -> Tensor:
    """Ratios below 1: the levels, half-way between them, right beside both, and numbers of all sizes."""
    levels = positive(code)
    points = torch.cat([levels, ((levels[:-1].double() + levels[1:].double()) / 2).float()])
    beside = [points.nextafter(torch.tensor(bound)) for bound in (0.0, 2.0)]
    ratios = torch.cat([points, *beside, 10 ** torch.linspace(-8, 0, 200_000)])
    return ratios[ratios < 1]


def test_every_second_moment_gets_the_nearest_level() -> None:
    values = in_units(around_every_level(UNSIGNED))
    got, exact = kept(eight_bit(values.numel(), signed=False), values).double(), values.double()
    levels = positive(UNSIGNED).double()
    above = torch.searchsorted(levels, exact).clamp(1, 255)
    nearest = torch.minimum((levels[above] - exact).abs(), (levels[above - 1] - exact).abs())
    wrong = (got - exact).abs() - nearest
    wrong[(exact > 0) & (got == levels[1])] = 0  # positive numbers become no 0
    # Right at a border, float32 decides for either side.
    assert bool((wrong.abs() <= 1e-6 * exact).all())


def test_every_first_moment_gets_one_of_its_two_neighbours() -> None:
    ratios = around_every_level(SIGNED)
    values = in_units(torch.cat([ratios, -ratios]))
    got, exact = kept(eight_bit(values.numel()), values).double(), values.double()
    levels = torch.from_numpy(SIGNED.levels).double().sort().values
    above = torch.searchsorted(levels, exact).clamp(1, 255)
    # A number within 2⁻¹³ of a level counts as that level.
    slack = (levels[above] - levels[above - 1]) / 2**13
    assert bool(((got == levels[above]) | (got == levels[above - 1]) | ((got - exact).abs() <= slack)).all())


@pytest.mark.parametrize("ratio", [1e-7, 2e-6, 0.0102, 0.101, 0.106, -0.3, -0.0007, 0.99, 0.998])
def test_a_first_moment_in_eight_bits_is_right_on_average(ratio: float) -> None:
    number = torch.tensor(ratio).item()
    values = in_units(torch.full((255 * 2**12,), number))
    got = kept(eight_bit(values.numel()), values).view(-1, 256)[:, 1:].double()
    low, high = sorted(got.unique().tolist())
    every = sorted(SIGNED.levels.tolist())
    assert every.index(high) == every.index(low) + 1
    assert low < number < high
    # Five standard deviations of the mean of 2²⁰ throws, and what is within 2⁻¹³ of a level.
    chance = (number - low) / (high - low)
    tolerance = 5 * (chance * (1 - chance) / 2**20) ** 0.5 + 2**-13
    assert (got.mean().item() - low) / (high - low) == pytest.approx(chance, abs=tolerance)


def test_a_mean_that_moves_by_less_than_eight_bits_can_tell_still_arrives() -> None:
    buffer, values = eight_bit(4096), torch.zeros(4096)
    target = in_units(torch.linspace(0.2, 0.9, 255).repeat(16))
    for step in range(1, 1001):
        values = kept(buffer, values + 0.003 * (target - values), Purpose(3, step, 0))
    arrived = (values / target).view(16, 256).mean().item()
    assert arrived == pytest.approx(1 - 0.997**1000, abs=2e-3)


@pytest.mark.parametrize("signed", [True, False])
def test_every_level_of_scales_of_all_sizes_is_kept_as_it_is(signed: bool) -> None:
    levels = torch.from_numpy((SIGNED if signed else UNSIGNED).levels)
    exponents = torch.arange(-149, 128).repeat(20)
    scales = (1 + torch.rand(exponents.numel(), generator=torch.Generator().manual_seed(6))) * 2.0**exponents
    scales[::2] *= -1 if signed else 1
    values = (levels * scales[:, None]).flatten()
    buffer = eight_bit(values.numel(), signed=signed)
    for step in range(3):
        assert torch.equal(kept(buffer, values, Purpose(8, step, 1)), values)


def test_every_byte_is_widened_to_its_level() -> None:
    for signed, code in ((True, SIGNED), (False, UNSIGNED)):
        buffer = EightBitBuffer(torch.arange(256, dtype=torch.uint8), torch.ones(1), signed)
        assert torch.equal(widened(buffer, 256), torch.from_numpy(code.levels))


def test_the_error_of_a_second_moment_is_at_most_half_a_part_of_the_decade() -> None:
    values = torch.randn(2**16, generator=torch.Generator().manual_seed(1)).pow(3).abs()
    got = kept(eight_bit(2**16, signed=False), values)
    scale = values.view(-1, 256).amax(1, keepdim=True).expand(-1, 256).flatten()
    decade = (-(values / scale).log10()).floor().clamp(0, 6)
    half = 0.5 * 0.9 / 128 * 2**decade * 10**-decade
    # A positive second moment is never 0.
    bound = half.clamp(min=float(UNSIGNED.levels[1]))
    assert bool(((got - values).abs() <= scale * bound * (1 + 1e-4)).all())


def test_the_largest_element_is_kept_exactly_whatever_its_sign() -> None:
    values = torch.randn(2560, generator=torch.Generator().manual_seed(2))
    got = kept(eight_bit(2560), values)
    at = values.view(10, 256).abs().argmax(1, keepdim=True)
    largest = values.view(10, 256).gather(1, at)
    assert bool((largest < 0).any())
    assert bool((largest > 0).any())
    assert torch.equal(got.view(10, 256).gather(1, at), largest)


def test_a_positive_second_moment_never_becomes_zero() -> None:
    values = wide_range(2**15, signed=False)
    buffer = eight_bit(2**15, signed=False)
    buffer.narrow_(values, 0, PURPOSE)
    assert torch.equal(buffer.codes == 0, values == 0)


def test_infinity_in_eight_bits_is_the_largest_number_and_leaves_its_unit_alive() -> None:
    values = torch.ones(512)
    values[3], values[300] = torch.inf, -torch.inf
    got = kept(eight_bit(512), values)
    assert got[[3, 300]].tolist() == [torch.finfo(torch.float32).max, torch.finfo(torch.float32).min]
    assert torch.isfinite(got).all()


# every format


@pytest.mark.parametrize("i", range(3))
def test_zeros_stay_zeros_and_no_number_becomes_nan(i: int) -> None:
    values = wide_range(2**15, signed=i != 2)
    got = kept(every_format(2**15)[i], values)
    assert torch.isfinite(got).all()
    assert (got[values == 0] == 0).all()
    assert (kept(every_format(1000)[i], torch.zeros(1000)).view(torch.int32) == 0).all()


@pytest.mark.parametrize("i", range(3))
def test_zeroed_memory_stands_for_zeros(i: int) -> None:
    assert (widened(every_format(1000)[i], 1000).view(torch.int32) == 0).all()


@pytest.mark.parametrize("i", range(3))
def test_what_is_kept_and_widened_is_kept_the_same_again(i: int) -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(3)).pow(3)
    buffer, again = every_format(10_000)[i], every_format(10_000)[i]
    exported = kept(buffer, values.abs() if i == 2 else values)
    narrowed_(again, exported, 5, "exp_avg")
    assert torch.equal(widened(again, 10_000), exported)


@pytest.mark.parametrize("i", range(3))
def test_a_buffer_narrowed_in_pieces_is_the_buffer_narrowed_at_once(i: int) -> None:
    values = torch.rand(10_000, generator=torch.Generator().manual_seed(4))
    whole, pieces = every_format(10_000)[i], every_format(10_000)[i]
    whole.narrow_(values, 0, PURPOSE)
    for start in (2560, 0, 9984, 7680, 5120):
        stop = min(start + 2560, 9984) if start < 9984 else 10_000
        pieces.narrow_(values[start:stop], start, PURPOSE)
    assert torch.equal(widened(pieces, 10_000), widened(whole, 10_000))


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize(("start", "length"), [(1, 256), (128, 128), (768, 256), (0, 100), (0, 1001), (-256, 256)])
def test_a_range_that_is_none_of_the_buffers_is_refused_and_nothing_written(i: int, start: int, length: int) -> None:
    buffer = every_format(1000)[i]
    for act in (lambda w: buffer.widen_(w, start), lambda w: buffer.narrow_(w, start, PURPOSE)):
        wide = torch.ones(length)
        with pytest.raises(ShapeMismatch):
            act(wide)
        assert (wide == 1).all()
    assert (widened(buffer, 1000) == 0).all()


# optimizers


class Threads:
    """Blocks shared by threads, each with its own scratch."""

    def __init__(self, block: int, threads: int) -> None:
        self.block, self._pool = block, ThreadPoolExecutor(threads)

    def each(self, function: Callable[[int], T], starts: Iterable[int]) -> Iterable[T]:
        return self._pool.map(function, starts)


_LOCAL = threading.local()


def this_threads_scratch() -> Tensor:
    if not hasattr(_LOCAL, "scratch"):
        _LOCAL.scratch = new_scratch(4)
    scratch: Tensor = _LOCAL.scratch
    return scratch


class Run:
    """A group of ``params`` and its state in one format."""

    def __init__(self, name: str, params: Tensor, state_dtype: StateDtype, place: Any = None, **settings: Any) -> None:
        self.optimizer, self.params, self.place = find(name), params, place or Here()
        self.hyper = self.optimizer.parse(settings, where="optimizer")
        self.buffers, self.compressed = dict[str, Tensor](), dict[str, CompressedBuffer]()
        for buffer_name, buffer in self._buffers(state_dtype):
            if isinstance(buffer, Tensor):
                self.buffers[buffer_name] = buffer
            else:
                self.compressed[buffer_name] = buffer
        self.numbers, self.steps = dict(self.optimizer.numbers), 0

    def _buffers(self, state_dtype: StateDtype) -> Iterator[tuple[str, CompressedBuffer | Tensor]]:
        lengths = [self.params.numel()]
        for name in self.optimizer.state(self.hyper):
            described = tensors_of(name, lengths, state_dtype)
            tensors = {key: torch.zeros(stored.length, dtype=stored.dtype) for key, stored in described.items()}
            yield name, next(buffers_of(name, lengths, state_dtype, tensors))

    def step(self, grads: Tensor) -> Norms:
        self.steps += 1
        group = FlatGroup(self.params, grads, self.buffers, self.steps, self.steps == 1, self.numbers)
        if not self.compressed:
            return update_(self.optimizer, group, self.hyper, self.place)
        return update_compressed_(
            self.optimizer, group, self.hyper, self.compressed, self.place, seed=9, scratch=this_threads_scratch
        )

    def state(self) -> dict[str, Tensor]:
        length = self.params.numel()
        return self.buffers | {name: widened(buffer, length) for name, buffer in self.compressed.items()}


def gradients(length: int, steps: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(11)
    sizes = 10 ** torch.empty(length).uniform_(-3, 0, generator=generator)
    for _ in range(steps):
        yield torch.randn(length, generator=generator) * sizes


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
@pytest.mark.parametrize("name", COMPRESSIBLE)
def test_the_first_step_of_every_optimizer_is_that_of_float32_state(name: str, state_dtype: StateDtype) -> None:
    [grads] = gradients(1000, 1)
    narrow, wide = (Run(name, torch.ones(1000), kind) for kind in (state_dtype, "f32"))
    assert narrow.step(grads) == pytest.approx(wide.step(grads), rel=1e-12)
    assert torch.equal(narrow.params, wide.params)


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
@pytest.mark.parametrize("name", COMPRESSIBLE)
def test_every_optimizer_stays_near_its_run_with_float32_state(name: str, state_dtype: StateDtype) -> None:
    narrow, wide = (Run(name, torch.ones(1000), kind, lr=1e-3) for kind in (state_dtype, "f32"))
    for grads in gradients(1000, 50):
        narrow.step(grads)
        wide.step(grads)
    moved = (wide.params - 1).norm()
    assert moved > 0
    # The gradients of a unit span three decades. At a thousandth of the largest, levels of eight bits are half of it
    # apart, and the noise of 50 roundings has had no time to average out.
    assert (narrow.params - wide.params).norm() < {"bf16": 0.03, "8bit": 0.2}[state_dtype] * moved


def logistic(name: str, state_dtype: StateDtype, **settings: Any) -> tuple[float, float]:
    """Loss of a logistic regression of 20 classes before and after 300 noisy steps."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(2000, 64, generator=generator) * torch.logspace(-2, 0, 64)
    truth = torch.randn(64, 20, generator=generator) * 3
    labels = (inputs @ truth + torch.randn(2000, 20, generator=generator) * 0.3).argmax(1)
    weights = torch.zeros(64, 20)
    run = Run(name, weights.view(-1), state_dtype, **settings)

    def loss(rows: Tensor | slice, at: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(inputs[rows] @ at, labels[rows])

    before = loss(slice(None), weights).item()
    for _ in range(300):
        rows = torch.randint(2000, (200,), generator=generator)
        leaf = weights.clone().requires_grad_()
        loss(rows, leaf).backward()
        run.step(leaf.grad.view(-1))  # type: ignore[union-attr]  # backward has just made it
    return before, loss(slice(None), weights).item()


LOGISTIC = [
    ("adam", {"lr": 0.03}),
    ("adamw", {"lr": 0.03, "amsgrad": True}),
    ("sgd", {"lr": 0.5, "momentum": 0.9}),
    ("rmsprop", {"lr": 0.01}),
    ("lion", {"lr": 0.01}),
]


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
@pytest.mark.parametrize(("name", "settings"), LOGISTIC)
def test_a_logistic_regression_trains_as_with_float32_state(
    name: str, settings: dict[str, Any], state_dtype: StateDtype
) -> None:
    before, wide = logistic(name, "f32", **settings)
    _, narrow = logistic(name, state_dtype, **settings)
    assert wide < before / 3
    assert narrow < wide * 1.02


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
def test_the_same_run_gives_the_same_bits_whatever_threads_and_blocks(
    state_dtype: StateDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_precision, "SLICE", 1024)
    places = (Here(), Here(), Here(block=2048), Threads(2048, 1), Threads(2048, 4))
    runs = [Run("adamw", torch.ones(10_001), state_dtype, place) for place in places]
    for grads in gradients(10_001, 10):
        norms = [run.step(grads) for run in runs]
        assert norms[0] == norms[1]
        assert norms[2] == norms[3] == norms[4]
    for run in runs[1:]:
        assert torch.equal(run.params, runs[0].params)
        assert all(torch.equal(buffer, runs[0].state()[name]) for name, buffer in run.state().items())


def test_a_missing_buffer_is_refused_before_a_weight_changes() -> None:
    run = Run("adamw", torch.ones(1000), "8bit")
    del run.compressed["exp_avg_sq"]
    with pytest.raises(KeyError, match="exp_avg_sq"):
        run.step(torch.ones(1000))
    assert (run.params == 1).all()
    assert (run.state()["exp_avg"] == 0).all()


@pytest.mark.parametrize("i", range(3))
def test_float64_is_refused_and_nothing_written(i: int) -> None:
    buffer = every_format(256)[i]
    with pytest.raises(TypeError, match="float32"):
        buffer.narrow_(torch.ones(256, dtype=torch.float64), 0, PURPOSE)
    assert (widened(buffer, 256) == 0).all()


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
def test_another_seed_rounds_another_way(state_dtype: StateDtype) -> None:
    runs = [Run("adamw", torch.ones(1000), state_dtype) for _ in range(2)]
    [grads] = gradients(1000, 1)
    for seed, run in enumerate(runs):
        group = FlatGroup(run.params, grads, {}, 1)
        compressed_step_(run.optimizer, group, run.hyper, run.compressed, 0, seed, new_scratch(2))
    assert not torch.equal(runs[0].state()["exp_avg"], runs[1].state()["exp_avg"])


def test_a_gradient_that_comes_back_after_zeros_moves_no_weight_far() -> None:
    # Were a small second moment kept as 0, its first moment would be divided by ε alone.
    run = Run("adam", torch.zeros(256), "8bit", lr=1e-3)
    grads = torch.full((256,), 1e-4)
    grads[0] = 1.0
    for step in range(50):
        run.step(grads * (step % 5 == 0))
    assert run.params.abs().max() < 50 * 1e-3 * 2


def test_groups_of_one_session_share_tensors_and_not_units() -> None:
    lengths = [300, 0, 256, 100]
    described = tensors_of("exp_avg", lengths, "8bit")
    assert {key: stored.length for key, stored in described.items()} == {"exp_avg.codes": 656, "exp_avg.scales": 4}
    tensors = {key: torch.zeros(stored.length, dtype=stored.dtype) for key, stored in described.items()}
    groups = list(buffers_of("exp_avg", lengths, "8bit", tensors))
    for size, (length, buffer) in enumerate(zip(lengths, groups, strict=True), start=1):
        assert isinstance(buffer, EightBitBuffer)
        buffer.narrow_(torch.full((length,), float(size)), 0, PURPOSE)
    assert tensors["exp_avg.scales"].tolist() == [1, 1, 3, 4]
    assert [set(widened(b, n).tolist()) for b, n in zip(groups, lengths, strict=True)] == [{1.0}, set(), {3.0}, {4.0}]


def test_buffers_that_are_no_means_stay_in_float32() -> None:
    assert [format_of(name, "8bit") for name in ("z", "p0", "step_size", "ax")] == ["f32"] * 4


@pytest.mark.parametrize("name", sorted(IN_TWO_BYTES_AT_LEAST))
def test_what_eight_bits_would_spoil_stays_in_bfloat16(name: str) -> None:
    assert [format_of(name, kind) for kind in get_args(StateDtype)] == ["f32", "bf16", "bf16"]


@pytest.mark.parametrize("name", sorted(MEANS | IN_TWO_BYTES_AT_LEAST))
def test_every_buffer_that_has_a_format_belongs_to_an_optimizer(name: str) -> None:
    asked_for: list[dict[str, Any]] = [{}, {"amsgrad": True}, {"momentum": 0.9}, {"centered": True}]
    buffers = set[str]()
    for optimizer in map(find, COMPRESSIBLE):
        known = optimizer.hyperparameters.model_fields
        for settings in (each for each in asked_for if each.keys() <= known.keys()):
            buffers.update(optimizer.state(optimizer.parse(settings, where="optimizer")))
    assert name in buffers


def test_an_unknown_state_dtype_is_refused() -> None:
    with pytest.raises(InvalidField, match="'4bit'") as refusal:
        require_state_dtype(find("adam"), "4bit", torch.float32)
    assert refusal.value.evidence["field"] == "state_dtype"


@pytest.mark.parametrize(
    ("name", "dtype"), [("adam", torch.float64), ("lamb", torch.float32), ("prodigy", torch.float32)]
)
def test_state_in_fewer_bytes_is_refused_where_it_cannot_be_kept(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(InvalidField, match="f32") as refusal:
        require_state_dtype(find(name), "8bit", dtype)
    assert refusal.value.evidence["field"] == "state_dtype"
    assert require_state_dtype(find(name), "f32", dtype) == "f32"


# memory

PROMISES = [
    ("sgd", {}, "f32", 0),
    ("sgd", {"momentum": 0.9}, "f32", 4),
    ("rmsprop", {}, "f32", 4),
    ("lion", {}, "f32", 4),
    ("adam", {}, "f32", 8),
    ("adam", {}, "bf16", 4),
    ("adam", {}, "8bit", 2.03125),
    ("sgd", {"momentum": 0.9}, "8bit", 1.015625),
]


@pytest.mark.parametrize(("name", "settings", "state_dtype", "promise"), PROMISES)
def test_the_bytes_a_parameter_are_those_promised(
    name: str, settings: dict[str, Any], state_dtype: StateDtype, promise: float
) -> None:
    optimizer = find(name)
    assert bytes_per_parameter(optimizer, optimizer.parse(settings, where="optimizer"), state_dtype) == promise


MEASURE = """
import os, sys
import torch
from test_optim_low_precision import PROMISES, Run

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

length = 50_000_000
params, grads = torch.ones(length), torch.full((length,), 0.5)
for name, settings, state_dtype, _ in PROMISES:
    Run(name, params[:1000], state_dtype, **settings).step(grads[:1000])  # what is compiled and loaded once
    before = resident()
    run = Run(name, params, state_dtype, **settings)
    run.step(grads)
    print((resident() - before) / length)
    del run
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a Linux process's own count of its pages")
def test_a_process_grows_by_the_bytes_promised_when_50_million_parameters_step() -> None:
    here = str(Path(__file__).parent)
    script = f"import sys; sys.path.insert(0, {here!r})\n{MEASURE}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    measured = [float(line) for line in done.stdout.split()]
    # Beside the state, scratch of a few MB.
    assert measured == pytest.approx([promise for *_, promise in PROMISES], rel=0.05, abs=0.06)
