"""Pages, figures and intervals: how numbers are shown, whatever they are of."""
