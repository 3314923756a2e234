"""Runs of many members by many processes: their plan, their shares, and statistics on the way.

How work is divided, resumed and counted goes here. How a file looks is `store`; how a member is made is `forecasting`.
"""
