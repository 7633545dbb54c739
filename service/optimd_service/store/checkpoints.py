"""The checkpoints of one session, as files of one folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from optimd_service.errors import CheckpointCorrupt, StepNotFound
from optimd_service.store.checkpoint import Checkpoint, CheckpointInfo, file_name, seq_of
from optimd_service.store.contract import Remembered, Working
from optimd_service.store.disk import sync_folder, translated
from optimd_service.store.failpoints import failpoint
from optimd_service.store.loading import Place, host_memory, load, read_header
from optimd_service.store.saving import UNFINISHED, Saving, Spare
from optimd_service.types import Version


class Found(NamedTuple):
    """Attributes: checkpoint: the newest that is sound, None without any.   corrupt: those newer, which are not."""

    checkpoint: Checkpoint | None
    corrupt: list[CheckpointCorrupt]


class Checkpoints:
    """Lists, saves, loads and removes; used by one session in one process.

    Args:
      folder: made if it is not there. What a save left unfinished when its process ended is removed.
      spare: where saves take memory from, so that steps need not wait for the disk.
    """

    def __init__(self, folder: Path, spare: Spare | None = None) -> None:
        self._folder = folder
        self._spare = spare
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(f"checkpoint-*{UNFINISHED}"):
            unfinished.unlink()

    def seqs(self) -> list[int]:
        """Every checkpoint that there is, sound or not, the oldest first."""
        return sorted(seq for file in self._folder.iterdir() if (seq := seq_of(file.name)) is not None)

    def infos(self) -> list[CheckpointInfo]:
        """What the headers say, the oldest first; a checkpoint whose header is not sound is left out.

        A label names the newest of those that were given it.
        """
        taken: set[str] = set()
        infos = []
        for info in reversed(self._read()):
            infos.append(info._replace(labels=tuple(label for label in info.labels if label not in taken)))
            taken.update(info.labels)
        return infos[::-1]

    def labelled(self, label: str) -> list[int]:
        """Every checkpoint that was given a label, the oldest first."""
        return [info.seq for info in self._read() if label in info.labels]

    def _read(self) -> list[CheckpointInfo]:
        infos = []
        for seq in self.seqs():
            with translated(), suppress(CheckpointCorrupt, FileNotFoundError):  # the latter: removed just now
                infos.append(read_header(self._path(seq)).info)
        return infos

    def info(self, seq: int) -> CheckpointInfo:
        """What the header of one says. Raises: CheckpointCorrupt, StepNotFound, JournalFailed."""
        self._require(seq)
        with translated():
            return read_header(self._path(seq)).info

    def save(
        self,
        seq: int,
        version: Version,
        working: Working,
        standing: Mapping[str, Any],
        remembered: Mapping[str, Remembered],
        label: str | None = None,
        unlabelled: str | None = None,
    ) -> Saving:
        """Begin a checkpoint of the state as it is now. Whoever asks for it runs it, in a thread, or cancels it.

        The buffers may not be changed before its ``settle`` returns. One of the same ``seq`` is replaced, and its
        labels stay.

        Args:
          working: as ``read_state`` gives it.
          standing: not changed afterwards.
          remembered: the oldest first.
          unlabelled: a label that is not to stay.
        """
        kept = Working(
            working.params,
            dict(working.state),
            working.updates,
            set(working.started),
            {owner: dict(numbers) for owner, numbers in working.numbers.items()},
        )
        labels = dict.fromkeys(name for name in self._labels(seq) if name != unlabelled)
        if label is not None:
            labels[label] = None
        checkpoint = Checkpoint(seq, version, kept, standing, dict(remembered), tuple(labels))
        return Saving(checkpoint, self._path(seq), self._spare)

    def load(self, seq: int, place: Place = host_memory) -> Checkpoint:
        """Read one, and check all of it.

        Args:
          place: gives the buffers; after an error what they hold means nothing.

        Raises: CheckpointCorrupt, naming file and block; StepNotFound; JournalFailed.
        """
        self._require(seq)
        with translated():
            return load(self._path(seq), place)

    def newest(self, until: int | None = None, place: Place = host_memory) -> Found:
        """The newest sound one, of those up to ``until``.

        Args:
          place: as for ``load``, and asked anew for each that is tried.
        """
        corrupt: list[CheckpointCorrupt] = []
        for seq in reversed(self.seqs()):
            if until is None or seq <= until:
                try:
                    return Found(self.load(seq, place), corrupt)
                except CheckpointCorrupt as error:
                    corrupt.append(error)
        return Found(None, corrupt)

    def retain(self, keep: int) -> list[int]:
        """Remove all but the newest ``keep`` and those with a label, and say which; ``keep``: at least 1.

        One whose header is not sound counts as none, and goes when it is older than one that is kept.
        """
        infos = self.infos()
        kept = {info.seq for info in infos if info.labels} | {info.seq for info in infos[-keep:]}
        removed = [seq for seq in self.seqs() if kept and seq < max(kept) and seq not in kept]
        for seq in removed:
            self.remove(seq)
        return removed

    def remove(self, seq: int) -> None:
        """Remove one, durably; one that is not there is removed already."""
        with translated():
            failpoint("checkpoint.before_unlink")
            self._path(seq).unlink(missing_ok=True)
            sync_folder(self._folder)

    def _require(self, seq: int) -> None:
        if seq not in self.seqs():
            raise StepNotFound(f"There is no checkpoint {seq}.", seq=seq)

    def _labels(self, seq: int) -> tuple[str, ...]:
        """Of one that is there already."""
        try:
            return read_header(self._path(seq)).info.labels
        except (CheckpointCorrupt, FileNotFoundError):
            return ()

    def _path(self, seq: int) -> Path:
        return self._folder / file_name(seq)
