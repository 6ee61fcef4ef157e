"""The contents of a folder, read and validated once: a run, a study, a compression.

The models name the fields that pages show. A field that a file does not have is None or empty; one of the wrong type
makes the file damaged, and the error names both. Numbers that are not finite are None. What a later version of Kitae
adds to a file is ignored, but for a compression, whose page shows it under its own name.
"""

from kitae.reporting.results.compression import Candidate, CompressionRecord
from kitae.reporting.results.run import ClassRow, Epoch, Predicted, RunRecord, Split, read_predictions
from kitae.reporting.results.study import Analysis, Effect, StudyRecord, Variant

__all__ = [
    "Analysis",
    "Candidate",
    "ClassRow",
    "CompressionRecord",
    "Effect",
    "Epoch",
    "Predicted",
    "RunRecord",
    "Split",
    "StudyRecord",
    "Variant",
    "read_predictions",
]
