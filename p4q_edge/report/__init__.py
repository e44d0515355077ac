"""The report of a validation as one HTML file that fetches nothing."""
