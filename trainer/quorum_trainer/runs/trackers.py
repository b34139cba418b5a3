"""A run as numbers over steps, for TensorBoard and every other tracker that accelerate knows.

    StepReport, Evaluation  --Accelerator.log-->  runs/NAME.run/…

Names: `<stage>/loss`, `<stage>/loss_m00`, `<stage>/gradient_norm_m00`, `<stage>/lr`, `<stage>/held_out_loss`,
`<stage>/held_out_accuracy`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator

from quorum_trainer.config import ConfigError
from quorum_trainer.training.reports import Evaluation, StepReport


class TrackerReporter:
    """Passes a run on to accelerate's trackers; steps count on over stages, since some drop steps that go back.

    Args:
        accelerator: made by `make_accelerator`, its trackers started.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._steps_before, self._steps_of_stage = 0, 0

    def begin(self, stage: str, total: int, done: int) -> None:  # noqa: ARG002
        """The next stage's steps follow this one's."""
        self._steps_before += self._steps_of_stage
        self._steps_of_stage = total

    def step(self, report: StepReport) -> None:
        """Losses and gradient norms of every member."""
        values = {f"{report.stage}/loss": sum(report.losses) / len(report.losses), f"{report.stage}/lr": report.lr}
        if len(report.losses) > 1:
            for member, (loss, norm) in enumerate(zip(report.losses, report.gradient_norms, strict=True)):
                values[f"{report.stage}/loss_m{member:02d}"] = loss
                values[f"{report.stage}/gradient_norm_m{member:02d}"] = norm
        self._accelerator.log(values, step=self._steps_before + report.step)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Loss and accuracy on held-out pairs."""
        values = {"held_out_loss": evaluation.loss, "held_out_accuracy": evaluation.accuracy}
        step = self._steps_before + evaluation.step
        self._accelerator.log({f"{evaluation.stage}/{k}": v for k, v in values.items()}, step=step)


class Tracked(Protocol):
    """The config of a run that is tracked."""

    @property
    def trackers(self) -> Sequence[str]: ...  # noqa: D102
    def model_dump(self, *, mode: str, exclude_none: bool) -> dict[str, Any]: ...  # noqa: D102


def make_accelerator(config: Tracked, folder: Path, *, on_cpu: bool) -> Accelerator:
    """Processes, devices and trackers of a run.

    Args:
        config: its trackers.
        folder: of the run: trackers write there.
        on_cpu: leave CUDA alone.

    Raises:
        ConfigError: a tracker that accelerate does not know, or whose package is missing.
    """
    try:
        with warnings.catch_warnings():  # of packages that are missing: an error here
            warnings.simplefilter("ignore", UserWarning)
            accelerator = Accelerator(cpu=on_cpu, log_with=list(config.trackers) or None, project_dir=str(folder))
    except ValueError as error:
        raise ConfigError(f"trackers: {error}") from error
    missing = sorted(set(config.trackers) - {str(getattr(found, "value", found)) for found in accelerator.log_with})
    if missing:
        raise ConfigError(f"trackers: the package of {missing[0]} is not installed")
    return accelerator


def start_trackers(accelerator: Accelerator, config: Tracked) -> None:
    """Tell the trackers what the run is: its config, flat, as they want it."""
    accelerator.init_trackers("quorum", config=_flat(config.model_dump(mode="json", exclude_none=True)))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    flat: dict[str, str | int | float | bool] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str | int | float | bool) else json.dumps(value)
    return flat
