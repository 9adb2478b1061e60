"""LoRA adapters that forget, with the base model frozen; they need the extra ``peft``."""

from unlearnkit_adapters.forgetting import centred_importance, forgetting_adapter, save_forgetting_adapter

__all__ = ["centred_importance", "forgetting_adapter", "save_forgetting_adapter"]
