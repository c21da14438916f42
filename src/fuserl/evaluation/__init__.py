"""From answers to numbers with intervals, tables, figures and a page."""
