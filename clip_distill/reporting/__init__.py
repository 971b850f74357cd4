"""One page that shows what a student kept of its teacher: figures with intervals, charts, the queries themselves."""
