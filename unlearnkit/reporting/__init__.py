"""What a run leaves behind: a record in JSON, the edited weights, and tables for the terminal."""

from unlearnkit.reporting.record import RunRecord, write_result
from unlearnkit.reporting.tables import method_table, plugin_table, run_table, tensor_table
from unlearnkit.reporting.tuning_table import tuning_table

__all__ = ["RunRecord", "method_table", "plugin_table", "run_table", "tensor_table", "tuning_table", "write_result"]
