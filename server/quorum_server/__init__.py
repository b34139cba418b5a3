"""The service: HTTP, admission, batching and the engine process. Knows nothing of training."""
