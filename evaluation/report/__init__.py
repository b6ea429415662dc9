"""The page that people read: tables, plots and the worst cases, in one offline file.

In: the results of all cases and their summary. Out: HTML. May use `metrics` and `inputs`.
"""
