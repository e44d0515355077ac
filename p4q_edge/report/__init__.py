"""The report of a validation: one document, written as JSON, as Markdown, or as one HTML file without links."""
