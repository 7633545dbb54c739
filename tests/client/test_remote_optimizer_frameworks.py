"""RemoteOptimizer inside Accelerate and Lightning, and every program of docs/frameworks.md and docs/sdk.md."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator
from remote_references import deviation
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import optimd

Remote = Callable[..., optimd.RemoteOptimizer]

DOCS = Path(__file__).parents[2] / "docs"


def programs() -> Iterator[Any]:
    for page in (DOCS / "frameworks.md", DOCS / "sdk.md"):
        heading = ""
        for title, program in re.findall(
            r"^##+ (\w+)|^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            heading = title or heading
            if program:
                yield pytest.param(program, id=f"{page.stem}-{heading}")


@pytest.mark.parametrize("program", list(programs()))
@pytest.mark.filterwarnings("ignore:.*num_workers", "ignore:.*dataloader", "ignore:.*log_every_n_steps")
def test_the_programs_in_the_docs_run(
    server_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    monkeypatch.setenv("OPTIMD_URL", server_url)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "program", "exec"), {"__name__": "program"})  # noqa: S102 - our own pages


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 1)


def same(got: nn.Module, wanted: nn.Module) -> bool:
    pairs = zip(got.parameters(), wanted.parameters(), strict=True)
    return all(deviation(p.detach(), q.detach()) <= 1e-6 for p, q in pairs)


def test_accelerate_trains_as_with_a_local_optimizer(remote: Remote, tmp_path: Path) -> None:
    ours, theirs = model(), model()
    opt = remote(ours.named_parameters(), "adamw", lr=0.01)
    for bare, optimizer in ((ours, opt), (theirs, torch.optim.AdamW(theirs.named_parameters(), lr=0.01))):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        net, prepared, batches, scheduler = accelerator.prepare(bare, optimizer, loader(), scheduler)
        for epoch in range(3):
            for x, y in batches:
                with accelerator.accumulate(net):
                    accelerator.backward(mse_loss(net(x), y))
                    accelerator.clip_grad_norm_(net.parameters(), 1.0)
                    prepared.step()
                    scheduler.step()
                    prepared.zero_grad()
            if epoch == 0:
                accelerator.save_state(str(tmp_path / type(optimizer).__name__))
            if epoch == 1:
                accelerator.load_state(str(tmp_path / type(optimizer).__name__))
    assert opt.receipt is not None
    assert opt.receipt.step == 12
    assert same(ours, theirs)


class Regression(lightning.LightningModule):
    def __init__(self, make: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.layer = model()
        self.make = make

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return mse_loss(self.layer(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.named_parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def trainer(steps: int) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )


def test_lightning_trains_saves_and_resumes_as_with_a_local_optimizer(remote: Remote, tmp_path: Path) -> None:
    made: list[optimd.RemoteOptimizer] = []

    def ours(*args: Any, **kwargs: Any) -> optimd.RemoteOptimizer:
        made.append(remote(*args, "adamw", **kwargs))
        return made[-1]

    trained = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for make in (ours, torch.optim.AdamW):
            first, checkpoint = trainer(12), tmp_path / f"{make.__name__}.ckpt"
            first.fit(Regression(make), loader())
            first.save_checkpoint(checkpoint)
            trained.append(Regression(make))
            trainer(20).fit(trained[-1], loader(), ckpt_path=checkpoint, weights_only=True)
    assert same(*trained)
    # A resumed run is a new session, whose moments know of the steps before.
    receipts = [opt.receipt for opt in made if opt.receipt is not None]
    assert [receipt.step for receipt in receipts] == [12, 8]
    assert all(receipt.loss is not None for receipt in receipts)
    assert made[-1].session.state().step == 20
