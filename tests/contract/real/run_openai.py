"""OpenAI's SDK, unmodified, on models and embeddings. Prints what it understood."""

from __future__ import annotations

import json
import sys

import openai

given = json.loads(sys.argv[1])
answer = {}
for prefix in ("vllm", "sglang"):
    client = openai.OpenAI(base_url=f"{given['url']}/{prefix}/v1", api_key=given["api_key"], max_retries=0)
    answer[prefix] = [(model.id, model.object, model.owned_by) for model in client.models.list()]
client = openai.OpenAI(base_url=f"{given['url']}/sglang/v1", api_key=given["api_key"], max_retries=0)
texts, model = given["texts"], given["model"]
by_default = client.embeddings.create(model=model, input=texts)
answer["base64"] = [entry.embedding for entry in by_default.data]
answer["float"] = [
    entry.embedding for entry in client.embeddings.create(model=model, input=texts, encoding_format="float").data
]
answer["one"] = client.embeddings.create(model=model, input=texts[0], encoding_format="float").data[0].embedding
answer["ids"] = client.embeddings.create(model=model, input=given["ids"], encoding_format="float").data[0].embedding
answer["model"], answer["tokens"] = by_default.model, by_default.usage.total_tokens
try:
    client.embeddings.create(model="other", input="a")
except openai.NotFoundError as error:
    answer["unknown model"] = error.code
try:
    client.embeddings.create(model=model, input=["a", " "])
except openai.UnprocessableEntityError as error:
    answer["blank"] = error.code
print(json.dumps(answer))
