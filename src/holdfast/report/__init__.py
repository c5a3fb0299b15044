"""Charts, the self-contained HTML report, and the table for terminals, all over one result (``schema.py``).

    schema.py      the form of a result, and ``check``
    facts.py       order, styles, verdicts and Pareto fronts
    phrases.py     numbers and intervals as text
    headline.py    what was asked and what came out, in sentences computed from the numbers
    charts.py      result -> Altair chart; ``save`` writes html, png, svg, pdf, json
    page.py        ``render`` and ``write``: one HTML file that needs no network
    terminal.py    the same table for a terminal or a pipe

Nothing is imported here, so that asking for a table does not load the chart library.
"""
