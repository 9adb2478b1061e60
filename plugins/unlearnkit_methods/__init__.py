"""The unlearning methods that ship with unlearnkit: one file and one entry point for each."""
