"""The README.md of a model folder: what the model is, what it was trained on, how well it does on validation."""

import json
from collections.abc import Mapping

from fusion.provenance import Provenance

TEMPLATE = """\
---
library_name: erc-fusion
pipeline_tag: audio-classification
tags:
- emotion-recognition
- emotion-recognition-in-conversation
- multimodal
- {model}
---

# {model}, seed {seed}

Emotion recognition in conversations from cached audio and text features, made with erc-fusion {version}.

{answer}

| | |
|---|---|
| features | `{features}` |
| audio encoder | `{audio}` |
| text encoder | `{text}` |
| seed | {seed} |
| epochs chosen | {selected} |

## Validation

{validation}

The weights are those of the epochs with the best validation scores; the test split took no part.

## Parameters

```json
{params}
```

## Use

The model takes features of the encoders above and refuses others. `fusion-evaluate` scores it, and
`fusion.checkpoint.load_model` loads it:

```python
from pathlib import Path
from fusion.checkpoint import load_model

model = load_model(Path("{folder}")).model
```
"""


def model_card(provenance: Provenance) -> str:
    """The text of the card."""
    name = provenance.recipe.model.name
    return TEMPLATE.format(
        model=name,
        seed=provenance.seed,
        version=provenance.version,
        answer=f"Labels: {', '.join(provenance.labels)}." if provenance.labels else "It tells a score, a real number.",
        features=provenance.features,
        audio=provenance.audio.to_json() if provenance.audio else "none",
        text=provenance.text.to_json() if provenance.text else "none",
        selected=", ".join(f"{head} {number}" for head, number in provenance.selected.items()),
        validation=_scores(provenance.validation),
        params=json.dumps(provenance.recipe.to_json(), indent=2),
        folder=f"models/{name}/seed-{provenance.seed}",
    )


def _scores(validation: Mapping[str, Mapping[str, float]]) -> str:
    """A table with a row for every head."""
    metrics = list(validation["fused"])
    rows = [["head", *metrics], ["---"] * (len(metrics) + 1)]
    rows += [[head, *(f"{scores[metric]:.4f}" for metric in metrics)] for head, scores in validation.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
