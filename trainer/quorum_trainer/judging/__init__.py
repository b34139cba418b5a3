"""A language model as the judge: AlpacaEval's win rates and MT-Bench's ratings, by any server with OpenAI's API.

    answers  --templates-->  messages  --judge: journal, retries-->  judgements  --verdicts-->  figures

The published prompts are read from where their owners keep them: the alpaca_eval package, FastChat's
judge_prompts.jsonl.
"""
