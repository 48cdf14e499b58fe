"""How good the adapter is: predictions, references, comparison, verdict, pictures, report, record."""
