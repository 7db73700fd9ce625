"""Parts that models share. Masks are boolean, true = real; utterances lie flat (`fusion.batch`)."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.layers.attention import KeyMask, MultiHeadAttention, TransformerLayer, masked_softmax
    from fusion.layers.conversation import (
        Among,
        AttentionAmongTurns,
        BranchedAttention,
        ConversationEncoder,
        ConversationLayers,
        EncodeBoth,
        MatchingAttention,
        TurnAttention,
        gather_neighbours,
        turn_keys,
    )
    from fusion.layers.ensemble import Ensemble
    from fusion.layers.linear_path import STATISTICS, LinearPath, LinearWeights, path_weights
    from fusion.layers.pooling import AttentionPooling, LastPooling, LastStates, MeanPooling
    from fusion.layers.primitives import (
        Constant,
        Embedding,
        Gate,
        InputProjection,
        Parts,
        SequenceDropout,
        Unchanged,
        WeightedMix,
        classifier,
        collect_views,
        feed_forward,
        relu_layers,
        zero_padding,
    )
    from fusion.layers.recurrent import Direction, SequenceGRU, TurnGRU
    from fusion.layers.residual import FeedForward, LinearSkip, RecurrentLayer, SelfAttention
    from fusion.layers.standardise import ScoreScale, Standardise
else:
    __getattr__ = door(__name__, __file__)
