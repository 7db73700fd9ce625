"""The README.md of a model folder: what the model is, what it was trained on, how well it does on validation."""

import json

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

Labels: {labels}.

| | |
|---|---|
| features | `{features}` |
| audio encoder | `{audio}` |
| text encoder | `{text}` |
| seed | {seed} |
| best epoch | {best_epoch} |

## Validation

| metric | value |
|---|---|
{validation}

The weights are those of the epoch with the best validation score; the test split took no part.

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
        labels=", ".join(provenance.labels),
        features=provenance.features,
        audio=provenance.audio.to_json() if provenance.audio else "none",
        text=provenance.text.to_json() if provenance.text else "none",
        best_epoch=provenance.best_epoch,
        validation="\n".join(f"| {metric} | {score:.4f} |" for metric, score in provenance.validation.items()),
        params=json.dumps(provenance.recipe.to_json(), indent=2),
        folder=f"models/{name}/seed-{provenance.seed}",
    )
