"""Result files: names, how each was made, reading and writing."""

from univ.results.layout import (
    PROBES_NAME,
    SUBGROUPS_NAME,
    ResultFile,
    canonical_exp,
    exp_spellings,
    parse_path,
    score_csvs,
)
from univ.results.scores import check, find_results, read_matrix, read_record, write, write_companion
from univ.results.tables import (
    LONG_COLUMNS,
    PROBE_COLUMNS,
    SUBGROUP_COLUMNS,
    complete_accuracies,
    find_evaluations,
    load_accuracies,
    load_companions,
    load_evaluations,
    load_long_table,
    load_model_table,
    load_probe_agreement,
    load_subgroups,
)

__all__ = [
    "LONG_COLUMNS",
    "PROBES_NAME",
    "PROBE_COLUMNS",
    "SUBGROUPS_NAME",
    "SUBGROUP_COLUMNS",
    "ResultFile",
    "canonical_exp",
    "check",
    "complete_accuracies",
    "exp_spellings",
    "find_evaluations",
    "find_results",
    "load_accuracies",
    "load_companions",
    "load_evaluations",
    "load_long_table",
    "load_model_table",
    "load_probe_agreement",
    "load_subgroups",
    "parse_path",
    "read_matrix",
    "read_record",
    "score_csvs",
    "write",
    "write_companion",
]
