"""What a run leaves behind: a record in JSON, the edited weights, a page for people, and tables for the terminal."""

from unlearnkit.reporting.judgement import Judgement, judge
from unlearnkit.reporting.record import RunRecord, read_record, write_result
from unlearnkit.reporting.tables import method_table, plugin_table, run_table, tensor_table
from unlearnkit.reporting.tuning_table import tuning_table

__all__ = [
    "Judgement",
    "RunRecord",
    "judge",
    "method_table",
    "plugin_table",
    "read_record",
    "run_table",
    "tensor_table",
    "tuning_table",
    "write_result",
]
