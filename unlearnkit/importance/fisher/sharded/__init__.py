"""The diagonal Fisher of models that are sharded over processes (FSDP2, DTensor)."""
