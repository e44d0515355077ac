"""The report of a validation: one document, written as JSON or Markdown here, as HTML by the toolkit."""
