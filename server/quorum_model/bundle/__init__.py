"""An ensemble on disk: manifest, verified reading, atomic writing, model card."""
