"""`quorum sft`: a policy to begin with, trained on dialogues by TRL's SFTTrainer.

    CONFIG.yaml  --config-->  SftConfig  --dialogues-->  examples  --policy-->  model, tokenizer  --run-->  a folder

What it writes is an ordinary folder of Transformers: vLLM serves it, PPO goes on from it.
"""
