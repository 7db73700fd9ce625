"""Small trees in the exact format of each corpus' release, from made text and synthesised speech, with its faults."""
