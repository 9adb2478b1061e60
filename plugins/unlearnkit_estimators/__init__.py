"""The importance estimators that ship as plugins."""
