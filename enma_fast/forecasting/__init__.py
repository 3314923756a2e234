"""From observed fields to an ensemble: the request, the sampling of members, and the answer with its labels.

An argument of `forecast` and every check of one goes here. Stores on disk are `store`, runs of many processes `runs`.
"""
