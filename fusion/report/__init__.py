"""An evaluation as one page to open in a browser: its scores, and every turn with what the models make of it."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.report.build import PAGE, Sources, write_page
    from fusion.report.utterances import find_words, read_places
else:
    __getattr__ = door(__name__, __file__)
