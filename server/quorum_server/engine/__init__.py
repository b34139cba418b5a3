"""The engine's child process and the messages that cross to it."""
