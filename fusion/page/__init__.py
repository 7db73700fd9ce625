"""An evaluation as one page to open in a browser: its scores, and every turn with what the models make of it."""
