"""The unlearning methods that ship with unlearnkit: one file for each, each with an entry point of its own."""
