"""What a checkpoint's file holds, and that any change to it is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from checkpointed import REMEMBERED, STANDING, assert_holds, copied, large, overwrite, save, small
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from optimd_service.errors import CheckpointCorrupt
from optimd_service.store import disk
from optimd_service.store.checkpoint import BLOCK, DTYPES, PADDING, arrange, file_name
from optimd_service.store.checkpoints import Checkpoints
from optimd_service.store.contract import Working
from optimd_service.store.loading import read_header
from optimd_service.store.regions import memory
from optimd_service.types import BufferSize, Version


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path)


@pytest.mark.parametrize("make", [small, large])
def test_a_checkpoint_holds_all_of_a_session(checkpoints: Checkpoints, make: Callable[[], Working]) -> None:
    working = make()
    save(checkpoints, 3, working, "before the change").run()
    loaded = checkpoints.load(3)
    assert_holds(loaded, working)
    assert (loaded.seq, loaded.version, loaded.labels) == (3, Version(3, 2), ("before the change",))
    assert (loaded.standing, list(loaded.remembered.items())) == (STANDING, list(REMEMBERED.items()))


sizes = st.one_of(st.integers(0, 40), st.integers(900, 1100), st.just(2**20 + 3))
buffers = st.dictionaries(
    st.text("abc_.", min_size=1, max_size=6),
    st.tuples(sizes, st.sampled_from(list(DTYPES.values())), st.integers(0, 9)),
)


@settings(max_examples=40, deadline=None)
@given(numel=sizes, state=buffers)
def test_buffers_of_any_size_dtype_and_place_come_back(
    numel: int, state: dict[str, tuple[int, torch.dtype, int]]
) -> None:
    flats = {
        name: torch.randint(0, 2, (skipped + length,)).to(dtype)[skipped:]
        for name, (length, dtype, skipped) in state.items()
    }
    working = Working(torch.randn(numel), flats, 0, set(), {})
    with TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        info = save(checkpoints, 1, working).run()
        assert info
        assert info.buffers == {"params": BufferSize(numel, torch.float32)} | {
            f"state.{name}": BufferSize(length, dtype) for name, (length, dtype, _) in state.items()
        }
        assert checkpoints.infos() == [info]
        assert_holds(checkpoints.load(1), working)
        assert load_file(Path(folder) / file_name(1)).keys() >= info.buffers.keys()


def test_anybody_who_reads_safetensors_reads_it(checkpoints: Checkpoints, tmp_path: Path) -> None:
    working = large()
    save(checkpoints, 3, working, "kept").run()
    tensors = load_file(tmp_path / file_name(3))
    assert {name for name in tensors if not name.startswith(PADDING)} == {
        "params",
        "state.exp_avg",
        "#session",
        "#checksums",
    }
    assert torch.equal(tensors["params"], working.params)
    assert torch.equal(tensors["state.exp_avg"], working.state["exp_avg"])
    assert json.loads(tensors["#session"].numpy().tobytes())["standing"] == STANDING
    with safe_open(tmp_path / file_name(3), "pt") as file:
        assert file.metadata().items() >= {"seq": "3", "version": "3.2", "labels": '["kept"]'}.items()


def test_it_is_read_into_the_memory_that_is_given(checkpoints: Checkpoints) -> None:
    working = large()
    wanted = copied(working)
    save(checkpoints, 1, working).run()
    overwrite(working)
    given_buffers = {"params": working.params, "state.exp_avg": working.state["exp_avg"]}
    loaded = checkpoints.load(1, lambda name, _: given_buffers[name])
    assert loaded.working.params is working.params
    assert_holds(loaded, wanted)


def test_memory_of_a_device_is_written_and_read(checkpoints: Checkpoints, device: Any) -> None:
    working = large()
    wanted = copied(working)
    working.params, working.state["exp_avg"] = device.put(working.params), device.put(working.state["exp_avg"])
    save(checkpoints, 1, working).run()
    loaded = checkpoints.load(1, lambda _, size: device.put(torch.zeros(size.numel, dtype=size.dtype)))
    assert not loaded.working.params.is_cpu
    on_host = Working(
        loaded.working.params.to("cpu"), {"exp_avg": loaded.working.state["exp_avg"].to("cpu")}, 1, set(), {}
    )
    assert torch.equal(on_host.params, wanted.params)
    assert torch.equal(on_host.state["exp_avg"], wanted.state["exp_avg"])


def test_blocks_go_to_the_disk_from_where_they_lie() -> None:
    flats = {"params": torch.zeros(BLOCK), "state.exp_avg": torch.zeros(BLOCK)}
    regions = arrange(flats)
    taken = [memory(regions, at, at + BLOCK) for at in range(0, 8 * BLOCK, BLOCK)]
    assert sum(piece is not None for piece in taken) >= 6  # all but those at the ends of a buffer


def test_a_file_system_without_direct_writes_holds_the_same(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(disk.os, "O_DIRECT", raising=False)
    working = large()
    save(checkpoints, 1, working).run()
    assert_holds(checkpoints.load(1), working)


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def places(path: Path) -> dict[str, int]:
    """One byte of each kind."""
    header = read_header(path)
    inside = {name: header.at + start for name, (start, stop) in header.spans.items() if start < stop}
    end = path.stat().st_size
    return inside | {
        "length of the header": 0,
        "high byte of that": 7,
        "brace": 8,
        "dtype": path.read_bytes().index(b"BF16"),
        "metadata": path.read_bytes().index(b"updates") + 10,
        "space behind the header": header.at - 1,
        "last of the checksums": end - 1,
        "checksum of the header": end - 9,
        "checksum of a block": end - 17,
    }


def test_one_flipped_bit_of_any_kind_is_found(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, small(), "label").run()
    path = tmp_path / file_name(1)
    kinds = places(path)
    assert len(kinds) > 15
    for kind, at in kinds.items():
        for bit in (0, 7):
            flip(path, at, bit)
            with pytest.raises(CheckpointCorrupt) as caught:
                checkpoints.load(1)
            assert caught.value.evidence["file"] == file_name(1), kind
            flip(path, at, bit)
    checkpoints.load(1)


@pytest.mark.parametrize("seed", range(4))
def test_one_flipped_bit_anywhere_is_found(checkpoints: Checkpoints, tmp_path: Path, seed: int) -> None:
    save(checkpoints, 1, small()).run()
    path = tmp_path / file_name(1)
    whole = path.read_bytes()
    for at in range(seed, len(whole), 61):
        flip(path, at, at % 8)
        with pytest.raises(CheckpointCorrupt):
            checkpoints.load(1)
        path.write_bytes(whole)


def test_the_block_that_changed_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, large()).run()
    path = tmp_path / file_name(1)
    begins = read_header(path).at + BLOCK
    flip(path, begins + 5)
    with pytest.raises(CheckpointCorrupt) as caught:
        checkpoints.load(1)
    assert caught.value.evidence == {"file": file_name(1), "part": "block 1", "offset": begins}


@pytest.mark.parametrize("change", ["cut", "lengthened", "emptied", "renamed", "foreign"])
def test_a_file_that_is_another_than_was_written_is_refused(
    checkpoints: Checkpoints, tmp_path: Path, change: str
) -> None:
    save(checkpoints, 1, small()).run()
    path = tmp_path / file_name(1)
    content = path.read_bytes()
    if change == "renamed":
        path.rename(tmp_path / file_name(2))
    changed = {"cut": content[:-1], "lengthened": content + b"\0", "emptied": b"", "foreign": b"{" * 9000}
    (tmp_path / file_name(2)).write_bytes(changed.get(change, content))
    with pytest.raises(CheckpointCorrupt):
        checkpoints.load(2)
    assert [info.seq for info in checkpoints.infos()] == ([] if change == "renamed" else [1])
