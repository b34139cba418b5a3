"""The loop: roll out, look back, learn, check, write down; serially, or with the next rollout under way meanwhile.

    step s:  adapter s --publish--> completions, rewards --look_back--> experience --learn--> adapter s + 1, checkpoint
    overlap: completions of s + 1 are drawn from adapter s while s is learned from

A checkpoint is written after every step, and the servers' answers are journalled as they arrive: whatever stops a run,
nothing that was paid for is lost.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from quorum_client.errors import QuorumError
from quorum_trainer.data.read import hash_file
from quorum_trainer.ppo.alarm import look_for_overoptimisation
from quorum_trainer.ppo.config import PPOConfig
from quorum_trainer.ppo.experience import generator_gap, look_back
from quorum_trainer.ppo.kl import AdaptiveKL, FixedKL, KLController
from quorum_trainer.ppo.learner import Learner
from quorum_trainer.ppo.policy import Policy
from quorum_trainer.ppo.record import StepLog, sample_figures
from quorum_trainer.ppo.rollout import Rollout, Say, Sources, roll_out
from quorum_trainer.ppo.samples import PromptRow, Sample, prompts_of_step
from quorum_trainer.runs.run_folder import RunFolder, write_folder
from quorum_trainer.training.keeper import Snapshot, TrainingInterrupted
from quorum_trainer.training.loop import TrainingDiverged

STAGE = "ppo"
_CHECKED_STALE = 16
"""Completions of a rollout that is a step old whose log-probabilities are recomputed by the older adapter."""

Track = Callable[[dict[str, float], int], None]


class RunStopped(QuorumError):
    """A run cannot go on; what it had is kept, and the message says how to go on."""

    code = "run_stopped"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of. std_limit: 99th percentile of the ensemble's std, where it is known."""

    config: PPOConfig
    policy: Policy
    learner: Learner
    rows: list[PromptRow]
    sources: Sources
    folder: RunFolder
    std_limit: float | None
    say: Say
    track: Track


