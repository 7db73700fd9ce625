"""Ablation tables: their rows, the runs behind them, their comparison and their files."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.ablation.comparison import compare
    from fusion.ablation.study import ablate
    from fusion.ablation.table_files import TABLE, check_table, headline, write_table
    from fusion.ablation.variants import read_variants
else:
    __getattr__ = door(__name__, __file__)
