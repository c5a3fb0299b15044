"""Load, ask and save models; the embedded sandbox ones."""
