"""Two processes train what one does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from quorum_model.bundle.golden import read_golden
from quorum_model.bundle.read import read_bundle
from quorum_trainer.config import ConfigError, TrainConfig
from quorum_trainer.prepare import find_base, load_data
from quorum_trainer.training.ensemble import train_ensemble
from quorum_trainer.training.loop import Surroundings
from quorum_trainer.training.workers import OneWorker

RECIPE: dict[str, Any] = {
    "phase1": {"method": "shared_adapter", "epochs": 1, "batch_pairs": 8, "lr": 5e-3, "lora": {"rank": 2}},
    "phase2": {"epochs": 1, "batch_pairs": 8, "lr": 5e-3, "lora": {"rank": 2}},
    "diversity": {"bootstrap": True},
}


@pytest.mark.slow
def test_two_processes_train_what_one_does(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config(**RECIPE).model_dump(mode="json", exclude_none=True)))
    train = ["-m", "quorum_client.cli", "train", str(path), "--device", "cpu", "--out"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for prefix, name in (([], "one"), (launch, "two")):
        done = subprocess.run(
            [sys.executable, *prefix, *train, str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("2 processes" in done.stderr) == (name == "two")
    one, two = (read_bundle(tmp_path / name) for name in ("one", "two"))
    left, right = (np.array([item.scores for item in read_golden(bundle)]) for bundle in (one, two))
    scale = np.array([member.calibration.scale for member in one.manifest.members])
    # fp32: gradients are summed in another order, which a dozen steps of AdamW amplify.
    np.testing.assert_allclose(left / scale, right / scale, atol=5e-3)
    assert np.ptp(left / scale) > 0.1
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two", "two.run"]


class Three(OneWorker):
    num = 3


def test_a_batch_that_cannot_be_shared_is_refused(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config()
    base = find_base(config)
    pairs = load_data(config, base.encoder).train
    with pytest.raises(ConfigError, match="batch_pairs: 8 pairs cannot be shared by 3"):
        train_ensemble(config, base.start, pairs, Surroundings(workers=Three()))
