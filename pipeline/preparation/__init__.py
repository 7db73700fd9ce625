"""The `prepare` stage: a corpus as people have it -> the manifest."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from pipeline.preparation.counts import label_warnings, split_warnings
    from pipeline.preparation.stage import (
        Prepared,
        after_probing,
        by_conversation,
        check_published,
        draft_utterance,
        leave_to_others,
        link_corpus,
        link_encoders,
        note_validation,
        prepare,
        relative_path,
        settle,
        summary,
    )
else:
    __getattr__ = door(__name__, __file__)
