"""LoRA adapters that forget, initialised from two importances; needs the extra ``peft``."""
