"""How well raters agree, and whether a judge may stand in for people. Pure functions on arrays; no torch."""
