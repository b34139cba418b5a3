"""Whole runs without servers: what is learned, what survives, what stops them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quorum_client.errors import ConnectionFailed
from quorum_trainer.ppo.loop import RunStopped
from quorum_trainer.training.keeper import TrainingInterrupted
from tests.trainer.ppo.tiny import LocalSampler, WordReward, fingerprint, make_config, make_run

ESTIMATORS = ("gae", "rloo", "grpo")


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
async def test_a_run_that_is_stopped_anywhere_ends_bit_for_bit_the_same(
    policy_folder: Path, prompts: Path, tmp_path: Path, estimator: str, overlap: bool
) -> None:
    config = make_config(policy_folder, prompts, estimator=estimator, rollout={"overlap": overlap})
    whole = make_run(config, tmp_path / "whole")
    await whole.loop.run()

    def dies(step: int, place: int) -> None:
        if step == 1 and place == 2:
            raise ConnectionFailed("away")

    first = make_run(config, tmp_path / "broken")
    first.sampler.fails = dies
    with pytest.raises(RunStopped, match=r"stopped in step [12]: .*away.*--resume"):
        await first.loop.run()
    first.die()
    second = make_run(config, tmp_path / "broken", resume=True)
    await second.loop.run()
    assert fingerprint(second.policy) == fingerprint(whole.policy)
    figures = [
        {name: value for name, value in line.items() if not name.startswith("time/")} for line in whole.loop.log.lines
    ]
    again = [
        {name: value for name, value in line.items() if not name.startswith("time/")} for line in second.loop.log.lines
    ]
    assert again == figures
    asked = first.sampler.asked + second.sampler.asked
    assert sorted(asked) == sorted(whole.sampler.asked) == sorted(set(asked))  # nothing was drawn twice


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_a_reward_for_one_word_is_learned(
    policy_folder: Path, prompts: Path, tmp_path: Path, estimator: str, seed: int
) -> None:
    """The optimum is known: that word and nothing else, a reward of 1; chance gives about 1/16."""
    config = make_config(
        policy_folder, prompts, estimator=estimator, seed=seed, steps=16,
        rollout={"prompts": 6, "samples": 8, "max_new_tokens": 4},
        update={"lr": 1e-2, "value_lr": 1e-2, "minibatch": 24, "epochs": 2}, kl={"coefficient": 0.0},
    )  # fmt: skip
    run = make_run(config, tmp_path / "run")
    await run.loop.run()
    rewards = run.loop.log.series("reward/score")
    assert rewards[0] < 0.2
    assert min(rewards[-3:]) > 0.7


@pytest.mark.slow
async def test_an_adaptive_coefficient_holds_the_kl_near_its_target(
    policy_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    config = make_config(
        policy_folder, prompts, estimator="rloo", steps=80,
        rollout={"prompts": 4, "samples": 8, "max_new_tokens": 4},
        update={"lr": 5e-3, "minibatch": 32}, kl={"coefficient": 0.08, "target": 3.0, "gain": 0.3},
    )  # fmt: skip
    run = make_run(config, tmp_path / "run")
    await run.loop.run()
    last = run.loop.log.series("kl/reference")[-20:]
    assert sum(last) / len(last) == pytest.approx(3.0, rel=0.2)
    coefficients = run.loop.log.series("kl/coefficient")
    assert len(set(coefficients)) > 30


async def test_the_kl_holds_the_policy_back(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    distances = []
    for coefficient in (0.0, 1.0):
        config = make_config(
            policy_folder, prompts, estimator="gae", steps=8, kl={"coefficient": coefficient}, update={"lr": 1e-2}
        )
        run = make_run(config, tmp_path / f"run-{coefficient}")
        await run.loop.run()
        distances.append(run.loop.log.series("kl/reference")[-1])
    assert distances[1] < distances[0] / 2


async def test_a_server_that_kept_the_older_adapter_is_found_out(
    policy_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    config = make_config(policy_folder, prompts, update={"lr": 0.1}, generator={"tolerance": 0.02})
    sampler = LocalSampler(policy_folder, config, always="adapter-0")
    run = make_run(config, tmp_path / "run", sampler=sampler)
    with pytest.raises(RunStopped, match=r"stopped in step 2: the generator's log-probabilities lie .* nats"):
        await run.loop.run()
    assert run.loop.log.series("kl/generator") == pytest.approx([0], abs=1e-5)
    assert len(run.loop.log.lines) == 1


async def test_the_older_adapter_is_found_out_with_overlap_too(
    policy_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    config = make_config(
        policy_folder, prompts, steps=4, update={"lr": 0.1}, generator={"tolerance": 0.02}, rollout={"overlap": True}
    )
    honest = make_run(config, tmp_path / "honest")
    await honest.loop.run()
    assert max(honest.loop.log.series("kl/generator")) < 1e-4
    sampler = LocalSampler(policy_folder, config, always="adapter-0")
    run = make_run(config, tmp_path / "run", sampler=sampler)
    with pytest.raises(RunStopped, match="stopped in step 3: the generator's"):  # step 2 is by adapter 0 by right
        await run.loop.run()


async def test_a_mismatch_may_be_a_warning(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    config = make_config(
        policy_folder, prompts, update={"lr": 0.1}, generator={"tolerance": 0.02, "on_mismatch": "warn"}
    )
    run = make_run(config, tmp_path / "run", sampler=LocalSampler(policy_folder, config, always="adapter-0"))
    await run.loop.run()
    assert sum("log-probabilities lie" in line for line in run.said) == 2


async def test_completions_without_a_score_are_left_out_and_too_many_stop_the_run(
    policy_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    config = make_config(policy_folder, prompts, rollout={"max_unscored": 0.5}, steps=2)
    some = WordReward(broken=lambda draw: "not_finite" if draw.token_ids[0] % 4 == 0 else None)
    run = make_run(config, tmp_path / "some", reward=some)
    await run.loop.run()
    assert 0 < run.loop.log.series("reward/unscored")[0] < 0.5
    none = WordReward(broken=lambda draw: "not_finite")
    with pytest.raises(RunStopped, match=r"16 of 16 completions have no score \(not_finite\)"):
        await make_run(config, tmp_path / "none", reward=none).loop.run()


async def test_completions_that_are_all_the_same_teach_nothing_and_break_nothing(
    policy_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    for estimator in ESTIMATORS:
        config = make_config(
            policy_folder, prompts, estimator=estimator, rollout={"temperature": 0.01}, kl={"coefficient": 0.0},
            update={"lr": 1e-6},
        )  # fmt: skip
        run = make_run(config, tmp_path / estimator)
        await run.loop.run()
        assert run.loop.log.series("policy/distinct")[0] == 0.25
        if estimator != "gae":
            assert run.loop.log.series("kl/reference") == pytest.approx([0, 0, 0], abs=1e-5)


async def test_a_full_disk_leaves_the_checkpoint_before(
    policy_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(policy_folder, prompts)
    whole = make_run(config, tmp_path / "whole")
    await whole.loop.run()
    run = make_run(config, tmp_path / "full")
    import quorum_trainer.runs.run_folder as module

    real, calls = module.save_file, 0

    def fails(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            args[1].write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(RunStopped, match="No space left on device"):
        await run.loop.run()
    run.die()
    again = make_run(config, tmp_path / "full", resume=True)
    assert again.loop.step == 1
    await again.loop.run()
    assert fingerprint(again.policy) == fingerprint(whole.policy)
    assert len(again.loop.log.lines) == 3


async def test_asked_to_stop_it_stops_after_the_step(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    config = make_config(policy_folder, prompts, rollout={"overlap": True})
    run = make_run(config, tmp_path / "run")
    run.folder.ask_to_stop()
    with pytest.raises(TrainingInterrupted, match="--resume"):
        await run.loop.run()
    run.die()
    assert make_run(config, tmp_path / "run", resume=True).loop.step == 1


async def test_another_version_of_the_ensemble_is_recorded(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    config = make_config(policy_folder, prompts, save_steps=2)
    reward = WordReward()
    run = make_run(config, tmp_path / "run", reward=reward)

    def swaps(step: int, place: int) -> None:
        reward.version = "b" * 12 if step else "a" * 12

    run.sampler.fails = swaps
    await run.loop.run()
    assert run.loop.log.series("versions") == [["a" * 12], ["b" * 12], ["b" * 12]]
    assert sum("rewards are by version" in line for line in run.said) == 1
    assert [path.name for path in (tmp_path / "run" / "policies").iterdir()] == ["000002"]


async def test_uncertainty_that_climbs_with_the_reward_raises_an_alarm(
    policy_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    config = make_config(
        policy_folder, prompts, estimator="rloo", steps=20, update={"lr": 1e-2}, kl={"coefficient": 0.0},
        rollout={"prompts": 6, "samples": 8, "max_new_tokens": 4}, alarm={"window": 8, "stop": True},
    )  # fmt: skip

    class Unsure(WordReward):
        async def score(self, *args: Any) -> list[Any]:
            self.spread += 0.01
            return await super().score(*args)

    run = make_run(config, tmp_path / "run", reward=Unsure())
    with pytest.raises(RunStopped, match="uncertainty climbs while the reward does"):
        await run.loop.run()
    assert run.loop.log.lines[-1]["alarm/overoptimization"] == 1.0
    assert any("sign of over-optimisation" in line for line in run.said)
    calm = make_run(config, tmp_path / "calm")
    await calm.loop.run()
    assert not any(calm.loop.log.series("alarm/overoptimization"))


async def test_a_second_reward_is_measured_and_not_learned_from(
    policy_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    config = make_config(policy_folder, prompts)
    alone = make_run(config, tmp_path / "alone")
    await alone.loop.run()
    both = make_run(config, tmp_path / "both", gold=WordReward(word=7))
    await both.loop.run()
    assert fingerprint(both.policy) == fingerprint(alone.policy)
    lines = (tmp_path / "both" / "journal" / "000000.jsonl").read_text().splitlines()
    golds = [one["score"] for line in map(json.loads, lines) if line["kind"] == "gold" for one in line["rewards"]]
    assert both.loop.log.series("reward/gold")[0] == pytest.approx(sum(golds) / len(golds))
    assert len(golds) == 16


async def test_a_journal_of_other_weights_is_not_learned_from(
    policy_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    run = make_run(make_config(policy_folder, prompts, seed=1), tmp_path / "other")
    await run.loop.run()
    mine = make_run(make_config(policy_folder, prompts), tmp_path / "mine")
    (tmp_path / "other" / "journal").rename(tmp_path / "mine" / "journal")
    with pytest.raises(RunStopped, match="are of other weights"):
        await mine.loop.run()


async def test_a_policy_that_has_moved_far_enough_takes_no_further_step(
    policy_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    all_at_once = {"minibatch": 16, "lr": 1e-2}
    stopped = make_run(
        make_config(policy_folder, prompts, steps=1, update={**all_at_once, "epochs": 5}, kl={"early_stop": 1e-9}),
        tmp_path / "stopped",
    )
    once = make_run(
        make_config(policy_folder, prompts, steps=1, update={**all_at_once, "epochs": 1}), tmp_path / "once"
    )
    for run in (stopped, once):
        await run.loop.run()
    assert stopped.loop.log.series("kl/stopped") == [1.0]
    assert once.loop.log.series("kl/stopped") == [0.0]
    assert fingerprint(stopped.policy) == fingerprint(once.policy)
