"""The results of a run: the record in JSON, the edited model, the HTML page, and tables for the terminal."""

from unlearnkit.reporting.record import RunRecord, read_record
from unlearnkit.reporting.tables import (
    details_text,
    method_details,
    method_kind,
    method_table,
    plugin_table,
    recommendation_table,
    run_table,
    tensor_table,
    tuning_table,
)
from unlearnkit.reporting.verdict import Judgement, verdict
from unlearnkit.reporting.write import write_result

__all__ = [
    "Judgement",
    "RunRecord",
    "details_text",
    "method_details",
    "method_kind",
    "method_table",
    "plugin_table",
    "read_record",
    "recommendation_table",
    "run_table",
    "tensor_table",
    "tuning_table",
    "verdict",
    "write_result",
]
