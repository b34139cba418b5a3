"""PPO, RLOO and GRPO against a remote reward; ARCHITECTURE.md shows how a step travels."""
