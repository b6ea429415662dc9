"""Pages for people to read: a case, and a cohort.

In: results, and the frames of their stacks. Out: `report.html` and `index.html`, one file each, which load nothing. May
use every other room.
"""
