"""`quorum bench train`: members trained together against the same members trained one after another by PEFT."""
