"""From observed fields to an ensemble: the request, the sampling of members, and the answer with its labels."""
