"""Files, text, machine and bounds: what every room uses; nothing here knows a model."""
