"""Parts that models share, one to a file. Masks are boolean, true = real; utterances lie flat (fusion.batch)."""
