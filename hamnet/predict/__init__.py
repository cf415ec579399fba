"""Predicted Hamiltonians: of a structure, on the pairs of a given overlap or of the model's basis.

Small crystals are predicted in memory (:func:`predict`), large ones tile by tile into a file (:func:`predict_to_file`).
"""

from .forecast import Forecast, Tile
from .job import Report, predict_to_file
from .prediction import (
    Plan,
    Prediction,
    count_electrons,
    make_plan,
    predict,
    predict_operator,
    prediction_pairs,
    source_on,
)

__all__ = [
    "Forecast",
    "Plan",
    "Prediction",
    "Report",
    "Tile",
    "count_electrons",
    "make_plan",
    "predict",
    "predict_operator",
    "predict_to_file",
    "prediction_pairs",
    "source_on",
]
