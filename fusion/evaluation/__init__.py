"""Scores on the test split, of seeds, of degraded inputs and of folds, and the files that hold them."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.evaluation.folds import folds_headline, join_folds, write_folds
    from fusion.evaluation.pictures import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, draw_png, draw_svg
    from fusion.evaluation.predictions import Record, class_rows, read_records
    from fusion.evaluation.result_files import (
        RESULT,
        check_files,
        check_results,
        check_whole,
        current_commit,
        describe_run,
        find_run,
        hash_files,
        headline,
        other_results,
        read_result,
        write_report,
    )
    from fusion.evaluation.robustness import evaluate_all, measure_robustness, read_degraded
    from fusion.evaluation.robustness_files import AXES, TITLES, level_name
    from fusion.evaluation.scores import FEW_CONVERSATIONS, Evaluation, evaluate, load_test, sample_std
else:
    __getattr__ = door(__name__, __file__)
