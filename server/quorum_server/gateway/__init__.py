"""Best-of-N behind OpenAI's routes: candidates from a generator, ranked by an ensemble, the best returned.

    body  --bodies-->  ChatBody, CompletionBody  --plan-->  Plan  --gateway: generator, /rank-->  --answer-->  body, SSE

Any OpenAI client gets ranked answers by changing its base URL.
"""
