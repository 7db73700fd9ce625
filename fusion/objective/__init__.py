"""What is learned and how well: tasks, losses, metrics, the best epoch, calibration, statistics. All pure."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.objective.calibration import Calibration, calibrate
    from fusion.objective.losses import LabelLoss, Losses, LossTerms, fusion_loss, head_masks
    from fusion.objective.metrics import (
        HIGHEST,
        LABEL_METRICS,
        METRICS,
        METRICS_OF,
        ClassScores,
        Target,
        as_confusion,
        class_scores,
        compute_all,
        conversation_confusions,
        to_seven,
    )
    from fusion.objective.selection import (
        Epoch,
        Sought,
        best_epoch,
        history_from_json,
        history_to_json,
        signs_of_no_learning,
    )
    from fusion.objective.statistics import (
        Interval,
        Sample,
        bootstrap,
        draw_sample,
        estimate_interval,
        holm,
        measure_spread,
        percentile_interval,
        permutation_test,
    )
    from fusion.objective.tasks import Task, chance_scores, find_task, floor_scores, score_scale
else:
    __getattr__ = door(__name__, __file__)
