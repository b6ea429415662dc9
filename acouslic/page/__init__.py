"""What all pages for people share: look, policy, a table to sort, outlines and curves as drawings.

In: a template, its values, style sheets and scripts; polygons and probabilities. Out: HTML in one file that loads
nothing; SVG paths. May use `acouslic.printable`; it needs Jinja2 where a page is made.
"""
