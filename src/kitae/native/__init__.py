"""Machine code: how functions are compiled (`jit`), what they need beyond Python (`link`), how threads share work."""
