"""Encoders: from clips and sentences to frames and tokens."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from pipeline.encoders.architectures import REFUSED, SPEECH, TEXT, ready_for_a_text
    from pipeline.encoders.batching import Rows, batches_under_budget, cut, shuffled_batches
    from pipeline.encoders.context import (
        NO_CONTEXT,
        Passage,
        Reader,
        Said,
        TextContext,
        due,
        passage_key,
        passages,
        separator,
        special_tokens,
    )
    from pipeline.encoders.egemaps import EGEMAPS
    from pipeline.encoders.exact import Convolutions, make_exact, padded, prepared, restore_names, widen_narrow_groups
    from pipeline.encoders.front_end import Prepared
    from pipeline.encoders.loading import (
        FINGERPRINT,
        LEARNED,
        NOTE,
        Source,
        choose_device,
        find_model,
        hash_files,
        is_whole,
        load_config,
        load_pretrained,
        read_learned,
        read_note,
        weights_hash,
        write_note,
    )
    from pipeline.encoders.named import Named, load_speech, load_text
    from pipeline.encoders.precision import PROBE_FRAMES, Probe, noise_and_tones, reduce_precision
    from pipeline.encoders.speech import LOG_MEL, SpeechEncoder, load_speech_encoder, preprocessing
    from pipeline.encoders.text import (
        PROBE_TOKENS,
        TextEncoder,
        load_text_encoder,
        load_tokenizer,
        longest_sequence,
        padding_of,
        random_tokens,
        token_numbers,
        vocabulary_hash,
    )
    from pipeline.encoders.tiny import TINY_SPEECH, TINY_TEXT
    from pipeline.encoders.whisper import Spectra, encoded, frame_mask
else:
    __getattr__ = door(__name__, __file__)
