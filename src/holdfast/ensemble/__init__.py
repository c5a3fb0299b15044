"""Few, diverse, better: ensembles of models by focal diversity."""