class Loop:
    """A run from its first step, or from the step after its checkpoint."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.config
        self._path = parts.folder.path
        self._handles: dict[int, str] = {}
        kl = self._config.kl
        self._controller: KLController = (
            FixedKL(kl.coefficient) if kl.target is None else AdaptiveKL(kl.coefficient, kl.target, kl.gain)
        )
        self._step = 0
        snapshot = parts.folder.resume(STAGE)
        if snapshot is not None:
            parts.learner.restore(snapshot.tensors)
            self._step = int(snapshot.numbers["step"])
            if isinstance(self._controller, AdaptiveKL):
                self._controller = AdaptiveKL(snapshot.numbers["coefficient"], self._controller.target, kl.gain)
        self.log = StepLog(self._path / "log.jsonl", self._step)

    @property
    def step(self) -> int:
        """The step that comes next."""
        return self._step

    async def run(self) -> None:
        """All remaining steps.

        Raises:
            RunStopped: a server is away or refuses, the disk is full, too much is without a score, or an alarm stops
                the run; go on with --resume.
            TrainingInterrupted: asked to stop.
            TrainingDiverged: a loss is not finite.
        """
        following: asyncio.Task[Rollout] | None = None
        try:
            while self._step < self._config.steps:
                started_s = time.perf_counter()
                rollout = await (following or self._roll(self._step, self._source_of(self._step)))
                following = None
                waited_s = time.perf_counter() - started_s
                if self._config.rollout.overlap and self._step + 1 < self._config.steps:
                    await self._publish(self._step)
                    following = asyncio.create_task(self._roll(self._step + 1, self._step))
                await asyncio.to_thread(self._take_step, rollout, started_s, waited_s)
                await self._retire()
        except OSError as error:
            raise self._stopped(f"cannot write: {error}") from error
        except (RunStopped, TrainingInterrupted, TrainingDiverged):
            raise
        except QuorumError as error:
            raise self._stopped(f"{error.code}: {error.message}") from error
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            for handle in self._handles.values():
                await self._parts.sources.sampler.retire(handle)

    def _source_of(self, step: int) -> int:
        """The step at whose beginning the policy was as this step's completions are drawn from it."""
        return max(0, step - 1) if self._config.rollout.overlap else step

    async def _roll(self, step: int, source: int) -> Rollout:
        handle = await self._publish(source)
        chosen = prompts_of_step(len(self._parts.rows), step, self._config.rollout.prompts, self._config.seed)
        rows = [self._parts.rows[index] for index in chosen]
        adapter = hash_file(self._adapter(source) / "adapter_model.safetensors")
        return await roll_out(self._parts.sources, rows, step, handle, adapter, self._parts.say)

    async def _publish(self, step: int) -> str:
        if step not in self._handles:
            if step == self._step:  # else it is of a step before, and lies there
                write_folder(self._adapter(step), self._parts.policy.write_adapter)
            self._handles[step] = await self._parts.sources.sampler.publish(self._adapter(step), step)
        return self._handles[step]

    async def _retire(self) -> None:
        """Let go of adapters that no rollout will need."""
        oldest = self._source_of(self._step)
        for step in [step for step in self._handles if step < oldest]:
            await self._parts.sources.sampler.retire(self._handles.pop(step))
            shutil.rmtree(self._adapter(step), ignore_errors=True)

    def _adapter(self, step: int) -> Path:
        return self._path / "adapters" / f"{step:06d}"

    def _take_step(self, rollout: Rollout, started_s: float, waited_s: float) -> None:
        """Learn from a rollout, and write everything down. Runs in a thread: the rollout of the next step goes on."""
        step, config, parts = self._step, self._config, self._parts
        line: dict[str, float] = sample_figures(rollout.samples, std_limit=parts.std_limit)
        scored = self._scored(rollout.samples)
        is_stale = self._source_of(step) < step
        looked_s = time.perf_counter()
        experience, seen = look_back(
            parts.policy, scored, config, coefficient=self._controller.coefficient, is_stale=is_stale
        )
        line |= seen
        if is_stale:
            line["kl/generator"] = self._stale_gap(scored)
        self._check_generator(line["kl/generator"])
        learned_s = time.perf_counter()
        line |= parts.learner.learn(experience, step=step, coefficient=self._controller.coefficient)
        ended_s = time.perf_counter()
        self._controller = self._controller.after(line["kl/reference"])
        line |= {
            "time/rollout": rollout.elapsed_s,
            "time/waited": waited_s,
            "time/scoring_alone": rollout.scoring_alone_s,
            "time/look_back": learned_s - looked_s,
            "time/learn": ended_s - learned_s,
            "time/step": ended_s - started_s,
            **{f"time/{name}_calls": seconds for name, seconds in rollout.busy_s.items()},
        }
        self._write_down(step, line, rollout.samples)

    def _scored(self, samples: list[Sample]) -> list[Sample]:
        scored = [sample for sample in samples if sample.reward.score is not None]
        missing = len(samples) - len(scored)
        if not scored or missing > self._config.rollout.max_unscored * len(samples):
            codes = sorted({str(sample.reward.error) for sample in samples if sample.reward.error is not None})
            raise self._stopped(f"{missing} of {len(samples)} completions have no score ({', '.join(codes)})")
        return scored

    def _stale_gap(self, scored: list[Sample]) -> float:
        policy = self._parts.policy
        now = policy.adapter()
        policy.put_adapter(load_file(self._adapter(self._source_of(self._step)) / "adapter_model.safetensors"))
        try:
            return generator_gap(policy, scored[:_CHECKED_STALE], self._config)
        finally:
            policy.put_adapter(now)

    def _check_generator(self, gap: float) -> None:
        options = self._config.generator
        if gap <= options.tolerance:
            return
        said = (
            f"the generator's log-probabilities lie {gap:.3g} nats a token from the trainer's (tolerance "
            f"{options.tolerance:g}): it serves other weights than were saved, or another dtype"
        )
        if options.on_mismatch == "stop":
            raise self._stopped(said)
        self._parts.say(f"step {self._step}: {said}")

    def _write_down(self, step: int, figures: dict[str, float], samples: list[Sample]) -> None:
        parts, config = self._parts, self._config
        versions = sorted({one.reward.version for one in samples if one.reward.version is not None})
        before = self.log.lines[-1]["versions"] if self.log.lines else versions
        if versions != before:
            parts.say(f"step {step}: rewards are by version {', '.join(versions)} of the ensemble, before by {before}")
        sign = look_for_overoptimisation(
            [*self.log.series("reward/score"), figures["reward/score"]],
            [*self.log.series("uncertainty/std"), figures.get("uncertainty/std")],
            config.alarm,
        )
        figures["alarm/overoptimization"] = float(sign is not None)
        self.log.add({"step": step, "versions": versions, **figures})
        parts.track(figures, step)
        self._say_step(step, figures, samples)
        self._step = step + 1
        if config.save_steps is not None and self._step % config.save_steps == 0:
            write_folder(self._path / "policies" / f"{self._step:06d}", parts.policy.write_adapter)
        numbers = {"step": float(self._step), "coefficient": self._controller.coefficient}
        parts.folder.offer(
            STAGE, lambda: Snapshot(parts.learner.state(), numbers), stop=parts.folder.is_asked_to_stop()
        )
        if sign is not None:
            parts.say(
                f"step {step}: over {config.alarm.window} steps the reward climbs (t = {sign.reward_t:.1f}) and the "
                f"std over members with it (t = {sign.std_t:.1f}, by {sign.std_rise:.0%}): a sign of over-optimisation"
            )
            if config.alarm.stop:
                raise self._stopped("alarm.stop: uncertainty climbs while the reward does")

    def _say_step(self, step: int, figures: dict[str, float], samples: list[Sample]) -> None:
        shown = {
            "reward": "reward/score", "gold": "reward/gold", "std": "uncertainty/std", "KL": "kl/reference",
            "tokens": "length/mean", "seconds": "time/step",
        }  # fmt: skip
        said = ", ".join(f"{name} {figures[key]:.3g}" for name, key in shown.items() if key in figures)
        self._parts.say(f"step {step + 1} of {self._config.steps}: {said}")
        first = " ".join(samples[0].draw.text.split())
        self._parts.say(f"    {first[:160]}{'…' if len(first) > 160 else ''}")

    def _stopped(self, why: str) -> RunStopped:
        kept = f"{self._path} has what was done"
        return RunStopped(f"stopped in step {self._step + 1}: {why}. Go on with --resume ({kept})")
