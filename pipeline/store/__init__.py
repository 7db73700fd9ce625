"""The feature file: ragged features of one or two modalities in HDF5, laid out flat.

A *part* (`data/audio.h5`, `data/text.h5`, or a group of a self-contained file) holds one modality:

    values     (rows, dim) or (rows, layers, dim), little-endian float16 or float32, contiguous, uncompressed
    offsets    (utterances + 1,) int64: utterance i owns rows offsets[i] .. offsets[i + 1]
    checksums  (utterances,) uint64 of each utterance's bytes; 0 means not written yet
    ids        (utterances,) UTF-8: in a file of one modality hashes of what was encoded, each once
               (`pipeline.manifest.content_key`); in a self-contained joint file the utterances in its order
    failed     one JSON object, id -> status, of the utterances that could not be encoded; only where there are any.
               They have no rows, as those without this modality.
    learned    (utterances,) uint8: 1 where the encoder was fine-tuned on the label of this utterance (by
               `pipeline-finetune`, train and validation); only where there are any
    attributes `format`, `version`, `kind`, `identity` (JSON: which encoder made it), `plan` (hash of its inputs)

A *joint file* (`data/feats.h5`) holds the table `/utterances` with one column an array, the label names, and the
parts `/audio` and `/text`: as external links with relative names (to `/` of a part's file, or to `/audio` or `/text`
of another joint file that holds the part itself), or copied in. Beside a link, `/audio_slots`
(utterances,) int64 says where in the part each utterance is (-1: it lacks this modality), so a part serves every split
and order of its corpus; without it, the part has the order of the table. The joint file records each part's identity
and digest, so that its own bytes change whenever a feature does, and a part that was exchanged is refused. Its
attribute `corpus`, where there is one, says what the corpus is (`pipeline.store.identity`).

A file begins with its seal (`pipeline.store.seal`), which is checked before HDF5 reads it.

Nothing in a file depends on time, machine or folder: the same input gives the same bytes. Values are returned as
read-only memory maps; no HDF5 handle stays open, so a reader may fork. Rows are compared with their checksums before
their first use in a run (`pipeline.store.guard`).
"""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from pipeline.store.columns import Columns, Scale, join_columns, measure_columns, plain_scale, robust_scale
    from pipeline.store.guard import ABSURD, Guard, checksum, is_sane
    from pipeline.store.identity import IMPORTED, NO_ENCODER, CorpusNote, Identity, Reference
    from pipeline.store.reader import (
        MODALITIES,
        SPLITS,
        UNLABELLED,
        Dtype,
        Features,
        Part,
        Utterances,
        kind_of,
        lies_elsewhere,
        read_features,
        read_part,
        source_digest,
    )
    from pipeline.store.slot_writer import SlotWriter
    from pipeline.store.splits import (
        COPIED,
        Contents,
        as_numbers,
        count_labels,
        fold_copies,
        split_copies,
        stratify,
        whole_groups,
    )
    from pipeline.store.writer import PartLayout, is_damaged, write_joint, writing
else:
    __getattr__ = door(__name__, __file__)
